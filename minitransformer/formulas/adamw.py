r"""The optimiser's formula, in torch."""

import torch
from torch import Tensor


def adamw_step(
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    lr: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Step $t$ of AdamW: $\theta \leftarrow \theta - \eta\lambda\theta - \eta\,\hat m/(\sqrt{\hat v}+\epsilon)$.

    Training uses `torch.optim.AdamW`; this is its formula. Returns the new $\theta, m, v$.

    Shapes: all alike.  Source: Loshchilov and Hutter 2019, algorithm 2.
    Reference: `torch.optim.AdamW`.
    """
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g**2
    m_hat = m / (1 - beta_1**t)
    v_hat = v / (1 - beta_2**t)
    theta = theta - lr * weight_decay * theta - lr * m_hat / (torch.sqrt(v_hat) + eps)
    return theta, m, v
