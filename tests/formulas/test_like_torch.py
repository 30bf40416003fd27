"""`ops="formula"` where numbers or shapes are extreme: as torch's own operations."""

import math

import pytest
import torch
from torch.nn import functional as F

from minitransformer.formulas import ops
from minitransformer.model.layers import LayerNorm, RMSNorm

INF = math.inf
EXTREME = torch.tensor([-INF, INF, math.nan, -0.0, 0.0, 1e-30, -1e30, 1e30, -50.0, 2.0])
HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
def test_activations_of_extreme_numbers(name, dtype):
    theirs = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    x = EXTREME.to(dtype)
    x = x[x != INF] if name == "gelu" else x  # torch's vectors give NaN at ∞
    a, b = (x.clone().requires_grad_() for _ in range(2))
    mine, other = getattr(ops.FORMULA, name)(a), theirs[name](b)
    torch.testing.assert_close(mine, other, equal_nan=True, rtol=HALF.get(dtype, 1e-6), atol=1e-6)
    if name == "relu":
        for y in (mine, other):
            y.nan_to_num().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("row", [
    [0.5, -INF, 2.0], [-INF, -INF, 1.0], [1.0, 2.0, -INF], [1e4, -1e4, 0.0], [0.0, math.nan, 1.0],
], ids=["elsewhere", "all but one", "at the target", "far", "nan"])  # fmt: skip
def test_cross_entropy_of_impossible_classes(row, smoothing):
    logits = torch.tensor([row, [0.1, 0.2, 0.3], [-INF, math.nan, INF]], dtype=torch.float64)
    targets = torch.tensor([2, 0, -100])  # the last is ignored, whatever it holds
    a, b = (logits.clone().requires_grad_() for _ in range(2))
    mine = ops.FORMULA.cross_entropy(a, targets, label_smoothing=smoothing)
    other = F.cross_entropy(b, targets, label_smoothing=smoothing)
    torch.testing.assert_close(mine, other, equal_nan=True)
    if mine.isfinite():
        mine.backward()
        other.backward()
        torch.testing.assert_close(a.grad[:2], b.grad[:2])


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("size", [1.0, 300.0, 3e4])
def test_16_bits_do_not_overflow(dtype, size):
    torch.manual_seed(0)
    x, gamma, beta = (size * torch.randn(4, 64)).clamp(-6e4, 6e4).to(dtype), *torch.randn(2, 64).to(dtype)  # fmt: skip
    tolerance = {"rtol": HALF[dtype], "atol": HALF[dtype]}
    for name, arguments in (("layer_norm", (gamma, beta, 1e-5)), ("rms_norm", (gamma, 1e-6))):
        mine = getattr(ops.FORMULA, name)(x, *arguments)
        assert mine.dtype is dtype
        torch.testing.assert_close(mine, getattr(ops.FUSED, name)(x, *arguments), **tolerance)
    Q, K, V = (min(size, 200.0) * torch.randn(3, 2, 5, 64)).to(dtype)
    mine, exact = ops.FORMULA.attention(Q, K, V), ops.attention(Q.float(), K.float(), V.float())
    assert mine.dtype is dtype
    torch.testing.assert_close(mine.float(), exact, rtol=HALF[dtype], atol=HALF[dtype] * size)
    many = torch.zeros(1, 70_000, dtype=dtype)  # more classes than float16 can count
    for f in (ops.FORMULA.softmax, lambda x: ops.FORMULA.cross_entropy(x, torch.tensor([3]))):
        assert f(many).isfinite().all() and f(many).max() > 0


@pytest.mark.parametrize("kind", ["formula", "fused"])
@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_a_norm_of_another_width_is_an_error_and_no_broadcast(norm, kind):
    for d, shape in ((5, (3, 1)), (1, (3, 5)), (5, (5, 4))):
        with pytest.raises(RuntimeError if kind == "formula" else Exception, match=r"."):
            norm(d, ops=kind)(torch.ones(shape))
    assert norm(5, ops=kind)(torch.ones(3, 5)).shape == (3, 5)


@pytest.mark.parametrize("kind", ["formula", "fused"])
def test_targets_of_another_number_are_an_error(kind):
    with pytest.raises(ValueError if kind == "formula" else Exception, match=r"."):
        ops.OPS[kind].cross_entropy(torch.zeros(3, 4), torch.tensor([1]))
