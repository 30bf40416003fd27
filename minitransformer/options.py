"""Names that the command line offers before torch is loaded; the code behind them imports them from here."""

from typing import Literal

Precision = Literal["auto", "highest", "medium", "bfloat16"]
"""How exactly matrices are multiplied; `training/precision.py` explains each."""
Schedule = Literal["linear", "cosine"]
"""How the learning rate falls after the warm-up."""
Pooling = Literal["cls", "mean"]
"""Which vector stands for a text: that of its first token, or the mean over all."""
Objective = Literal["causal", "masked", "spans"]
"""What a model is pretrained for: GPT's, BERT's or T5's objective."""
TokenizerKind = Literal["characters", "bytes", "words"]
"""What a tokenizer learns from texts; `data/vocabulary.py` explains each."""
STRATEGIES = (
    "full", "last-layers", "head-only", "gradual", "layerwise-decay", "lp-ft", "bias-only", "lora",
)  # fmt: skip
"""Which layers learn, in fine-tuning; `training/strategies.py` has the classes."""
