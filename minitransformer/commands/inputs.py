"""Inputs that several commands read: labelled texts and models."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.datasets import LabelledTexts
from ..data.domains import DOMAINS, load
from ..data.tables import existing, read_table

if TYPE_CHECKING:
    from ..data import Tokenizer
    from ..model.heads import SequenceClassifier
    from ..model.transformer import Encoder

TABLE = "a .csv, .tsv or .jsonl file with the columns text and label"
LABELLED = f"{TABLE}; or a domain: {', '.join(DOMAINS)}"


def is_domain(source: str) -> bool:
    """Whether it is the name of a domain; FileNotFoundError if it is neither that nor a file."""
    if source in DOMAINS:
        return True
    if source.isidentifier() and not Path(source).exists():
        names = ", ".join(DOMAINS)
        raise FileNotFoundError(f"there is no file {source} and no such domain; there are: {names}")
    existing(source)
    return False


def read_labelled(source: str, label_names: tuple[str, ...] | None = None) -> LabelledTexts:
    """The texts of a file, or of a domain by its name."""
    if not is_domain(source):
        return read_table(source, label_names)
    domain = load(source)
    if label_names not in (None, domain.label_names):
        has, known = ", ".join(domain.label_names), ", ".join(label_names or ())
        raise ValueError(f"{source} has the labels {has}, the model knows {known}")
    return domain


def writable(out: str, make_folders: bool = True) -> Path:
    """The path of an output; ValueError now, not after an hour of work, if it cannot be written."""
    path = Path(out)
    places = [path, *path.absolute().parents]
    place = next(p for p in places if p.is_dir() or (p.exists() and p != path))
    problem = None
    if not out.strip():
        problem = "the name is empty"
    elif path.is_symlink() and not path.exists():
        problem = "it is a link to something that is not there"
    elif not place.is_dir():
        problem = f"{place} is a file, not a folder"
    elif not make_folders and place not in (path, path.absolute().parent):
        problem = f"there is no folder {path.parent}"
    else:
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            problem = error.strerror
    if problem:
        raise ValueError(f"--out {out!r} cannot be written: {problem}; choose another place")
    return path


def load_encoder(name: str) -> "tuple[Encoder, Tokenizer]":
    """The encoder of a pretrained model, without its head."""
    from ..model.heads import MaskedLM, SequenceClassifier
    from ..model.transformer import Encoder
    from ..pretrained import load_pretrained

    model, tokenizer = load_pretrained(name)
    if isinstance(model, SequenceClassifier | MaskedLM):
        model = model.encoder
    if not isinstance(model, Encoder):
        raise ValueError(f"{name} holds a {type(model).__name__}; a classifier needs an encoder")
    return model, tokenizer


def load_classifier(folder: str) -> "tuple[SequenceClassifier, Tokenizer]":
    """The classifier in a folder."""
    if not Path(folder).is_dir():  # reported before torch is loaded
        raise FileNotFoundError(f"there is no folder {folder}; finetune --out {folder} writes one")
    from ..model.heads import SequenceClassifier
    from ..pretrained import load_pretrained

    model, tokenizer = load_pretrained(folder)
    if not isinstance(model, SequenceClassifier):
        raise ValueError(f"{folder} is a model without a classifier; train one with finetune")
    return model, tokenizer
