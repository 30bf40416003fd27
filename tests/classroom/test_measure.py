"""What the command `mistakes` says about the exercises is measured, and a hole shows."""

import dataclasses
import re
import time

import pytest

from minitransformer.__main__ import main
from minitransformer.classroom import audit as measure
from minitransformer.classroom import counterparts, mutants
from minitransformer.classroom import registry as checks
from minitransformer.classroom.engine.diagnosis import Mistake

EXERCISES = checks.exercises()


@pytest.mark.parametrize("name", [*mutants.ROWS, *counterparts.FUNCTIONS])
def test_every_known_mistake_is_caught_by_the_packages_own_tests(name):
    """Planted in the ledger's row, or beside the package's function; what is right is not refused."""
    found = measure.Measured(name, len(EXERCISES[name].mistakes))
    measure.plant(found, EXERCISES[name])
    assert found.held == found.known > 0 and not found.survived


def test_the_command_prints_the_table_and_the_score(capsys):
    assert main(["mistakes", "layer_norm", "top_p", "in_and_out"]) == 0
    said = capsys.readouterr().out
    assert (
        "102/102  100 %      16" in said
        and "layer_norm" in said
        and "the package's function" in said
    )
    assert "no ledger row" in said and "30 of 30 mistakes are refused and named" in said
    assert "134 of 134 pairs (100 %)" in said and "mutation score: 26 of 26 (100 %)" in said
    assert re.search(r"a right answer is told so in \d+ ms at most \(\w+\)", said)


def test_the_slowest_answer_shows_and_whose_it_is(monkeypatch, capsys):
    """One exercise whose inputs take a tenth of a second to draw."""
    softmax = EXERCISES["softmax"]

    def slow_draw(rng, case):
        time.sleep(0.1)
        return softmax.draw(rng, case)

    slow = dataclasses.replace(softmax, draw=slow_draw, mistakes=softmax.mistakes[:1])
    two = {"top_p": EXERCISES["top_p"], "softmax": slow}
    monkeypatch.setattr(measure, "exercises", lambda: two)
    assert main(["mistakes"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.search(
        r"in \d{3,} ms at most \(softmax\); the slowest .* \d{3,} ms \(softmax\)", said
    )


def test_a_right_answer_that_its_own_check_refuses_is_no_measurement():
    broken = dataclasses.replace(EXERCISES["softmax"], variant=lambda scores, keep, **_: 0 * scores)
    with pytest.raises(AssertionError, match="refused by its own check"):
        measure.measure("softmax", broken, seeds=())


def test_the_list_has_every_mistake_with_its_term(capsys):
    assert main(["mistakes", "--list"]) == 0
    said = capsys.readouterr().out
    for exercise in EXERCISES.values():
        for mistake in exercise.mistakes:
            assert f"  {mistake.name}   [{mistake.term}]" in said


def test_an_unknown_exercise_lists_those_there_are(capsys):
    assert main(["mistakes", "atention"]) == 2
    assert "no exercise 'atention'; there are: " in capsys.readouterr().err
    assert main(["mistakes", "diagnoses"]) == 2
    assert "diagnoses asks for names" in capsys.readouterr().err


def test_a_mistake_that_nothing_notices_and_one_that_is_misnamed_show(monkeypatch, capsys):
    """A row with less in it sees less; a mistake that another one equals gets the other's name."""
    tame = dataclasses.replace(mutants.LEDGER["softmax"], cases=("no mask", "causal"))
    monkeypatch.setitem(mutants.LEDGER, "softmax", tame)
    right, *_, last = EXERCISES["softmax"].mistakes
    twin = Mistake("under another name", right.term, right.hint, {"axis": 1})
    narrow = dataclasses.replace(EXERCISES["softmax"], mistakes=(right, twin, last))
    monkeypatch.setattr(measure, "exercises", lambda: {"softmax": narrow})
    assert main(["mistakes"]) == 1
    said = capsys.readouterr().out
    assert "2 of 3 mistakes are refused" in said
    assert "not named: softmax, under another name" in said
    assert "not caught: softmax, with the largest score of the whole tensor subtracted" in said
    assert "mutation score: 2 of 3 (66.6 %)" in said


def test_a_planted_right_answer_that_is_refused_is_no_measurement(monkeypatch):
    """Else a broken adapter would catch every mistake."""
    monkeypatch.setitem(mutants.ROWS, "softmax", lambda f: (mutants.plant("softmax", lambda **_: 0 * _["scores"]),))  # fmt: skip
    with pytest.raises(AssertionError, match="softmax: right, and refused by softmax"):
        measure.measure("softmax", EXERCISES["softmax"], seeds=())
