"""Grading: checks what a class handed in, and says what each student got wrong.

Each submission runs in its own process (`submission.py` says what that does and does not keep off),
forked where possible from an interpreter that has the package loaded. A step that ends the process, or
does not end, is left out, and the other steps are done in a new process.
"""

import json
import multiprocessing
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..engine import limits
from .notebooks import Sheet, bound_and_used, cells_to_run, code_cells, read_sheets, sheet_of
from .submission import Job, work

EXERCISES = Path(__file__).parents[3] / "notebooks" / "exercises"
GRACE = 5.0  # seconds over its time before a step is ended from outside
IN_ALL = 5  # a submission may take this many times the limit of one cell
START = 120.0  # seconds for a process, or the interpreter it is forked from, to load everything
LONGEST_ANSWER = 2**20
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


@dataclass
class Handed:
    """One submission."""

    student: str
    path: Path
    cells: list[str] = field(default_factory=list)
    sheet: Sheet | None = None
    wrong: str = ""  # why it cannot be graded


def grade(
    submissions: Sequence[Path],
    exercises: Path = EXERCISES,
    seconds: float = 120.0,
    memory: float = 4.0,
    at_once: int | None = None,
) -> list[Grade]:
    """Check every submission, in the order of the students' names.

    Args:
        submissions: notebooks, or folders of them.
        exercises: the folder of the student's editions that were handed out.
        seconds: limit for each cell; a whole submission may take five times that.
        memory: GiB for each submission.
        at_once: submissions that run at the same time; one per processor by default.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a given file is no notebook or answers no sheet, or a folder contains none.
    """
    sheets = read_sheets(exercises)
    handed = collect(submissions, sheets)
    hidden = {h.path for h in handed}
    hidden |= {*exercises.parent.glob("*.ipynb"), *exercises.parent.glob("source/*.py")}
    files = frozenset(os.path.realpath(path) for path in hidden)

    def rows(one: Handed) -> list[Grade]:
        return grade_one(one, files, seconds, int(memory * 2**30))

    # Threads are enough: each waits for a process of its own.
    with ThreadPoolExecutor(at_once or os.cpu_count()) as pool:
        bar = tqdm(pool.map(rows, handed), total=len(handed), unit="submission")
        return [row for graded in bar for row in graded]


def collect(submissions: Sequence[Path], sheets: Sequence[Sheet]) -> list[Handed]:
    """All notebooks, each with its student's name and its sheet."""
    handed: list[Handed] = []
    for path in submissions:
        if not path.exists():
            raise FileNotFoundError(f"no such file or folder: {path}")
        files = notebooks_in(path) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"no notebook (.ipynb or .py) in {path}")
        found = [read(file, path, sheets) for file in files]
        if all(h.wrong for h in found):
            raise ValueError(found[0].wrong)
        handed += found
    names = [h.student for h in handed]
    for one in handed:
        if names.count(one.student) > 1:
            one.student = str(one.path.with_suffix(""))
    return sorted(handed, key=lambda h: h.student)


def notebooks_in(folder: Path) -> list[Path]:
    """The notebooks of a folder and its subfolders, without Jupyter's own copies."""
    files = (p for p in folder.rglob("*") if p.suffix in (".ipynb", ".py") and p.is_file())
    return sorted(p for p in files if "/." not in f"/{p.relative_to(folder).as_posix()}")


def read(path: Path, given: Path, sheets: Sequence[Sheet]) -> Handed:
    """One submission. The student's name is the file's, or the path's if the file has its sheet's name."""
    named = path.stem in {sheet.name for sheet in sheets} and path != given
    student = str(path.relative_to(given).with_suffix("")) if named else path.stem
    handed = Handed(student, path)
    try:
        handed.cells = code_cells(path)
        handed.sheet = sheet_of(handed.cells, sheets, path.stem)
    except (ValueError, OSError) as error:
        handed.wrong = str(error)
    if not handed.wrong and handed.sheet is None:
        names = ", ".join(sheet.name for sheet in sheets)
        handed.wrong = f"{path} answers none of the exercise sheets ({names})"
    return handed


def grade_one(handed: Handed, hidden: frozenset[str], seconds: float, memory: int) -> list[Grade]:
    """All exercises of one submission."""
    sheet = handed.sheet
    if sheet is None:
        return [Grade(handed.student, NO_SHEET, NO_SHEET, False, handed.wrong)]
    steps = steps_of(sheet, handed.cells)
    cells = {what: handed.cells[what] for kind, what in steps if kind == "cell"}
    answers: dict[Any, dict[str, Any]] = {}
    troubles: dict[int, str] = {}
    until = time.monotonic() + IN_ALL * seconds
    while any(kind == "check" for kind, _ in steps) and time.monotonic() < until:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            token = secrets.token_hex(16)
            job = Job(cells, steps, dict(troubles), folder, hidden, seconds, memory, token)
            reports = attempt(job, until)
        taken = list(zip(steps, reports, strict=False))
        for (kind, what), report in taken:
            if kind == "check":
                answers[what] = report
            elif report.get("error"):
                troubles[what] = str(report["error"])
        # A cell is needed again, unless it was fatal.
        again = [step for step, r in taken if step[0] == "cell" and "fatal" not in r]
        steps = again + steps[len(taken) :]
    trouble = "; ".join(f"code cell {i + 1}: {text}" for i, text in sorted(troubles.items()))
    return [
        to_grade(handed.student, sheet, name, answers.get((name, function)), trouble)
        for name, function in sheet.asked.items()
    ]


def steps_of(sheet: Sheet, cells: Sequence[str]) -> list[tuple[str, Any]]:
    """The cells to run, and each check after the last cell that defines its function."""
    places = cells_to_run(sheet, cells)
    last = {name: i for i in places for name in bound_and_used(cells[i])[0]}
    steps: list[tuple[str, Any]] = []
    for i in [None, *places]:
        steps += [("cell", i)] if i is not None else []
        steps += [("check", asked) for asked in sheet.asked.items() if last.get(asked[1]) == i]
    return steps


def to_grade(
    student: str, sheet: Sheet, name: str, answer: dict[str, Any] | None, trouble: str
) -> Grade:
    """A line of the table, from what the process reported about an exercise, if anything."""
    answer = answer or {"message": "Not reached: the submission's time was up."}
    before = sheet.before(name)
    # An answer may use what the sheet has used before it, but never a check.
    uses = [str(u) for u in answer.get("uses", ()) if str(u) not in before or "check" in str(u)]
    notes = [f"uses the package's own {', '.join(uses)}; look at it"] if uses else []
    notes += [trouble] if trouble else []
    return Grade(
        student, sheet.name, name, answer.get("passed") is True, str(answer.get("message", "")),
        tuple(map(str, answer.get("mistakes", ()))), "; ".join(notes),
        float(answer.get("seconds", 0.0)),
    )  # fmt: skip


# --- The process ------------------------------------------------------------------------------


def attempt(job: Job, until: float) -> list[dict[str, Any]]:
    """Do the steps in a new process: its report on each, up to one that it did not survive."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload([f"{__package__}.preload"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()
    reports: list[dict[str, Any]] = []
    limit, deadline = START, time.monotonic() + START
    # For half a message, which only a trick can send, `recv_bytes` would wait for ever.
    last_resort = threading.Timer(max(until - time.monotonic(), 0.0) + START, process.kill)
    last_resort.daemon = True
    last_resort.start()
    try:
        while len(reports) < len(job.steps):
            answer = heard(ours, job.token, deadline)
            if answer is None:
                late = time.monotonic() >= deadline
                why = f"did not end after {limit:.0f} seconds" if late else "ended the process"
                return [*reports, {"error": why, "message": f"Checking it {why}.", "fatal": True}]
            if answer.get("step") == len(reports) and len(answer) == 2:  # it begins
                limit = job.seconds if job.steps[len(reports)][0] == "cell" else limits.SECONDS
                deadline = min(time.monotonic() + limit, until) + GRACE
            elif answer.get("step") == len(reports):
                reports.append(answer)
        return reports
    finally:
        last_resort.cancel()
        end(process)
        ours.close()


def heard(channel: Connection, token: str, deadline: float) -> dict[str, Any] | None:
    """The next report of our own code in the process; None if none comes any more."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            if not channel.poll(left):
                return None
            answer = json.loads(channel.recv_bytes(LONGEST_ANSWER))
        except ValueError:  # not ours
            continue
        except (EOFError, OSError):
            return None
        if isinstance(answer, dict) and answer.get("token") == token:
            return answer
    return None


def end(process: Any) -> None:
    """End a process and everything that it started."""
    with suppress(OSError):
        if hasattr(os, "killpg") and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    process.close()
