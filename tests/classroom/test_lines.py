"""The line at fault: it is found, it is the right one, and the search leaves no traces."""

import math
import textwrap

import numpy as np
import pytest
import torch

import minitransformer as mt
from minitransformer.classroom.engine import edits, lines
from minitransformer.classroom.engine.diagnosis import SEED, diagnose

RIGHT = {
    "softmax": '''
        def answer(scores, keep=None):
            """A docstring, with a ~ and a -1."""
            some = torch.ones(scores.shape[-1], dtype=torch.bool) if keep is None else keep
            scores = scores.masked_fill(~some, -math.inf)
            top = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
            e = torch.exp(scores - top)
            return e / e.sum(-1, keepdim=True).clamp(min=1e-300)
    ''',
    "layer_norm": """
        def answer(x, gamma, beta, eps):
            mu = x.mean(-1, keepdim=True)
            variance = x.var(-1, keepdim=True, correction=0)
            x_hat = (x - mu) / torch.sqrt(variance + eps)
            return gamma * x_hat + beta
    """,
    "adamw_step": """
        def answer(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
            m = beta_1 * m + (1 - beta_1) * g
            v = beta_2 * v + (1 - beta_2) * g * g
            m_hat = m / (1 - beta_1**t)
            v_hat = v / (1 - beta_2**t)
            theta = theta - lr * weight_decay * theta
            return theta - lr * m_hat / (v_hat.sqrt() + eps), m, v
    """,
    "merge_pair": """
        def answer(ids, a, b, new, pad_id):
            merged, t = [], 0
            while t < len(ids):
                pair = t + 1 < len(ids) and ids[t] == a and ids[t + 1] == b
                merged.append(new if pair else int(ids[t]))
                t += 2 if pair else 1
            missing = len(ids) - len(merged)
            return torch.tensor(merged + [pad_id] * missing)
    """,
}
WRONG = (
    ("softmax", "e.sum(-1,", "e.sum(-2,", "the axis"),
    ("softmax", "scores - top", "scores * 0.5 - top", "the factor"),
    ("layer_norm", "(x - mu)", "(mu - x)", "the order"),
    ("layer_norm", "torch.sqrt(variance + eps)", "(variance + eps)", "the root"),
    ("layer_norm", "(x - mu) / torch", "x - mu / torch", "the operator"),
    ("layer_norm", "(x - mu)", "(x + mu)", "the sign"),
    ("adamw_step", "lr * weight_decay * theta", "lr * theta", "the factor"),
    ("adamw_step", "beta_2**t", "beta_1**t", "the name beta_1"),
    ("adamw_step", "m / (1 - beta_1**t)", "m / (1 - beta_1)", "the power"),
    ("merge_pair", "t += 2", "t += 3", "the number"),
)


def made(name, old="", new="", **more):
    """A right answer, or one with other text in it, as if it stood in a cell of a notebook."""
    source = textwrap.dedent(RIGHT[name])
    assert old in source
    source = source.replace(old, new, 1)
    return cell(source, **more)


def cell(source, name="answer", **more):
    """What a cell defines; its source is found as IPython's is, in linecache."""
    file = f"<cell {abs(hash(source))}>"
    lines.linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = {"torch": torch, "math": math, **more}
    exec(compile(source, file, "exec"), namespace)
    return namespace[name]


def advised(name, function):
    """The lines that the search shows, and what to look at."""
    advice = lines.advice(getattr(mt.check, name), function, SEED, diagnose)
    _, _, shown = advice.partition(" alone would make it right:\n\n")
    shown, _, look = shown.partition("\n\n")
    return [line.strip() for line in shown.splitlines()], look


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    monkeypatch.setattr(lines, "SECONDS", 30.0)


@pytest.mark.parametrize(("name", "old", "new", "kind"), WRONG, ids=[w[3] for w in WRONG])
def test_the_line_at_fault_is_shown_and_not_its_repair(name, old, new, kind):
    right = textwrap.dedent(RIGHT[name]).splitlines()
    wrong = textwrap.dedent(RIGHT[name]).replace(old, new, 1).splitlines()
    shown, look = advised(name, made(name, old, new))
    assert shown == [w.strip() for w, r in zip(wrong, right, strict=True) if w != r]
    assert kind in look


@pytest.mark.parametrize("name", RIGHT)
def test_the_answers_are_right_before_they_are_changed(name):
    assert getattr(mt.check, name)(made(name)).passed


AROUND = {
    "a function next to it": """
        def spread(x):
            return x.var(-1, keepdim=True)

        def answer(x, gamma, beta, eps):
            return gamma * (x - x.mean(-1, keepdim=True)) / (spread(x) + eps).sqrt() + beta
    """,
    "a function around it": """
        def make(correction):
            def answer(x, gamma, beta, eps):
                variance = x.var(-1, keepdim=True, correction=1 + correction)
                return gamma * (x - x.mean(-1, keepdim=True)) / (variance + eps).sqrt() + beta
            return answer

        answer = make(0)
    """,
    "a method": """
        class Norm:
            def spread(self, x):
                return x.var(-1, keepdim=True)

            def __call__(self, x, gamma, beta, eps):
                x_hat = (x - x.mean(-1, keepdim=True)) / (self.spread(x) + eps).sqrt()
                return gamma * x_hat + beta

        answer = Norm()
    """,
    "a lambda": """
        answer = lambda x, gamma, beta, eps: (
            gamma * (x - x.mean(-1, keepdim=True))
            / (x.var(-1, keepdim=True) + eps).sqrt() + beta
        )
    """,
}


@pytest.mark.parametrize("where", AROUND)
def test_the_fault_may_be_in(where):
    [shown], _ = advised("layer_norm", cell(textwrap.dedent(AROUND[where])))
    assert ".var(" in shown


def test_where_a_change_in_either_of_two_lines_would_do_both_are_shown():
    wrong = made("layer_norm", "mu = x.mean", "mu = -x.mean")
    message = lines.advice(mt.check.layer_norm, wrong, SEED, diagnose)
    assert "A change in one of these lines alone would make it right:" in message
    assert "    mu = -x.mean(-1, keepdim=True)\n    x_hat = (x - mu) / torch" in message


def test_what_no_single_edit_repairs_gets_no_line():
    assert advised("chance_loss", cell("def answer(n):\n    return 3 * n + 7\n")) == ([], "")


def test_the_search_leaves_no_traces(capfd):
    calls = []
    source = """
        def answer(x, gamma, beta, eps):
            calls.append(1)
            print("loud")
            n, total = 0, 0.0
            while n < x.shape[-1]:
                total = total + x[..., n : n + 1]
                n += 1
            mu = total / n
            torch.rand(3)
            return gamma * (x - mu) / torch.sqrt((x - mu).square().mean(-1, keepdim=True) - eps) + beta
    """
    wrong = cell(textwrap.dedent(source), calls=calls)
    before = wrong.__code__, dict(wrong.__globals__)
    exercise, states = mt.check.layer_norm, (torch.get_rng_state(), np.random.get_state()[1])
    assert lines.found(lines.functions_of(wrong), exercise, wrong, SEED, diagnose)
    assert (wrong.__code__, dict(wrong.__globals__)) == before and not calls
    assert states[0].equal(torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    assert capfd.readouterr() == ("", "")


def test_no_line_is_sought_after_a_crash():
    assert advised("layer_norm", made("layer_norm", "+ beta", "+ betta")) == ([], "")


@pytest.mark.parametrize("known", [True, False], ids=["a known mistake", "an unknown one"])
def test_the_line_comes_second_and_only_where_there_is_no_name(known, monkeypatch):
    monkeypatch.setattr(lines, "found", lambda *_: [("none", 1, "sign")])
    exercise = mt.check.layer_norm
    wrong = (
        exercise.patched(exercise.mistakes[0]) if known else made("layer_norm", "mu)", "2 * mu)")
    )
    result = exercise(wrong)
    assert bool(result.mistakes) == known
    assert ("alone would make it right" in result.message) != known


def test_where_no_process_may_be_started_there_is_no_line(monkeypatch):
    def forbidden():
        raise PermissionError

    monkeypatch.setattr("os.fork", forbidden)
    assert advised("layer_norm", made("layer_norm", "mu)", "2 * mu)")) == ([], "")


def test_a_slow_answer_is_not_searched(monkeypatch):
    monkeypatch.setattr(lines, "SECONDS", 1e-9)
    monkeypatch.setattr(lines, "found", None)
    assert not mt.check.layer_norm(made("layer_norm", "mu)", "2 * mu)")).passed


@pytest.mark.parametrize(
    "source",
    [
        "def f(a):\n    return f'{a!r:>{a}}' + a.b[1:, ::2]\n",
        "async def f(x):\n    return [i async for i in x if await i]\n",
        "def f(*a, k=1, **b):\n    '''ä\n   ü'''\n    del a[0]; a.x += (y := 2)\n    return lambda: a\n",
    ],
    ids=["an f-string", "async", "a few rare things"],
)
def test_any_source_has_edits(source):
    every = [e for more in (False, True) for e in edits.Source(source).edits(["a", "b"], more)]
    assert len({text for *_, text in every}) > 50


@pytest.mark.parametrize(
    ("kind", "line", "changed"),
    [
        ("indentation", 4, "for i in a:\n        b += i\n        c(b)"),
        ("indentation", 3, "for i in a:\n        pass\n    b += i\n    c(b)"),
        ("order of the lines", 2, "c(b)\n    for i in a:\n        b += i"),
        ("line itself", 4, "for i in a:\n        b += i\n    pass"),
        ("change in place", 3, "for i in a:\n        b = b + i\n    c(b)"),
    ],
    ids=["into the loop", "out of the loop", "order", "one too many", "in place"],
)
def test_edits_of_statements(kind, line, changed):
    before = "def f(a, b):\n    for i in a:\n        b += i\n    c(b)"
    every = list(edits.Source(before).edits([], False))
    assert (0, kind, line, f"def f(a, b):\n    {changed}") in every


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda right: right + 0.25, "Every entry is 0.25 too large."),
        (lambda right: right - 0.25, "Every entry is 0.25 too small."),
        (
            lambda right: right + torch.arange(right.shape[1])[:, None],
            "The error grows along length, from 0 to",
        ),
    ],
    ids=["too large", "too small", "grows"],
)
def test_what_is_known_is_said_where_no_line_is_found(wrong, said, monkeypatch):
    monkeypatch.setattr(lines, "SECONDS", 0.0)
    right = mt.check.layer_norm.right
    assert said in mt.check.layer_norm(lambda *given: wrong(right(*given))).message
