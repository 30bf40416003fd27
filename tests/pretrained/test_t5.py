"""T5 folders, v1.0 and v1.1, against Hugging Face's transformers: equal logits, both ways."""

import json

import pytest
import safetensors.torch
import torch
from tiny_bert import edit_config, edit_weights
from tiny_models import V1_1, hf_gpt2, hf_t5, padded, save
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.t5.modeling_t5 import T5LayerNorm

import minitransformer as mt
from minitransformer.pretrained import t5

# transformers' norm computes the variance in float32 even where all else is float64.
TOLERANCE = 1e-5
versions = pytest.mark.parametrize("version", [{}, V1_1], ids=["v1.0", "v1.1"])


def difference(hf, ours, padding: str = "right") -> float:
    """The largest difference of encoder output and logits at real positions, in float64."""
    source, real = padded(padding)
    target, target_real = padded(padding, length=7, seed=2)
    target[:, 0] = 0  # what a decoder starts with is also the padding id
    target_real[:, 0] = True
    with torch.no_grad():
        theirs = hf.double()(
            input_ids=source, attention_mask=real.long(), decoder_input_ids=target,
            decoder_attention_mask=target_real.long(),
        )  # fmt: skip
        mine = ours.double()(source, target, target_keep=target_real[:, None, None, :])
        memory = ours.encoder_decoder.encode(source)
    off = (theirs.logits - mine)[target_real].abs().max()
    return max(off, (theirs.encoder_last_hidden_state - memory)[real].abs().max()).item()


@versions
@pytest.mark.parametrize("ops", ["formula", "fused"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_logits_equal_transformers(tmp_path, version, ops, padding):
    hf = hf_t5(**version)
    ours, _ = mt.load_pretrained(save(hf, tmp_path), ops=ops)
    assert isinstance(ours, mt.Seq2SeqLM) and not ours.training
    assert difference(hf, ours, padding) < TOLERANCE


@versions
def test_what_is_left_is_the_float32_in_transformers_norm(tmp_path, version, monkeypatch):
    def in_float64(norm, x):
        return norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()

    hf = hf_t5(**version)
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    monkeypatch.setattr(T5LayerNorm, "forward", in_float64)
    assert difference(hf, ours) < 1e-9


@versions
@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 1},
        {"num_heads": 7},
        {"d_kv": 9},
        {"num_layers": 3, "num_decoder_layers": 1},
        {"num_decoder_layers": None},
        {"feed_forward_proj": "gelu"},
        {"feed_forward_proj": "gated-relu"},
        {"layer_norm_epsilon": 0.1},
        {"relative_attention_num_buckets": 12},
        {"relative_attention_max_distance": 5},
    ],
    ids=str,
)
def test_every_config_entry_is_obeyed(tmp_path, version, changes):
    hf = hf_t5(**(version | changes))
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    assert difference(hf, ours) < TOLERANCE


@versions
@pytest.mark.parametrize("own", [True, False], ids=["own head", "tied head"])
def test_head_and_scale_are_told_apart(tmp_path, version, own):
    """All four: a head of its own or the embeddings, scaled or not; old configs and new ones."""
    hf = hf_t5(**version)
    head = torch.nn.Parameter(0.3 * torch.randn(hf.lm_head.weight.shape))
    hf.lm_head.weight = head if own else hf.shared.weight
    scaled = hf.config.scale_decoder_outputs
    for entries in (None, {"tie_word_embeddings": scaled}):
        save(hf, tmp_path)
        if entries:  # as files were before there was an entry for the scale
            config = json.loads((tmp_path / "config.json").read_text())
            del config["scale_decoder_outputs"]
            (tmp_path / "config.json").write_text(json.dumps(config | entries))
        ours, _ = mt.load_pretrained(tmp_path)
        assert (ours.config.scale_logits, ours.config.tie_embeddings) == (scaled, not own)
        assert difference(hf, ours) < TOLERANCE


@versions
@pytest.mark.parametrize(
    "switch",
    [
        {"norm_eps": 1e-2},
        {"norm_position": "post"},
        {"norm": "layer"},
        {"activation": "gelu"},
        {"gated": "flipped"},
        {"scale_attention": True},
        {"scale_embeddings": True},
        {"scale_logits": "flipped"},
        {"positions": "none"},
        {"n_buckets": 4, "max_distance": 4},
        {"max_distance": 24},
        {"pad_id": None},
    ],
    ids=str,
)
def test_every_switch_matters(tmp_path, version, switch):
    """The comparison can tell: one switch turned, and it fails by far more than its tolerance."""
    hf = hf_t5(**version)
    right, _ = mt.load_pretrained(save(hf, tmp_path))
    switch = {k: not getattr(right.config, k) if v == "flipped" else v for k, v in switch.items()}
    wrong = mt.Seq2SeqLM(mt.EncoderDecoder(right.config.with_(**switch)))
    fitting = wrong.state_dict()
    kept = {
        k: t for k, t in right.state_dict().items() if k in fitting and t.shape == fitting[k].shape
    }
    wrong.load_state_dict(kept, strict=False)
    assert difference(hf, wrong.eval()) > 10 * TOLERANCE


@versions
def test_the_relative_bias_is_read_from_the_right_stack(tmp_path, version):
    hf = hf_t5(**version)
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    encoder, decoder = ours.encoder_decoder.encoder, ours.encoder_decoder.decoder
    a, b = encoder.relative_positions.buckets, decoder.relative_positions.buckets
    a.weight.data, b.weight.data = b.weight.data, a.weight.data
    assert difference(hf, ours) > 1e-2


def test_a_target_starts_with_the_padding_id(tmp_path):
    """It must be seen, although it is the padding id: without a mask the decoder hides nothing."""
    hf = hf_t5()
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    assert ours.config.start_id == ours.config.pad_id == 0
    source, target = padded("none")[0], torch.tensor([[0, 5, 6]] * 4)
    with torch.no_grad():
        theirs = hf(input_ids=source, decoder_input_ids=target).logits
        torch.testing.assert_close(ours(source, target), theirs, atol=1e-3, rtol=0)


def test_old_files_load(tmp_path):
    """With every alias of the embeddings, and with the table of a bug that nobody read."""
    hf = hf_t5()

    def old(state):
        table = state["shared.weight"]
        aliases = (*t5.TABLES, "lm_head.weight")
        return state | {k: table.clone() for k in aliases} | {t5.UNUSED: torch.ones(8, 3)}

    edit_weights(save(hf, tmp_path), old)
    assert difference(hf, mt.load_pretrained(tmp_path)[0]) < TOLERANCE
    edit_weights(tmp_path, lambda s: {k: t for k, t in s.items() if k != "shared.weight"})
    assert difference(hf, mt.load_pretrained(tmp_path)[0]) < TOLERANCE


@versions
def test_save_pretrained_round_trip(tmp_path, version):
    hf = hf_t5(**version)
    ours, tokenizer = mt.load_pretrained(save(hf, tmp_path / "hf"))
    folder = mt.save_pretrained(ours, tokenizer, tmp_path / "ours")
    again = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert difference(again, ours) < TOLERANCE
    theirs = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    mine = safetensors.torch.load_file(folder / "model.safetensors")
    assert theirs.keys() == mine.keys() and all(torch.equal(theirs[k], mine[k]) for k in theirs)
    assert mt.load_pretrained(folder)[0].config == ours.config
    assert AutoTokenizer.from_pretrained(folder)("w3 w7")["input_ids"] == tokenizer.encode("w3 w7")


@pytest.mark.parametrize("gated", [True, False])
def test_every_switch_of_the_config_survives_a_round_trip(tmp_path, gated):
    _, tokenizer = mt.load_pretrained(save(hf_t5(), tmp_path / "hf"))
    config = mt.TransformerConfig.t5(
        vocab_size=43, d_model=20, n_heads=3, d_head=7, n_layers=2, n_decoder_layers=1, d_ff=26,
        max_len=19, norm_eps=1e-7, n_buckets=12, max_distance=30, activation="gelu_tanh",
        gated=gated, tie_embeddings=not gated, scale_logits=not gated, dropout=0.25,
        attention_dropout=0.25, feed_forward_dropout=0.25, final_dropout=0.25, pad_id=2, start_id=3,
        eos_id=4,
    )  # fmt: skip
    model = mt.Seq2SeqLM(mt.EncoderDecoder(config))
    saved = mt.save_pretrained(model, tokenizer, tmp_path / "new")
    again, _ = mt.load_pretrained(saved)
    assert again.config == config


# --- What does not fit ---------------------------------------------------------------------------


def error_of(folder) -> str:
    with pytest.raises(ValueError) as error:
        mt.load_pretrained(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'silu' is not known"),
        ({"feed_forward_proj": "gated-gelu"}, "DenseReluDense.wi_0.weight"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder False is not supported, only True"),
        ({"d_kv": "5"}, "d_kv must be a whole number, got '5'"),
        ({"num_layers": 3}, "missing: encoder_decoder.encoder.blocks.2.attention.W_Q.weight"),
        ({"num_decoder_layers": 2}, "unexpected: decoder.block.2.layer.0.SelfAttention.k.weight"),
        ({"relative_attention_num_buckets": 7}, "n_buckets=7 must be a multiple of 4"),
        ({"model_type": "bert"}, "config.json says 'bert', but the weights have the names of 't5'"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_says_why(tmp_path, change, message):
    edit_config(save(hf_t5(), tmp_path), **change)
    assert message in error_of(tmp_path)


def test_weights_of_another_family_are_recognised(tmp_path):
    save(hf_t5(), tmp_path / "t5")
    save(hf_gpt2(), tmp_path / "gpt2")
    (tmp_path / "t5" / "model.safetensors").replace(tmp_path / "gpt2" / "model.safetensors")
    message = error_of(tmp_path / "gpt2")
    assert "config.json says 'gpt2', but the weights have the names of 't5': decoder." in message
    assert "no wte.weight" in message


def test_without_tokenizer_json_says_how_to_make_one(tmp_path):
    (save(hf_t5(), tmp_path) / "tokenizer.json").unlink()
    assert "a spiece.model is not read" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"positions": "learned"}, "T5's files cannot express positions='learned'"),
        ({"final_dropout": 0.3}, "one dropout for all, this config has dropout=0.1"),
        ({"gated": True, "activation": "gelu"}, "cannot express a gated 'gelu'"),
    ],
)
def test_save_refuses_what_t5_cannot_express(tmp_path, switch, message):
    ours, tokenizer = mt.load_pretrained(save(hf_t5(), tmp_path / "hf"))
    odd = mt.Seq2SeqLM(mt.EncoderDecoder(ours.config.with_(**switch)))
    with pytest.raises(ValueError, match=message):
        mt.save_pretrained(odd, tokenizer, tmp_path / "odd")
