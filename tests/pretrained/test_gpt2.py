"""GPT-2 folders against Hugging Face's transformers: equal logits, both ways."""

import json

import pytest
import safetensors.torch
import torch
from tiny_bert import edit_config, edit_weights
from tiny_models import VOCAB, hf_gpt2, padded, save
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Model, GPT2Tokenizer

import minitransformer as mt
from minitransformer.pretrained import checkpoints


def difference(hf, ours, padding: str = "left", positions: bool = True) -> float:
    """The largest difference of the logits at real positions, in float64."""
    ids, real = padded(padding)
    keep = real[:, None, None, :]
    places = mt.token_positions(keep) if positions else None
    with torch.no_grad():
        theirs = hf.double()(input_ids=ids, attention_mask=real.long(), position_ids=places).logits
        mine = ours.double()(ids, keep, positions=places)
    return (theirs - mine)[real].abs().max().item()


@pytest.mark.parametrize("ops", ["formula", "fused"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("positions", [False, True])
def test_logits_equal_transformers(tmp_path, ops, padding, positions):
    hf = hf_gpt2()
    ours, _ = mt.load_pretrained(save(hf, tmp_path), ops=ops)
    assert isinstance(ours, mt.CausalLM) and not ours.training
    assert difference(hf, ours, padding, positions) < 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {"n_head": 1},
        {"n_head": 7},
        {"n_inner": None},
        {"activation_function": "gelu"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 0.1},
        {"scale_attn_weights": False},
        {"tie_word_embeddings": False},
        {"n_layer": 1},
    ],
    ids=str,
)
def test_every_config_entry_is_obeyed(tmp_path, changes):
    hf = hf_gpt2(**changes)
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    assert difference(hf, ours) < 1e-9


@pytest.mark.parametrize(
    "switch",
    [
        {"norm_eps": 1e-12},
        {"norm_position": "post"},
        {"norm": "rms"},
        {"activation": "gelu"},
        {"scale_attention": False},
        {"scale_embeddings": True},
        {"scale_logits": True},
        {"positions": "sinusoidal"},
        {"embedding_norm": True},
        {"n_heads": 7},
        {"bias": False},
    ],
    ids=str,
)
def test_every_switch_matters(tmp_path, switch):
    """The comparison can tell: one switch turned, and it fails by far more than its tolerance."""
    hf = hf_gpt2()
    right, _ = mt.load_pretrained(save(hf, tmp_path))
    wrong = mt.CausalLM(mt.Decoder(right.config.with_(**switch)))
    wrong.load_state_dict(right.state_dict(), strict=False)
    assert difference(hf, wrong.eval()) > 1e-6


def test_the_mask_matters_with_padding_on_the_left_only(tmp_path):
    """Behind causality, padding on the right is out of sight anyway: that case tests no mask."""
    hf = hf_gpt2().double()
    ours = mt.load_pretrained(save(hf, tmp_path))[0].double()
    for padding, visible in (("right", False), ("left", True)):
        ids, real = padded(padding)
        with torch.no_grad():
            theirs = hf(input_ids=ids, attention_mask=real.long()).logits
            off = (theirs - ours(ids))[real].abs().max().item()
        assert (off > 1e-2) if visible else (off < 1e-9)


def test_gradients_equal_those_of_transformers(tmp_path):
    """Also that of the tied table, which sums what comes from both ends."""
    hf = hf_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).double()
    ours = mt.load_pretrained(save(hf, tmp_path))[0].double()
    ids, _ = padded("none")
    hf(input_ids=ids).logits.square().mean().backward()
    ours(ids).square().mean().backward()
    table = ours.decoder.embeddings.tokens.weight.grad
    torch.testing.assert_close(table, hf.transformer.wte.weight.grad, atol=1e-9, rtol=0)
    theirs = hf.transformer.h[1].attn.c_attn.weight.grad
    attention = ours.decoder.blocks[1].attention
    mine = [w.weight.grad.T for w in (attention.W_Q, attention.W_K, attention.W_V)]
    torch.testing.assert_close(torch.cat(mine, 1), theirs, atol=1e-9, rtol=0)


def test_old_files_load(tmp_path):
    """Without prefix, with the masks among the weights, with the tied table twice."""
    hf = hf_gpt2()

    def old(state):
        bare = {k.removeprefix("transformer."): t for k, t in state.items()}
        bare["h.0.attn.bias"] = torch.ones(1, 1, 17, 17).tril()
        bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        return bare | {"lm_head.weight": bare["wte.weight"].clone()}

    edit_weights(save(hf, tmp_path), old)
    ours, _ = mt.load_pretrained(tmp_path)
    assert ours.head.weight is None and difference(hf, ours) < 1e-9
    GPT2Model(hf.config).save_pretrained(tmp_path)  # without a head: it is the embeddings
    assert mt.load_pretrained(tmp_path)[0].config.tie_embeddings


@pytest.mark.parametrize("tied", [True, False])
def test_save_pretrained_round_trip(tmp_path, tied):
    hf = hf_gpt2(tie_word_embeddings=tied)
    ours, tokenizer = mt.load_pretrained(save(hf, tmp_path / "hf"))
    folder = mt.save_pretrained(ours, tokenizer, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert difference(again, ours) < 1e-9
    theirs = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    mine = safetensors.torch.load_file(folder / "model.safetensors")
    assert theirs.keys() == mine.keys() and all(torch.equal(theirs[k], mine[k]) for k in theirs)
    assert mt.load_pretrained(folder)[0].config == ours.config
    assert AutoTokenizer.from_pretrained(folder)("w3 w7")["input_ids"] == tokenizer.encode("w3 w7")


def test_every_switch_of_the_config_survives_a_round_trip(tmp_path):
    _, tokenizer = mt.load_pretrained(save(hf_gpt2(), tmp_path / "hf"))
    config = mt.TransformerConfig.gpt2(
        vocab_size=43, d_model=22, n_heads=11, n_layers=2, d_ff=26, max_len=19, norm_eps=1e-7,
        activation="gelu", dropout=0.25, attention_dropout=0.35, init_std=0.05, start_id=3,
        eos_id=4, pad_id=5, scale_attention=False, tie_embeddings=False,
    )  # fmt: skip
    saved = mt.save_pretrained(mt.CausalLM(mt.Decoder(config)), tokenizer, tmp_path / "new")
    assert mt.load_pretrained(saved)[0].config == config


def test_padding_that_is_also_a_texts_end_is_not_hidden(tmp_path):
    """Many fine-tuned GPT-2s say pad = eos; hiding every eos would compute something else."""
    hf = hf_gpt2(pad_token_id=40)
    ours, _ = mt.load_pretrained(save(hf, tmp_path))
    assert ours.config.pad_id is None and ours.config.eos_id == 40
    ids = torch.tensor([[40, 7, 8, 40, 9]])
    with torch.no_grad():
        off = hf(input_ids=ids).logits - ours(ids)
    assert off.abs().max() < 1e-4


# --- What does not fit ---------------------------------------------------------------------------


def error_of(folder) -> str:
    with pytest.raises(ValueError) as error:
        mt.load_pretrained(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"activation_function": "quick_gelu"}, "activation_function 'quick_gelu' is not known"),
        ({"embd_pdrop": 0.2}, "embd_pdrop 0.2 is not supported, only 0.1"),
        ({"n_embd": None}, "n_embd must be a whole number, got None"),
        ({"n_layer": 4}, "missing: decoder.blocks.3.norm_1.weight (there: h.3.ln_1.weight)"),
        ({"n_layer": 2}, "unexpected: h.2."),
        ({"tie_word_embeddings": False}, "missing: head.weight (there: lm_head.weight)"),
        ({"model_type": "t5"}, "config.json says 't5', but the weights have the names of 'gpt2'"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_says_why(tmp_path, change, message):
    edit_config(save(hf_gpt2(), tmp_path), **change)
    assert message in error_of(tmp_path)


def test_a_missing_layer_and_a_wrong_shape_are_listed(tmp_path):
    def spoil(state):
        kept = {k: t for k, t in state.items() if ".h.1." not in k}
        name = "transformer.h.0.attn.c_attn.weight"
        return kept | {name: kept[name].mT.contiguous()}

    edit_weights(save(hf_gpt2(), tmp_path), spoil)
    message = error_of(tmp_path)
    assert "missing: decoder.blocks.1.attention.W_K.weight (there: h.1.attn.c_attn.k.weight)" in (
        message.replace("\n  ...", "")
    )
    assert message.splitlines()[0].endswith("weights do not fit the config:")


def test_save_refuses_what_gpt2_cannot_express(tmp_path):
    ours, tokenizer = mt.load_pretrained(save(hf_gpt2(), tmp_path / "hf"))
    odd = mt.CausalLM(mt.Decoder(ours.config.with_(norm="rms", bias=False)))
    with pytest.raises(ValueError, match=r"GPT-2's files cannot express norm='rms', bias=False"):
        mt.save_pretrained(odd, tokenizer, tmp_path / "odd")
    with pytest.raises(TypeError, match="no family's files hold a Decoder"):
        checkpoints.family_of(ours.decoder)


# --- The tokenizer -------------------------------------------------------------------------------


def test_byte_pairs_equal_transformers_from_either_file(tmp_path):
    trained = ByteLevelBPETokenizer()
    text = "it's what it's: naïve café 中文, 1,234.56\n\n  two  spaces\tend 😀 don't"
    trained.train_from_iterator([text] * 3, 300, special_tokens=["<|endoftext|>"])
    hf = hf_gpt2(vocab_size=trained.get_vocab_size(), n_positions=200)
    hf.save_pretrained(tmp_path)
    trained.save_model(str(tmp_path))
    from_merges = mt.load_pretrained(tmp_path)[1]
    theirs = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    theirs.save_pretrained(tmp_path)
    from_json = mt.load_pretrained(tmp_path)[1]
    for sample in (text, " a\n b", "<|endoftext|>it's", "\u2028\x85 \u00a0", "日本 x" * 3):
        for special in (False, True):
            expected = theirs(sample, split_special_tokens=not special)["input_ids"]
            for ours in (from_merges, from_json):
                assert ours.encode(sample, special=special) == expected, repr(sample)
    assert from_merges.decode(from_merges.encode(text)) == text
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").write_text("#version: 0.2\nqq zz\n")
    assert "vocab.json and merges.txt do not fit together" in error_of(tmp_path)


def test_a_batch_hides_the_filling_but_not_the_end_of_a_text(tmp_path):
    """GPT-2 has no padding token: the end of a text fills up, and only the lengths can tell."""
    _, tokenizer = mt.load_pretrained(save(hf_gpt2(), tmp_path))
    batch = tokenizer.batch(["w1 <|endoftext|> w2 w3", "w4"], special=True)
    assert batch.keep[:, 0, 0].int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert tokenizer.vocab_size == VOCAB and json.loads(tokenizer.to_json())["model"]
