"""minitransformer: every documented Transformer formula, written out, proven equal, used for real.

The rooms, in reading order: `formulas`, `model`, `data`, `training`, `pretrained`, `inference`,
`proofs`, `lab`, `classroom`, `commands`. A room imports only from those before it.
"""

from .lazy import lazily

__version__ = "0.1.0"

# Loaded when first used: the command line answers before torch is there, and whoever only wants a
# model pays neither for the proofs nor for the classroom.
__all__, __getattr__, __dir__ = lazily(
    __name__,
    names={
        "model.config": "TransformerConfig",
        "model.attention": "MultiHeadAttention RelativePositionBias causal_mask padding_mask "
        "scaled_dot_product_attention token_positions",
        "model.layers": "FeedForward LayerNorm RMSNorm",
        "model.block": "DecoderBlock EncoderBlock",
        "model.transformer": "Decoder Encoder EncoderDecoder",
        "model.heads": "CausalLM MaskedLM Seq2SeqLM SequenceClassifier",
        "model.kv_cache": "KeyValueCache",
        "model.compare": "compare_switches",
        "training.finetune": "finetune",
        "training.pretrain": "masked_accuracy perplexity pretrain",
        "training.evaluate": "evaluate predict",
        "training.history": "History",
        "training.summary": "plan",
        "pretrained.checkpoints": "load_pretrained save_pretrained",
        "inference.explain": "attention_maps",
        "inference.generation": "generate stream",
        "proofs.verify": "verify",
    },
    modules={
        "data": "data",
        "strategies": "training.strategies",
        "ledger": "proofs.ledger",
        "experiments": "lab.experiments",
        "forgetting": "lab.forgetting",
        "results": "lab.results",
        "check": "classroom.registry",
    },
)
