"""`python -m minitransformer grade`: check the notebooks that a class handed in."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    p = commands.add_parser(
        "grade",
        help="check the notebooks that a class handed in",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Check the functions that exercise sheets ask for, each submission in a process "
        "of its own. A notebook answers the sheet that it has most in common with, whatever its "
        "name. The cells that a student changed or added run in order, the others only if those use "
        "what they define; a cell that fails does not stop the next.",
        epilog="example: python -m minitransformer grade handed-in/ --out grades",
    )
    p.add_argument("submissions", nargs="+", help="notebooks (.ipynb, .py with # %%%%), or folders of them")  # fmt: skip
    p.add_argument("--out", default="grades", help="folder for grades.csv, grades.html, mistakes.png")  # fmt: skip
    p.add_argument("--exercises", metavar="FOLDER", default=argparse.SUPPRESS,
                   help="the sheets as handed out (default: notebooks/exercises of this checkout)")  # fmt: skip
    p.add_argument("--seconds", type=float, default=120.0, help="limit per cell; a submission has five times as long")  # fmt: skip
    p.add_argument("--memory", type=float, default=4.0, help="GiB per submission; only on Linux")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Grade notebooks and write tables of who got what right."""
    if args.seconds <= 0 or args.memory <= 0:
        raise ValueError("--seconds and --memory must be more than 0")
    from ..classroom.grading import report
    from ..classroom.grading.grade import EXERCISES, grade

    submissions = [Path(path) for path in args.submissions]
    sheets = Path(getattr(args, "exercises", EXERCISES))
    grades = grade(submissions, sheets, args.seconds, args.memory)
    written = report.write(grades, Path(args.out))
    passed, students = sum(g.passed for g in grades), len({g.student for g in grades})
    print(f"{students} submissions, {passed} of {len(grades)} exercises passed; open {written[1]}")
    return 0
