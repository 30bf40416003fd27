"""The ledger holds, and it can fail: planted mistakes are caught."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import minitransformer as mt
from minitransformer.formulas import ops
from minitransformer.formulas.ledger import LEDGER
from minitransformer.formulas.verify import Errors, measure


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_formula_holds(seed):
    report = mt.verify(seed=seed)
    assert report.ok, str(report)


def test_every_operation_and_module_has_a_row():
    rows = {
        "softmax": "softmax", "attention": "attention", "layer_norm": "layer_norm",
        "rms_norm": "rms_norm", "relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_tanh",
        "cross_entropy": "cross_entropy",
    }  # fmt: skip
    assert set(ops.Ops._fields) == set(rows) and set(rows.values()) <= set(LEDGER)
    for row in ("sinusoidal_positions", "adamw", "multi_head_attention", "feed_forward", "head",
                "post_ln_block", "pre_ln_block", "encoder_sublayer", "decoder_sublayer",
                "mean_pool", "pooler"):  # fmt: skip
        assert row in LEDGER


def hot(Q, K, V, keep):
    return ops.attention(Q * math.sqrt(Q.shape[-1]), K, V, keep)  # no 1 / sqrt(d_k)


def unmasked(Q, K, V, keep):
    return ops.attention(Q, K, V, None)


def inverted(Q, K, V, keep):
    return ops.attention(Q, K, V, None if keep is None else ~keep)


def eps_outside(x, gamma, beta, eps):
    return gamma * (x - x.mean(-1, True)) / (x.std(-1, correction=0, keepdim=True) + eps) + beta


def unbiased(x, gamma, beta, eps):
    return gamma * (x - x.mean(-1, True)) / torch.sqrt(x.var(-1, keepdim=True) + eps) + beta


def no_gain(x, gamma, beta, eps):
    return F.layer_norm(x, (x.shape[-1],), eps=eps) + 0 * gamma + 0 * beta


def from_one(length, d_model):
    return ops.sinusoidal_positions(length + 1, d_model, torch.float64)[1:]


def halves(length, d_model):
    table = ops.sinusoidal_positions(length, d_model, torch.float64)
    return torch.cat([table[:, 0::2], table[:, 1::2]], 1)


def counts_ignored(logits, targets, ignore, label_smoothing):
    kept = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="sum")
    return kept / len(targets)


def smooths_others_only(logits, targets, ignore, label_smoothing):
    loss = ops.cross_entropy(logits, targets, ignore)
    return (1 - label_smoothing) * loss


def not_corrected(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
    return theta * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


def adam_with_l2(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    options = dict(beta_1=beta_1, beta_2=beta_2, eps=eps, weight_decay=0.0)
    return ops.adamw_step(theta, g + weight_decay * theta, m, v, t, lr, **options)


@pytest.mark.parametrize(
    ("row", "mistake"),
    [
        ("attention", hot), ("attention", unmasked), ("attention", inverted),
        ("layer_norm", eps_outside), ("layer_norm", unbiased), ("layer_norm", no_gain),
        ("gelu", ops.gelu_tanh), ("gelu_tanh", ops.gelu), ("relu", ops.gelu),
        ("sinusoidal_positions", from_one), ("sinusoidal_positions", halves),
        ("cross_entropy", counts_ignored), ("cross_entropy", smooths_others_only),
        ("adamw", not_corrected), ("adamw", adam_with_l2),
    ],
)  # fmt: skip
def test_a_planted_mistake_is_caught(row, mistake):
    errors = measure(dataclasses.replace(LEDGER[row], ours=mistake))
    assert {"by hand", "torch", "float32"} <= set(errors.wrong())
    if LEDGER[row].fused is not None:
        fused = measure(dataclasses.replace(LEDGER[row], fused=mistake))
        assert "fused" in fused.wrong()


def test_a_wrong_gradient_is_caught_where_the_value_is_right():
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.relu(x)

        @staticmethod
        def backward(ctx, g):
            return g  # forgets where x was negative

    errors = measure(dataclasses.replace(LEDGER["relu"], ours=Cut.apply))
    assert "gradient" in errors.wrong() and "torch" not in errors.wrong()


def test_nan_is_wrong():
    assert Errors({"torch": float("nan"), "fused": None, "float32": 1e-6}).wrong() == ["torch"]
    broken = dataclasses.replace(LEDGER["softmax"], ours=lambda scores, keep: scores * math.nan)
    assert "torch" in measure(broken).wrong()


@pytest.mark.parametrize("row", LEDGER)
def test_show_puts_formula_code_and_errors_side_by_side(row):
    card = mt.ledger.show(row)
    html = card._repr_html_()
    assert LEDGER[row].latex in html and "largest error" in html and "<pre>" in html
    assert "def " in card.code and '"""' not in card.code and LEDGER[row].source in repr(card)


def test_an_unknown_formula_lists_those_there_are():
    with pytest.raises(KeyError, match=r"no formula 'atention'.*attention.*adamw"):
        mt.verify(["atention"])


def test_cross_entropy_of_nothing_is_zero():
    logits, targets = torch.randn(3, 4, requires_grad=True), torch.full((3,), -100)
    for f in (ops.cross_entropy, ops.fused_cross_entropy):
        loss = f(logits, targets)
        loss.backward()
        assert loss == 0 and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.75])
def test_inverted_dropout_keeps_the_mean_and_drops_the_share(p):
    torch.manual_seed(0)
    n = 400_003  # not a multiple of four
    y = ops.inverted_dropout(torch.ones(n, dtype=torch.float64), p)
    assert abs((y == 0).double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert abs(y.mean().item() - 1) < 5 * math.sqrt(p / (1 - p) / n)
    assert set(y.unique().tolist()) == {0.0, 1 / (1 - p)}


def test_inverted_dropout_decides_every_entry_on_its_own():
    torch.manual_seed(0)
    dropped = (ops.inverted_dropout(torch.ones(100_000, 8), 0.3) == 0).numpy()
    correlation = np.corrcoef(dropped, rowvar=False) - np.eye(8)
    assert np.abs(correlation).max() < 0.015  # 4.7 standard errors


def test_inverted_dropout_follows_the_seed_and_p_zero_changes_nothing():
    x = torch.randn(7, 5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(ops.inverted_dropout(x, 0.4))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert ops.inverted_dropout(x, 0.0) is x
