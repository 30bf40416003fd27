"""What the package does in the place of an exercise's function, where the formula has no ledger row.

`FUNCTIONS` calls the package's function in the way that the exercise calls the student's.
"""

from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.batches import EncodedTexts, pad
from ..data.masking import MaskedTexts
from ..data.spans import corrupt_spans
from ..data.vocabulary import train_tokenizer
from ..inference.generation import next_token_probabilities
from ..pretrained import gpt2
from ..training.lora import LoRALinear
from ..training.objectives import shift_right
from ..training.optim import warmup_then_linear
from ..training.strategies import GradualUnfreezing, Progress
from . import symptoms
from .diagnosis import EXACT
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
    return torch.tensor(source + [pad_id] * (len(ids) - len(source)))


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
    "split_c_attn": lambda c_attn: torch.stack([W.mT for W in gpt2.split_c_attn(c_attn)]),
}
"""For an exercise without a row what the package does in its place."""
