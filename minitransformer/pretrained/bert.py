"""BERT's files: its config's names, its weights' names, both ways.

The names are those of Hugging Face's `transformers`. Nothing outside this file knows them.
"""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

from ..model.config import TransformerConfig
from ..model.heads import SequenceClassifier

# "gelu" means the exact one there; both other names mean the tanh approximation.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
SIZES = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
OURS = "minitransformer"
"""The section of config.json with what transformers has no name for."""


def read_config(config: dict[str, Any], state: dict[str, Tensor]) -> TransformerConfig:
    """Our switches from a config.json; whether there is a pooler the weights say.

    Raises:
        ValueError: a missing entry, an unknown activation, or positions that are not absolute.
    """
    activation = config.get("hidden_act", "gelu")
    for name in SIZES:
        if not isinstance(config.get(name, 0), int):
            raise ValueError(f"config.json: {name} must be a whole number, got {config[name]!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"config.json: hidden_act {activation!r} is not known; known: {', '.join(ACTIVATIONS)}"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(
            f"config.json: position_embedding_type {config['position_embedding_type']!r} is not "
            "supported, only 'absolute'"
        )
    try:
        return TransformerConfig.bert(
            vocab_size=config["vocab_size"],
            d_model=config["hidden_size"],
            n_heads=config["num_attention_heads"],
            n_layers=config["num_hidden_layers"],
            d_ff=config["intermediate_size"],
            max_len=config["max_position_embeddings"],
            n_segments=config.get("type_vocab_size", 2),
            norm_eps=config.get("layer_norm_eps", 1e-12),
            activation=ACTIVATIONS[activation],
            dropout=config.get("hidden_dropout_prob", 0.1),
            attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
            init_std=config.get("initializer_range", 0.02),
            pad_id=config.get("pad_token_id", 0),
            pooler="pooler.dense.weight" in state,
        )
    except KeyError as error:
        raise ValueError(f"config.json has no entry {error}") from None


def normalise(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One spelling for the weights of all BERT files.

    Off goes the prefix `bert.`; LayerNorm's old names gamma and beta (only there: a blanket
    replacement broke other models) become weight and bias; what is no weight of the encoder or
    its classifier is left out by name: the buffer of position numbers, and the heads of
    pretraining (`cls.`).
    """
    clean = {}
    for key, tensor in state.items():
        key = key.removeprefix("bert.")
        key = key.replace("LayerNorm.gamma", "LayerNorm.weight")
        key = key.replace("LayerNorm.beta", "LayerNorm.bias")
        if key != "embeddings.position_ids" and not key.startswith("cls."):
            clean[key] = tensor
    return clean


def head_of(
    config: dict[str, Any], state: dict[str, Tensor]
) -> tuple[tuple[str, ...], Literal["cls", "mean"]] | None:
    """Label names and pooling of the classifier in the file, if there is one."""
    pooling: Literal["cls", "mean"] = config.get(OURS, {}).get("pooling", "cls")
    weight = state.get("classifier.weight" if pooling == "cls" else f"{OURS}.classifier.weight")
    if weight is None:
        return None
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(len(weight))}
    if len(names) != len(weight):
        raise ValueError(f"config.json names {len(names)} labels, the classifier has {len(weight)}")
    if set(names) != {str(i) for i in range(len(weight))}:
        raise ValueError(f"config.json: id2label must name 0 to {len(weight) - 1}, got {names}")
    return tuple(names[str(i)] for i in range(len(weight))), pooling


def key_map(
    config: TransformerConfig, prefix: str, pooling: str | None, with_prefix: bool = False
) -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs, for every weight.

    Args:
        prefix: of our encoder: "" alone, "encoder." inside a classifier.
        pooling: of the classifier; None without one.
        with_prefix: write their encoder names with `bert.`, as a file with a `cls` head has them.
    """
    theirs = "bert." if with_prefix and pooling == "cls" else ""

    def both(mine: str, other: str, kinds: str = "weight bias") -> Iterator[tuple[str, str]]:
        for kind in kinds.split():
            yield f"{prefix}{mine}.{kind}", f"{theirs}{other}.{kind}"

    yield from both("embeddings.tokens", "embeddings.word_embeddings", "weight")
    yield from both("embeddings.position_table", "embeddings.position_embeddings", "weight")
    if config.n_segments:
        yield from both("embeddings.segments", "embeddings.token_type_embeddings", "weight")
    yield from both("embeddings.norm", "embeddings.LayerNorm")
    for i in range(config.n_layers):
        mine, other = f"blocks.{i}", f"encoder.layer.{i}"
        yield from both(f"{mine}.attention.W_Q", f"{other}.attention.self.query")
        yield from both(f"{mine}.attention.W_K", f"{other}.attention.self.key")
        yield from both(f"{mine}.attention.W_V", f"{other}.attention.self.value")
        yield from both(f"{mine}.attention.W_O", f"{other}.attention.output.dense")
        yield from both(f"{mine}.norm_1", f"{other}.attention.output.LayerNorm")
        yield from both(f"{mine}.feed_forward.W_1", f"{other}.intermediate.dense")
        yield from both(f"{mine}.feed_forward.W_2", f"{other}.output.dense")
        yield from both(f"{mine}.norm_2", f"{other}.output.LayerNorm")
    if config.pooler:
        yield from both("pooler.dense", "pooler.dense")
    for kind in ("weight", "bias") if pooling else ():
        own = "" if pooling == "cls" else f"{OURS}."
        yield f"classifier.{kind}", f"{own}classifier.{kind}"


def write_config(
    config: TransformerConfig, classifier: SequenceClassifier | None
) -> dict[str, Any]:
    """The config.json of a model with BERT's switches.

    Raises:
        ValueError: switches that BERT's files cannot express; the message lists them.
    """
    c, free = config, ("ops", "pooler", "pad_id", "init_std", "dropout", "attention_dropout",
                       "vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_len",
                       "n_segments", "norm_eps", "activation")  # fmt: skip
    same = c.with_(**{name: getattr(TransformerConfig.bert(), name) for name in free})
    if same != TransformerConfig.bert():
        odd = [
            f"{name}={value!r}"
            for name, value in vars(same).items()
            if value != getattr(TransformerConfig.bert(), name)
        ]
        raise ValueError(f"BERT's files cannot express {', '.join(odd)}; start from bert()")
    cls_head = classifier is not None and classifier.pooling == "cls"
    written: dict[str, Any] = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification" if cls_head else "BertModel"],
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_attention_heads": c.n_heads,
        "num_hidden_layers": c.n_layers,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_len,
        "type_vocab_size": c.n_segments,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[
            c.activation
        ],
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "initializer_range": c.init_std,
        "pad_token_id": c.pad_id,
        "position_embedding_type": "absolute",
    }
    if classifier is not None:
        written["id2label"] = {str(i): name for i, name in enumerate(classifier.labels)}
        written["label2id"] = {name: i for i, name in enumerate(classifier.labels)}
        written[OURS] = {"pooling": classifier.pooling}
    return written


def tokenizer_config(config: TransformerConfig) -> dict[str, Any]:
    """What transformers' AutoTokenizer needs beside tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_len,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
