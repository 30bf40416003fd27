"""Models at work: writing and explanation.

Reading order: `generation` (the two functions to call), `decoding` (the logits of the next token),
`beam_search`, `explain`.
"""

from .explain import attention_maps
from .generation import generate, stream

__all__ = ["attention_maps", "generate", "stream"]
