"""What a teacher reads after grading: a table (CSV), a page (HTML), and a figure of the mistakes."""

import base64
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import starmap
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...data.atomic import write_whole
from ...data.tables import harmless
from ..engine.diagnosis import Result
from ..registry import every, exercises
from .grade import NO_SHEET, Grade

COLUMNS = ("student", "sheet", "exercise", "passed", "mistakes", "diagnosis", "note", "seconds")
BARS = 15
STYLE = """
body { font-family: system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .7em; text-align: left;
border-bottom: 1px solid #ddd; vertical-align: top } .yes { background: #dcefdc }
.no { background: #f8dcdc } .open { background: #eee } pre { white-space: pre-wrap }
.note { background: #fff3cd; padding: .4em .8em } img { max-width: 100% }
"""


def write(grades: Sequence[Grade], folder: Path) -> list[Path]:
    """Write grades.csv, grades.html and mistakes.png, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = drawn(grades)
    files = {
        "grades.csv": table(grades).encode(errors="replace"),
        "grades.html": page(grades, figure).encode(errors="replace"),
        "mistakes.png": figure,
    }
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]


def first_sentence(message: str) -> str:
    """The beginning of a message."""
    return re.split(r"(?<=[.!?])\s", message.strip(), maxsplit=1)[0]


def what_went_wrong(grade: Grade) -> tuple[str, ...]:
    """Names to count by: the known mistakes, otherwise the beginning of the message."""
    if grade.passed:
        return ()
    start = re.split(r"[.:;(]", grade.message)[0].strip()
    return grade.mistakes or (re.sub(r"^\d+ of \d+", "some", start).lower(),)


# --- The table --------------------------------------------------------------------------------


def table(grades: Sequence[Grade]) -> str:
    """As CSV, one line per student and exercise."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for g in grades:
        mistakes, diagnosis = "; ".join(g.mistakes), first_sentence(g.message)
        row = [g.student, g.sheet, g.exercise, "yes" if g.passed else "no", mistakes, diagnosis]
        cells = [cell if cell == NO_SHEET else harmless(cell) for cell in [*row, g.note]]
        writer.writerow([*cells, f"{g.seconds:.1f}"])
    return text.getvalue()


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
    ax.invert_yaxis()
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("students; gray: not one of the known mistakes")
    ax.set_title("What was not right" if bars else "Everything was right", fontsize=10)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


# --- The page ---------------------------------------------------------------------------------


def page(grades: Sequence[Grade], figure: bytes) -> str:
    """Everything on one page: the class, its mistakes, then each student."""
    image = base64.b64encode(figure).decode()
    parts = [
        "<h1>Grades</h1>",
        *starmap(overview, by("sheet", grades).items()),
        "<h2>What the class got wrong</h2>",
        f'<img alt="The most frequent mistakes" src="data:image/png;base64,{image}">',
        to_talk_about(grades),
        "<h2>Student by student</h2>",
        *starmap(one_student, by("student", grades).items()),
    ]
    head = f"<meta charset='utf-8'><title>Grades</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def by(column: str, grades: Sequence[Grade]) -> dict[str, list[Grade]]:
    """The grades by the values of a column, in their order."""
    names = dict.fromkeys(getattr(g, column) for g in grades)
    return {name: [g for g in grades if getattr(g, column) == name] for name in names}


def overview(sheet: str, grades: Sequence[Grade]) -> str:
    """Students against exercises."""
    if sheet == NO_SHEET:
        lines = [f"<li>{escape(g.student)}: {escape(g.message)}</li>" for g in grades]
        return f"<h2>Not graded</h2><ul>{''.join(lines)}</ul>"
    columns = by("exercise", grades)
    rows = [f"<tr><th>student{''.join(f'<th>{escape(n)}' for n in columns)}<th>passed</tr>"]
    for student, theirs in by("student", grades).items():
        mine = {g.exercise: g for g in theirs}.values()
        link = f"<a href='#{escape(student, quote=True)}'>{escape(student)}</a>"
        passed = f"{sum(g.passed for g in mine)} of {len(mine)}"
        rows.append(f"<tr><td>{link}{''.join(map(mark, mine))}<td>{passed}</tr>")
    shares = "".join(f"<td>{sum(g.passed for g in c)} of {len(c)}" for c in columns.values())
    rows.append(f"<tr><th>the class{shares}<td></tr>")
    return f"<h2>{escape(sheet)}</h2><table>{''.join(rows)}</table>"


def mark(grade: Grade) -> str:
    """A cell of the overview: passed, not yet, or not begun; a star where there is a note."""
    begun = not grade.message.startswith("Still to be written")
    kind, sign = ("yes", "✓") if grade.passed else ("no", "✗") if begun else ("open", "–")
    star = " *" if grade.note else ""
    title = escape(f"{first_sentence(grade.message)} {grade.note}".strip(), quote=True)
    return f"<td class='{kind}' title='{title}'>{sign}{star}"


def to_talk_about(grades: Sequence[Grade]) -> str:
    """Each mistake with its hint and who made it, the most frequent first."""
    known = exercises()
    rows = ["<tr><th>exercise<th>what<th>hint<th>students</tr>"]
    for (exercise, name), count in counted(grades).most_common():
        mistakes = known[exercise].mistakes if exercise in known else ()
        hint = next((m.hint for m in mistakes if m.name == name), "")
        theirs = [g for g in grades if g.exercise == exercise and name in what_went_wrong(g)]
        who = ", ".join(sorted({g.student for g in theirs}))
        said = (exercise, name, hint, f"{count}: {who}")
        rows.append(f"<tr>{''.join(f'<td>{escape(s)}' for s in said)}</tr>")
    return f"<table>{''.join(rows)}</table>" if len(rows) > 1 else ""


def one_student(student: str, grades: Sequence[Grade]) -> str:
    """What the checks said to this student's functions."""
    known = every()
    parts = [f"<h3 id='{escape(student, quote=True)}'>{escape(student)}</h3>"]
    parts += [f"<p class='note'>{escape(note)}</p>" for note in by("note", grades) if note]
    for g in grades:
        title = f"{g.exercise}, {known[g.exercise].title}" if g.exercise in known else "not graded"
        message = "" if g.passed else g.message
        parts.append(Result(title, g.passed, message, g.mistakes)._repr_html_())
    return "".join(parts)
