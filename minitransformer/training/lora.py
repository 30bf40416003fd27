"""Low-rank adaptation (Hu et al. 2021): a matrix learns by adding a thin product to it."""

import math
from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class LoRALinear(nn.Module):
    r"""A linear map $W_0$ plus a change of rank $r$: $y = xW_0^\top + \frac{\alpha}{r}\,xA^\top B^\top$.

    $A$ starts random and $B$ at zero, so at first nothing is changed and yet $B$ has a gradient.

    Shapes: (..., d_in) -> (..., d_out); A (r, d_in), B (d_out, r).
    Raises: ValueError for a rank above the matrix's own.  Source: Hu et al. 2021, equation 3.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float | int, name: str = "linear",
        generator: torch.Generator | None = None,
    ):  # fmt: skip
        super().__init__()
        d_out, d_in = linear.weight.shape
        if rank > min(d_out, d_in):
            raise ValueError(
                f"rank={rank} is over the size of {name}, {d_in} to {d_out}; a change of rank "
                f"{min(d_out, d_in)} can be anything already, so train the matrix itself"
            )
        self.linear, self.scale = linear, alpha / rank
        self.A = nn.Parameter(torch.empty(rank, d_in, dtype=linear.weight.dtype))
        self.B = nn.Parameter(torch.zeros(d_out, rank, dtype=linear.weight.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)  # as nn.Linear starts

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """The two maps, added."""
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        r"""The plain linear map $W_0 + \frac{\alpha}{r} BA$."""
        self.linear.weight += self.scale * self.B @ self.A
        return self.linear


def insert(
    model: nn.Module, rank: int, alpha: float | int, targets: tuple[str, ...], seed: int = 0
) -> None:
    """Give every linear map whose name ends in one of `targets` a low-rank change.

    The seed decides how they start; torch's own random state is neither used nor changed. A target
    that matches nothing, or a rank above a matrix's size, is a ValueError; the model is unchanged.
    """
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    known = {n.rpartition(".")[2] for n in linears}
    if unknown := [target for target in targets if target not in known]:
        raise ValueError(
            f"no linear map is called {unknown[0]!r}; targets may be: {', '.join(sorted(known))}"
        )
    generator = torch.Generator().manual_seed(seed)
    changed = {
        n: LoRALinear(m, rank, alpha, n, generator)
        for n, m in linears.items()
        if n.rpartition(".")[2] in targets
    }
    for name, module in changed.items():
        model.set_submodule(name, module)


def merge(model: nn.Module) -> None:
    """Add every low-rank change into its matrix, which leaves a plain model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            model.set_submodule(name, module.merged())


def of_frozen(model: nn.Module, fixed: Collection[nn.Parameter]) -> set[nn.Parameter]:
    """The A and B of frozen matrices, which must not learn either; ValueError if there are no others."""
    changes = [m for m in model.modules() if isinstance(m, LoRALinear)]
    held = [m for m in changes if m.linear.weight in fixed]
    if held and len(held) == len(changes):
        raise ValueError(
            "all matrices that LoRA would change are frozen (requires_grad=False); thaw them with "
            "model.requires_grad_(True): LoRA itself trains only what it adds, and the head"
        )
    return {p for m in held for p in (m.A, m.B)}
