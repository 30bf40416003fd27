"""minitransformer: every documented Transformer formula, written out, proven equal, used for real.

The rooms, in reading order: `formulas`, `model`, `data`, `training`, `pretrained`, `inference`,
`classroom`. A room imports only from those before it.
"""

from . import data
from .classroom import checks as check
from .formulas import ledger
from .formulas import rows as _formula_rows  # noqa: F401  (fills the ledger)
from .formulas.verify import verify
from .inference import attention_maps, generate, stream
from .model import decoder_rows as _decoder_rows  # noqa: F401  (fills the ledger)
from .model import model_rows as _model_rows  # noqa: F401  (fills the ledger)
from .model import rows as _module_rows  # noqa: F401  (fills the ledger)
from .model.attention import (
    MultiHeadAttention,
    RelativePositionBias,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
    token_positions,
)
from .model.blocks import DecoderBlock, EncoderBlock
from .model.cache import KeyValueCache
from .model.config import TransformerConfig
from .model.heads import SequenceClassifier
from .model.language_models import CausalLM, MaskedLM, Seq2SeqLM
from .model.layers import FeedForward, LayerNorm, RMSNorm
from .model.switches import compare_switches
from .model.transformer import Decoder, Encoder, EncoderDecoder
from .pretrained import load_pretrained, save_pretrained
from .training import experiments, forgetting, results, strategies
from .training.evaluate import evaluate, predict
from .training.finetune import finetune
from .training.history import History
from .training.plan import plan
from .training.pretrain import masked_accuracy, perplexity, pretrain

__version__ = "0.1.0"

__all__ = [
    "CausalLM",
    "Decoder",
    "DecoderBlock",
    "Encoder",
    "EncoderBlock",
    "EncoderDecoder",
    "FeedForward",
    "History",
    "KeyValueCache",
    "LayerNorm",
    "MaskedLM",
    "MultiHeadAttention",
    "RMSNorm",
    "RelativePositionBias",
    "Seq2SeqLM",
    "SequenceClassifier",
    "TransformerConfig",
    "attention_maps",
    "causal_mask",
    "check",
    "compare_switches",
    "data",
    "evaluate",
    "experiments",
    "finetune",
    "forgetting",
    "generate",
    "ledger",
    "load_pretrained",
    "masked_accuracy",
    "padding_mask",
    "perplexity",
    "plan",
    "predict",
    "pretrain",
    "results",
    "save_pretrained",
    "scaled_dot_product_attention",
    "strategies",
    "stream",
    "token_positions",
    "verify",
]
