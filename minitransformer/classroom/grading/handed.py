"""Submissions: the files, their students, and the sheet that each of them answers."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .notebooks import Sheet, code_cells, sheet_of

# The names that two learning platforms give to what they collect.
MOODLE = re.compile(r"(.+?)_\d+_assignsubmission_")
CANVAS = re.compile(r"([^\W_]+)(?:_LATE)?_\d+_\d+_")


@dataclass
class Handed:
    """One submission."""

    student: str
    path: Path
    given: Path  # the file or folder that the teacher named
    digest: str = ""  # of its code and its sheet's
    cells: list[str] = field(default_factory=list)
    sheet: Sheet | None = None
    wrong: str = ""  # why it cannot be graded


def collect(submissions: Sequence[Path], sheets: Sequence[Sheet]) -> list[Handed]:
    """All submissions, each with its student's name and its sheet.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a given file is no notebook or answers no sheet, or a folder contains none.
    """
    handed: list[Handed] = []
    for given in submissions:
        if not given.exists():
            raise FileNotFoundError(f"no such file or folder: {given}")
        found = [read(file, given, sheets) for file in files_in(given)]
        if not any(is_notebook(h.path) for h in found):
            raise ValueError(f"no notebook (.ipynb or .py) in {given}")
        if all(h.wrong for h in found):
            raise ValueError(next(h.wrong for h in found if is_notebook(h.path)))
        handed += found
    # Several files of one student are one student's, unless they answer the same sheet.
    for how in range(3):
        taken = [(h.student, h.sheet) for h in handed]
        for one, key in zip(handed, taken, strict=True):
            if taken.count(key) > 1:
                inside = one.path.relative_to(one.given) if one.path != one.given else one.path
                names = inside.with_suffix(""), inside, one.path
                one.student = names[how].as_posix()
    return sorted(handed, key=lambda h: (h.student, h.sheet.name if h.sheet else ""))


def is_notebook(path: Path) -> bool:
    """Whether a file is read at all."""
    return path.suffix in (".ipynb", ".py") and path.is_file()


def files_in(given: Path) -> Iterator[Path]:
    """A file, or everything in a folder and its subfolders but Jupyter's own copies."""
    if not given.is_dir():
        yield given
        return
    for path in sorted(given.rglob("*")):
        hidden = any(p.startswith((".", "__")) for p in path.relative_to(given).parts)
        if not hidden and (not path.is_dir() or path.suffix == ".ipynb"):
            yield path


def read(path: Path, given: Path, sheets: Sequence[Sheet]) -> Handed:
    """One submission; an error in it concerns no other."""
    handed = Handed(student_of(path, given, sheets), path, given)
    try:
        if not is_notebook(path):
            handed.student = (path.relative_to(given) if path != given else path).as_posix()
            raise ValueError(f"{path} is not read: it is no file that ends in .ipynb or .py")
        handed.cells = code_cells(path)
        handed.sheet = sheet_of(handed.cells, sheets, path.stem)
        content = repr((handed.cells, handed.sheet)).encode(errors="replace")
        handed.digest = hashlib.sha256(content).hexdigest()
    except (ValueError, OSError) as error:
        handed.wrong = str(error)
    except Exception as error:  # such as a RecursionError
        handed.wrong = f"{path} cannot be read ({type(error).__name__})"
    if not handed.wrong and handed.sheet is None:
        names = ", ".join(sheet.name for sheet in sheets)
        handed.wrong = f"{path} answers none of the exercise sheets ({names})"
    return handed


def student_of(path: Path, given: Path, sheets: Sequence[Sheet]) -> str:
    """The student's name: the file's without that of its sheet; if nothing is left, the folder's."""
    for name in (path.parent.name, path.name):
        if match := MOODLE.match(name):
            return match[1]
    if match := CANVAS.match(path.stem):
        return match[1]
    name = path.stem
    for sheet in sheets:
        name = re.sub(rf"[\s_-]*{re.escape(sheet.name)}[\s_-]*", "", name)
    if re.search(r"[^\W\d_]", name):
        return name
    inside = path.parent != given and path != given
    return path.parent.relative_to(given).as_posix() if inside else path.stem
