"""Weights and inputs that can tell: of order 1, in float64."""

import torch


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of order 1, random gains and biases, float64."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.double().parameters():
        p.data = (
            torch.randn(p.shape, generator=generator, dtype=torch.float64)
            / max(1, p.shape[-1]) ** 0.5
        )
        if p.ndim == 1:
            p.data += 1.0
    return module


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
