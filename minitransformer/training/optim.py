"""AdamW's parameter groups, and the schedules of the learning rate."""

import math

import torch
from torch import nn

from ..model.layers import LayerNorm, RMSNorm
from .strategies import Layer

WEIGHT_DECAY = 0.01
"""AdamW's decay when the user gives none."""


def make_adamw(layers: list[Layer], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all layers; biases and norms do not decay.

    Each layer's groups are tagged with its number; the loop sets their rates at every step. AdamW
    skips frozen parameters, since they have no gradient: no step, no decay, no state.

    Source: Loshchilov and Hutter 2019; no decay on biases and norms as in Devlin et al. 2019's code.
    """
    groups = [
        {"params": parameters, "weight_decay": decay, "layer": number}
        for number, layer in enumerate(layers)
        for parameters, decay in zip(split_by_decay(layer), (weight_decay, 0.0), strict=True)
        if parameters
    ]
    # One kernel for the whole update instead of a dozen passes over memory: measured 3 to 5 times
    # faster on a CPU, where AdamW otherwise takes a fifth of a step.
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def split_by_decay(layer: Layer) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """A layer's parameters with and without decay, by the kind of module rather than its name."""
    decayed, plain = list[nn.Parameter](), list[nn.Parameter]()
    for module in (m for top in layer.modules for m in top.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            exempt = isinstance(module, LayerNorm | RMSNorm) or name == "bias"
            (plain if exempt else decayed).append(parameter)
    return decayed, plain


def warmup_then_linear(step: int, steps: int, warmup: float) -> float:
    r"""The schedule's factor at `step` (from 0) of `steps`: up over the warm-up, then down to zero.

    $$f(s) = \begin{cases} \frac{s+1}{w} & s < w \\ \frac{S - s}{S - w} & s \ge w \end{cases}
    \qquad w = \lceil \text{warmup} \cdot S \rceil$$

    The first step already moves (not $s / w$, which wastes it at rate 0), and the last one still does.

    Source: Devlin et al. 2019, appendix A.2.

    >>> [round(warmup_then_linear(s, 10, 0.2), 3) for s in range(10)]
    [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    """
    ramp = math.ceil(warmup * steps)
    return (step + 1) / ramp if step < ramp else (steps - step) / (steps - ramp)


def warmup_then_cosine(step: int, steps: int, warmup: float) -> float:
    r"""As `warmup_then_linear`, but down along half a wave of the cosine: slowly at both ends.

    $$f(s) = \tfrac12\left(1 + \cos \pi\,\frac{s - w}{S - w}\right), \qquad s \ge w$$

    Source: Loshchilov and Hutter 2017 (SGDR), equation 5 without restarts: $\eta_{min} = 0$.

    >>> [round(warmup_then_cosine(s, 10, 0.2), 3) for s in range(10)]
    [0.5, 1.0, 1.0, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]
    """
    ramp = math.ceil(warmup * steps)
    if step < ramp:
        return (step + 1) / ramp
    return (1 + math.cos(math.pi * (step - ramp) / (steps - ramp))) / 2


SCHEDULES = {"linear": warmup_then_linear, "cosine": warmup_then_cosine}
"""By the names that `pretrain` knows."""
