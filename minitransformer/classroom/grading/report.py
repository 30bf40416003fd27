"""What a teacher reads after grading: a page, and a figure of the mistakes."""

import base64
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from itertools import starmap
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..engine.diagnosis import Result
from ..registry import every, exercises
from .checking import NO_SHEET, Grade
from .protection import protection
from .table import ClassList, Points, as_csv, lines, sheets, write_private

BARS = 15
STYLE = """
:root { color-scheme: light dark } body { font-family: system-ui, sans-serif; max-width: 62em;
margin: 2em auto; padding: 0 1em; overflow-wrap: anywhere } div.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1em 0; overflow-wrap: normal } thead th { cursor: pointer }
td, th { padding: .25em .7em; text-align: left; border-bottom: 1px solid #8886; vertical-align: top }
.yes { background: light-dark(#dcefdc, #1d3f22) } .no { background: light-dark(#f8dcdc, #56242a) }
.open { background: light-dark(#eee, #333) } .after { background: light-dark(#fdebd0, #4d3a17) }
.note { background: light-dark(#fff3cd, #463a10); padding: .4em .8em }
pre { white-space: pre-wrap } img { max-width: 100% }
"""
# A click on a column's head sorts by it, another one the other way round.
SORT = """
for (const th of document.querySelectorAll("thead th")) th.onclick = () => {
  const body = th.closest("table").tBodies[0], text = row => row.cells[th.cellIndex].textContent
  const way = th.dataset.way = -(th.dataset.way || -1)
  body.append(...[...body.rows].sort((a, b) =>
    way * text(a).localeCompare(text(b), undefined, { numeric: true })))
}
"""
LEGEND = (
    "✓ passed &nbsp; ✗ not yet &nbsp; – still to be written &nbsp; ↳ wrong only because an earlier "
    "exercise is &nbsp; * has a note. Click on a column's head to sort."
)


def write(
    grades: Sequence[Grade],
    folder: Path,
    points: Points | None = None,
    students: ClassList | None = None,
) -> list[Path]:
    """Write the tables, grades.html and mistakes.png; the class list comes back as class.csv."""
    points, figure = points or {}, drawn(grades)
    files = {
        "grades.csv": as_csv(lines(grades, points)),
        "class.csv": as_csv(
            students.filled(grades, points) if students else sheets(grades, points)
        ),
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
    image = base64.b64encode(figure).decode()
    names = [*by("student", grades)]
    absent = "; ".join(students.missing(names)) if students else ""
    parts = [
        f"<h1>Grades</h1><p>{LEGEND}</p>",
        f"<p class='note'>Not handed in: {escape(absent)}</p>" if absent else "",
        *starmap(overview, by("sheet", grades).items()),
        "<h2>Points</h2>",
        totals(grades, points),
        "<h2>What the class got wrong</h2>",
        f'<img alt="The most frequent mistakes" src="data:image/png;base64,{image}">',
        to_talk_about(grades),
        "<h2>Student by student</h2>",
        *starmap(one_student, by("student", grades).items()),
        f"<p>What kept submissions off this machine: {escape(protection())}.</p><script>{SORT}</script>",
    ]
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    head += f"<title>Grades</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def sortable(head: Iterable[str], rows: Iterable[str], foot: str = "") -> str:
    """A table with a head of texts, and rows and a foot of cells."""
    names = "".join(f"<th>{escape(name)}" for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<thead><tr>{names}</tr></thead><tbody>{body}</tbody><tfoot><tr>{foot}</tr></tfoot>"
    return f"<div class='wide'><table>{table}</table></div>"


def totals(grades: Sequence[Grade], points: Points) -> str:
    """The points of each student, sheet by sheet."""
    head, *rows = sheets(grades, points)
    return sortable(head, ("".join(f"<td>{escape(cell)}" for cell in row) for row in rows))


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
    rows = []
    for student, theirs in by("student", grades).items():
        mine = {g.exercise: g for g in theirs}.values()
        link = f"<a href='#{escape(student, quote=True)}'>{escape(student)}</a>"
        passed = f"{sum(g.passed for g in mine)} of {len(mine)}"
        rows.append(f"<td>{link}{''.join(map(mark, mine))}<td>{passed}")
    shares = "".join(f"<td>{sum(g.passed for g in c)} of {len(c)}" for c in columns.values())
    foot = f"<th>the class{shares}<td>"
    return f"<h2>{escape(sheet)}</h2>{sortable(['student', *columns, 'passed'], rows, foot)}"


def mark(grade: Grade) -> str:
    """A cell of the overview, as the legend says."""
    kind, sign = ("yes", "✓") if grade.passed else ("no", "✗")
    if grade.message.startswith("Still to be written"):
        kind, sign = "open", "–"
    if grade.because:
        kind, sign = "after", "↳"
    star = " *" if grade.note else ""
    title = escape(f"{first_sentence(grade.message)} {grade.note}".strip(), quote=True)
    return f"<td class='{kind}' title='{title}'>{sign}{star}"


def to_talk_about(grades: Sequence[Grade]) -> str:
    """Each mistake with its hint and who made it, the most frequent first."""
    known = exercises()
    rows = []
    for (exercise, name), count in counted(grades).most_common():
        mistakes = known[exercise].mistakes if exercise in known else ()
        hint = next((m.hint for m in mistakes if m.name == name), "")
        theirs = [g for g in grades if g.exercise == exercise and name in what_went_wrong(g)]
        who = ", ".join(sorted({g.student for g in theirs}))
        said = (exercise, name, hint, f"{count}: {who}")
        rows.append("".join(f"<td>{escape(s)}" for s in said))
    return sortable(("exercise", "what", "hint", "students"), rows) if rows else ""


def one_student(student: str, grades: Sequence[Grade]) -> str:
    """What the checks said to this student's functions."""
    known = every()
    parts = [f"<h3 id='{escape(student, quote=True)}'>{escape(student)}</h3>"]
    parts += [f"<p class='note'>{escape(note)}</p>" for note in by("note", grades) if note]
    for g in grades:
        title = f"{g.exercise}, {known[g.exercise].title}" if g.exercise in known else "not graded"
        message = "" if g.passed else g.message
        if g.because:
            message = f"With a right answer to {g.because} it passes.\n\n{message}"
        parts.append(Result(title, g.passed, message, g.mistakes)._repr_html_())
    return "".join(parts)
