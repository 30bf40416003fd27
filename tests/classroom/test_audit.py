"""The audit of the known mistakes: all are named and caught, and a hole in it shows."""

import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path

from minitransformer.__main__ import main
from minitransformer.classroom import audit, registry
from minitransformer.classroom.engine.patches import Mistake
from minitransformer.formulas import ops

EXERCISES = registry.exercises()
ROOT = Path(__file__).parents[2]


def test_every_known_mistake_is_named_and_caught():
    """On three seeds; planted in the package the ledger sees it; of two at once both are named.

    As a command, in a process of its own, since enforced annotations would take most of the time.
    """
    command = [sys.executable, "-m", "minitransformer", "mistakes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "509 of 509 mistakes are rejected and named, each on 3 seeds" in done.stdout
    assert "mutation score: 509 of 509 (100 %) planted mistakes are caught" in done.stdout
    both, pairs = map(int, re.search(r"(\d+) of (\d+) pairs", done.stdout).groups())
    assert pairs > 2500 and both / pairs >= 0.97, done.stdout


def test_the_command_prints_the_table_and_the_score(capsys):
    assert main(["mistakes", "layer_norm", "top_p"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"layer_norm +21 +21 179/181 98.8 %      21 .* layer_norm\n", shown.out)
    assert re.search(r"top_p +15 +15 .* the package's function\n", shown.out)
    assert "36 of 36 mistakes are rejected and named" in shown.out
    assert "239 of 242 pairs (98.7 %)" in shown.out
    assert "mutation score: 36 of 36 (100 %)" in shown.out
    assert re.search(r"a right answer is recognised within \d+ ms \(\w+\)", shown.out)
    assert "exercise" in shown.err, "the progress bar"


def test_the_slowest_answer_shows_and_whose_it_is(monkeypatch, capsys):
    """One exercise whose inputs take a tenth of a second to draw."""
    softmax = EXERCISES["softmax"]

    def slow_draw(*given):
        time.sleep(0.1)
        return softmax.draw(*given)

    slow = dataclasses.replace(softmax, draw=slow_draw, mistakes=softmax.mistakes[:1])
    two = {"temperature": EXERCISES["temperature"], "softmax": slow}
    monkeypatch.setattr(audit, "exercises", lambda: two)
    assert main(["mistakes"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"within \d{3,} ms \(softmax\); the slowest .* \d{3,} ms \(softmax\)", last)


def test_what_is_wrong_with_an_exercise_itself_shows():
    def measured(**changes):
        return audit.measure(
            "softmax", dataclasses.replace(EXERCISES["softmax"], mistakes=(), **changes)
        )

    broken = measured(properties={"it is right": lambda *_: "No."})
    assert "the right answer is rejected with seed 4" in broken.wrong
    other = measured(rows=(), package=lambda scores, keep: 0 * scores)
    assert other.wrong == ["the package's function differs from the right answer"]
    assert measured().wrong == []


def test_the_list_has_every_mistake_with_its_term(capsys):
    assert main(["mistakes", "--list"]) == 0
    shown = capsys.readouterr().out
    for exercise in EXERCISES.values():
        for mistake in exercise.mistakes:
            assert f"  {mistake.name}   [{mistake.term}]" in shown


def test_an_unknown_exercise_lists_the_known_ones(capsys):
    assert main(["mistakes", "atention"]) == 2
    assert "no exercise 'atention'; the known ones are: " in capsys.readouterr().err
    assert main(["mistakes", "diagnoses"]) == 2
    assert "diagnoses asks for names" in capsys.readouterr().err


def test_a_mistake_that_nothing_notices_and_one_that_is_misnamed_show(monkeypatch, capsys):
    """A row with fewer cases sees less; a mistake equal to another one gets the other's name."""
    tame = dataclasses.replace(audit.LEDGER["softmax"], cases=("no mask", "causal"))
    monkeypatch.setitem(audit.LEDGER, "softmax", tame)
    mistakes = {m.name: m for m in EXERCISES["softmax"].mistakes}
    first = EXERCISES["softmax"].mistakes[0]
    last = mistakes["with the largest score of the whole tensor subtracted, not each row's"]
    twin = dataclasses.replace(first, name="under another name")
    orphan = Mistake("no longer there", "a term", "A hint.", (("what nobody wrote", ""),))
    narrow = dataclasses.replace(EXERCISES["softmax"], mistakes=(first, twin, last, orphan))
    monkeypatch.setattr(audit, "exercises", lambda: {"softmax": narrow})
    assert main(["mistakes"]) == 1
    shown = capsys.readouterr().out
    assert "not named: softmax, under another name" in shown
    assert "not caught: softmax, with the largest score of the whole tensor subtracted" in shown
    assert "wrong: softmax, the patch 'no longer there' no longer fits the right answer" in shown


def test_a_row_that_is_off_by_itself_shows(monkeypatch):
    """Otherwise a broken row would catch every mistake."""
    off = dataclasses.replace(audit.LEDGER["softmax"], ours=lambda scores, keep: 0 * scores)
    monkeypatch.setitem(audit.LEDGER, "softmax", off)
    few = dataclasses.replace(EXERCISES["softmax"], mistakes=())
    assert audit.measure("softmax", few).wrong == ["softmax differs from the right answer"]
    assert EXERCISES["softmax"].right is ops.softmax
