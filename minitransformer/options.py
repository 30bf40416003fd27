"""What the command line offers, and what numbers may be, before torch is loaded; both sides use it."""

import math
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

Precision = Literal["auto", "highest", "medium", "bfloat16"]
"""How exactly matrices are multiplied; `training/precision.py` explains each."""
Schedule = Literal["linear", "cosine"]
"""How the learning rate falls after the warm-up."""
Pooling = Literal["cls", "mean"]
"""Which vector stands for a text: that of its first token, or the mean over all."""
Objective = Literal["causal", "masked", "spans"]
"""What a model is pretrained for: GPT's, BERT's or T5's objective."""
TokenizerKind = Literal["characters", "bytes", "words"]
"""What a tokenizer learns from texts; `data/vocabulary.py` explains each."""
STRATEGIES = (
    "full", "last-layers", "head-only", "gradual", "layerwise-decay", "lp-ft", "bias-only", "lora",
)  # fmt: skip
"""Which layers learn, in fine-tuning; `training/strategies.py` has the classes."""
Number = float | int


def number(text: str) -> Number:
    """A number from the command line; 1 is whole and may count steps, 1.0 is not."""
    return int(text) if text.strip().isdigit() else float(text)


class Range(NamedTuple):
    """The numbers that an option accepts."""

    least: float
    most: float = math.inf
    whole: bool = True
    above: bool = False
    """Whether `least` itself is too small."""
    advice: str = ""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value; None if nothing is."""
        bound = f"more than {self.least}" if self.above else f"at least {self.least}"
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return "must be a whole number" if self.whole else "must be a number"
        number = float(value)
        if not number >= self.least or (self.above and number == self.least):
            return f"must be {bound}"
        return None if number <= self.most else f"must be at most {self.most}"


COUNT = Range(1, 2**31 - 1)
SEED = Range(0, 2**32 - 1)
RATE = Range(0, 1e30, whole=False, above=True)
RANGES = {
    **dict.fromkeys(
        ("steps", "validate_every", "checkpoint_every", "min_steps", "accumulate", "batch_size",
         "layers", "d_model", "heads", "vocab_size"), COUNT,
    ),
    "epochs": Range(0, 1e9, whole=False, above=True, advice="give at least 1, or a share of a pass such as 0.5"),
    "lr": RATE._replace(advice="usual are 1e-5 to 1e-2; with a negative rate the loss would climb"),
    "lr_factors": RATE,
    "warmup": Range(0, 2**31, whole=False, advice="a share of the steps such as 0.1, or a whole number of steps"),
    "weight_decay": Range(0, 10, whole=False, advice="usual are 0.01 to 0.1"),
    "clip": Range(0, whole=False, advice="0 clips nothing"),
    "cache_mib": Range(0, whole=False),
    "dropout": Range(0, 0.99, whole=False, advice="it is the share of values that are dropped"),
    "max_length": Range(3, 2**31 - 1, advice="two of the tokens are [CLS] and [SEP]"),
    "length": Range(2, 2**31 - 1, advice="the second token is the first to predict"),
    "labels": Range(2, 2**31 - 1, advice="it is the number of training texts"),
    "tune_up_to": Range(0),
    "seed": SEED,
    "seeds": SEED,
    "seconds": Range(0, whole=False, above=True),
    "memory": Range(0, whole=False, above=True),
}  # fmt: skip


def check_numbers(spelled: str = "{}", **values: Any) -> None:
    """Reject a number that its option cannot be, in Python and on the command line alike.

    Names without a range and values of None are passed over; of a list every entry is checked.

    Args: spelled: how the name is written in the message.
    Raises: ValueError: the message has the name, the value and what to give instead.

    >>> check_numbers(batch_size=0)
    Traceback (most recent call last):
    ValueError: batch_size must be at least 1, got 0
    """
    for name, given in values.items():
        for value in given if isinstance(given, list | tuple) else [given]:
            if name not in RANGES or value is None:
                continue
            problem = RANGES[name].problem(value)
            if name == "warmup" and not problem and not isinstance(value, Integral) and value >= 1:
                whole = value > 1 and value == int(value)  # 1.0 may mean one step or all of them
                problem = None if whole else "must be a share below 1, or a whole number"
            if problem:
                advice = f" ({RANGES[name].advice})" if RANGES[name].advice else ""
                raise ValueError(f"{spelled.format(name)} {problem}, got {value!r}{advice}")
