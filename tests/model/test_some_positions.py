"""Computing some positions only against computing all and keeping these."""

import pytest
import torch
from random_models import normal, randomise
from torch.testing import assert_close

import minitransformer as mt
from minitransformer.model.attention import token_positions
from minitransformer.model.kv_cache import KeyValueCache

CONFIG = mt.TransformerConfig(
    vocab_size=43, d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=19, dropout=0.0,
    norm_eps=1e-3, pad_id=0,
)  # fmt: skip
KINDS = {
    "sinusoidal, post-LN": CONFIG,
    "learned, pre-LN": CONFIG.with_(positions="learned", norm_position="pre"),
    "relative": CONFIG.with_(positions="relative", n_buckets=8, max_distance=6),
    "one layer": CONFIG.with_(n_layers=1, norm_position="pre"),
}
IDS = torch.tensor([[5, 9, 11, 3, 2, 8], [0, 0, 4, 7, 6, 1], [0, 8, 8, 1, 2, 3]])
KEEP = (IDS != 0)[:, None, None, :]
EVERY = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


def assert_same_gradients(some: torch.Tensor, whole: torch.Tensor, module: torch.nn.Module) -> None:
    parameters, g = list(module.parameters()), normal(*whole.shape, seed=1)
    for a, b in zip(
        torch.autograd.grad(some, parameters, g), torch.autograd.grad(whole, parameters, g),
        strict=True,
    ):  # fmt: skip
        assert_close(a, b, rtol=0, atol=1e-10)


# --- The last positions, of a decoder -------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize("kind", ["formula", "fused"])
def test_the_last_positions_are_those_of_the_whole(config, cross, last, kind):
    decoder = randomise(mt.Decoder(config.with_(ops=kind), cross))
    memory = normal(3, 7, 20) if cross else None
    given = dict(keep=KEEP, memory=memory, positions=token_positions(KEEP))
    some, whole = decoder(IDS, last=last, **given), decoder(IDS, **given)[:, -last:]
    assert some.shape == (3, last, 20)
    assert_close(some, whole, rtol=0, atol=1e-12)
    assert_same_gradients(some, whole, decoder)


@EVERY
@pytest.mark.parametrize("cross", [False, True])
def test_a_cache_holds_the_positions_that_were_left_out(config, cross):
    decoder = randomise(mt.Decoder(config, cross)).eval()
    memory = normal(3, 7, 20) if cross else None
    whole = decoder(IDS, KEEP, memory)
    with torch.no_grad():
        cache = KeyValueCache()
        for start, end in ((0, 3), (3, 5), (5, 6)):
            got = decoder(IDS[:, start:end], KEEP[..., :end], memory, cache=cache, last=1)
            assert_close(got, whole[:, end - 1 : end], rtol=0, atol=1e-12)


def test_writing_computes_the_last_position_of_a_prompt_only():
    model = randomise(mt.CausalLM(mt.Decoder(CONFIG.with_(pad_id=None))))
    rows: list[int] = []
    for block in model.decoder.blocks:
        block.feed_forward.register_forward_hook(lambda m, a, y: rows.append(y.shape[1]))
    mt.generate(model, IDS[:1], 2)
    assert rows == [6, 1, 1, 1]


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("last", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("heads", [1, 5])
def test_a_mask_and_a_bias_with_a_row_per_query_are_cut_with_the_queries(
    norm_position, last, heads
):
    block = randomise(mt.DecoderBlock(CONFIG.with_(norm_position=norm_position), cross=True))
    y, memory, bias = normal(3, 5, 20), normal(3, 7, 20, seed=1), normal(1, 5, 5, 5, seed=2)
    keep = normal(3, heads, 5, 5, seed=3) > -0.5
    some, whole = (block(y, keep, memory, bias=bias, last=n) for n in (last, None))
    assert_close(some, whole[:, -last:], rtol=0, atol=1e-12)


# --- The first positions, of an encoder -----------------------------------------------------------

SOURCE = torch.tensor([[5, 9, 11, 3, 2], [4, 7, 6, 0, 0], [8, 8, 1, 2, 0]])
MASKS = {"padding": None, "causal": mt.causal_mask(5), "keys": SOURCE[:, None, None, :] != 8}


@EVERY
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("first", [1, 3])
def test_the_first_positions_are_those_of_the_whole(config, first, mask):
    encoder = randomise(mt.Encoder(config))
    some = encoder(SOURCE, MASKS[mask], first=first)
    whole = encoder(SOURCE, MASKS[mask])[:, :first]
    assert some.shape == (3, first, 20)
    assert_close(some, whole, rtol=0, atol=1e-12)
    assert_same_gradients(some, whole, encoder)


def test_a_classifier_of_the_first_position_does_not_compute_the_others():
    model = mt.SequenceClassifier(mt.Encoder(CONFIG.with_(pooler=True)), 2, "cls")
    rows: list[int] = []
    for block in randomise(model).encoder.blocks:
        block.feed_forward.register_forward_hook(lambda m, a, y: rows.append(y.shape[1]))
    logits = model(SOURCE)
    assert rows == [5, 1]
    whole = model.classifier(model.dropout(model.encoder.pooler(model.encoder(SOURCE))))
    assert_close(logits, whole, rtol=0, atol=1e-12)
