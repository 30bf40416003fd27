"""Preloaded once before grading; each process is forked from this state."""

import matplotlib.pyplot  # noqa: F401
import torch.fx.experimental.symbolic_shapes  # noqa: F401 - which torch loads at the first gradient

import minitransformer as package

from . import checking

checking.registry.every()
for name in package.__all__:
    getattr(package, name)
