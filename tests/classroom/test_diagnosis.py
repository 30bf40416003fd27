"""What a check says to answers that are no single known mistake, and how it says it."""

import dataclasses
import math
import time

import pytest
import torch
import torch.nn.functional as F

import minitransformer as mt


def attention_by_torch(Q, K, V, keep=None):
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=keep)


def heads_by_einsum(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
    cut = lambda W: W.view(len(W), n_heads, -1)  # noqa: E731
    Q, K, V = (torch.einsum("btm,mhd->bhtd", a, cut(W)) for a, W in ((x, W_Q), (z, W_K), (z, W_V)))
    heads = attention_by_torch(Q, K, V, keep)
    return torch.einsum("bhtd,hdm->btm", heads, W_O.view(n_heads, -1, W_O.shape[1]))


def test_a_known_mistake_is_named_with_its_term_and_hint():
    exercise = mt.check.layer_norm
    for mistake in exercise.mistakes:
        result = exercise(exercise.patched(mistake))
        assert not result.passed and result.mistakes == (mistake.name,)
        assert all(text in result.message for text in (mistake.name, mistake.term, mistake.hint))


def test_the_first_answer_to_an_unknown_mistake_comes_at_once():
    """It is compared with every pair of mistakes."""
    exercise = dataclasses.replace(mt.check.multi_head_attention)
    start = time.process_time()
    assert not exercise(lambda *inputs: 3 * exercise.right(*inputs) + 1).passed
    assert time.process_time() - start < 2


# --- Wrong answers that are no single known mistake ----------------------------------------------


def test_a_crash_shows_the_students_line_and_no_path():
    def crashes(Q, K, V, keep=None):
        scores = Q @ K
        return scores @ V

    result = mt.check.attention(crashes)
    assert not result.passed
    assert "It stops in `crashes`, at the line\n\n    scores = Q @ K" in result.message
    assert "It was called with Q (3, 5, 7, 6), K (3, 5, 11, 6)" in result.message
    assert ".py" not in result.message


def test_a_wrong_shape_is_told_by_the_names_of_axes():
    said = mt.check.split_heads(lambda x, h: x.unflatten(-1, (h, -1))).message
    assert "wanted (batch=3, heads=5, length=7, d_k=6)" in said
    assert "your axes are (batch, length, heads, d_k)" in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda Q, K: None, "Is the `return` missing?"),
        (lambda Q, K: (Q, K), "returns 2 things"),
        (lambda Q, K: (Q @ K.mT).numpy(), "returns ndarray"),
        (lambda Q, K: (Q @ K.mT / Q.shape[-1] ** 0.5).float(), "float32"),
        (
            lambda Q, K: (Q.float() @ K.float().mT / Q.shape[-1] ** 0.5).double(),
            "float32's precision",
        ),
        (lambda Q, K: Q.mul_(Q.shape[-1] ** -0.5) @ K.mT, "changes its argument Q"),
        (lambda Q, K: (Q @ K.mT / Q.shape[-1] ** 0.5).detach(), "no gradient reaches Q"),
        (
            lambda Q, K: Q @ K.mT / Q.shape[-1] ** 0.5 * 7.4,
            "Every entry is 7.4 times the right one",
        ),
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
    assert len(result.mistakes) == 2 and "two mistakes" in result.message


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
    said = mt.check.temperature(lambda s, T: (s / T).log_softmax(-1) - 1).message
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
