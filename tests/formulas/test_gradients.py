"""Gradients by hand against autograd and against finite differences; every typical slip is refused."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from untyped import untyped

import minitransformer as mt
from minitransformer.formulas import block_gradients, by_hand, decoder_gradients, gradients
from minitransformer.proofs.draws import EPS, HUGE
from minitransformer.proofs.ledger import LEDGER
from minitransformer.proofs.measure import differentiable, measure

BY_HAND = {id: f for id, f in LEDGER.items() if f.backward_by_hand is not None}
# A formula without inputs that could be differentiated has none.
DIFFERENTIABLE = {
    id: f
    for id, f in LEDGER.items()
    if differentiable(f, f.draw(np.random.default_rng(0), f.cases[0]))
}


@pytest.mark.parametrize("id", DIFFERENTIABLE)
def test_every_row_that_has_a_gradient_has_it_by_hand(id):
    assert LEDGER[id].backward_by_hand is not None, (
        f"{id}: derive its backward pass in formulas/gradients.py and enter it in the row"
    )


def test_the_table_shows_the_column():
    table = str(mt.verify(["softmax"]))
    assert "by-hand grad" in table.splitlines()[0]
    assert all(mt.verify(["softmax"]).rows["softmax"].values())


# --- Finite differences: a witness that knows no derivative at all -------------------------------


def finite_difference(f, x, h=1e-5):
    """(f(x + h) - f(x - h)) / 2h of one number; the error is of order h^2."""
    return (f(x + h) - f(x - h)) / (2 * h)


@pytest.mark.parametrize("id", BY_HAND)
def test_by_hand_matches_finite_differences_of_by_hand(id):
    """NumPy against NumPy: torch takes no part. Along one random direction in which every entry of
    every input counts; if it is off, each input alone tells which."""
    formula, rng = BY_HAND[id], np.random.default_rng(7)
    case = [c for c in formula.cases if c != HUGE][-1]  # beside huge scores h is lost
    inputs = formula.draw(rng, case)
    dy = rng.standard_normal(np.shape(formula.by_hand(**inputs)))
    names = differentiable(formula, inputs)
    grads = formula.backward_by_hand(dy, **inputs)
    if not isinstance(grads, dict):
        grads = dict(zip(names, grads if isinstance(grads, tuple) else (grads,), strict=True))
    assert set(grads) == set(names)
    assert all(grads[name].shape == inputs[name].shape for name in names)
    directions = {name: rng.standard_normal(inputs[name].shape) for name in names}
    directions = {name: d / np.linalg.norm(d) for name, d in directions.items()}

    def error(*along):
        def loss(step):
            moved = {name: inputs[name] + step * directions[name] for name in along}
            return float((formula.by_hand(**inputs | moved) * dy).sum())

        with untyped():
            slope = finite_difference(loss, 0.0)
        by_hand = sum((grads[name] * directions[name]).sum() for name in along)
        return abs(slope - by_hand) / max(1, abs(slope))

    if error(*names) > 1e-6:
        assert {name: e for name in names if (e := error(name)) > 1e-6} == {}
        pytest.fail("each input alone is right, all together are not")


# --- What the derivations claim -----------------------------------------------------------------


def test_a_fully_masked_row_gives_zero_and_takes_zero():
    inputs = LEDGER["attention"].draw(np.random.default_rng(0), "a query without keys")
    keep, Q = inputs["keep"], inputs["Q"]
    dO = np.zeros((*Q.shape[:-1], inputs["V"].shape[-1]))
    dO[..., 2, :] = 1.0  # only the query that may attend to nothing is asked
    assert not keep[..., 2, :].any()
    dQ, dK, dV = gradients.attention_backward(dO, **inputs)
    assert not dQ.any() and not dK.any() and not dV.any()


def test_hidden_keys_get_exactly_zero():
    inputs = LEDGER["attention"].draw(np.random.default_rng(0), "right padding")
    dO = np.random.default_rng(1).standard_normal((3, 5, 7, 13))
    _, dK, dV = gradients.attention_backward(dO, **inputs)
    assert not dK[2, :, -3:].any() and not dV[2, :, -3:].any()
    assert dK[2, :, :-3].all()


def test_layer_norm_backward_is_orthogonal_to_what_the_norm_removes():
    rng = np.random.default_rng(0)
    dy, x, gamma = rng.standard_normal((3, 5, 8)), rng.standard_normal((3, 5, 8)), np.ones(8)
    dx, *_ = gradients.layer_norm_backward(dy, x, gamma, np.zeros(8), 0.0)
    assert abs(dx.sum(-1)).max() < 1e-12  # moving all of x changes nothing
    assert abs((dx * (x - x.mean(-1, keepdims=True))).sum(-1)).max() < 1e-12  # nor stretching it


def test_the_gradient_of_the_key_bias_is_zero():
    rng = np.random.default_rng(0)
    inputs = LEDGER["multi_head_attention"].draw(rng, "causal")
    dy = rng.standard_normal(inputs["x"].shape)
    grads = block_gradients.multi_head_attention_backward(dy, **inputs)
    assert abs(grads["b_K"]).max() < 1e-12 < 1e-2 < abs(grads["b_Q"]).max()


def test_cross_entropy_backward_with_every_target_ignored_is_zero():
    logits = np.random.default_rng(0).standard_normal((5, 4))
    targets = np.full(5, -100)
    assert not gradients.cross_entropy_backward(1.0, logits, targets).any()


def test_forward_helpers_equal_by_hand():
    rng = np.random.default_rng(0)
    x, gamma, beta = rng.standard_normal((7, 10)), rng.standard_normal(10), rng.standard_normal(10)
    ours = gradients.layer_norm(x, gamma, beta, EPS)
    assert np.allclose(ours, by_hand.layer_norm(x, gamma, beta, EPS), atol=1e-12)
    for name, (f, _) in gradients.ACTIVATIONS.items():
        assert np.allclose(f(x), by_hand.ACTIVATIONS[name](x), atol=1e-12)


# --- Slips: what the ledger must refuse ----------------------------------------------------------


def softmax_without_sum(dP, scores, keep=None):
    return gradients.softmax(scores, keep) * dP


def layer_norm_without(term):
    def backward(dy, x, gamma, beta, eps):
        s = np.sqrt(x.var(-1, keepdims=True) + eps)
        x_hat = (x - x.mean(-1, keepdims=True)) / s
        dx_hat = dy * gamma
        first = dx_hat.mean(-1, keepdims=True) * (term != "mean(dx_hat)")
        second = x_hat * (dx_hat * x_hat).mean(-1, keepdims=True) * (term != "mean(dx_hat x_hat)")
        return (dx_hat - first - second) / s, (dy * x_hat).sum((0, 1)), dy.sum((0, 1))

    return backward


def attention_slip(slip):
    def backward(dO, Q, K, V, keep):
        scale = 1 / sqrt(Q.shape[-1])
        dQ, dK, dV = gradients.attention_backward(dO, Q, K, V, keep)
        if slip == "scale of dQ":
            dQ = dQ / scale
        if slip == "scale of dK":
            dK = dK / scale
        if slip == "mask":
            return gradients.attention_backward(dO, Q, K, V, None)
        P = gradients.softmax(Q @ K.swapaxes(-1, -2) * scale, keep)
        dS = gradients.softmax_backward(
            dO @ V.swapaxes(-1, -2), Q @ K.swapaxes(-1, -2) * scale, keep
        )
        if slip == "transpose of P":
            dV = P @ dO
        if slip == "transpose of dS":
            dK = dS @ Q * scale
        return dQ, dK, dV

    return backward


def linear_bias_of_one_position(dy, x, W, b):
    dx, dW, _ = gradients.linear_backward(dy, x, W, b)
    return dx, dW, dy[0, 0]


def embedding_counting_once(dx, ids, E):
    dE = np.zeros_like(E)
    dE[ids] += dx * sqrt(E.shape[1])
    return dE


def pool_over_padding(dpooled, hidden, real):
    return gradients.mean_pool_backward(dpooled, hidden, np.ones_like(real))


def cross_entropy_of_all(dL, logits, targets, ignore, label_smoothing):
    return gradients.cross_entropy_backward(
        dL, logits, abs(targets) % logits.shape[1], -1, label_smoothing
    )


def block_slip(slip):
    def backward(dy, norm_position, **inputs):
        if slip == "other order":
            norm_position = {"post": "pre", "pre": "post"}[norm_position]
        right = block_gradients.encoder_block_backward
        grads = right(dy, norm_position=norm_position, **inputs)
        if slip == "residual":
            grads["x"] = grads["x"] - dy
        return grads

    return backward


def decoder_slip(slip):
    def backward(dout, z, **inputs):
        if slip == "the memory's mask":
            inputs["memory_keep"] = None
        grads = decoder_gradients.decoder_block_backward(dout, z=z, **inputs)
        if slip == "nothing for the encoder":
            grads["z"] = 0 * grads["z"]
        return grads

    return backward


def causal_slip(dy, x, **inputs):
    """The future is hidden on the way forward only."""
    grads = block_gradients.multi_head_attention_backward(dy, x, x, **inputs)
    grads["x"] = grads["x"] + grads.pop("z")
    return grads


def gate_forgotten(dy, **inputs):
    grads = decoder_gradients.gated_feed_forward_backward(dy, **inputs)
    return grads | {"W_3": 0 * grads["W_3"]}


def bias_of_one_example(dO, Q, K, V, keep, bias, scale):
    right = decoder_gradients.biased_attention_backward
    first = None if keep is None else keep[:1]
    dB = right(dO[:1], Q[:1], K[:1], V[:1], bias, scale, first)[3]
    return *right(dO, Q, K, V, bias, scale, keep)[:3], dB


def head_alone(dlogits, ids, E, W, scaled):
    """The lookup's half of the gradient is missing."""
    x = E[ids]
    dh, dE = decoder_gradients.tied_logits_backward(dlogits, x @ W, E, scaled)
    return dE, gradients.linear_backward(dh, x, W)[1]


def lookup_alone(dlogits, source, target, source_keep, **p):
    """The whole model, and its table learns from the target's side only."""
    right = LEDGER["post_ln_transformer"].backward_by_hand
    grads = right(dlogits, source, target, source_keep, **p)
    table = next(name for name in grads if "tokens" in name)
    grads[table] = grads[table] * np.isin(np.arange(len(grads[table])), target)[:, None]
    return grads


def sublayer_without_values(dy, x, **inputs):
    """z used once, not twice: the way through the keys and values is forgotten."""
    grads = block_gradients.decoder_sublayer_backward(dy, x, x, **inputs)
    dx = grads.pop("y")
    del grads["z"]
    return {"x": dx} | grads


SLIPS = {
    "softmax: the sum": ("softmax", softmax_without_sum),
    "LayerNorm: first mean": ("layer_norm", layer_norm_without("mean(dx_hat)")),
    "LayerNorm: second mean": ("layer_norm", layer_norm_without("mean(dx_hat x_hat)")),
    "attention: scale of dQ": ("attention", attention_slip("scale of dQ")),
    "attention: scale of dK": ("attention", attention_slip("scale of dK")),
    "attention: mask": ("attention", attention_slip("mask")),
    "attention: transpose of P": ("attention", attention_slip("transpose of P")),
    "attention: transpose of dS": ("attention", attention_slip("transpose of dS")),
    "linear: bias of one position": ("linear", linear_bias_of_one_position),
    "embedding: a repeated id": ("embeddings", embedding_counting_once),
    "pooling: over padding": ("mean_pool", pool_over_padding),
    "cross-entropy: ignored": ("cross_entropy", cross_entropy_of_all),
    "pre-LN block: residual": ("pre_ln_block", block_slip("residual")),
    "post-LN block: order": ("post_ln_block", block_slip("other order")),
    "article's encoder: z": ("encoder_sublayer", sublayer_without_values),
    "decoder block: the memory's mask": (
        "post_ln_decoder_block",
        decoder_slip("the memory's mask"),
    ),
    "decoder block: nothing for the encoder": (
        "post_ln_decoder_block",
        decoder_slip("nothing for the encoder"),
    ),
    "masked self-attention: the mask": ("causal_self_attention", causal_slip),
    "gated feed-forward: the gate": ("gated_feed_forward", gate_forgotten),
    "bias on the scores: the batch": ("biased_attention", bias_of_one_example),
    "tied embeddings: the lookup": ("tied_logits", head_alone),
    "whole Transformer: the table": ("post_ln_transformer", lookup_alone),
    "GELU: tanh for erf": ("gelu", gradients.gelu_tanh_backward),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_every_slip_is_refused(slip):
    id, wrong = SLIPS[slip]
    try:
        errors = measure(replace(LEDGER[id], backward_by_hand=wrong))
    except ValueError as error:  # all axes differ, so a forgotten transpose does not even fit
        assert "transpose" in slip and "mismatch" in str(error)
        return
    assert errors.wrong() == ["by-hand grad"]


def test_unaltered_slips_would_pass():
    """The slips are wrong for their slip alone."""
    for id, right in (
        ("layer_norm", layer_norm_without("nothing")),
        ("attention", attention_slip("nothing")),
        ("pre_ln_block", block_slip("nothing")),
        ("post_ln_block", block_slip("nothing")),
        ("post_ln_decoder_block", decoder_slip("nothing")),
    ):
        assert measure(replace(LEDGER[id], backward_by_hand=right)).wrong() == []
