"""The checks on gradients accept right answers however written, and name every known slip."""

import math

import pytest
import torch

import minitransformer as mt
from minitransformer.classroom.engine.diagnosis import Exercise
from minitransformer.classroom.exercises import nb06_gradients as gradient_checks

EXERCISES = {n: e for n, e in vars(gradient_checks).items() if isinstance(e, Exercise)}
MISTAKES = [(name, m) for name, e in EXERCISES.items() for m in e.mistakes]
SEEDS = (4, 5, 6)


def test_the_four_exercises_are_there():
    assert set(EXERCISES) == {
        "softmax_backward", "layer_norm_backward", "attention_backward", "adamw_step",
    }  # fmt: skip
    for name, exercise in EXERCISES.items():
        assert getattr(mt.check, name) is exercise


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXERCISES)
def test_reference_and_unswitched_variant_pass(name, seed):
    exercise = EXERCISES[name]
    assert exercise(exercise.variant, seed).passed
    assert exercise(lambda *a: exercise.variant(*a), seed).passed


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{n}: {m.name}" for n, m in MISTAKES])
def test_every_known_mistake_is_refused_and_named(name, mistake, seed):
    exercise = EXERCISES[name]
    result = exercise(lambda *a: exercise.variant(*a, **mistake.change), seed)
    assert not result.passed
    assert result.mistakes == (mistake.name,), result
    assert mistake.name in result.message and mistake.hint in result.message


@pytest.mark.parametrize("name", EXERCISES)
def test_the_stub_gets_a_friendly_answer(name):
    def stub(*args):
        raise NotImplementedError

    assert EXERCISES[name](stub).message.startswith("Still to be written")


# --- Answers as students write them -------------------------------------------------------------


def softmax_backward(dP, P):
    return P * dP - P * torch.einsum("...k,...k->...", dP, P).unsqueeze(-1)


def layer_norm_backward(dy, x, gamma, beta, eps):
    d = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).sum(-1, keepdim=True) / d + eps
    dx_hat = dy * gamma
    dvariance = (dx_hat * centred).sum(-1, keepdim=True) * -0.5 * variance**-1.5
    dmu = -dx_hat.sum(-1, keepdim=True) / variance.sqrt()
    dx = dx_hat / variance.sqrt() + dvariance * 2 * centred / d + dmu / d
    dgamma = (dy * centred / variance.sqrt()).flatten(0, -2).sum(0)
    return dx, dgamma, dy.flatten(0, -2).sum(0)


def attention_backward(dO, Q, K, V, keep=None, slip=None):
    scores = torch.einsum("bhqd,bhkd->bhqk", Q, K) / Q.shape[-1] ** 0.5
    if keep is not None and slip != "mask":
        scores = torch.where(keep, scores, scores.new_tensor(-math.inf))
    P = scores.softmax(-1)
    if keep is not None and slip != "mask":
        P = torch.where(keep.any(-1, keepdim=True), P, 0.0)
    dV = (P if slip == "dV" else P.transpose(2, 3)) @ dO
    dS = softmax_backward(dO @ V.transpose(2, 3), P) / Q.shape[-1] ** 0.5
    return dS @ K, (dS if slip == "dK" else dS.transpose(2, 3)) @ Q, dV


def adamw_step(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    m = m.lerp(g, 1 - beta_1)
    v = v.lerp(g * g, 1 - beta_2)
    step = lr * (1 - beta_2**t) ** 0.5 / (1 - beta_1**t)
    theta = theta * (1 - lr * weight_decay)
    return theta - step * m / (v.sqrt() + eps * (1 - beta_2**t) ** 0.5), m, v


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "answer", [softmax_backward, layer_norm_backward, attention_backward, adamw_step]
)
def test_right_answers_pass_however_written(answer, seed):
    result = EXERCISES[answer.__name__](answer, seed)
    assert result.passed, result


@pytest.mark.parametrize(
    ("slip", "name"),
    [
        ("dV", "with P for Pᵀ in dV"),
        ("dK", "with dS for dSᵀ in dK"),
    ],
)
def test_a_forgotten_transpose_crashes_and_is_named_all_the_same(slip, name):
    result = EXERCISES["attention_backward"](lambda *a: attention_backward(*a, slip=slip))
    assert "It does not run" in result.message
    assert result.mistakes == (name,)


def test_two_slips_are_both_named():
    exercise = EXERCISES["layer_norm_backward"]
    result = exercise(lambda *a: exercise.variant(*a, mean="none", along_x="none"))
    assert len(result.mistakes) == 2
    exercise = EXERCISES["adamw_step"]
    result = exercise(lambda *a: exercise.variant(*a, correct_m=False, correct_v=False))
    assert len(result.mistakes) == 2


def test_number_kind_and_shape_of_the_outputs_are_told():
    check = EXERCISES["attention_backward"]
    answer = attention_backward
    assert "Return 3 tensors" in check(lambda *a: answer(*a)[:2]).message
    assert "returns one thing" in check(lambda *a: answer(*a)[0]).message
    assert "torch tensor" in check(lambda *a: (*answer(*a)[:2], 1.0)).message
    turned = check(lambda *a: (answer(*a)[0], answer(*a)[1].mT, answer(*a)[2]))
    assert "shape of dK is wrong" in turned.message


def test_an_unknown_slip_says_which_outputs_are_right():
    def answer(*a):
        dQ, dK, dV = attention_backward(*a)
        return dQ, dK + 0.3 * dK.roll(1, -1), dV

    message = EXERCISES["attention_backward"](answer).message
    assert "Wrong: dK. Right: dQ, dV." in message


def test_t_off_by_one_is_named_though_it_divides_by_zero():
    exercise = EXERCISES["adamw_step"]

    def from_zero(theta, g, m, v, t, *rest):
        return adamw_step(theta, g, m, v, t - 1, *rest)  # 1 - beta**0: Python raises

    result = exercise(from_zero)
    assert not result.passed
    assert result.mistakes == ("with t counted from 0",)
