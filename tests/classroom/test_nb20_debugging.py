"""The checks of the notebook on debugging: instruments that measure wrongly, names that are wrong."""

import math

import pytest
import torch

import minitransformer as mt
from minitransformer.classroom.clinic import charts as clinic
from minitransformer.classroom.clinic import instruments
from minitransformer.classroom.clinic.patients import FAULTS
from minitransformer.classroom.engine import limits
from minitransformer.classroom.exercises.nb20_debugging import RIGHT, contradiction


def test_an_instrument_must_not_leave_its_mark():
    def leaves_evaluation_mode(block, x, t):
        block.eval()
        other = x.clone()
        other[:, t:] = torch.randn_like(other[:, t:])
        return (block(x) - block(other))[:, :t].abs().max() > 1e-9

    said = mt.check.leaks(leaves_evaluation_mode).message
    assert "It came in training mode and is in evaluation mode now" in said

    def changes_x(block, x, t):
        x[:, t:] += 1
        return False

    assert "changes its argument x" in mt.check.leaks(changes_x).message

    said = mt.check.leaks(instruments.leak).message
    assert "the answer is True or False. It is " in said and "compare it with something" in said


def test_an_answer_that_is_no_number():
    assert "Is the `return` missing?" in mt.check.chance_loss(lambda n: None).message
    assert "returns str" in mt.check.chance_loss(lambda n: "ln n").message
    assert "the function itself" in mt.check.chance_loss(4.17).message
    said = mt.check.chance_loss(lambda n: math.log(m)).message
    assert "math.log(m)" in said and "NameError" in said


# --- Nine names -------------------------------------------------------------------------------------


def test_the_right_names_pass_with_the_evidence():
    result = mt.check.diagnoses(lambda: RIGHT)
    assert result.passed
    for letter, name in RIGHT.items():
        assert f"{letter}: {name}. " in result.message
    assert result.message.count("Treated: ") == 9


@pytest.mark.trains
def test_every_wrong_name_gets_the_measurement_that_speaks_against_it():
    for letter in clinic.PATIENTS:
        for name in FAULTS:
            against = contradiction(letter, name)
            if name == RIGHT[letter]:
                assert against == ""
                continue
            assert len(against) > 20, name
            result = mt.check.diagnoses(lambda name=name, letter=letter: RIGHT | {letter: name})
            assert not result.passed
            assert f"{letter} is not a case of {name!r}: {against}" in result.message
            assert RIGHT[letter] not in result.message, "the right name is not given away"


def test_what_a_contradiction_says():
    against = contradiction("B", "sees one ahead")
    assert against.startswith("that does not explain why the first loss is 3.")
    against = contradiction("A", "dropout stays on")
    wanted = "that mistake makes two equal calls differ; here two equal calls differ by 0e+00."
    assert against == wanted
    against = contradiction("A", "no shift")
    does = "write characters"
    assert against == f"that is a mistake of models that {does}; this one does not {does}."


def test_the_quiz_does_not_show_its_answers():
    assert not any(name in repr(mt.check.diagnoses).split("names=")[0] for name in FAULTS)


def test_some_names_at_a_time():
    said = mt.check.diagnoses(lambda: {"A": RIGHT["A"], "B": None}).message
    assert said == "Right: A.\n\nNot named yet: B, C, D, E, F, G, H, I."
    assert not mt.check.diagnoses(dict).passed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: {"Z": "no shift"}, "There is no patient 'Z'."),
        (lambda: {"AB": "no shift"}, "There is no patient 'AB'."),
        (lambda: {1: "no shift"}, "There is no patient 1."),
        (lambda: {"A": ["no shift"]}, "No mistake is called ['no shift']."),
        (lambda: {"A": "no shifts"}, "Did you mean 'no shift'?"),
        (lambda: {"A": "x"}, "The names are: body is frozen, dropout stays on"),
        (lambda: None, "must return a dictionary"),
        ({"A": "no shift"}, "the function itself"),
    ],
)
def test_answers_that_cannot_be_compared(answer, said):
    result = mt.check.diagnoses(answer)
    assert not result.passed and said in result.message


def test_the_stub_gets_a_friendly_answer():
    def stub():
        raise NotImplementedError

    assert mt.check.diagnoses(stub).message.startswith("Still to be written. The names to choose")


def test_diagnoses_that_crash_are_told_where():
    def names():
        return {"A": undefined_name}

    result = mt.check.diagnoses(names)
    assert not result.passed
    assert "NameError" in result.message and "undefined_name" in result.message


def test_diagnoses_without_end_are_stopped(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.2)

    def names():
        while True:
            pass

    result = mt.check.diagnoses(names)
    assert not result.passed and "Stopped after 0 seconds" in result.message


def test_for_a_table_nobody_is_examined(monkeypatch):
    """A class of thirty would wait for the same trainings thirty times."""
    monkeypatch.setattr(clinic, "chart", lambda letter: pytest.fail("examined"))
    assert mt.check.diagnoses(lambda: RIGHT, measured=False).passed
    result = mt.check.diagnoses(lambda: {"A": RIGHT["B"], "B": RIGHT["B"]}, measured=False)
    assert result.mistakes == (f"A taken for {RIGHT['B']!r}",)
    assert result.message.startswith(f"A is not a case of {RIGHT['B']!r}.\n\nRight: B.")
