"""`python -m minitransformer grade`: check the notebooks that a class handed in."""

import argparse
import re
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
    p.add_argument("--out", default="grades", help="folder for the tables, grades.html and mistakes.png; submissions "
                   "of a folder that it has the grades of are not graded again unless they changed")  # fmt: skip
    p.add_argument("--again", action="store_true", help="grade everything again")
    p.add_argument("--exercises", metavar="FOLDER", default=argparse.SUPPRESS,
                   help="the sheets as handed out (default: notebooks/exercises of this checkout)")  # fmt: skip
    p.add_argument("--points", default="", metavar="NAME=N,...", help="points for exercises, 1 for the others")  # fmt: skip
    p.add_argument("--class-list", metavar="FILE", default=argparse.SUPPRESS,
                   help="a CSV with a row per student; comes back as class.csv with the points filled in, "
                   "ready for Moodle (its grading worksheet) or Canvas (its gradebook)")  # fmt: skip
    p.add_argument("--seconds", type=float, default=120.0, help="limit per cell; a submission has five times as long")  # fmt: skip
    p.add_argument("--memory", type=float, default=4.0, help="GiB per submission; only on Linux")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Grade notebooks and write tables of who got what right."""
    if args.seconds <= 0 or args.memory <= 0:
        raise ValueError("--seconds and --memory must be more than 0")
    from ..classroom.grading import protection, report, table
    from ..classroom.grading.grade import EXERCISES, grade
    from ..classroom.registry import every

    points = {}
    for part in filter(None, args.points.split(",")):
        name, _, worth = part.partition("=")
        if name not in every() or not re.fullmatch(r"\d+(\.\d+)?", worth):
            raise ValueError(f"--points {part}: give exercises and points, such as attention=2")
        points[name] = float(worth)
    path = getattr(args, "class_list", None)
    students = table.ClassList(Path(path)) if path else None
    sheets = Path(getattr(args, "exercises", EXERCISES))
    kept = table.Table(Path(args.out), points)
    print(f"Protection: {protection.protection()}.")
    known = {} if args.again else dict(kept.known)
    grade([Path(path) for path in args.submissions], sheets, args.seconds, args.memory,
          known=known, each=kept.add)  # fmt: skip
    grades = kept.grades()
    page = report.write(grades, kept.folder, points, students)[2]
    graded = [g for g in grades if g.sheet != table.NO_SHEET]
    passed, names = sum(g.passed for g in graded), {g.student for g in graded}
    print(f"{len(names)} students, {passed} of {len(graded)} exercises passed; open {page}")
    return 0
