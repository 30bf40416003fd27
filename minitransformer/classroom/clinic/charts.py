r"""The clinic: nine patients, A to I, and what every instrument says about them.

A patient is a small model on real text with one mistake in it. This file does not say which one;
`patients.py` does, so do not open it until you are done.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.batches import Batch, pad
from ...training.loop import reproducible
from . import instruments
from .patients import SEATS, Patient, broken, healthy

PATIENTS = "ABCDEFGHI"
STEPS = 80  # how long one batch is trained on
LETTERS = 8  # how many different tokens random texts have
LEAST = instruments.chance_loss(LETTERS)  # on random texts, what an honest model can have at best


@dataclass(frozen=True)
class Chart:
    """What the instruments measured on one model."""

    patient: str
    kind: str
    n_answers: int
    start: float  # the first loss
    gradients: dict[str, float]  # the norm of its gradient in each layer
    piled: float
    twice: float
    alone: float
    one_batch: tuple[float, ...]  # the losses of training on one batch
    influence: Tensor | None = None  # a writer's, before training
    random: float | None = None  # a writer's loss after training on random tokens
    copies: float | None = None  # how often it then repeats what it read
    accuracy: float | None = None  # a reader's, on new texts after a short training
    majority: float | None = None  # that of naming the larger class

    @property
    def chance(self) -> float:
        """The loss of a model that knows nothing."""
        return instruments.chance_loss(self.n_answers)

    @property
    def end(self) -> float:
        """The loss on one batch after training on it: the mean of the last steps."""
        return sum(self.one_batch[-5:]) / 5

    @property
    def future(self) -> float:
        """How far an output moves with a later token."""
        return 0.0 if self.influence is None else float(self.influence.triu(1).max())

    @property
    def own(self) -> float | None:
        """How far an output moves with its own token, relative to an earlier one."""
        if self.influence is None:
            return None
        half = len(self.influence) // 2
        late = self.influence[half:]
        rest = late.tril(half - 1)
        return float(late.diagonal(half).mean() / rest[rest > 0].mean())

    @property
    def signs(self) -> frozenset[str]:
        """The symptoms that show."""
        return frozenset(s.name for s in SYMPTOMS if s.shows(self))


@dataclass(frozen=True)
class Symptom:
    """One thing that can be wrong with a model, seen from outside."""

    name: str
    shows: Callable[[Chart], bool]
    measured: Callable[[Chart], str]  # what the instrument says, in words
    would: str  # what a mistake with this symptom does


# fmt: off
SYMPTOMS = (
    Symptom("start", lambda c: abs(c.start - c.chance) > 0.2,
            lambda c: f"the first loss is {c.start:.2f}, and ln {c.n_answers} = {c.chance:.2f}",
            "starts away from the loss of knowing nothing"),
    Symptom("twice", lambda c: c.twice > 1e-6,
            lambda c: f"two equal calls differ by {c.twice:.0e}",
            "makes two equal calls differ"),
    Symptom("alone", lambda c: c.alone > 1e-4,
            lambda c: f"a text alone and in a batch differ by {c.alone:.0e}",
            "makes a text alone differ from the same text in a batch"),
    Symptom("gradient", lambda c: min(c.gradients.values()) < 1e-3 * max(c.gradients.values()),
            lambda c: f"gradient norms from bottom to top are {', '.join(f'{g:.2g}' for g in c.gradients.values())}",
            "keeps the gradient from a layer"),
    Symptom("piled", lambda c: c.piled > 1.5,
            lambda c: f"the gradient of a second, equal step is {c.piled:.1f} times the first",
            "makes the gradient of a second, equal step larger"),
    Symptom("future", lambda c: c.future > 1e-4,
            lambda c: f"an output moves by {c.future:.0e} when a later token changes",
            "makes outputs move with later tokens"),
    Symptom("own", lambda c: c.own is not None and c.own < 1,
            lambda c: f"its own token moves an output {c.own:.2g} times as far as an earlier one",
            "makes outputs nearly deaf to their own token"),
    Symptom("one_batch", lambda c: c.end > 0.2 * c.chance,
            lambda c: f"one batch ends at a loss of {c.end:.2f}",
            "cannot learn one batch by heart"),
    Symptom("climbs", lambda c: max(c.one_batch) > max(3 * c.chance, c.start + 1),
            lambda c: f"on one batch the loss starts at {c.one_batch[0]:.2f} and is never above {max(c.one_batch):.2f}",
            "makes the loss climb before it falls"),
    Symptom("random", lambda c: c.random is not None and c.random < LEAST - 0.3,
            lambda c: f"on random tokens the loss falls to {c.random:.2f}, where ln {LETTERS} = {LEAST:.2f} is the least an honest model can have",
            "predicts what cannot be predicted"),
    Symptom("copies", lambda c: c.copies is not None and c.copies > 0.5,
            lambda c: f"in {c.copies:.0%} of the places it predicts the token just read",
            "repeats the token just read"),
    Symptom("validation", lambda c: c.accuracy is not None and c.accuracy - (c.majority or 0.0) < 0.08,
            lambda c: f"on new texts it has {c.accuracy:.2f}, and the larger class {c.majority:.2f}",
            "is hardly better on new texts than the larger class"),
)
# fmt: on


def patient(name: str) -> Patient:
    """A new patient by letter; "writer" and "reader" are the two healthy models.

    Raises: ValueError: there is no patient of that name.
    """
    if name in ("writer", "reader"):
        return healthy(name)
    if name not in tuple(PATIENTS):
        everyone = f"{', '.join(PATIENTS)}, and the healthy 'writer' and 'reader'"
        raise ValueError(f"no patient {name!r}; there are {everyone}")
    return broken(SEATS[PATIENTS.index(name)])


@functools.cache
def chart(name: str) -> Chart:
    """Everything that was measured on a patient; the trainings take a few seconds, once."""
    return examine(lambda: patient(name), name)


def examine(make: Callable[[], Patient], name: str = "") -> Chart:
    """Every measurement, each training on a fresh copy: the same numbers each time."""
    with reproducible(0):
        fresh = make()
        measured = at_rest(fresh, make())
        losses = instruments.overfit_one_batch(make().step, one_batch(fresh), STEPS)
        measured["one_batch"] = tuple(losses)
        measured |= train_on_noise(make()) if fresh.kind == "writer" else train_and_ask(make())
        if fresh.kind == "writer":
            ids = torch.tensor(fresh.valid.ids[:3])
            others = ids.flip(1).where(ids != ids.flip(1), 4 + ids % 5)
            measured["influence"] = instruments.influence(fresh.predict, ids, others)
        return Chart(name, fresh.kind, fresh.n_answers, **measured)


def at_rest(patient: Patient, still: Patient) -> dict[str, Any]:
    """What can be measured before any training."""
    few, longest = one_batch(patient), sorted(patient.valid.ids, key=len)[-3:]
    unequal = [ids[: len(ids) - 5 * k] for k, ids in enumerate(longest)]
    patient.model.eval()
    loss = patient.loss(few)
    still.learning_rate = 0.0
    return {
        "start": loss.item(),
        "gradients": instruments.gradient_norms(patient.model, loss),
        "piled": instruments.piled_up(still.model, still.step, few),
        "twice": instruments.twice_alike(patient.predict, few),
        "alone": instruments.alone_against_batch(patient.predict, unequal, 0),
    }


def train_on_noise(patient: Patient) -> dict[str, float]:
    """Train a writer on random tokens."""
    noise = functools.partial(instruments.random_tokens, LETTERS, 4, (16, 24))
    losses = [patient.step(noise(seed)) for seed in range(1, 111)]
    copied = instruments.copies(patient.predict, noise(0))
    return {"random": sum(losses[-5:]) / 5, "copies": copied}


def train_and_ask(patient: Patient) -> dict[str, float]:
    """Train a reader, and ask it at six late steps about texts that it has not seen.

    A single accuracy after so short a training is a matter of luck; the mean is not.
    """
    valid = patient.valid
    right: list[Any] = []
    for step, batch in enumerate(patient.batches(110), 1):
        patient.step(batch)
        if step > 80 and step % 5 == 0:
            right += [patient.predict(b).argmax(-1) == b.labels for b in valid.batches(100)]
    share = sum(valid.labels or ()) / len(valid)
    accuracy = float(torch.cat(right).double().mean())
    return {"accuracy": accuracy, "majority": max(share, 1 - share)}


def one_batch(patient: Patient) -> Batch:
    """Six training texts; for a reader, three of each label."""
    data, chosen = patient.train, range(25, 49, 4)
    labels = None if data.labels is None else [data.labels[i] for i in chosen]
    return pad([data.ids[i] for i in chosen], data.pad_id, labels)
