"""BERT folders against Hugging Face's transformers: equal outputs, both ways."""

import json
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import PIECES, VOCAB, edit_weights, hf_model, save
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

import minitransformer as mt
from minitransformer.data.tokenizers import Tokenizer
from minitransformer.pretrained import bert, checkpoints


def batch(padding: str):
    """Ids, which of them are real, and segments."""
    ids = torch.randint(5, VOCAB, (4, 11), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(ids, dtype=torch.bool)
    for n in range(1, 4):
        real[n, : 2 * n] = padding != "left"
        if padding == "right":
            real[n, -2 * n :] = False
    return ids.where(real, 0), real, (torch.arange(11) > 4).long().expand(4, -1)


def difference(hf, ours, padding: str, segments: bool) -> float:
    """The largest difference of the last hidden states at real positions, in float64."""
    ids, real, kinds = batch(padding)
    kinds = kinds if segments else None
    with torch.no_grad():
        theirs = hf.double()(ids, attention_mask=real.long(), token_type_ids=kinds)
        mine = ours.double()(ids, segments=kinds)
    return (theirs.last_hidden_state - mine)[real].abs().max().item()


@pytest.mark.parametrize("ops", ["formula", "fused"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("segments", [False, True])
def test_encoder_equals_transformers(tmp_path, ops, padding, segments):
    hf = hf_model()
    ours, _ = mt.load_pretrained(save(hf, tmp_path), ops=ops)
    assert difference(hf, ours, padding, segments) < 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "relu"},
        {"num_attention_heads": 7},
        {"num_attention_heads": 1},
        {"layer_norm_eps": 1e-12},
        {"type_vocab_size": 3},
    ],
    ids=str,
)
def test_every_config_entry_is_obeyed(tmp_path, changes):
    hf = hf_model(**changes)
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    assert difference(hf, ours, "left", True) < 1e-9


@pytest.mark.parametrize(
    "switch",
    [
        {"norm_eps": 1e-5},
        {"activation": "gelu_tanh"},
        {"norm_position": "pre"},
        {"n_heads": 7},
        {"scale_embeddings": True},
        {"pad_id": None},
    ],
    ids=str,
)
def test_every_switch_matters(tmp_path, switch):
    """The comparison can tell: one switch turned, and it fails by far more than its tolerance."""
    hf = hf_model()
    right, _ = mt.load_pretrained(save(hf, tmp_path))
    wrong = mt.Encoder(right.config.with_(**switch))
    wrong.load_state_dict(right.state_dict(), strict=False)
    assert difference(hf, wrong.eval(), "left", True) > 1e-4
    assert difference(hf, right, "left", False) < 1e-9
    no_segments = batch("left")[0]
    with torch.no_grad():
        right.embeddings.segments.weight[0] = 0.0  # mistake 35: segment 0 is a vector too
    assert difference(hf, right, "left", False) > 1e-2, no_segments


def test_old_and_prefixed_names_load(tmp_path):
    hf = hf_model()

    def old_names(state):
        renamed = {
            "bert."
            + k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): t.clone()
            for k, t in state.items()
        }
        renamed["bert.embeddings.position_ids"] = torch.arange(17)[None]
        renamed["cls.predictions.bias"] = torch.zeros(VOCAB)
        return renamed

    edit_weights(save(hf, tmp_path), old_names)
    ours, _ = mt.load_pretrained(tmp_path)
    assert difference(hf, ours, "right", True) < 1e-9


def test_a_model_without_pooler_loads(tmp_path):
    torch.manual_seed(0)
    hf = BertModel(hf_model().config, add_pooling_layer=False).eval()
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    assert ours.pooler is None and difference(hf, ours, "right", False) < 1e-9


@pytest.mark.parametrize("ops", ["formula", "fused"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_classifier_equals_transformers(tmp_path, ops, padding):
    names = {0: "dull", 1: "fair", 2: "fine"}
    hf = hf_model(BertForSequenceClassification, id2label=names, num_labels=3).double()
    ours, _ = mt.load_pretrained(save(hf, tmp_path), ops=ops)
    ids, real, kinds = batch(padding)
    with torch.no_grad():
        theirs = hf(ids, attention_mask=real.long(), token_type_ids=kinds).logits
        mine = ours.double()(ids, segments=kinds)
    torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)
    assert ours.labels == ("dull", "fair", "fine") and ours.pooling == "cls"


def test_gradients_equal_those_of_transformers(tmp_path):
    """Equal where fine-tuning needs it: the gradient of every weight, through the same file."""
    hf = hf_model(BertForSequenceClassification, num_labels=3).double()
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    ids, real, kinds = batch("right")
    labels = torch.tensor([2, 0, 1, 2])
    hf(ids, attention_mask=real.long(), token_type_ids=kinds, labels=labels).loss.backward()
    logits = ours.double()(ids, segments=kinds)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    theirs, mine = bert.normalise(dict(hf.named_parameters()), {}), dict(ours.named_parameters())
    pairs = list(bert.key_map(ours))
    assert len(pairs) == len(mine)
    for a, b in pairs:
        torch.testing.assert_close(mine[a].grad, theirs[b].grad, atol=1e-9, rtol=0, msg=a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_as_float32(tmp_path, dtype):
    edit_weights(
        save(hf_model(), tmp_path), lambda state: {k: t.to(dtype) for k, t in state.items()}
    )
    ours, _ = mt.load_pretrained(tmp_path)
    hf = AutoModel.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert difference(hf, ours, "right", True) < 1e-9


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_save_pretrained_round_trip(tmp_path, pooling):
    encoder, tokenizer = mt.load_pretrained(save(hf_model(), tmp_path / "hf"))
    model = mt.SequenceClassifier(encoder, 3, pooling, dropout=0.0).eval()
    model.labels = ("dull", "fair", "fine")
    torch.nn.init.normal_(model.classifier.weight)
    folder = mt.save_pretrained(model, tokenizer, tmp_path / "ours")
    ids, real, _ = batch("right")
    again, its_tokenizer = mt.load_pretrained(folder)
    assert not again.training and again.encoder.config == encoder.config
    theirs = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(ids)
        torch.testing.assert_close(again(ids), logits, atol=0, rtol=0)
        hidden = theirs(ids, attention_mask=real.long()).last_hidden_state
        torch.testing.assert_close(hidden[real], encoder(ids)[real], atol=1e-5, rtol=0)
        if pooling == "cls":
            hf = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            torch.testing.assert_close(
                hf(ids, attention_mask=real.long()).logits, logits, atol=1e-5, rtol=0
            )
            assert hf.config.id2label == {0: "dull", 1: "fair", 2: "fine"}
    assert again.labels == model.labels and again.pooling == pooling
    assert its_tokenizer.encode("w3 w7 nothing") == tokenizer.encode("w3 w7 nothing")
    assert AutoTokenizer.from_pretrained(folder)("w3 w7 x")["input_ids"] == tokenizer.encode(
        "w3 w7 x"
    )


@pytest.mark.parametrize("cls", [BertForMaskedLM, BertForPreTraining])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_masked_language_model_equals_transformers_both_ways(tmp_path, cls, padding):
    hf = hf_model(cls)
    ours, tokenizer = mt.load_pretrained(save(hf, tmp_path / "hf"))
    assert isinstance(ours, mt.MaskedLM)
    folder = mt.save_pretrained(ours, tokenizer, tmp_path / "ours")
    again = BertForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert mt.load_pretrained(folder)[0].config == ours.config
    ids, real, kinds = batch(padding)
    with torch.no_grad():
        mine = ours.double()(ids, segments=kinds)
        for theirs in (hf.double(), again.double()):
            out = theirs(ids, attention_mask=real.long(), token_type_ids=kinds)
            logits = out[0]  # the words', beside which there may be those of the next sentence
            torch.testing.assert_close(mine[real], logits[real], atol=1e-9, rtol=0)


def test_a_head_of_its_own_equals_transformers_both_ways(tmp_path):
    hf = hf_model(BertForMaskedLM, tie_word_embeddings=False).double()
    ours, tokenizer = mt.load_pretrained(save(hf, tmp_path / "hf"))
    assert ours.head.weight is not None and not ours.config.tie_embeddings
    folder = mt.save_pretrained(ours, tokenizer, tmp_path / "ours")
    again = BertForMaskedLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    ids, real, _ = batch("left")
    with torch.no_grad():
        mine = ours.double()(ids)[real]
        for theirs in (hf, again):
            logits = theirs(ids, attention_mask=real.long()).logits[real]
            torch.testing.assert_close(mine, logits, atol=1e-9, rtol=0)


def test_a_head_that_is_not_tied_is_refused(tmp_path):
    def untie(state):
        return state | {"cls.predictions.decoder.weight": torch.ones(VOCAB, 21)}

    edit_weights(save(hf_model(BertForMaskedLM), tmp_path), untie)
    with pytest.raises(ValueError, match=r"unexpected: cls.predictions.decoder.weight"):
        mt.load_pretrained(tmp_path)


# --- The real weights ---------------------------------------------------------------------------

NASTY = [
    "plain words", "UPPER and lower", "naïve café Ünïcödé", "don't, can't; won't!", "a  b\tc\nd",
    "中文字符 mixed with English", "日本語テキスト", "emoji 😀👍🏽 end", "zero\u200bwidth", "nbsp\u00a0here",
    "control\x00\x01\x1f chars", "ﬁ ligature", "İstanbul ı", "ß straße", "Ⅷ ½ ²", "a" * 101, "a" * 100,
    "1,234.56 $ € £", "http://x.y/z?q=1&r=[2]", "[CLS] in the text [SEP]", "[MASK]", "##ing",
    "--- ... ???", "العربية", "हिन्दी", "русский", "tab\tend", "\u2028 line", "\ufeffbom", "e\u0301 = é",
    "supercalifragilisticexpialidocious", "'quoted' \"twice\"", "C++ & C#", "@user #tag", "x_y_z",
]  # fmt: skip


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    for name, content in checkpoints.find_files("all-MiniLM-L6-v2")[0].items():
        (folder / name).write_bytes(content)
    return folder


def test_minilm_equals_transformers(minilm):
    ours, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
    hf = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    texts = [*mt.data.load("movies").texts[:13], "No.", "Good."]
    batch = tokenizer.batch(texts)
    real = batch.keep[:, 0, 0]
    with torch.no_grad():
        theirs = hf(batch.ids, attention_mask=real.long())
        mine = ours(batch.ids, batch.keep)
        pooled = ours.pooler(mine)
    torch.testing.assert_close(mine[real], theirs.last_hidden_state[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, theirs.pooler_output, atol=1e-5, rtol=0)


def test_tokenizer_equals_transformers(minilm, both_tokenizers):
    theirs, ours = both_tokenizers
    from_vocab = Tokenizer.from_vocab((minilm / "vocab.txt").read_text())
    texts = [*NASTY, *mt.data.load("tweets").texts[:100]]
    for text, special in product(texts, (False, True)):
        expected = theirs(text, split_special_tokens=not special)["input_ids"]
        assert ours.encode(text, special=special) == expected, repr(text)
        assert from_vocab.encode(text, special=special) == expected, repr(text)


@pytest.fixture(scope="module")
def both_tokenizers(minilm):
    return AutoTokenizer.from_pretrained(minilm), mt.load_pretrained(minilm)[1]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_tokenizer_equals_transformers_on_any_text(both_tokenizers, text):
    theirs, ours = both_tokenizers
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_tokenizer_of_a_cased_vocab_equals_transformers(tmp_path):
    """`do_lower_case` is obeyed, and a line of its own for a character that splits lines."""
    words = ["Caf\u00e9", "caf\u00e9", "cafe", "Tea", "tea", "##s", "\u2028", "\u00e9", "E"]
    folder = save(hf_model(), tmp_path)
    pieces = [*PIECES[:5], *words, *PIECES[5 + len(words) :]]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    for lower in (False, True):
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        theirs = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=lower)
        _, ours = mt.load_pretrained(folder)
        for text in ("Caf\u00e9 caf\u00e9 Teas teas", "E \u00c9", "tea\u2028tea w20"):
            assert ours.encode(text) == theirs(text)["input_ids"], (lower, text)
        assert ours.encode("w20") == [2, pieces.index("w20"), 3]
