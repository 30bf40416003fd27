"""Judging a submission: our checks run in a process that the student's code never enters.

Each function of the student is a `Remote`, called over a connection to the student's process. A step that
ends that process, or does not end, is left out, and the others are done in a new one.
"""

import contextlib
import linecache
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import registry
from ..engine import limits, lines
from .handed import Handed
from .notebooks import Sheet, bound_and_used, cells_to_run, runnable
from .protection import bubblewrap, sandbox
from .remote import Gone, Link, Remote
from .submission import work

PACKAGE = __name__.split(".")[0]
GRACE = 5.0  # seconds over its time before a step is ended from outside
IN_ALL = 5  # a submission may take this many times the limit of one cell
START = 120.0  # seconds for a process to load everything
NO_SHEET = "-"  # sheet and exercise of a file that cannot be graded


@dataclass(frozen=True)
class Grade:
    """One line of the table: a student and an exercise."""

    student: str
    sheet: str
    exercise: str
    passed: bool
    message: str
    mistakes: tuple[str, ...] = ()
    note: str = ""  # what the teacher should look at
    seconds: float = 0.0
    because: str = ""  # the earlier exercises without whose mistakes it would have passed


@dataclass
class Grading:
    """One submission, and what has been found out about it."""

    handed: Handed
    sheet: Sheet
    hidden: frozenset[str]  # files that a student may not read
    seconds: float  # limit for each cell
    memory: int
    troubles: dict[int, str] = field(default_factory=dict)  # what stopped a cell
    # For each exercise, by the cell after which it was checked.
    answers: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    where: dict[str, tuple[str, int]] = field(default_factory=dict)  # the definition checked last

    def __post_init__(self) -> None:
        limits.SECONDS = min(limits.SECONDS, self.seconds)
        lines.SECONDS = 0.0  # no search for the line: the function is in another process
        self.answers |= {exercise: {} for exercise in self.sheet.asked}
        for i, cell in enumerate(self.handed.cells):  # for the lines of errors
            source = runnable(cell)
            linecache.cache[f"cell {i + 1}"] = (1, None, source.splitlines(True), f"cell {i + 1}")

    def steps(self) -> list[tuple[int, str]]:
        """The cells to run, and a check after every cell that defines the function."""
        asked, cells = self.sheet.asked, self.handed.cells
        steps: list[tuple[int, str]] = []
        for i in (places := cells_to_run(self.sheet, cells)):
            bound, _ = bound_and_used(cells[i])
            steps += [(i, ""), *((i, name) for name in asked if asked[name] in bound)]
        # At the end once more, for what was defined in a way that the code does not show.
        return steps + [(i, name) for i in places[-1:] for name in asked]

    def grades(self) -> list[Grade]:
        """The table's lines, after all steps in as many processes as it takes."""
        steps, until = self.steps(), time.monotonic() + IN_ALL * self.seconds
        while any(exercise for _, exercise in steps) and time.monotonic() < until:
            with student_process(self.hidden, self.memory) as link:
                again: list[tuple[int, str]] = []  # cells that a new process needs
                while steps and time.monotonic() < until:
                    cell, exercise = steps.pop(0)
                    why = self.taken(link, cell, exercise, until)
                    again += [(cell, "")] if not exercise and not why else []
                    if why or link.waiting:
                        break
            steps = again + steps
        return [self.grade(exercise) for exercise in self.sheet.asked]

    def taken(self, link: Link, cell: int, exercise: str, until: float) -> str:
        """Take one step; returns why the student's process is of no use any more, or ""."""
        start, why, result = time.monotonic(), "", dict[str, Any]()
        try:
            if exercise:
                result = self.checked(link, exercise)
            else:
                wait = max(min(self.seconds, until - start), 0) + min(GRACE, self.seconds)
                source, name = runnable(self.handed.cells[cell]), f"cell {cell + 1}"
                ran, _ = link.ask("cell", source, name, self.seconds, seconds=wait)
                self.troubles |= {cell: ran["trouble"]} if ran["trouble"] else {}
        except Gone as gone:
            why = str(gone)
        except limits.TimeUp:
            why = f"did not end after {self.seconds:.0f} seconds"
        if exercise and (result or why):
            result = result or {"message": f"Checking it {why}."}
            self.answers[exercise][cell] = result | {"seconds": time.monotonic() - start}
        elif why:
            self.troubles[cell] = why
        return why

    def checked(self, link: Link, exercise: str) -> dict[str, Any]:
        """The result of a check; a wrong answer is checked again with right earlier answers."""
        result = self.check(link, exercise, {})
        asked = list(self.sheet.asked)
        earlier = [e for e in asked[: asked.index(exercise)] if not self.last(e).get("passed")]
        if "passed" in result and not result["passed"] and earlier and not link.waiting:
            right = {self.sheet.asked[e]: e for e in earlier}
            with contextlib.suppress(Gone, limits.TimeUp):
                if self.check(link, exercise, right).get("passed"):
                    result["because"] = ", ".join(earlier)
                link.ask("restore", seconds=START)
        return result

    def check(self, link: Link, exercise: str, instead: dict[str, str]) -> dict[str, Any]:
        """The result of one check, with right answers instead of some of the functions."""
        function, check = self.sheet.asked[exercise], registry.every()[exercise]
        found, _ = link.ask("look_up", function, instead, seconds=START)
        file, line = found["where"]
        same = line and (file, line) == self.where.get(exercise)
        if not found["found"] or (same and not instead):  # nothing new since the last check
            return {}
        self.where[exercise] = file, line
        student: Any = Remote(link, function, file)
        # The evidence against a wrong diagnosis takes trainings, and the table does not show it.
        quick = {"measured": False} if isinstance(check, registry.Quiz) else {}
        try:
            answer = check(student if found["callable"] else found["value"], **quick)
        except Exception as error:
            text = str(error)[:2000]
            return {"message": f"The check itself failed. {type(error).__name__}: {text}"}
        message = answer.message
        if link.waiting:
            message = f"Stopped after {limits.SECONDS:.0f} seconds: it did not react to a signal."
        used = {short(name) for name in student.used if not self.sheet.shows(exercise, name)}
        return {"passed": answer.passed, "message": message, "mistakes": answer.mistakes,
                "used": sorted(used)}  # fmt: skip

    def last(self, exercise: str) -> dict[str, Any]:
        """The result for the last definition."""
        return next((a for a in reversed(self.answers[exercise].values()) if "message" in a), {})

    def grade(self, exercise: str) -> Grade:
        """A line of the table."""
        answer, cells = self.last(exercise), self.answers[exercise]
        notes = [f"uses {name}; look at it" for name in answer.get("used", ())]
        right = [i for i, a in cells.items() if a.get("passed") and not answer.get("passed")]
        notes += [
            f"its definition in code cell {i + 1} is right; a later one hides it" for i in right
        ]
        notes += [f"code cell {i + 1}: {text}" for i, text in sorted(self.troubles.items())]
        return Grade(
            self.handed.student, self.sheet.name, exercise, answer.get("passed") is True,
            answer.get("message") or self.missing(self.sheet.asked[exercise]),
            tuple(answer.get("mistakes", ())), "; ".join(notes), answer.get("seconds", 0.0),
            answer.get("because", ""),
        )  # fmt: skip

    def missing(self, function: str) -> str:
        """Why there was nothing to check."""
        defining = {i for i, cell in enumerate(self.handed.cells) if f"def {function}" in cell}
        for i in defining & self.troubles.keys():
            return f"{function} does not exist, since its cell stops. {self.troubles[i]}"
        late = "Not reached: the submission's time was up."
        return late if defining else f"The notebook defines no function {function}."


def short(name: str) -> str:
    """One of the package's functions, by the name that a notebook uses."""
    *modules, function = name.split(".")
    if "torch" in modules:
        return name
    name = "mt.check" if "classroom" in modules else f"{modules[-1]}.{function}"
    return f"the package's own {name}"


@contextlib.contextmanager
def student_process(hidden: frozenset[str], memory: int) -> Iterator[Link]:
    """A process for a student's cells, in an empty folder. Raises: OSError: it does not start."""
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = os.path.join(folder, "here")  # so that the submission may remove it
        os.mkdir(place)
        if bubblewrap():
            number, here = theirs.fileno(), str(Path(__file__).parents[3])
            ask = f"from {work.__module__} import *; work(Connection({number}))"
            command = [*sandbox(bubblewrap(), folder, hidden), sys.executable, "-c", ask]
            environment = os.environ | {"PYTHONPATH": here}
            process: Any = subprocess.Popen(command, pass_fds=[number], env=environment)
        else:
            # Nothing else runs in this process, so it may be forked.
            kind: Any = "fork" if hasattr(os, "fork") else "spawn"
            process = multiprocessing.get_context(kind).Process(target=work, args=(theirs,))
            process.start()
        theirs.close()
        try:
            ours.send((place, hidden, memory))
            link = Link(ours)
            link.ask("restore", seconds=START)  # once it has loaded everything
            yield link
        finally:
            process.kill()
            getattr(process, "join", getattr(process, "wait", None))()
            ours.close()
