"""What the package does in the place of an exercise's function, where the formula has no ledger row.

`FUNCTIONS` calls the package's function, or that of the library that it leaves the work to, in the way
that the exercise calls the student's.
"""

from itertools import count, takewhile
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, trainers
from torch import Tensor

from ..data.batches import EncodedTexts, pad
from ..data.masking import MaskedTexts
from ..data.spans import corrupt_spans
from ..data.vocabulary import train_tokenizer
from ..inference.generation import next_token_probabilities
from ..lab.results import mean_and_sd
from ..pretrained import gpt2
from ..training.lora import LoRALinear
from ..training.objectives import shift_right
from ..training.optim import warmup_then_linear
from ..training.strategies import GradualUnfreezing, Progress
from .clinic import instruments as symptoms
from .engine.diagnosis import EXACT
from .exercises.nb07_tokens import filled
from .mutants import Answer


def number(value: float) -> Tensor:
    """As the check of a `NumberExercise` sees it."""
    return torch.tensor([value], dtype=torch.float64)


def low_rank(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    state = {"linear.weight": W, "A": A, "B": B}
    return torch.func.functional_call(LoRALinear(linear, len(A), alpha), state, (x,))


def scheduled(step: int, steps: int, warmup: int) -> Tensor:
    """The package takes the warm-up as a share, and rounds up."""
    return number(warmup_then_linear(step, steps, (warmup - 0.5) / steps))


def source_of_spans(ids: Tensor, noise: Tensor, sentinels: Tensor, pad_id: int) -> Tensor:
    source, _ = corrupt_spans(ids.tolist(), noise.tolist(), sentinels.tolist())
    return filled(source, len(ids), pad_id)


class Given(np.random.Generator):
    """Random numbers that were drawn before."""

    def __init__(self, *numbers: np.ndarray):
        super().__init__(np.random.PCG64())
        self.numbers = iter(numbers)

    def random(self, *_: Any, **__: Any) -> Any:
        return next(self.numbers)

    integers = random


def masked(
    ids: Tensor, special: Tensor, u: Tensor, v: Tensor, drawn: Tensor, mask_id: int
) -> Tensor:
    """`MaskedTexts` in its two steps, with these numbers; [CLS] stands for the special tokens."""
    tokenizer = train_tokenizer([ascii_lowercase], "characters", bert=True)
    first, cls = len(tokenizer.special), tokenizer.special["[CLS]"]
    if tokenizer.special["[MASK]"] != mask_id or int(ids.min()) < first:
        raise AssertionError("the exercise counts its tokens as no tokenizer does")
    rows = ids.where(~special, cls)
    batch = pad(rows.tolist(), tokenizer.pad_id)
    texts = MaskedTexts(EncodedTexts(tuple(map(tuple, rows.tolist())), None, 0), tokenizer)
    chosen = texts.choose(rows.numpy(), batch.keep[:, 0, 0].numpy(), Given(u.numpy()))
    numbers = Given(u.numpy(), v.numpy()[chosen], drawn.numpy()[chosen] - first)
    seen = texts.mask(batch, numbers).ids
    return seen.where(seen != cls, ids)


def learned_pair(words: Tensor, counts: Tensor, pad_id: int) -> Tensor:
    """The pair that the library joins first; it occurs as often as one may ask for at least."""
    texts = [
        "".join(ascii_lowercase[token] for token in word if token != pad_id)
        for word, times in zip(words.tolist(), counts.tolist(), strict=True)
        for _ in range(times)
    ]

    def learned(least: int) -> list[str]:
        backend = Tokenizer(models.BPE())
        letters = sorted({*"".join(texts)})
        backend.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=len(letters) + 1, min_frequency=least, initial_alphabet=letters,
            show_progress=False,
        ))  # fmt: skip
        return [token for token in backend.get_vocab() if len(token) == 2]

    (pair,) = learned(1)
    *_, most = takewhile(learned, count(1))
    return torch.tensor([*map(ascii_lowercase.index, pair), most])


def one_merge(ids: Tensor, a: int, b: int, new: int, pad_id: int) -> Tensor:
    """The library's byte-pair encoding, with letters for tokens and one merge."""
    A, B = ascii_lowercase[a], ascii_lowercase[b]
    vocab = {letter: i for i, letter in enumerate(ascii_lowercase)} | {A + B: new}
    text = "".join(ascii_lowercase[i] for i in ids.tolist())
    return filled(Tokenizer(models.BPE(vocab, [(A, B)])).encode(text).ids, len(ids), pad_id)


def pieces(word: str, vocab: dict[str, int], pad_id: int) -> Tensor:
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    return filled(backend.encode(word).ids, len(word), pad_id)


def mean_and_error(accuracies: Tensor) -> Tensor:
    mean, sd = torch.tensor(
        [mean_and_sd(row) for row in accuracies.tolist()], dtype=torch.float64
    ).T
    return torch.stack([mean, sd / accuracies.shape[1] ** 0.5], 1)


def feature_gradient(X: Tensor, y: Tensor, v: Tensor, B: Tensor) -> Tensor:
    """By torch, from the loss."""
    return torch.func.grad(lambda B: ((X @ B.mT @ v - y) ** 2).mean() / 2)(B)


FUNCTIONS: dict[str, Answer] = {
    "shift_right": shift_right,
    "temperature": next_token_probabilities,
    "top_p": lambda p, top_p: next_token_probabilities(p.log(), top_p=top_p),
    "lora": low_rank,
    "gradual_rates": lambda n_layers, step, steps: torch.tensor(
        GradualUnfreezing(every=None).rates(n_layers, Progress(step, steps, 0))
    ),
    "mask_tokens": masked,
    "corrupt_spans": source_of_spans,
    "warmup_then_linear": scheduled,
    "chance_loss": lambda n: number(symptoms.chance_loss(n)),
    "leaks": lambda block, x, t: number(float(symptoms.leak(block, x, t) > EXACT)),
    "best_pair": learned_pair,
    "merge_pair": one_merge,
    "word_pieces": pieces,
    "mean_and_error": mean_and_error,
    "accuracy_error": lambda p, n: torch.distributions.Binomial(n, p).stddev / n,
    "feature_gradient": feature_gradient,
    "split_c_attn": lambda c_attn: torch.stack([W.mT for W in gpt2.split_c_attn(c_attn)]),
}
"""For an exercise without a row what the package, or its library, does in its place."""
