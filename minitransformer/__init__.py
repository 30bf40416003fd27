"""minitransformer: every documented Transformer formula, written out, proven equal, used for real.

The rooms, in reading order: `formulas`, `model`, `data`, `training`, `pretrained`, `inference`,
`classroom`. A room imports only from those before it.
"""

from . import data
from .classroom import checks as check
from .formulas import ledger
from .formulas import rows as _formula_rows  # noqa: F401  (fills the ledger)
from .formulas.verify import verify
from .inference import attention_maps
from .model import rows as _module_rows  # noqa: F401  (fills the ledger)
from .model.attention import (
    MultiHeadAttention,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
)
from .model.blocks import EncoderBlock
from .model.config import TransformerConfig
from .model.heads import SequenceClassifier
from .model.layers import FeedForward, LayerNorm, RMSNorm
from .model.transformer import Encoder
from .pretrained import load_pretrained, save_pretrained
from .training import experiments, forgetting, results, strategies
from .training.evaluate import evaluate, predict
from .training.finetune import finetune
from .training.plan import plan

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "EncoderBlock",
    "FeedForward",
    "LayerNorm",
    "MultiHeadAttention",
    "RMSNorm",
    "SequenceClassifier",
    "TransformerConfig",
    "attention_maps",
    "causal_mask",
    "check",
    "data",
    "evaluate",
    "experiments",
    "finetune",
    "forgetting",
    "ledger",
    "load_pretrained",
    "padding_mask",
    "plan",
    "predict",
    "results",
    "save_pretrained",
    "scaled_dot_product_attention",
    "strategies",
    "verify",
]
