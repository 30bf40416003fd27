"""`python -m minitransformer grade`: who got what right, of what a class handed in."""

import argparse
from pathlib import Path
from typing import Any

from ..classroom.grading import report
from ..classroom.grading.grade import EXERCISES, grade


def add(commands: Any) -> None:
    """Put the command and its options into the parser."""
    p = commands.add_parser(
        "grade",
        help="check what a class handed in",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Check the functions that exercise sheets ask for, one process a submission. "
        "A notebook answers the sheet that it has most in common with, whatever its name. The "
        "cells that a student changed or added run in their order, those that were handed out only "
        "where the others use what they define; a cell that fails does not stop the next.",
        epilog="example: python -m minitransformer grade handed-in/ --out grades",
    )
    p.add_argument("submissions", nargs="+", help="notebooks (.ipynb, .py with # %%%%), or folders of them")  # fmt: skip
    p.add_argument("--out", default="grades", help="folder for grades.csv, grades.html, mistakes.png")  # fmt: skip
    p.add_argument("--exercises", default=str(EXERCISES), help="folder of the sheets as handed out")
    p.add_argument("--seconds", type=float, default=120.0, help="limit for a cell; a submission has 5 times that")  # fmt: skip
    p.add_argument("--memory", type=float, default=4.0, help="GiB for a submission; on Linux only")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """From notebooks to a table of who got what right, and what not."""
    if args.seconds <= 0 or args.memory <= 0:
        raise ValueError("--seconds and --memory must be more than 0")
    submissions = [Path(path) for path in args.submissions]
    grades = grade(submissions, Path(args.exercises), args.seconds, args.memory)
    written = report.write(grades, Path(args.out))
    passed, students = sum(g.passed for g in grades), len({g.student for g in grades})
    print(f"{students} submissions, {passed} of {len(grades)} exercises passed; open {written[1]}")
    return 0
