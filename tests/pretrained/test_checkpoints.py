"""Folders that are broken, foreign or only half there; and saving that never leaves one behind."""

import json
import os
import sys

import huggingface_hub
import pytest
import torch
from tiny_bert import PIECES, edit_config, edit_weights, hf_model, save
from transformers import AutoTokenizer, BertForSequenceClassification

import minitransformer as mt
from minitransformer.pretrained import checkpoints


def error_of(folder, kind=ValueError) -> str:
    with pytest.raises(kind) as error:
        mt.load_pretrained(folder)
    return str(error.value)


@pytest.fixture
def folder(tmp_path):
    return save(hf_model(), tmp_path / "model")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-100],
        lambda raw: raw[:50],
        lambda raw: b"",
        lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        lambda raw: b"<!DOCTYPE html><html>Sign in</html>",
        lambda raw: raw[:8] + b"[" + raw[9:],
    ],
    ids=["end missing", "header missing", "empty", "pointer", "web page", "header spoiled"],
)
def test_a_damaged_file_is_named(folder, spoil):
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
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
        ({"model_type": "roberta"}, "model_type 'roberta' is not a family"),
        ({"hidden_act": "swish"}, "hidden_act 'swish' is not known; known: gelu"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ({"is_decoder": True}, "is_decoder True is not supported, only False"),
        ({"num_attention_heads": 4}, "d_model=21 cannot be split into n_heads=4"),
        ({"vocab_size": 30}, "weights do not fit"),
        ({"vocab_size": None}, "vocab_size must be a whole number, got None"),
        ({"hidden_size": "21"}, "hidden_size must be a whole number, got '21'"),
        ({"num_hidden_layers": 0}, "n_layers must be at least 1, got 0"),
        (
            {"type_vocab_size": 3},
            "embeddings.segments.weight is (2, 21), the config asks for (3, 21)",
        ),
        ({"hidden_dropout_prob": 1.5}, "dropout must be in [0, 1), got 1.5"),
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
    (folder / "config.json").write_text("[1, 2]")
    assert "not an object" in error_of(folder)
    (folder / "config.json").write_text('{"model_type": "bert", "vocab_size": 41}')
    assert "there is no model.safetensors" in error_of(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in error_of(folder, FileNotFoundError)


def test_weights_in_parts_are_read_as_their_index_says(tmp_path):
    hf = hf_model(BertForSequenceClassification, num_labels=3)
    folder = save(hf, tmp_path / "parts", max_shard_size="20KB")
    parts = sorted(p.name for p in folder.glob("model-*.safetensors"))
    index = folder / "model.safetensors.index.json"
    assert len(parts) > 2 and not (folder / "model.safetensors").exists()
    ours, tokenizer = mt.load_pretrained(folder)
    ids = torch.tensor([[2, 7, 9, 3]])
    torch.testing.assert_close(ours(ids), hf(ids).logits)
    mt.save_pretrained(ours, tokenizer, folder)
    assert not index.exists(), "it speaks of the weights before"
    (folder / "model.safetensors").unlink()
    save(hf, folder, max_shard_size="20KB")
    raw = (folder / parts[1]).read_bytes()
    (folder / parts[1]).write_bytes(raw[:-50])
    assert f"{parts[1]} of" in error_of(folder) and "damaged or cut off" in error_of(folder)
    (folder / parts[1]).unlink()
    assert f"names '{parts[1]}', which is not there" in error_of(folder)
    weights = json.loads(index.read_text())["weight_map"]
    stranger = weights | {next(iter(weights)): "../secret.safetensors"}
    for wrong, message in (
        (stranger, "names '../secret.safetensors', which is not there"),
        (
            weights | {"bert.more": parts[0]},
            "names weights that its files do not hold: ['bert.more']",
        ),
        (["a"], "weight_map is not an object"),
    ):
        (folder / parts[1]).write_bytes(raw)
        index.write_text(json.dumps({"weight_map": wrong}))
        assert message in error_of(folder)


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model."])
def test_a_wrappers_prefix_is_removed_and_named(tmp_path, prefix):
    folder = save(hf_model(BertForSequenceClassification, num_labels=3), tmp_path)
    expected = mt.load_pretrained(folder)[0].state_dict()
    edit_weights(folder, lambda state: {prefix + k: t for k, t in state.items()})
    with pytest.warns(UserWarning, match=f"begin with '{prefix}'"):
        found = mt.load_pretrained(folder)[0].state_dict()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_weights_that_are_whole_numbers_are_refused(folder):
    """Quantised ones, whose scales nobody would look for."""
    edit_weights(folder, lambda s: s | {"pooler.dense.weight": torch.ones(21, 21).to(torch.int8)})
    assert "type: pooler.dense.weight is torch.int8" in error_of(folder)


def test_an_adapter_is_named(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert "adapters are not read" in error_of(folder)


def test_an_entry_that_nobody_knows_is_named(folder):
    edit_config(folder, sliding_window=5, _name_or_path="x")
    with pytest.warns(UserWarning, match="unknown entries, which are ignored: sliding_window$"):
        mt.load_pretrained(folder)


def test_files_that_speak_of_another_model_go(folder):
    """A map of special tokens would rename those of the model that takes the folder."""
    encoder, _ = mt.load_pretrained(folder)
    (folder / "special_tokens_map.json").write_text('{"pad_token": "[MASK]"}')
    own = mt.data.train_tokenizer(["a b c"], "characters", bert=True)
    mt.save_pretrained(encoder, own, folder)
    assert mt.load_pretrained(folder)[1].roles == own.roles


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_saved_folder_names_only_tokens_that_its_tokenizer_has(tmp_path, family):
    own = mt.data.train_tokenizer(["the film"], "bytes", 270, extra=["<extra_id_0>"])
    ids = dict(pad_id=0, start_id=3, eos_id=3, vocab_size=own.vocab_size)
    sizes = dict(d_model=8, n_heads=2, n_layers=1, d_ff=9)
    config = getattr(mt.TransformerConfig, family)(**ids, **sizes)
    if family == "gpt2":
        model = mt.CausalLM(mt.Decoder(config))
    else:
        model = mt.Seq2SeqLM(mt.EncoderDecoder(config))
    folder = mt.save_pretrained(model, own, tmp_path / family)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == own.vocab_size
    names = theirs.pad_token, theirs.unk_token, theirs.bos_token, theirs.eos_token
    assert names == ("[PAD]", "[UNK]", "[START]", "[END]") and theirs.pad_token_id == 0
    assert (
        theirs(["the", "a film"], padding=True)["input_ids"]
        == own.batch(["the", "a film"]).ids.tolist()
    )


def test_a_config_without_its_sizes_names_the_entry(folder):
    (folder / "config.json").write_text('{"model_type": "bert", "vocab_size": 41}')
    assert "config.json has no entry 'hidden_size'" in error_of(folder)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "bad", "1": "good"}, "config.json names 2 labels, the classifier has 3"),
        ({"1": "a", "2": "b", "3": "c"}, "id2label must name 0 to 2"),
    ],
)
def test_labels_that_do_not_fit_the_classifier_are_refused(tmp_path, labels, message):
    folder = save(hf_model(BertForSequenceClassification, num_labels=3), tmp_path)
    edit_config(folder, id2label=labels)
    assert message in error_of(folder)


def test_a_classifier_without_pooler_is_refused(tmp_path):
    """Half a head would give logits, and wrong ones."""
    folder = save(hf_model(BertForSequenceClassification, num_labels=3), tmp_path)
    edit_weights(folder, lambda s: {k: t for k, t in s.items() if "pooler" not in k})
    assert "needs an encoder with a pooler" in error_of(folder)


def test_a_tokenizer_that_cannot_be_read_is_named(folder):
    (folder / "vocab.txt").write_text("just\nwords\n")
    assert "vocab.txt has no line [PAD], [UNK], [CLS], [SEP]" in error_of(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    assert "tokenizer.json cannot be read" in error_of(folder)


def test_an_unknown_switch_is_named(folder):
    with pytest.raises(TypeError, match="n_head"):
        mt.load_pretrained(folder, n_head=3)


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


def test_a_folder_without_segments_is_refused(folder, tmp_path):
    encoder, tokenizer = mt.load_pretrained(folder)
    none = mt.Encoder(encoder.config.with_(n_segments=0))
    with pytest.raises(ValueError, match="cannot express n_segments=0"):
        mt.save_pretrained(none, tokenizer, tmp_path / "none")


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

    monkeypatch.setattr(checkpoints.json, "dumps", full_disk)  # when the weights are written
    encoder.embeddings.tokens.weight.data += 1
    for place in (target, tmp_path / "new"):
        with pytest.raises(OSError, match="no space left"):
            mt.save_pretrained(encoder, tokenizer, place)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "model"]


def test_a_crash_while_moving_leaves_no_half_model(folder, tmp_path, monkeypatch):
    encoder, tokenizer = mt.load_pretrained(folder)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        mt.save_pretrained(encoder, tokenizer, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    monkeypatch.undo()
    mt.save_pretrained(encoder, tokenizer, tmp_path / "new")


def test_save_again_replaces_the_model_and_keeps_other_files(folder, tmp_path):
    encoder, tokenizer = mt.load_pretrained(folder)
    target = mt.save_pretrained(encoder, tokenizer, tmp_path / "deep" / "down" / "kept")
    (target / "notes.md").write_text("mine")
    model = mt.SequenceClassifier(encoder, 4, "mean")
    mt.save_pretrained(model, tokenizer, target)
    again, _ = mt.load_pretrained(target)
    assert again.n_classes == 4 and (target / "notes.md").read_text() == "mine"
    assert [p.name for p in target.parent.iterdir()] == ["kept"]


def test_save_makes_a_folder_with_usual_rights(folder, tmp_path):
    """A draft made for its owner alone must not hand its rights on: others read the model too."""
    encoder, tokenizer = mt.load_pretrained(folder)
    target = mt.save_pretrained(encoder, tokenizer, tmp_path / "new")
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").write_text("")
    assert target.stat().st_mode == (tmp_path / "usual").stat().st_mode
    for file in target.iterdir():
        assert file.stat().st_mode == (tmp_path / "usual" / "file").stat().st_mode, file.name


def test_every_switch_of_the_config_survives_a_round_trip(folder, tmp_path):
    _, tokenizer = mt.load_pretrained(folder)
    config = mt.TransformerConfig.bert(
        vocab_size=43, d_model=22, n_heads=11, n_layers=2, d_ff=26, max_len=19, n_segments=3,
        norm_eps=1e-7, activation="gelu_tanh", dropout=0.25, attention_dropout=0.35, init_std=0.05,
        pad_id=4, pooler=False, tie_embeddings=False,
    )  # fmt: skip
    usual = mt.TransformerConfig.bert()
    same = {n for n, value in vars(config).items() if value == getattr(usual, n)}
    assert same == {  # what BERT's files cannot say otherwise
        "bias", "embedding_norm", "eos_id", "feed_forward_dropout", "final_dropout", "gated", "init",
        "max_distance", "n_buckets", "n_decoder_layers", "norm", "norm_position", "ops",
        "positions", "scale_attention", "scale_embeddings", "scale_logits", "start_id",
    }  # fmt: skip
    saved = mt.save_pretrained(mt.Encoder(config), tokenizer, tmp_path / "new")
    assert mt.load_pretrained(saved)[0].config == config
