"""Grading: checks what a class handed in, and says what each student got wrong.

Each submission is checked in a process of its own (`checking`), forked where possible from an interpreter
that has the package loaded; that process starts another one for the student's cells (`submission`).
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .checking import IN_ALL, NO_SHEET, START, Grade, Grading
from .handed import Handed, collect
from .notebooks import read_sheets

EXERCISES = Path(__file__).parents[3] / "notebooks" / "exercises"
FAILED = "Grading it failed"  # through no fault of the submission: it is tried again the next time


def grade(
    submissions: Sequence[Path],
    exercises: Path = EXERCISES,
    seconds: float = 120.0,
    memory: float = 4.0,
    at_once: int | None = None,
    known: Mapping[str, tuple[str, list[Grade]]] | None = None,
    each: Callable[[Handed, list[Grade]], None] = lambda *_: None,
) -> list[Grade]:
    """Check every submission, in the order of the students' names.

    Args:
        submissions: notebooks, or folders of them.
        exercises: the folder of the student's editions that were handed out.
        seconds: limit for each cell; a whole submission may take five times that.
        memory: GiB for each submission.
        at_once: submissions that run at the same time; one per processor by default.
        known: for paths of files, the digest and the grades of an earlier run. In a folder, only
            what is new or changed is graded; a file named by itself always is.
        each: called with each submission and its grades, as they come.

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
        own = os.path.realpath(one.path)
        digest, before = (known or {}).get(os.path.abspath(one.path), ("", []))
        failed = any(g.message.startswith(FAILED) for g in before)
        if before and digest == one.digest and one.path != one.given and not failed:
            return [replace(g, student=one.student) for g in before]
        return in_a_process(one, files - {own}, seconds, int(memory * 2**30))

    found: dict[int, list[Grade]] = {}
    pool = ThreadPoolExecutor(at_once or os.cpu_count())  # they wait for processes of their own
    try:
        waiting = {pool.submit(rows, one): i for i, one in enumerate(handed)}
        for done in tqdm(as_completed(waiting), total=len(handed), unit="submission"):
            i = waiting[done]
            found[i] = done.result()
            each(handed[i], found[i])
    finally:
        pool.shutdown(cancel_futures=True)
    return [row for i in sorted(found) for row in found[i]]


def in_a_process(
    handed: Handed, hidden: frozenset[str], seconds: float, memory: int
) -> list[Grade]:
    """All exercises of one submission, checked in a process of its own."""
    why: Any = handed.wrong
    if handed.sheet is not None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        context.set_forkserver_preload([f"{__package__}.preload"])
        ours, theirs = context.Pipe(duplex=False)
        given = theirs, handed, handed.sheet, hidden, seconds, memory
        process = context.Process(target=report, args=given)
        try:
            process.start()
            theirs.close()
            late = not ours.poll(START + 2 * IN_ALL * seconds)
            why = "it does not end" if late else ours.recv()
        except (OSError, EOFError):
            why = "its process was ended"
        finally:
            ours.close()
            end(process)
        if isinstance(why, list):
            return why
        why = f"{FAILED}: {why}"
    return [Grade(handed.student, NO_SHEET, NO_SHEET, False, why)]


def end(process: Any) -> None:
    """End a process and everything that it started."""
    if process.pid is not None:
        with suppress(OSError, AttributeError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def report(channel: Connection, *what: Any) -> None:
    """Grade a submission, and send its grades."""
    if hasattr(os, "setsid"):
        os.setsid()
    try:
        channel.send(Grading(*what).grades())
    except Exception as error:
        channel.send(f"{type(error).__name__}: {error}")
