"""Models at work: explanation."""

from .explain import attention_maps

__all__ = ["attention_maps"]
