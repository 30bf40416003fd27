r"""The two masks that both sets of operations use: which keys a query may see, and dropout's random one."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Keep = Bool[Tensor, "..."] | None
Bias = Float[Tensor, "..."] | None


def visible(
    keep: Keep, causal: bool, queries: int, keys: int, device: torch.device | None = None
) -> Keep:
    r"""`keep`, and if causal $j \le i + (\text{keys} - \text{queries})$: no key later than its query.

    With fewer queries than keys the queries are the last positions.

    Shapes: (..., queries, keys).  Source: Vaswani et al. 2017, section 3.2.3.
    """
    if not causal or queries == 1:  # the last position sees all keys
        return keep
    past = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return past if keep is None else keep & past


def inverted_dropout(x: Float[Tensor, "..."], p: float) -> Float[Tensor, "..."]:
    r"""Zero each entry with probability $p$, multiply the others by $1/(1-p)$: the mean is kept.

    One 64-bit random number decides four entries, 16 bits each, so $p$ is exact to 1/65536. On a
    CPU the cost of dropout is drawing the mask, and this is several times cheaper than `F.dropout`
    (tests/benchmarks/training_step.py).

    Shapes: (...) -> the same.  Source: Srivastava et al. 2014, with the scaling at training time.
    """
    dropped = round(p * 65536)  # of the 65536 values of 16 bits
    if dropped == 0:
        return x
    n = x.numel()
    bits = torch.empty((n + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    lanes = bits.view(torch.int16)[:n].view(x.shape)  # uniform on -32768 ... 32767
    threshold = dropped - 32769  # fits into 16 bits, also at p near 1
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.gt(lanes, threshold, out=kept)  # 0 or 1 in x's type; booleans would take twice as long
    return x * kept.mul_(1 / (1 - p))
