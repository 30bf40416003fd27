"""BERT's files. Nothing outside this module knows their names, which are those of `transformers`."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..model.compare import config_of
from ..model.config import TransformerConfig
from ..model.heads import MaskedLM, SequenceClassifier
from ..model.transformer import Encoder
from . import hf_config as hf

Bert = Encoder | SequenceClassifier | MaskedLM
MODELS = Bert
NAMES = hf.ENTRIES["families"]["bert"]["switches"]
FREE = ("activation", "pooler")
BLOCK = {
    "attention.W_Q": "attention.self.query",
    "attention.W_K": "attention.self.key",
    "attention.W_V": "attention.self.value",
    "attention.W_O": "attention.output.dense",
    "norm_1": "attention.output.LayerNorm",
    "feed_forward.W_1": "intermediate.dense",
    "feed_forward.W_2": "output.dense",
    "norm_2": "output.LayerNorm",
}
EMBEDDINGS = {"tokens": "word", "position_table": "position", "segments": "token_type"}
MARK, PREFIX = "embeddings.word_embeddings.weight", "bert."
CLASSIFIER, MASKED = "BertForSequenceClassification", ("BertForMaskedLM", "BertForPreTraining")
MASKED_HEAD, DECODER = "cls.predictions.transform.dense.weight", "cls.predictions.decoder"
SINGLE = "single_label_classification"
OURS = "minitransformer"
"""The section of config.json for what transformers has no name for."""


def read_config(config: dict[str, Any], state: dict[str, Tensor]) -> TransformerConfig:
    """Our switches from a config.json; the weights say whether there is a pooler."""
    switches = hf.read_entries(config, NAMES)
    switches["activation"] = hf.activation(config, "hidden_act", "gelu")
    return TransformerConfig.bert(**switches, pooler="pooler.dense.weight" in state)


def normalise(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """One spelling for the weights of all BERT files.

    The prefix `bert.` is removed; LayerNorm's old names gamma and beta become weight and bias (only
    there: a blanket replacement broke other models); the buffer of position numbers and the head for
    next sentences, which have no place here, are dropped by name.
    """
    clean = {}
    for key, tensor in state.items():
        key = key.removeprefix(PREFIX).replace("LayerNorm.gamma", "LayerNorm.weight")
        key = key.replace("LayerNorm.beta", "LayerNorm.bias")
        if key != "embeddings.position_ids" and not key.startswith("cls.seq_relationship."):
            clean[key] = tensor
    if MASKED_HEAD not in clean:  # half a head is no head
        return {key: t for key, t in clean.items() if not key.startswith("cls.")}
    if config.get("tie_word_embeddings", True):
        hf.drop_alias(clean, f"{DECODER}.weight", MARK)
        hf.drop_alias(clean, f"{DECODER}.bias", "cls.predictions.bias")
    elif f"{DECODER}.bias" in clean:  # the one that is used
        clean["cls.predictions.bias"] = clean.pop(f"{DECODER}.bias")
    return clean


def build(config: dict[str, Any], state: dict[str, Tensor], ours: TransformerConfig) -> Bert:
    """The model that the file holds: with a classifier, with a masked language model's head, or bare."""
    encoder, kind = Encoder(ours), hf.architecture(config)
    if kind in MASKED or (kind != CLASSIFIER and MASKED_HEAD in state):
        return MaskedLM(encoder)
    pooling = hf.as_object(config.get(OURS) or {}, OURS).get("pooling", "cls")
    weight = state.get("classifier.weight" if pooling == "cls" else f"{OURS}.classifier.weight")
    if kind != CLASSIFIER and (weight is None or (pooling == "cls" and kind)):
        return encoder
    if weight is None or (pooling == "cls" and not kind):
        has = "no classifier.weight" if weight is None else "a classifier, of texts or of tokens"
        raise ValueError(f"config.json: architectures is {kind!r}, and the weights have {has}")
    problem = config.get("problem_type") or (SINGLE if len(weight) > 1 else "regression")
    if problem != SINGLE:
        raise ValueError(
            f"config.json: {problem!r} with {len(weight)} outputs is a problem_type that is not "
            f"supported, only {SINGLE!r}"
        )
    numbers = [str(i) for i in range(len(weight))]
    names = hf.as_object(config.get("id2label") or {}, "config.json: id2label")
    names = names or {i: f"LABEL_{i}" for i in numbers}
    if len(names) != len(weight):
        raise ValueError(f"config.json names {len(names)} labels, the classifier has {len(weight)}")
    if set(names) != {*numbers} or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(
            f"config.json: id2label must name 0 to {len(weight) - 1} with texts, got {names}"
        )
    where, rate = "config.json: classifier_dropout", config.get("classifier_dropout")
    dropout = hf.typed(rate, (float, type(None)), where)
    model = SequenceClassifier(encoder, len(weight), pooling, dropout)
    model.labels = tuple(names[i] for i in numbers)
    return model


def key_map(model: Bert) -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs, for every weight."""
    own, config = "" if isinstance(model, Encoder) else "encoder.", config_of(model)
    for mine, other in EMBEDDINGS.items():
        if mine != "segments" or config.n_segments:
            yield f"{own}embeddings.{mine}.weight", f"embeddings.{other}_embeddings.weight"
    yield from hf.both(f"{own}embeddings.norm", "embeddings.LayerNorm")
    for i in range(config.n_layers):
        for mine, other in BLOCK.items():
            yield from hf.both(f"{own}blocks.{i}.{mine}", f"encoder.layer.{i}.{other}")
    if config.pooler:
        yield from hf.both(f"{own}pooler.dense", "pooler.dense")
    if isinstance(model, MaskedLM):
        yield from hf.both("dense", "cls.predictions.transform.dense")
        yield from hf.both("norm", "cls.predictions.transform.LayerNorm")
        yield "head.bias", "cls.predictions.bias"
        if not config.tie_embeddings:
            yield "head.weight", f"{DECODER}.weight"
    if isinstance(model, SequenceClassifier):
        theirs = "classifier" if model.pooling == "cls" else f"{OURS}.classifier"
        yield from hf.both("classifier", theirs)


def restore(state: dict[str, Tensor], model: Bert) -> dict[str, Tensor]:
    """The names in a file: next to a head of transformers', the encoder's begin with `bert.`."""
    if isinstance(model, Encoder) or getattr(model, "pooling", "cls") == "mean":
        return state
    heads = ("classifier.", "cls.")
    written = {k if k.startswith(heads) else f"{PREFIX}{k}": t for k, t in state.items()}
    if f"{DECODER}.weight" in state:
        written[f"{DECODER}.bias"] = state["cls.predictions.bias"].clone()
    return written


def write_config(model: Bert) -> dict[str, Any]:
    """The config.json of a model with BERT's switches."""
    config = config_of(model)
    if config.n_segments < 1:
        raise ValueError("BERT's files cannot express n_segments=0; give at least 1")
    written: dict[str, Any] = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM" if isinstance(model, MaskedLM) else "BertModel"],
        **hf.write_entries(config, NAMES, FREE, "BERT"),
        "hidden_act": hf.activation_name(config.activation),
        "position_embedding_type": "absolute",
    }
    if isinstance(model, SequenceClassifier):
        if model.pooling == "cls":
            written["architectures"] = ["BertForSequenceClassification"]
        written["id2label"] = {str(i): name for i, name in enumerate(model.labels)}
        written["label2id"] = {name: i for i, name in enumerate(model.labels)}
        written["problem_type"] = SINGLE
        own = model.dropout.p != config.dropout
        written["classifier_dropout"] = model.dropout.p if own else None
        written[OURS] = {"pooling": model.pooling}
    return written
