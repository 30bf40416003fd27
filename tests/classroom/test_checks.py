"""The checks name every mistake they know, and accept every right answer, however it is written."""

import math

import pytest
import torch
import torch.nn.functional as F

import minitransformer as mt
from minitransformer.classroom import registry as checks
from minitransformer.classroom.engine import limits
from minitransformer.classroom.engine.diagnosis import Exercise

EXERCISES = checks.exercises()
MISTAKES = [(name, m) for name, e in EXERCISES.items() for m in e.mistakes]
SEEDS = (4, 5, 6)

each_exercise = pytest.mark.parametrize("name", EXERCISES)


@each_exercise
@pytest.mark.parametrize("seed", SEEDS)
def test_reference_and_unswitched_variant_pass(name, seed):
    exercise = EXERCISES[name]
    assert exercise(exercise.reference, seed).passed
    assert exercise(exercise.variant, seed).passed


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{n}: {m.name}" for n, m in MISTAKES])
def test_every_known_mistake_is_refused_and_named(name, mistake, seed):
    exercise = EXERCISES[name]
    result = exercise(lambda *a: exercise.variant(*a, **mistake.change), seed)
    assert not result.passed
    assert result.mistakes == (mistake.name,)
    assert mistake.name in result.message and mistake.hint in result.message


@each_exercise
def test_names_are_unique_and_complete(name):
    exercise = EXERCISES[name]
    names = [m.name for m in exercise.mistakes]
    assert len(set(names)) == len(names)
    for m in exercise.mistakes:
        assert m.term and m.hint.endswith((".", "?", ".)"))
        assert len(m.change) == 1, "a mistake is one change"


@each_exercise
def test_the_stub_gets_a_friendly_answer(name):
    def stub(*args):
        raise NotImplementedError

    result = EXERCISES[name](stub)
    assert not result.passed
    assert result.message == f"Still to be written. The formula: {EXERCISES[name].formula}"


@each_exercise
def test_inputs_can_tell_axes_apart(name):
    exercise: Exercise = EXERCISES[name]
    right = [exercise.reference(**inputs) for inputs in exercise.inputs().values()]
    exact = (torch.float64, torch.int64)  # or zeros and ones, which every type holds exactly
    assert all(a.dtype in exact or ((a == 0) | (a == 1)).all() for a in right)
    assert any(len(set(a.shape)) == a.dim() for a in right)


# --- Right answers, written differently ---------------------------------------------------------


def attention_by_einsum(Q, K, V, keep=None):
    scores = torch.einsum("bhqd,bhkd->bhqk", Q, K) * K.size(3) ** -0.5
    if keep is None:
        return torch.einsum("bhqk,bhkv->bhqv", scores.softmax(-1), V)
    weights = scores.masked_fill(keep.logical_not(), float("-inf")).softmax(-1)
    weights = torch.where(keep.any(-1, keepdim=True), weights, 0.0)
    return torch.einsum("bhqk,bhkv->bhqv", weights, V)


def attention_by_loops(Q, K, V, keep=None):
    batch, heads, queries, d_k = Q.shape
    output = []
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                kept = [k for k in range(K.shape[2]) if keep is None or keep[b, h, q, k]]
                if not kept:
                    output.append(0 * Q[b, h, q].sum() + 0 * V[b, h].sum(0))
                    continue
                s = torch.stack([Q[b, h, q] @ K[b, h, k] for k in kept]) / d_k**0.5
                output.append(F.softmax(s, dim=0) @ V[b, h, kept])
    return torch.stack(output).view(batch, heads, queries, V.shape[-1])


def attention_by_torch(Q, K, V, keep=None):
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=keep)


def softmax_by_hand(scores, keep=None):
    keep = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep
    hidden = scores.masked_fill(~keep, -math.inf)
    e = (hidden - hidden.amax(-1, keepdim=True).clamp(min=-1e30)).exp()
    return e / e.sum(-1, keepdim=True).clamp(min=1e-300)


def split_by_loop(x, n_heads):
    d_k = x.shape[-1] // n_heads
    return torch.stack([x[:, :, i * d_k : (i + 1) * d_k] for i in range(n_heads)], 1)


def heads_by_einsum(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
    cut = lambda W: W.view(len(W), n_heads, -1)  # noqa: E731
    Q, K, V = (torch.einsum("btm,mhd->bhtd", a, cut(W)) for a, W in ((x, W_Q), (z, W_K), (z, W_V)))
    heads = attention_by_torch(Q, K, V, keep)
    return torch.einsum("bhtd,hdm->btm", heads, W_O.view(n_heads, -1, W_O.shape[1]))


def block_in_one_loop(x, attention, feed_forward, norm_1, norm_2, norm_position):
    for sublayer, norm in ((attention, norm_1), (feed_forward, norm_2)):
        x = x + sublayer(norm(x)) if norm_position == "pre" else norm(x + sublayer(x))
    return x


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("attention", attention_by_einsum),
        ("attention", attention_by_loops),
        ("attention", attention_by_torch),
        ("attention", lambda Q, K, V, keep: mt.scaled_dot_product_attention(Q, K, V, keep)[0]),
        ("softmax", softmax_by_hand),
        ("scaled_scores", lambda q, k: (q / q.shape[-1] ** 0.5) @ k.transpose(-1, -2)),
        ("split_heads", split_by_loop),
        ("split_heads", lambda x, h: x.unflatten(-1, (h, -1)).movedim(2, 1)),
        ("merge_heads", lambda heads: torch.einsum("bhtd->bthd", heads).flatten(2)),
        ("multi_head_attention", heads_by_einsum),
        ("layer_norm", lambda x, g, b, eps: F.layer_norm(x, g.shape, g, b, eps)),
        (
            "layer_norm",
            lambda x, g, b, eps: g * (x - x.mean(2, True)) / (x.var(2, False, keepdim=True) + eps) ** 0.5 + b,
        ),
        ("feed_forward", lambda x, W, b, U, c: F.linear(F.relu(F.linear(x, W.T, b)), U.T, c)),
        ("encoder_block", block_in_one_loop),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", SEEDS)
def test_right_answers_pass_however_written(name, answer, seed, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 60.0)  # the machine may be busy, and loops are slow
    result = EXERCISES[name](answer, seed)
    assert result.passed, result
    assert "gradients to" in result.message


# --- Wrong answers that are no single known mistake ----------------------------------------------


def test_a_crash_shows_the_students_line_and_no_path():
    def crashes(Q, K, V, keep=None):
        scores = Q @ K
        return scores @ V

    result = mt.check.attention(crashes)
    assert not result.passed
    assert "It stops in `crashes`, at the line\n\n    scores = Q @ K" in result.message
    assert "It was called with Q (3, 5, 7, 4), K (3, 5, 11, 4)" in result.message
    assert ".py" not in result.message


def test_a_wrong_shape_is_told_by_the_names_of_axes():
    said = mt.check.split_heads(lambda x, h: x.unflatten(-1, (h, -1))).message
    assert "wanted (batch=3, heads=5, length=7, d_k=4)" in said
    assert "your axes are (batch, length, heads, d_k)" in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda Q, K: None, "Is the `return` missing?"),
        (lambda Q, K: (Q, K), "returns 2 things"),
        (lambda Q, K: (Q @ K.mT).numpy(), "returns ndarray"),
        (lambda Q, K: (Q @ K.mT / 2).float(), "float32"),
        (lambda Q, K: (Q.float() @ K.float().mT / 2).double(), "float32's precision"),
        (lambda Q, K: Q.mul_(0.5) @ K.mT, "changes its argument Q"),
        (lambda Q, K: (Q @ K.mT / 2).detach(), "no gradient reaches Q"),
        (lambda Q, K: Q @ K.mT * 3.7, "Every entry is 7.4 times the right one"),
        (lambda Q, K: Q @ K.mT / 0.0, "NaN or infinite"),
    ],
)
def test_other_answers(answer, said):
    result = mt.check.scaled_scores(answer)
    assert not result.passed and said in result.message, result


def test_an_unknown_mistake_says_where_and_in_which_cases():
    def forgets_a_query(Q, K, V, keep=None):
        output = attention_by_torch(Q, K, V, keep).clone()
        output[:, :, 3] = 0.5
        return output

    result = mt.check.attention(forgets_a_query)
    assert "None of the" in result.message and "Along queries only [3] are wrong" in result.message
    assert result.mistakes == ()


def test_two_mistakes_together_are_both_named():
    result = mt.check.layer_norm(
        lambda x, g, b, eps: g * (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + eps) + b
    )
    assert len(result.mistakes) == 2 and "Two mistakes, then" in result.message


def test_a_mistake_is_named_although_a_later_case_crashes():
    def only_self_attention(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
        return heads_by_einsum(x, x, W_Q, W_K, W_V, W_O, n_heads, keep)

    result = mt.check.multi_head_attention(only_self_attention)
    assert "It does not run (case: causal)" in result.message
    assert result.mistakes == ("with keys and values from x",)


def add_infinity(scores, keep=None):
    keep = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep
    blocked = torch.zeros_like(scores).masked_fill(~keep, -math.inf)
    return (scores + blocked).softmax(-1).nan_to_num(0.0)


def where_too_late(scores, keep=None):
    keep = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep
    top = scores.masked_fill(~keep, -math.inf).amax(-1, keepdim=True).clamp(min=-1e30)
    e = (scores - top).exp().where(keep, 0)  # exp(1e30) is infinite, and stays in the gradient
    return e / e.sum(-1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize("answer", [add_infinity, where_too_late])
def test_right_numbers_with_a_gradient_of_nan_are_refused(answer):
    result = mt.check.softmax(answer)
    assert "The output is right, but the gradient of scores is not" in result.message
    (name,) = result.mistakes
    assert "repaired afterwards" in name


def test_a_wrong_gradient_of_no_known_kind_is_told_where_some_known_mistakes_do_not_run():
    def more_where_something_is_hidden(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
        output = heads_by_einsum(x, z, W_Q, W_K, W_V, W_O, n_heads, keep)
        return output if keep is None else output + (x - x.detach()).sum()

    result = mt.check.multi_head_attention(more_where_something_is_hidden)
    assert "the gradient of x is not (case: causal): off by" in result.message


def test_a_nan_in_the_gradient_that_no_known_mistake_explains_is_explained():
    def repaired_at_the_end(Q, K, V, keep=None):
        scores = Q @ K.mT / Q.shape[-1] ** 0.5
        if keep is not None:
            scores = scores.masked_fill(~keep, -math.inf)
        return (scores.softmax(-1) @ V).nan_to_num()

    result = mt.check.attention(repaired_at_the_end)
    assert "gradient of V is not" in result.message and "repaired afterwards" in result.message
    assert result.mistakes == (), "no mistake whose output is wrong explains a right output"


def test_a_small_number_in_the_denominator_is_suspected():
    def careful(scores, keep=None):
        e = (scores - scores.amax(-1, keepdim=True)).exp()
        e = e if keep is None else e * keep
        return e / (e.sum(-1, keepdim=True) + 1e-7)

    said = mt.check.softmax(careful).message
    assert "too much for rounding. Is a small number added" in said


def test_the_axis_of_a_softmax_is_called_by_its_name():
    said = mt.check.softmax(lambda scores, keep=None: scores.softmax(0)).message
    assert "The sums over the batch are 1" in said
    said = mt.check.attention(lambda Q, K, V, keep=None: (Q @ K.mT).softmax(1) @ V).message
    assert "The sums over the heads are 1" in said


def test_what_is_no_factor_is_not_called_one():
    """Small beside the right numbers, not in proportion to them."""
    said = mt.check.temperature(lambda s, T: (s / T).log_softmax(-1)).message
    assert "None of the" in said and "a factor" not in said


def test_a_long_list_of_wrong_places_is_left_out():
    result = mt.check.layer_norm_backward(lambda dy, x, g, b, eps: (0.3 * x, 0 * g, dy.sum((0, 1))))
    assert "Along entry" not in result.message and "Right: dβ" in result.message


def test_an_answer_that_loses_digits_far_from_zero():
    def mean_of_squares(x, g, b, eps):
        mu = x.mean(-1, keepdim=True)
        variance = (x**2).mean(-1, keepdim=True) - mu**2
        return g * (x - mu) / (variance + eps).sqrt() + b

    assert "Subtract μ first, then square" in mt.check.layer_norm(mean_of_squares).message


def test_a_result_is_readable_in_a_terminal_and_in_a_notebook():
    result = mt.check.attention(lambda Q, K, V, keep: 1 / 0)
    assert repr(result).startswith("not yet: scaled dot-product attention\n\nIt does not run")
    html = result._repr_html_()
    assert "ZeroDivisionError" in html and "<pre>" in html
    assert "passed" in mt.check.attention(attention_by_torch)._repr_html_()


def test_calling_the_function_first_is_explained():
    assert "the function itself" in mt.check.attention(torch.zeros(3)).message


def test_an_unknown_exercise_suggests_a_near_one():
    with pytest.raises(AttributeError, match="did you mean 'attention'"):
        mt.check.atention  # noqa: B018
