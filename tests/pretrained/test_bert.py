"""BERT folders against Hugging Face's transformers, and what happens to broken ones."""

import json
import sys

import huggingface_hub
import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

import minitransformer as mt
from minitransformer.data.tokenizers import Tokenizer
from minitransformer.pretrained import checkpoints

VOCAB = 41
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB - 5))]


def hf_model(cls=BertModel, seed: int = 0, **changes):
    """A small model of transformers' with weights of order 1: nothing hides behind small ones."""
    sizes = dict(
        vocab_size=VOCAB, hidden_size=21, num_attention_heads=3, num_hidden_layers=3,
        intermediate_size=34, max_position_embeddings=17, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager", layer_norm_eps=1e-3,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = cls(BertConfig(**(sizes | changes)))
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
        p.data = 1 + 0.3 * noise if "LayerNorm.weight" in name else 0.3 * noise
    return model.eval()


def save(model, folder, **extra):
    """A folder as transformers writes it, with a vocab.txt."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    if extra:
        edit_config(folder, **extra)
    return folder


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change) -> None:
    path = folder / "model.safetensors"
    state = change(safetensors.torch.load_file(path))
    safetensors.torch.save_file(state, path, {"format": "pt"})


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


def test_classifier_equals_transformers(tmp_path):
    names = {0: "dull", 1: "fair", 2: "fine"}
    hf = hf_model(BertForSequenceClassification, id2label=names, num_labels=3).double()
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    ids, real, kinds = batch("right")
    with torch.no_grad():
        theirs = hf(ids, attention_mask=real.long(), token_type_ids=kinds).logits
        mine = ours.double()(ids, segments=kinds)
    torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)
    assert ours.labels == ("dull", "fair", "fine") and ours.pooling == "cls"


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_save_pretrained_round_trip(tmp_path, pooling):
    encoder, tokenizer = mt.load_pretrained(save(hf_model(), tmp_path / "hf"))
    model = mt.SequenceClassifier(encoder, 3, pooling, dropout=0.0).eval()
    model.labels = ("dull", "fair", "fine")
    torch.nn.init.normal_(model.classifier.weight)
    folder = mt.save_pretrained(model, tokenizer, tmp_path / "ours")
    ids, real, _ = batch("right")
    again, its_tokenizer = mt.load_pretrained(folder)
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


def test_tokenizer_equals_transformers(minilm):
    theirs, (_, ours) = AutoTokenizer.from_pretrained(minilm), mt.load_pretrained(minilm)
    from_vocab = Tokenizer.from_vocab((minilm / "vocab.txt").read_text())
    texts = [*NASTY, *mt.data.load("tweets").texts[:100]]
    for text in texts:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text) == expected, repr(text)
        assert from_vocab.encode(text) == expected, repr(text)


# --- What is broken -----------------------------------------------------------------------------


def error_of(folder, kind=ValueError) -> str:
    with pytest.raises(kind) as error:
        mt.load_pretrained(folder)
    return str(error.value)


@pytest.fixture
def folder(tmp_path):
    return save(hf_model(), tmp_path / "model")


def test_a_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged or cut off" in error_of(folder) and str(folder) in error_of(folder)


def test_weights_that_do_not_fit_are_listed(folder):
    def change(state):
        del state["encoder.layer.1.output.dense.bias"]
        state["encoder.layer.9.output.dense.bias"] = torch.zeros(21)
        state["embeddings.word_embeddings.weight"] = torch.zeros(5, 21)
        return state

    edit_weights(folder, change)
    message = error_of(folder)
    assert "3 weights do not fit" in message
    assert "missing: blocks.1.feed_forward.W_2.bias" in message
    assert "unexpected: encoder.layer.9.output.dense.bias (21,)" in message
    assert "embeddings.tokens.weight is (5, 21), the config asks for (41, 21)" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not a family"),
        ({"hidden_act": "swish"}, "hidden_act 'swish' is not known; known: gelu"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ({"num_attention_heads": 4}, "d_model=21 cannot be split into n_heads=4"),
        ({"vocab_size": 30}, "weights do not fit"),
    ],
)
def test_a_config_that_does_not_fit_says_why(folder, change, message):
    edit_config(folder, **change)
    assert message in error_of(folder)


def test_files_that_are_missing_are_named(folder):
    (folder / "vocab.txt").unlink()
    assert "neither a tokenizer.json nor a vocab.txt" in error_of(folder)
    (folder / "model.safetensors").unlink()
    assert "there is no model.safetensors" in error_of(folder)
    (folder / "config.json").write_text("{not json")
    assert "not JSON" in error_of(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in error_of(folder, FileNotFoundError)


def test_a_tokenizer_too_large_for_the_model_is_refused(folder):
    (folder / "vocab.txt").write_text("\n".join([*PIECES, "one more"]))
    assert "the tokenizer has 42 tokens, the model only 41" in error_of(folder)


def test_no_network_and_no_cache_say_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = error_of("someone/some-model", FileNotFoundError)
    assert "no folder 'someone/some-model'" in message and "without a network" in message
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in error_of("someone/some-model", FileNotFoundError)
    monkeypatch.setenv("MINITRANSFORMER_DATA", str(tmp_path))
    assert "run `make data`" in error_of("all-MiniLM-L6-v2", FileNotFoundError)


def test_save_refuses_what_bert_cannot_express_and_foreign_folders(folder, tmp_path):
    encoder, tokenizer = mt.load_pretrained(folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not a model's folder"):
        mt.save_pretrained(encoder, tokenizer, tmp_path / "thesis")
    pre = mt.Encoder(encoder.config.with_(norm_position="pre", scale_embeddings=True))
    with pytest.raises(ValueError, match=r"scale_embeddings=True|norm_position='pre'"):
        mt.save_pretrained(pre, tokenizer, tmp_path / "pre")
    assert not (tmp_path / "pre").exists()


def test_a_crash_while_saving_leaves_the_old_model_whole(folder, tmp_path, monkeypatch):
    encoder, tokenizer = mt.load_pretrained(folder)
    target = mt.save_pretrained(encoder, tokenizer, tmp_path / "kept")
    before = {p.name: p.read_bytes() for p in target.iterdir()}

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints.bert, "tokenizer_config", full_disk)
    encoder.embeddings.tokens.weight.data += 1
    for place in (target, tmp_path / "new"):
        with pytest.raises(OSError, match="no space left"):
            mt.save_pretrained(encoder, tokenizer, place)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "model"]
