"""A mistake is a patch of the right answer: made, combined, planted in the package and taken out again."""

import pytest
import torch

from minitransformer.classroom.engine.patches import Mistake, known, patched, planted
from minitransformer.formulas import ops


def mistake(*edits):
    return known("the term", ("a name", "A hint.", *edits))[0]


def double(x):
    return 2 * x


def twice(x):
    return double(x) + 1


def test_a_table_becomes_mistakes():
    first, second = known("a", ("1", "Hint.", "x", "y", "z", "w"), "b", ("2", "Hint.", "u", ""))
    assert first == Mistake("1", "a", "Hint.", (("x", "y"), ("z", "w"))) and second.term == "b"


def test_a_patch_changes_a_copy_alone():
    (wrong,) = patched((double,), mistake("2 * x", "3 * x"))
    assert (wrong(5), double(5)) == (15, 10)


def test_what_the_right_answer_calls_may_be_patched_too():
    _, wrong = patched((double, twice), mistake("2 * x", "3 * x", "+ 1", "- 1"))
    assert (wrong(5), twice(5)) == (14, 11)


def test_patches_that_do_not_fit_together_are_none():
    assert patched((double,), mistake("4 * x", "x")) is None
    assert patched((double,), mistake("2 * x", "3 * x"), mistake("2 * x", "4 * x")) is None
    assert patched((double,), mistake("2 *", "(2 *"), mistake("return", "return 1 +")) is None


def test_a_planted_mistake_is_made_everywhere_and_taken_out_again():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    before = ops.attention(x, x, x)
    with pytest.raises(KeyError), planted((ops.softmax,), mistake("(-1,", "(-2,")):
        assert not torch.equal(ops.attention(x, x, x), before)
        raise KeyError
    assert torch.equal(ops.attention(x, x, x), before)
