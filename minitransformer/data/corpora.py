"""What a model is pretrained on: the texts of a domain, and none that any model is tested on."""

from collections.abc import Iterable
from functools import cache

from .datasets import LabelledTexts
from .domains import DOMAINS, distinct, load, newspaper

CORPORA = (*DOMAINS, "newspaper")


def splits(domain: str) -> tuple[LabelledTexts, ...]:
    """The training, validation and test texts of a domain, as all experiments use them."""
    return load(domain).split(seed=0)


def corpus(*domains: str, held_out: float = 0.05) -> tuple[list[str], list[str]]:
    """Plain texts to pretrain on, and texts to measure the pretraining with.

    Of a domain with labels: the training texts, and those that have no clear label. No text is that
    of a validation or test split of any domain, and none is there twice, as `domains.same` judges.

    Args:
        domains: one or more of `CORPORA`.
        held_out: the share of the texts that is kept for validation.

    Raises:
        KeyError: an unknown domain.
        ValueError: no domain, or a share that leaves one part empty.
    """
    if unknown := [name for name in domains if name not in CORPORA]:
        raise KeyError(f"no corpus {unknown[0]!r}; there are: {', '.join(CORPORA)}")
    if not domains:
        raise ValueError(f"name at least one corpus: {', '.join(CORPORA)}")
    texts = distinct((t for name in domains for t in plain_texts(name)), without=tested())
    # Every k-th text, so that both parts have the same share of every domain.
    n_valid = round(held_out * len(texts))
    if not 0 < n_valid < len(texts):
        raise ValueError(f"held_out={held_out} leaves one part of {len(texts)} texts empty")
    chosen = {i * len(texts) // n_valid for i in range(n_valid)}
    train = [text for i, text in enumerate(texts) if i not in chosen]
    return train, [texts[i] for i in sorted(chosen)]


def plain_texts(name: str) -> Iterable[str]:
    """All texts of a domain, whatever their rating."""
    return newspaper() if name == "newspaper" else load(name, threshold=0.0).texts


@cache
def tested() -> tuple[str, ...]:
    """Every text of a validation or test split."""
    return tuple(text for name in DOMAINS for part in splits(name)[1:] for text in part.texts)
