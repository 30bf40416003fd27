"""16-bit activations: what is computed in 32 bits, and what stays in 16."""

import torch

from minitransformer.formulas import fast, masks, ops


def test_softmax_of_16_bit_scores_is_rounded_once():
    torch.manual_seed(0)
    scores = 4 * torch.randn(3, 2, 5, 29, dtype=torch.bfloat16)
    keep = torch.ones(3, 1, 1, 29, dtype=torch.bool)
    keep[1, ..., 20:] = False
    for mask in (None, keep):
        exact = ops.softmax(scores.double(), mask)
        assert torch.equal(fast.fused_softmax(scores, mask), exact.float().bfloat16())
        assert fast.fused_softmax(scores.double(), mask).dtype is torch.float64


def test_dropout_keeps_the_type_and_drops_or_scales():
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.randn(64, 33, dtype=dtype).requires_grad_()
        y = masks.inverted_dropout(x, 0.25)
        assert y.dtype is dtype
        dropped = y == 0
        assert 0.2 < dropped.double().mean() < 0.3
        scale = torch.tensor(1 / 0.75, dtype=dtype)
        assert torch.equal(y[~dropped], (x * scale)[~dropped])
        y.sum().backward()
        assert torch.equal(x.grad, torch.where(dropped, 0, scale))
