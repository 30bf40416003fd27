"""The teacher's page after grading, with a figure of the mistakes."""

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..engine.diagnosis import Result
from ..registry import every, exercises
from .checking import NO_SHEET, Grade
from .protection import protection
from .table import ClassList, Points, as_csv, lines, sheets, write_private

BARS = 15


def write(
    grades: Sequence[Grade],
    folder: Path,
    points: Points | None = None,
    students: ClassList | None = None,
) -> list[Path]:
    """Write the tables, grades.html and mistakes.png; the class list comes back as class.csv."""
    points, figure = points or {}, drawn(grades)
    files: dict[str, str | bytes] = {
        "grades.csv": as_csv(lines(grades, points)),
        "class.csv": as_csv((students.filled if students else sheets)(grades, points)),
        "grades.html": page(grades, figure, points, students),
        "mistakes.png": figure,
    }
    for name, content in files.items():
        write_private(folder / name, content)
    return [folder / name for name in files]


def first_sentence(message: str) -> str:
    """The beginning of a message."""
    return re.split(r"(?<=[.!?])\s", message.strip(), maxsplit=1)[0]


def what_went_wrong(grade: Grade) -> tuple[str, ...]:
    """Names to count by: the known mistakes, otherwise the beginning of the message."""
    if grade.passed:
        return ()
    if grade.because:
        return (f"only because {grade.because} is wrong",)
    start = re.split(r"[.:;(]", grade.message)[0].strip()
    return grade.mistakes or (re.sub(r"^\d+ of \d+", "some", start).lower(),)


# --- The figure -------------------------------------------------------------------------------


def counted(grades: Sequence[Grade]) -> Counter[tuple[str, str]]:
    """How many students made each mistake, by exercise and name."""
    graded = [g for g in grades if g.sheet != NO_SHEET]
    made = {(g.exercise, name, g.student) for g in graded for name in what_went_wrong(g)}
    return Counter(sorted((exercise, name) for exercise, name, _ in made))


def drawn(grades: Sequence[Grade]) -> bytes:
    """The most frequent mistakes as bars, a PNG; known ones in colour."""
    bars = counted(grades).most_common(BARS)
    figure = Figure(figsize=(8, 1.2 + 0.35 * max(len(bars), 1)), dpi=100, layout="constrained")
    ax = figure.subplots()
    labels = [f"{exercise}: {name}" for (exercise, name), _ in bars]
    labels = [label if len(label) <= 70 else f"{label[:69]}…" for label in labels]
    named = {(g.exercise, name) for g in grades for name in g.mistakes}
    colours = ["C0" if bar in named else "lightgray" for bar, _ in bars]
    ax.barh(range(len(bars)), [n for _, n in bars], color=colours)
    ax.set_yticks(range(len(bars)), labels, fontsize=8)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)  # a student's `$` is no formula
    ax.invert_yaxis()
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("students; gray: not one of the known mistakes")
    ax.set_title("What was not right" if bars else "Everything was right", fontsize=10)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


# --- The page ---------------------------------------------------------------------------------


def page(grades: Sequence[Grade], figure: bytes, points: Points, students: ClassList | None) -> str:
    """Everything on one page: the class, its mistakes, then each student."""
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    names = {g.student for g in grades}
    return jinja2.Environment(autoescape=True).from_string(template).render(
        grades=grades, figure=base64.b64encode(figure).decode(), points=sheets(grades, points),
        missing=students.missing(names) if students else (), mistakes=to_talk_about(grades),
        protection=protection(), mark=mark, box=box, first_sentence=first_sentence,
    )  # fmt: skip


def mark(grade: Grade) -> tuple[str, str]:
    """How a grade is shown: its style and its sign."""
    if grade.passed:
        return "yes", "✓"
    if grade.message.startswith("Still to be written"):
        return "open", "–"
    return ("after", "↳") if grade.because else ("no", "✗")


def box(grade: Grade) -> str:
    """What the check said, as a notebook shows it."""
    known = every().get(grade.exercise)
    title = f"{grade.exercise}, {known.title}" if known else "not graded"
    helped = f"With a right answer to {grade.because} it passes.\n\n" if grade.because else ""
    message = "" if grade.passed else helped + grade.message
    return Result(title, grade.passed, message, grade.mistakes)._repr_html_()


def to_talk_about(grades: Sequence[Grade]) -> list[tuple[str, str, str, str]]:
    """Each mistake with its hint and who made it, the most frequent first."""
    rows = []
    for (exercise, name), count in counted(grades).most_common():
        known = exercises()[exercise].mistakes if exercise in exercises() else ()
        hint = next((m.hint for m in known if m.name == name), "")
        theirs = {
            g.student for g in grades if g.exercise == exercise and name in what_went_wrong(g)
        }
        rows.append((exercise, name, hint, f"{count}: {', '.join(sorted(theirs))}"))
    return rows
