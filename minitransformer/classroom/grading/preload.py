"""Preloaded once before grading; each process is forked from this state."""

import torch.fx.experimental.symbolic_shapes  # noqa: F401 - which torch loads at the first gradient

import minitransformer as package
from minitransformer import plots  # noqa: F401

from . import checking

checking.registry.every()
for name in package.__all__:
    getattr(package, name)
