"""The shapes that pass through every model, named once."""

from jaxtyping import Float, Int, Shaped
from torch import Tensor

Ids = Int[Tensor, "batch length"]
Source = Int[Tensor, "batch keys"]
Hidden = Float[Tensor, "batch length d_model"]
Queries = Float[Tensor, "batch queries d_model"]
Memory = Float[Tensor, "batch keys d_model"]
Logits = Float[Tensor, "batch length vocab"]
Mask = Shaped[Tensor, "..."] | None  # True = may attend; checked by `check_keep`
Bias = Float[Tensor, "..."] | None
