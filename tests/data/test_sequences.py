"""Blocks lose no token, and pairs stay pairs."""

import pytest

from minitransformer.data import (
    EncodedPairs,
    EncodedTexts,
    encode,
    encode_pairs,
    pack,
    train_tokenizer,
)


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


def test_pack_keeps_the_frame_of_an_encoder():
    tokenizer = train_tokenizer(["ab"], "characters", bert=True)
    blocks = pack(encode(["ab", "b"], tokenizer), 7, tokenizer.id_of("[SEP]"))
    assert tokenizer.tokens(blocks.ids[0]) == ["[CLS]", "a", "b", "[SEP]", "[CLS]", "b", "[SEP]"]


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
