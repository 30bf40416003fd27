"""What several commands read: labelled texts, and models."""

from .. import data
from ..data.datasets import LabelledTexts, read_table
from ..data.domains import DOMAINS
from ..model.heads import MaskedLM, SequenceClassifier
from ..model.transformer import Encoder
from ..pretrained import load_pretrained

TABLE = "a .csv, .tsv or .jsonl file with the columns text and label"


def read_labelled(source: str, label_names: tuple[str, ...] | None = None) -> LabelledTexts:
    """A file, or one of the domains by name."""
    if source not in DOMAINS:
        return read_table(source, label_names)
    domain = data.load(source)
    if label_names not in (None, domain.label_names):
        raise ValueError(
            f"{source} has the labels {', '.join(domain.label_names)}, the model knows "
            f"{', '.join(label_names or ())}"
        )
    return domain


def load_encoder(name: str) -> tuple[Encoder, data.Tokenizer]:
    """The encoder of a folder, to go on from: a head that it has is left behind."""
    model, tokenizer = load_pretrained(name)
    if isinstance(model, SequenceClassifier | MaskedLM):
        model = model.encoder
    if not isinstance(model, Encoder):
        raise ValueError(f"{name} holds a {type(model).__name__}; a classifier needs an encoder")
    return model, tokenizer


def load_classifier(folder: str) -> tuple[SequenceClassifier, data.Tokenizer]:
    """A folder that holds a classifier."""
    model, tokenizer = load_pretrained(folder)
    if not isinstance(model, SequenceClassifier):
        raise ValueError(f"{folder} is a model without a classifier; train one with finetune")
    return model, tokenizer
