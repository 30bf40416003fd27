"""Texts to pretrain on: those of a domain, except any that a model is tested on."""

from functools import cache
from itertools import chain

from .datasets import LabelledTexts
from .domains import DOMAINS, distinct, load, newspaper

CORPORA = (*DOMAINS, "newspaper")


def splits(domain: str) -> tuple[LabelledTexts, ...]:
    """The training, validation and test texts of a domain, as all experiments use them."""
    return load(domain).split(seed=0)


def corpus(*domains: str) -> tuple[list[str], list[str]]:
    """Plain texts to pretrain on, and a twentieth of them for validation.

    From a domain with labels come the training texts and those without a clear label. No text occurs
    in a validation or test split of any domain, and none occurs twice; `domains.same` decides.

    Args: domains: one or more of `CORPORA`.

    Raises:
        KeyError: an unknown domain.
        ValueError: no domain.
    """
    if unknown := [name for name in domains if name not in CORPORA]:
        raise KeyError(f"no corpus {unknown[0]!r}; there are: {', '.join(CORPORA)}")
    if not domains:
        raise ValueError(f"name at least one corpus: {', '.join(CORPORA)}")
    plain = (newspaper() if d == "newspaper" else load(d, threshold=0.0).texts for d in domains)
    texts = distinct(chain.from_iterable(plain), without=tested())
    # Every k-th text, so that both parts have the same share of every domain.
    n_valid = round(0.05 * len(texts))
    chosen = {i * len(texts) // n_valid for i in range(n_valid)}
    train = [text for i, text in enumerate(texts) if i not in chosen]
    return train, [texts[i] for i in sorted(chosen)]


@cache
def tested() -> tuple[str, ...]:
    """Every text of a validation or test split."""
    return tuple(text for name in DOMAINS for part in splits(name)[1:] for text in part.texts)
