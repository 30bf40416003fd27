"""Models at work: writing and explanation."""

from .explain import attention_maps
from .generation import generate, stream

__all__ = ["attention_maps", "generate", "stream"]
