"""The checks on fine-tuning accept right answers however written, and name every known slip."""

import numpy as np
import pytest
import torch

import minitransformer as mt
from minitransformer.classroom.engine.diagnosis import Exercise
from minitransformer.classroom.exercises import nb10_finetuning as finetuning_checks

EXERCISES = {n: e for n, e in vars(finetuning_checks).items() if isinstance(e, Exercise)}
MISTAKES = [(name, m) for name, e in EXERCISES.items() for m in e.mistakes]
PAIRS = [
    (name, a, b)
    for name, e in EXERCISES.items()
    for i, a in enumerate(e.mistakes)
    for b in e.mistakes[i + 1 :]
    if not a.change.keys() & b.change.keys()
]
SEEDS = (4, 5, 6)


def test_the_exercises_are_there():
    assert len(EXERCISES) == 8
    for name, exercise in EXERCISES.items():
        assert getattr(mt.check, name) is exercise


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{n}: {m.name}" for n, m in MISTAKES])
def test_every_known_mistake_is_refused_and_named(name, mistake, seed):
    exercise = EXERCISES[name]
    result = exercise(lambda *a: exercise.variant(*a, **mistake.change), seed)
    assert not result.passed and result.mistakes == (mistake.name,), result
    assert mistake.hint in result.message


@pytest.mark.parametrize(("name", "a", "b"), PAIRS, ids=[f"{n}: {a.name}, {b.name}" for n, a, b in PAIRS])  # fmt: skip
def test_two_mistakes_at_once_are_never_accepted(name, a, b):
    exercise = EXERCISES[name]
    result = exercise(lambda *x: exercise.variant(*x, **a.change, **b.change))
    assert not result.passed


@pytest.mark.parametrize("name", EXERCISES)
def test_the_stub_gets_a_friendly_answer(name):
    def stub(*args):
        raise NotImplementedError

    assert EXERCISES[name](stub).message.startswith("Still to be written")


def in_loops(accuracy):
    n = len(accuracy)
    home = sum(accuracy[i, i] for i in range(n)) / n
    away = [accuracy[i, j] for i in range(n) for j in range(n) if i != j]
    return torch.stack([home, torch.stack(away).mean()])


def by_autograd(X, y, v, B):
    with torch.enable_grad():
        B = B if B.requires_grad else B.clone().requires_grad_()
        loss = ((X @ B.T @ v - y) ** 2).mean() / 2
        return torch.autograd.grad(loss, B, create_graph=True)[0]


def in_order(n_layers, step, steps):
    return torch.tensor(
        [float(step * n_layers >= (n_layers - 1 - i) * steps) for i in range(n_layers)]
    )


def pool_in_loops(hidden, real):
    return torch.stack([h[r].mean(0) for h, r in zip(hidden, real, strict=True)])


def two_lines(step, steps, warmup):
    return min((step + 1) / warmup, (steps - step) / (steps - warmup))


RIGHT = [
    ("mean_pool", pool_in_loops),
    ("mean_pool", lambda h, r: torch.einsum("btd,bt->bd", h, r / r.sum(1, keepdim=True).double())),
    ("mean_pool", lambda h, r: h.masked_fill(~r[..., None], 0).sum(1) / r.sum(1)[:, None]),
    ("warmup_then_linear", two_lines),
    ("warmup_then_linear", lambda s, S, w: mt.training.optim.warmup_then_linear(s, S, w / S)),
    ("gradual_rates", in_order),
    ("lora", lambda x, W, A, B, alpha: x @ (W + alpha / len(A) * B @ A).T),
    ("lora", lambda x, W, A, B, alpha: torch.einsum("bti,oi->bto", x, W) + (x @ A.T @ B.T) * (alpha / A.shape[0])),
    ("mean_and_error", lambda a: torch.stack([a.mean(-1), a.std(-1) / a.shape[-1] ** 0.5], -1)),
    ("accuracy_error", lambda p, n: (p - p**2).sqrt() / np.sqrt(n)),
    ("feature_gradient", by_autograd),
    ("feature_gradient", lambda X, y, v, B: v[:, None] * ((X @ B.T @ v - y)[:, None] * X).mean(0)),
    ("in_and_out", in_loops),
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, seed):
    result = EXERCISES[name](answer, seed)
    assert result.passed, result
