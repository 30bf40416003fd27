"""A trained tokenizer gives every text again, has the special tokens asked for, and can be saved."""

import os
import subprocess
import sys

import pytest
import torch

import minitransformer as mt
from minitransformer.data import train_tokenizer

TEXTS = ("The cat sat.", "naïve café — 日本", "  two  spaces\nand a line", "the the the then")


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


def test_word_pieces_are_lower_case_and_framed():
    tokenizer = train_tokenizer(["low lower lowest", "New newer"] * 3, "words", 60)
    assert tokenizer.tokens(tokenizer.encode("Lower, NEWEST")) == [
        "[CLS]", "lower", "[UNK]", "new", "##es", "##t", "[SEP]"
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("Newer lowest")) == "newer lowest"
    again = mt.data.Tokenizer.from_json(tokenizer.to_json())
    assert again.encode("Lower, NEWEST") == tokenizer.encode("Lower, NEWEST")


def test_word_pieces_do_not_take_a_text_for_a_token():
    """What the learner is told as special tokens must not remain so: `##` in a text is two marks."""
    tokenizer = train_tokenizer(["a#b abab"], "words", 40)
    assert tokenizer.tokens(tokenizer.encode("##b")) == ["[CLS]", "#", "#", "b", "[SEP]"]


@pytest.mark.parametrize("kind", ["characters", "words", "bytes"])
def test_encoders_have_berts_special_tokens(kind):
    tokenizer = train_tokenizer(TEXTS, kind, 300, bert=True)
    assert tokenizer.tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = tokenizer.encode("the")
    assert ids[0] == 2 and ids[-1] == 3 and tokenizer.decode(ids) == "the"
    assert train_tokenizer(TEXTS, kind, 300, bert=False).id_of("[END]") == 3


@pytest.mark.parametrize("kind", ["characters", "words", "bytes"])
def test_extra_special_tokens_are_one_token_each_inside_a_text(kind):
    tokenizer = train_tokenizer(TEXTS, kind, 300, extra=("<extra_id_0>", "<extra_id_1>"))
    first = tokenizer.id_of("<extra_id_0>")
    assert first == (5 if kind == "words" else 4)
    assert tokenizer.id_of("<extra_id_1>") == first + 1
    text = "the<extra_id_1>cat<extra_id_0>"
    assert tokenizer.encode(text, special=True).count(first + 1) == 1
    assert tokenizer.decode(tokenizer.encode("the<extra_id_0>", special=True)) == "the"
    assert first + 1 not in tokenizer.encode(text), "otherwise anybody's text is text"


def test_rare_characters_become_unknown():
    tokenizer = train_tokenizer(["aab", "abc"], "characters", min_count=2)
    assert tokenizer.tokens(tokenizer.encode("abc")) == ["a", "b", "[UNK]"]
    often = train_tokenizer(["abab abab cdcd"], "bytes", 300, min_count=4)
    assert len(often.encode("ab")) == 1 and len(often.encode("cd")) == 2


def test_a_vocabulary_of_chinese_characters_is_saved_with_encoder_and_classifier(tmp_path):
    texts = ["房间很好，早餐一般。", "书很好看", "电脑太慢"]
    tokenizer = train_tokenizer(texts, "characters", max_length=32, bert=True)
    config = mt.TransformerConfig.bert(
        vocab_size=tokenizer.vocab_size, d_model=16, n_heads=2, n_layers=1, d_ff=32, max_len=32
    )
    torch.manual_seed(0)
    model = mt.MaskedLM(mt.Encoder(config)).eval()
    mt.save_pretrained(model, tokenizer, tmp_path / "masked")
    again, saved = mt.load_pretrained(tmp_path / "masked")
    ids = tokenizer.batch(texts)
    assert [saved.encode(t) for t in texts] == [tokenizer.encode(t) for t in texts]
    assert saved.id_of("[MASK]") == 4 and saved.decode(saved.encode(texts[0])) == texts[0]
    assert type(again) is mt.MaskedLM
    torch.testing.assert_close(again(ids.ids, ids.keep), model(ids.ids, ids.keep))
    classifier = mt.SequenceClassifier(again.encoder, 2)
    mt.save_pretrained(classifier.eval(), saved, tmp_path / "classifier")
    back, _ = mt.load_pretrained(tmp_path / "classifier")
    torch.testing.assert_close(back(ids.ids, ids.keep), classifier(ids.ids, ids.keep))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "sounds"}, "kind='sounds' is not known; choose one of"),
        ({"kind": "bytes", "vocab_size": 100}, "vocab_size=100 is too small .* at least 260"),
        ({"kind": "words", "vocab_size": 10}, "vocab_size=10 is too small .* give at least [345]"),
        ({"texts": ["", " "]}, "no texts to learn"),
        ({"texts": []}, "no texts to learn"),
        ({"min_count": 0}, "min_count=0 must be at least 1"),
        ({"extra": ("[PAD]",)}, "a name of its own"),
        ({"extra": ("<a>", "<a>")}, "a name of its own"),
        ({"extra": ("",)}, "a name of its own"),
    ],
)
def test_bad_requests_for_a_tokenizer(arguments, message):
    # The tests also enforce the annotation of `kind`, which would refuse it first.
    train = getattr(train_tokenizer, "__wrapped__", train_tokenizer)
    with pytest.raises(ValueError, match=message):
        train(**{"texts": TEXTS, **arguments})


def test_a_token_that_is_not_there():
    with pytest.raises(KeyError, match=r"no token '\[MASK\]'"):
        train_tokenizer(TEXTS, "characters").id_of("[MASK]")


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_training_a_tokenizer_is_deterministic(kind):
    code = (
        "import minitransformer as mt; texts = mt.data.samples().texts;"
        f"print(hash(mt.data.train_tokenizer(texts, {kind!r}, 400).to_json()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        ).stdout
        for _ in range(2)
    }  # fmt: skip
    assert len(said) == 1
