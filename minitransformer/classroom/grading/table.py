"""The tables: grades.csv, grades.json from which a second start resumes, and class.csv with the sums."""

import contextlib
import csv
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...data.atomic import whole_file
from ...data.tables import harmless
from .checking import NO_SHEET, Grade
from .handed import Handed

COLUMNS = ("student", "sheet", "exercise", "passed", "points", "of", "mistakes", "diagnosis", "note",
           "only_because", "seconds")  # fmt: skip
NUMBER = re.compile(r"\d+(\.\d+)?")
Points = Mapping[str, float]  # for each exercise; 1 if it is not there


class Table:
    """The grades of a class in a folder, written again after every submission."""

    def __init__(self, folder: Path, points: Points) -> None:
        self.folder, self.points = folder, points
        # For the path of each file: the digest of its content, and its grades.
        self.known: dict[str, tuple[str, list[Grade]]] = {}
        if (kept := folder / "grades.json").exists():
            try:
                for path, (digest, rows) in json.loads(kept.read_text(encoding="utf-8")).items():
                    rows = [Grade(**row | {"mistakes": tuple(row["mistakes"])}) for row in rows]
                    self.known |= {path: (digest, rows)} if os.path.exists(path) else {}
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ValueError(f"{kept} is damaged; delete it to start anew") from None

    def grades(self) -> list[Grade]:
        """All lines, in the order of the students' names."""
        rows = (row for _, grades in self.known.values() for row in grades)
        return sorted(rows, key=lambda g: (g.student, g.sheet))  # keeps the order of exercises

    def add(self, handed: Handed, grades: list[Grade]) -> None:
        """Add or replace the grades of one submission; on a full disk, carry on without writing."""
        self.known[os.path.abspath(handed.path)] = handed.digest, grades
        keep = {path: (d, [*map(asdict, g)]) for path, (d, g) in self.known.items()}
        with contextlib.suppress(OSError):
            write_private(self.folder / "grades.json", json.dumps(keep))
            write_private(self.folder / "grades.csv", as_csv(lines(self.grades(), self.points)))


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner can read; text with the mark that tells Excel it is UTF-8."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    plain = "utf-8-sig" if path.suffix == ".csv" else "utf-8"
    with whole_file(path) as file:
        with contextlib.suppress(OSError):  # not every file system can
            os.chmod(file.name, 0o600)
        file.write(content if isinstance(content, bytes) else content.encode(plain, "replace"))


def as_csv(rows: Iterable[Sequence[str]]) -> str:
    """Rows as CSV, all in quotes: students control the text of some cells."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(
        [cell if cell == NO_SHEET else harmless(cell) for cell in row] for row in rows
    )
    return text.getvalue()


def lines(grades: Iterable[Grade], points: Points) -> Iterable[Sequence[str]]:
    """One line per student and exercise."""
    yield COLUMNS
    for g in grades:
        of = 0.0 if g.sheet == NO_SHEET else points.get(g.exercise, 1.0)
        yield (g.student, g.sheet, g.exercise, "yes" if g.passed else "no", f"{of * g.passed:g}", f"{of:g}",
               "; ".join(g.mistakes), " ".join(g.message.split()), g.note, g.because, f"{g.seconds:.1f}")  # fmt: skip


# --- The class --------------------------------------------------------------------------------


def sums(grades: Iterable[Grade], points: Points) -> tuple[Any, dict[str, Any]]:
    """The points that each sheet gives, and those of each student."""
    graded = [g for g in grades if g.sheet != NO_SHEET]
    of: Any = Counter()
    for sheet, exercise in sorted({(g.sheet, g.exercise) for g in graded}):
        of[sheet] += points.get(exercise, 1.0)
    mine: dict[str, Any] = {g.student: Counter() for g in graded}
    for g in graded:
        mine[g.student][g.sheet] += g.passed * points.get(g.exercise, 1.0)
    return of, mine


def sheets(grades: Sequence[Grade], points: Points) -> list[list[str]]:
    """One row per student: the points of each sheet, and their sum."""
    of, mine = sums(grades, points)
    rows = [[got[sheet] for sheet in of] + [got.total(), of.total()] for got in mine.values()]
    texts = [[name, *map("{:g}".format, row)] for name, row in zip(mine, rows, strict=True)]
    return [["student", *of, "points", "of"], *texts]


class ClassList:
    """A class list: a CSV with one row per student, such as Moodle's worksheet or Canvas's gradebook."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        rows = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
        self.header, *self.rows = [row for row in rows if any(row)] or [["student"]]

    def places(self, students: Iterable[str]) -> dict[str, int]:
        """The row of each student who matches exactly one."""
        names = [
            set[str]().union(*map(keys, [*row, *map(" ".join, pairwise(row))])) for row in self.rows
        ]
        found = {s: [i for i, known in enumerate(names) if known & keys(s)] for s in students}
        return {student: rows[0] for student, rows in found.items() if len(rows) == 1}

    def missing(self, students: Iterable[str]) -> list[str]:
        """The students who handed in nothing; Canvas's second line is no student."""
        there = self.places(students).values()
        rows = [row for i, row in enumerate(self.rows) if i not in there]
        return [" ".join(row[:3]) for row in rows if row[0].strip() != "Points Possible"]

    def filled(self, grades: Sequence[Grade], points: Points) -> list[list[str]]:
        """The list with the points: in the columns for them that it has, otherwise in new ones.

        These are Moodle's Grade, out of its Maximum Grade, and Canvas's, which begin with a sheet's name.
        """
        of, mine = sums(grades, points)
        columns = {name: i for i, name in enumerate(self.header)}
        old = [s for s in of if any(name.startswith(s) for name in columns)]
        new = [] if old or "Grade" in columns else [*of, "points", "of"]
        header = [*self.header, *new]
        rows = [[*row, *[""] * (len(header) - len(row))] for row in self.rows]
        for student, i in self.places(mine).items():
            got, row = mine[student], dict(zip(header, rows[i], strict=False))
            values = {**got, "points": got.total(), "of": of.total()}
            if "Grade" in columns:
                most = row.get("Maximum Grade", "").replace(",", ".")
                share = got.total() / (of.total() or 1)
                values["Grade"] = share * float(most) if NUMBER.fullmatch(most) else got.total()
            for j, name in enumerate(header):
                known = next((s for s in old if name.startswith(s)), name)
                if known in values and (name in new or known in old or name == "Grade"):
                    rows[i][j] = f"{values[known]:.4g}"
        return [header, *rows]


def keys(text: str) -> set[str]:
    """A name in the forms by which it is recognised: in any order, without accents, or run together."""
    plain = unicodedata.normalize("NFKD", text.partition("@")[0].casefold())
    words = re.findall(r"[^\W_]+", "".join(c for c in plain if not unicodedata.combining(c)))
    return {" ".join(sorted(words)), "".join(words)} - {""}
