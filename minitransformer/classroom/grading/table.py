"""The tables: grades.csv and what it is kept in, and class.csv with the sums."""

import contextlib
import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from ...data.atomic import whole_file
from .checking import NO_SHEET, Grade
from .handed import Handed

COLUMNS = ("student", "sheet", "exercise", "passed", "points", "of", "mistakes", "diagnosis", "note",
           "only_because", "seconds")  # fmt: skip
FORMULAS = tuple("=+-@＝＋－＠")
Points = Mapping[str, float]  # for each exercise; 1 if it is not there


class Table:
    """The grades of a class in a folder, written again after every submission."""

    def __init__(self, folder: Path, points: Points) -> None:
        self.folder, self.points = folder, points
        # For the path of each file: the digest of its content, and its grades.
        self.known: dict[str, tuple[str, list[Grade]]] = {}
        with contextlib.suppress(FileNotFoundError):
            try:
                saved = json.loads((folder / "grades.json").read_text(encoding="utf-8"))
                for path, (digest, rows) in saved.items():
                    rows = [Grade(**row | {"mistakes": tuple(row["mistakes"])}) for row in rows]
                    self.known |= {path: (digest, rows)} if os.path.exists(path) else {}
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ValueError(
                    f"{folder / 'grades.json'} is damaged; delete it to start anew"
                ) from None

    def grades(self) -> list[Grade]:
        """All lines, in the order of the students' names."""
        rows = (row for _, grades in self.known.values() for row in grades)
        return sorted(rows, key=lambda g: (g.student, g.sheet))  # keeps the order of exercises

    def add(self, handed: Handed, grades: list[Grade]) -> None:
        """The grades of one submission, in the place of any earlier ones; a full disk is no obstacle."""
        self.known[os.path.realpath(handed.path)] = handed.digest, grades
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
        [harmless(cell) for cell in row] for row in rows
    )
    return text.getvalue()


def harmless(cell: str) -> str:
    """Never a formula in a spreadsheet."""
    cell = cell.strip()
    return f"'{cell}" if cell.startswith(FORMULAS) and cell != NO_SHEET else cell


def lines(grades: Iterable[Grade], points: Points) -> Iterable[Sequence[str]]:
    """One line per student and exercise."""
    yield COLUMNS
    for g in grades:
        of = 0.0 if g.sheet == NO_SHEET else points.get(g.exercise, 1.0)
        yield (g.student, g.sheet, g.exercise, "yes" if g.passed else "no", f"{of * g.passed:g}", f"{of:g}",
               "; ".join(g.mistakes), " ".join(g.message.split()), g.note, g.because, f"{g.seconds:.1f}")  # fmt: skip


# --- The class --------------------------------------------------------------------------------


def sums(grades: Iterable[Grade], points: Points) -> dict[str, dict[str, float]]:
    """The points of each student on each sheet."""
    found: dict[str, dict[str, float]] = {}
    for g in grades:
        mine = found.setdefault(g.student, {})
        if g.sheet != NO_SHEET:
            mine[g.sheet] = mine.get(g.sheet, 0.0) + g.passed * points.get(g.exercise, 1.0)
    return found


def full(grades: Sequence[Grade], points: Points) -> dict[str, float]:
    """The points that each sheet gives."""
    asked = dict.fromkeys((g.sheet, g.exercise) for g in grades if g.sheet != NO_SHEET)
    found: dict[str, float] = {}
    for sheet, exercise in sorted(asked):
        found[sheet] = found.get(sheet, 0.0) + points.get(exercise, 1.0)
    return found


def sheets(grades: Sequence[Grade], points: Points) -> list[list[str]]:
    """One row per student with the points of each sheet, and their sum."""
    of = full(grades, points)
    rows = [["student", *of, "points", "of"]]
    for student, mine in sums(grades, points).items():
        got = [*(mine.get(sheet, 0.0) for sheet in of), sum(mine.values()), sum(of.values())]
        rows.append([student, *map("{:g}".format, got)])
    return rows


class ClassList:
    """A class list: any CSV with one row per student, such as Moodle's worksheet or Canvas's gradebook."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        rows = list(csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count)))
        self.header, self.rows = rows[0], [row for row in rows[1:] if any(row)]
        if len(self.header) == 1 and not keys(self.header[0]) & {"student", "name"}:
            self.header, self.rows = ["student"], [row for row in rows if any(row)]

    def places(self, students: Iterable[str]) -> dict[str, int]:
        """In which row each student stands, if in exactly one."""
        names = [set().union(*map(keys, row), *map(keys, map(" ".join, pairwise(row))))
                 for row in self.rows]  # fmt: skip
        found = {}
        for student in students:
            mine = [i for i, known in enumerate(names) if known & keys(student)]
            found |= {student: mine[0]} if len(mine) == 1 else {}
        return found

    def missing(self, students: Iterable[str]) -> list[str]:
        """Who has handed in nothing."""
        there = set(self.places(students).values())
        points = [
            i for i, row in enumerate(self.rows) if row[0].strip() == "Points Possible"
        ]  # Canvas
        return [
            " ".join(row[:3]).strip()
            for i, row in enumerate(self.rows)
            if i not in {*there, *points}
        ]

    def filled(self, grades: Sequence[Grade], points: Points) -> list[list[str]]:
        """The list with the points: in Moodle's column, in Canvas's, or in new ones."""
        mine, of = sums(grades, points), full(grades, points)
        total = sum(of.values())
        columns = {
            sheet: i for sheet in of for i, name in enumerate(self.header) if name.startswith(sheet)
        }
        moodle = {
            name: i for i, name in enumerate(self.header) if name in ("Grade", "Maximum Grade")
        }
        new = [] if columns or "Grade" in moodle else [*of, "points", "of"]
        rows = [[*row, *[""] * (len(self.header) + len(new) - len(row))] for row in self.rows]
        for student, i in self.places(mine).items():
            row, got = rows[i], sum(mine[student].values())
            for sheet, column in columns.items():
                row[column] = f"{mine[student].get(sheet, 0.0):g}"
            if "Grade" in moodle:
                most = number(row[moodle["Maximum Grade"]]) if "Maximum Grade" in moodle else 0.0
                row[moodle["Grade"]] = f"{got * (most or total) / total:.2f}"
            for j, name in enumerate(new, len(self.header)):
                value = {"points": got, "of": total}.get(name, mine[student].get(name, 0.0))
                row[j] = f"{value:g}"
        return [[*self.header, *new], *rows]


def keys(text: str) -> set[str]:
    """A name in the forms by which it is recognised: in any order, without accents, or run together."""
    plain = unicodedata.normalize("NFKD", text.partition("@")[0].casefold())
    words = re.findall(r"[^\W_]+", "".join(c for c in plain if not unicodedata.combining(c)))
    return {" ".join(sorted(words)), "".join(words)} - {""}


def number(text: str) -> float:
    """A number in a table; 0 if it is none."""
    with contextlib.suppress(ValueError):
        return float(text.replace(",", "."))
    return 0.0
