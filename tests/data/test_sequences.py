"""Blocks lose no token, pairs stay pairs, and a trained tokenizer gives every text again."""

import os
import subprocess
import sys

import pytest

import minitransformer as mt
from minitransformer.data import EncodedPairs, EncodedTexts, encode_pairs, pack, train_tokenizer

TEXTS = ("The cat sat.", "naïve café — 日本", "  two  spaces\nand a line", "the the the then")


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_pack_loses_nothing_but_the_last_incomplete_block(n):
    texts = EncodedTexts(((5, 6), (7,), (8, 9, 4, 5, 6, 7, 8), (9, 9)), None, 0)
    stream = [5, 6, 1, 7, 1, 8, 9, 4, 5, 6, 7, 8, 1, 9, 9, 1]
    blocks = pack(texts, n, end_id=1)
    assert {len(b) for b in blocks.ids} == {n}
    assert [t for b in blocks.ids for t in b] == stream[: len(stream) // n * n]
    assert blocks.labels is None and blocks.pad_id == 0


def test_pack_puts_one_end_where_the_tokenizer_has_put_it_already():
    assert pack(EncodedTexts(((5, 1), (7,)), None, 0), 2, end_id=1).ids == ((5, 1), (7, 1))


def test_packed_batches_have_no_padding():
    texts = EncodedTexts(tuple((5,) * (1 + i % 6) for i in range(50)), None, 0)
    for batch in pack(texts, 8, 1).batches(4, seed=1):
        assert batch.keep.all() and batch.ids.shape[1] == 8
        assert batch.n_targets == len(batch) * 7


def test_too_little_text_for_a_block_says_so():
    with pytest.raises(ValueError, match="1 texts with 3 tokens do not fill one block of 4"):
        pack(EncodedTexts(((5, 6),), None, 0), 4, 1)


@pytest.mark.parametrize("seed", [None, 3])
def test_pairs_stay_together_and_come_once(seed):
    sources = tuple(tuple(range(4, 5 + i % 7)) for i in range(100))
    targets = tuple((i % 13 + 4,) * (1 + i % 5) + (1,) for i in range(100))
    seen = []
    for batch in EncodedPairs(sources, targets, 0).batches(16, seed):
        for row, i in enumerate(batch.indices):
            source = batch.source[row][batch.source_keep[row, 0, 0]]
            target = batch.target[row][batch.target_keep[row, 0, 0]]
            assert tuple(source.tolist()) == sources[i] and tuple(target.tolist()) == targets[i]
            seen.append(i)
    assert sorted(seen) == list(range(100))


def test_pairs_of_like_length_are_together_in_an_order_of_the_seed():
    lengths = [1 + 7 * i % 30 for i in range(400)]
    data = EncodedPairs(tuple((5,) * n for n in lengths), ((6, 1),) * 400, 0)

    def order(seed):
        return [b.indices for b in data.batches(8, seed)]

    assert order(1) == order(1) != order(2)
    padded = sum(b.source.numel() for b in data.batches(8, 1))
    assert sum(lengths) / padded > 0.9


def test_real_is_what_has_a_length_not_what_has_an_id():
    """Padding with the end token must not hide the ends (mistake 42)."""
    (batch,) = EncodedPairs(((5, 6), (7,)), ((8, 1), (8, 9, 1)), pad_id=1).batches(2)
    assert batch.n_targets == 5 and batch.source_keep.sum() == 3


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="2 sources and 1 targets"):
        EncodedPairs(((5,), (6,)), ((7,),), 0)
    with pytest.raises(ValueError, match="at least one"):
        EncodedPairs((), (), 0)


def test_encode_pairs_ends_every_target_once():
    tokenizer = train_tokenizer(["abc"], "characters")
    data = encode_pairs(["a", "ab"], ["b", "c"], tokenizer, tokenizer.id_of("[END]"))
    assert data.sources == ((4,), (4, 5)) and data.targets == ((5, 3), (6, 3))
    assert data.pad_id == 0


@pytest.mark.parametrize(("kind", "size"), [("characters", 2000), ("bytes", 300)])
def test_a_trained_tokenizer_gives_every_text_again(kind, size):
    tokenizer = train_tokenizer(TEXTS, kind, size)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.id_of(t) for t in ("[PAD]", "[UNK]", "[START]", "[END]")] == [0, 1, 2, 3]
    assert tokenizer.vocab_size <= size
    again = mt.data.Tokenizer.from_json(tokenizer.to_json())
    assert [again.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]


def test_characters_are_tokens_and_bytes_are_joined():
    characters = train_tokenizer(TEXTS, "characters")
    assert characters.tokens(characters.encode("the")) == ["t", "h", "e"]
    assert characters.tokens(characters.encode("x☃")) == ["[UNK]", "[UNK]"]
    joined = train_tokenizer(TEXTS, "bytes", 300)
    assert len(joined.encode("the the")) < 7
    assert joined.decode(joined.encode("never seen: ☃")) == "never seen: ☃"


def test_bad_requests_for_a_tokenizer():
    with pytest.raises(ValueError, match="kind='words' is not known"):
        # The tests also enforce the annotation, which would refuse it first.
        getattr(train_tokenizer, "__wrapped__", train_tokenizer)(TEXTS, "words")
    with pytest.raises(ValueError, match="vocab_size=100 is too small"):
        train_tokenizer(TEXTS, "bytes", 100)
    with pytest.raises(KeyError, match=r"no token '\[MASK\]'"):
        train_tokenizer(TEXTS, "characters").id_of("[MASK]")


def test_training_a_tokenizer_is_deterministic():
    code = (
        "import minitransformer as mt; texts = mt.data.samples().texts;"
        "print(hash(mt.data.train_tokenizer(texts, 'bytes', 400).to_json()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        ).stdout
        for _ in range(2)
    }  # fmt: skip
    assert len(said) == 1
