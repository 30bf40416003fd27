"""BERT's files: its config's names, its weights' names, both ways.

The names are those of Hugging Face's `transformers`. Nothing outside this file knows them.
"""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

from ..model.config import TransformerConfig
from ..model.heads import MaskedLM, SequenceClassifier
from ..model.transformer import Encoder
from .hf_config import (
    activation,
    activation_name,
    both,
    check_expressible,
    drop_alias,
    read_entries,
    refuse,
)

Bert = Encoder | SequenceClassifier | MaskedLM
NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "d_ff": "intermediate_size",
    "max_len": "max_position_embeddings",
    "n_segments": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "init_std": "initializer_range",
    "pad_id": "pad_token_id",
}
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""What transformers' AutoTokenizer needs to be told beside tokenizer.json."""
MARK = "embeddings.word_embeddings.weight"
"""A weight that every file of this family has, and none of another."""
MASKED_HEAD = "cls.predictions.transform.dense.weight"
OURS = "minitransformer"
"""The section of config.json with what transformers has no name for."""


def read_config(config: dict[str, Any], state: dict[str, Tensor]) -> TransformerConfig:
    """Our switches from a config.json; whether there is a pooler the weights say.

    Raises:
        ValueError: a missing entry, an unknown activation, or positions that are not absolute.
    """
    refuse(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    switches = read_entries(config, NAMES)
    switches["activation"] = activation(config, "hidden_act", "gelu")
    return TransformerConfig.bert(**switches, pooler="pooler.dense.weight" in state)


def normalise(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """One spelling for the weights of all BERT files.

    Off goes the prefix `bert.`; LayerNorm's old names gamma and beta (only there: a blanket
    replacement broke other models) become weight and bias; what has no place here is left out by
    name: the buffer of position numbers, and the head for next sentences.
    """
    clean = {}
    for key, tensor in state.items():
        key = key.removeprefix("bert.")
        key = key.replace("LayerNorm.gamma", "LayerNorm.weight")
        key = key.replace("LayerNorm.beta", "LayerNorm.bias")
        if key != "embeddings.position_ids" and not key.startswith("cls.seq_relationship."):
            clean[key] = tensor
    if MASKED_HEAD not in clean:  # half a head is none
        return {key: t for key, t in clean.items() if not key.startswith("cls.")}
    drop_alias(clean, "cls.predictions.decoder.weight", MARK)
    drop_alias(clean, "cls.predictions.decoder.bias", "cls.predictions.bias")
    return clean


def build(config: dict[str, Any], state: dict[str, Tensor], ours: TransformerConfig) -> Bert:
    """The model that the file holds: with a classifier, with the masked language model's head, or bare."""
    encoder = Encoder(ours)
    if MASKED_HEAD in state:
        return MaskedLM(encoder)
    head = head_of(config, state)
    if head is None:
        return encoder
    labels, pooling = head
    model = SequenceClassifier(encoder, len(labels), pooling)
    model.labels = labels
    return model


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


def key_map(model: Bert) -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs, for every weight."""
    prefix = "" if isinstance(model, Encoder) else "encoder."
    config = model.config if isinstance(model, Encoder) else model.encoder.config

    def encoder(mine: str, other: str, kinds: str = "weight bias") -> Iterator[tuple[str, str]]:
        return both(f"{prefix}{mine}", other, kinds)

    yield from encoder("embeddings.tokens", "embeddings.word_embeddings", "weight")
    yield from encoder("embeddings.position_table", "embeddings.position_embeddings", "weight")
    if config.n_segments:
        yield from encoder("embeddings.segments", "embeddings.token_type_embeddings", "weight")
    yield from encoder("embeddings.norm", "embeddings.LayerNorm")
    for i in range(config.n_layers):
        mine, other = f"blocks.{i}", f"encoder.layer.{i}"
        yield from encoder(f"{mine}.attention.W_Q", f"{other}.attention.self.query")
        yield from encoder(f"{mine}.attention.W_K", f"{other}.attention.self.key")
        yield from encoder(f"{mine}.attention.W_V", f"{other}.attention.self.value")
        yield from encoder(f"{mine}.attention.W_O", f"{other}.attention.output.dense")
        yield from encoder(f"{mine}.norm_1", f"{other}.attention.output.LayerNorm")
        yield from encoder(f"{mine}.feed_forward.W_1", f"{other}.intermediate.dense")
        yield from encoder(f"{mine}.feed_forward.W_2", f"{other}.output.dense")
        yield from encoder(f"{mine}.norm_2", f"{other}.output.LayerNorm")
    if config.pooler:
        yield from encoder("pooler.dense", "pooler.dense")
    if isinstance(model, MaskedLM):
        yield from both("dense", "cls.predictions.transform.dense")
        yield from both("norm", "cls.predictions.transform.LayerNorm")
        yield from both("head", "cls.predictions", "bias")
    if isinstance(model, SequenceClassifier):
        own = "" if model.pooling == "cls" else f"{OURS}."
        yield from both("classifier", f"{own}classifier")


def restore(state: dict[str, Tensor], model: Bert) -> dict[str, Tensor]:
    """The names as a file has them: `bert.` before the encoder's, beside a head of transformers'."""
    if isinstance(model, Encoder) or getattr(model, "pooling", "cls") == "mean":
        return state
    heads = ("classifier.", "cls.")
    return {k if k.startswith(heads) else f"bert.{k}": t for k, t in state.items()}


def write_config(model: Bert) -> dict[str, Any]:
    """The config.json of a model with BERT's switches.

    Raises:
        ValueError: switches that BERT's files cannot express; the message lists them.
    """
    config = model.config if isinstance(model, Encoder) else model.encoder.config
    free = (*NAMES, "activation", "pooler")
    check_expressible(config, TransformerConfig.bert(), free, "BERT")
    architecture = "BertForMaskedLM" if isinstance(model, MaskedLM) else "BertModel"
    written: dict[str, Any] = {
        "model_type": "bert",
        "architectures": [architecture],
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        "hidden_act": activation_name(config.activation),
        "position_embedding_type": "absolute",
    }
    if isinstance(model, SequenceClassifier):
        if model.pooling == "cls":
            written["architectures"] = ["BertForSequenceClassification"]
        written["id2label"] = {str(i): name for i, name in enumerate(model.labels)}
        written["label2id"] = {name: i for i, name in enumerate(model.labels)}
        written[OURS] = {"pooling": model.pooling}
    return written
