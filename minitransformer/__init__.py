"""minitransformer: every documented Transformer formula, written out, proven equal, used for real.

The rooms, in reading order: `formulas`, `model`, `data`, `training`, `pretrained`, `inference`,
`proofs`, `lab`, `classroom`. A room imports only from those before it.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# A name is loaded when it is first used, so that the command line answers before torch is there,
# and nobody pays for the proofs or the classroom who only wants a model.
_WHERE = {
    "model.attention": "MultiHeadAttention RelativePositionBias causal_mask padding_mask "
    "scaled_dot_product_attention token_positions",
    "model.block": "DecoderBlock EncoderBlock",
    "model.compare": "compare_switches",
    "model.config": "TransformerConfig",
    "model.heads": "CausalLM MaskedLM Seq2SeqLM SequenceClassifier",
    "model.kv_cache": "KeyValueCache",
    "model.layers": "FeedForward LayerNorm RMSNorm",
    "model.transformer": "Decoder Encoder EncoderDecoder",
    "training.evaluate": "evaluate predict",
    "training.finetune": "finetune",
    "training.history": "History",
    "training.pretrain": "masked_accuracy perplexity pretrain",
    "training.summary": "plan",
    "pretrained.checkpoints": "load_pretrained save_pretrained",
    "inference.explain": "attention_maps",
    "inference.generation": "generate stream",
    "proofs.verify": "verify",
}
_MODULES = {
    "data": "data",
    "strategies": "training.strategies",
    "ledger": "proofs.ledger",
    "experiments": "lab.experiments",
    "forgetting": "lab.forgetting",
    "results": "lab.results",
    "check": "classroom.registry",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names.split()}

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    # Python asks here only for names that are not loaded yet.
    if name in _MODULES:
        value = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
