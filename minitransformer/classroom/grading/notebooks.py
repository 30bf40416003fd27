"""Exercise sheets and submissions: the code cells of a notebook, and what a sheet asks for.

A sheet is the student's edition of a notebook. It asks for every function that it leaves to be
written and passes to a check, `mt.check.attention(my_attention)`. What is checked comes from the sheet
alone, so editing the checks of a submission has no effect.
"""

import ast
import functools
import json
import re
import symtable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PERCENT = re.compile(r"^# (?:%%|In ?\[)(.*)$", re.MULTILINE)
MAGIC = re.compile(r"^([ \t]*)(?:[%!].*|[\w.]+\?{1,2}\s*|\?[\w.?]+\s*)$", re.MULTILINE)
RUNS_ITS_CELL = re.compile(r"\s*%%(?:time|capture|prun)\b.*")
RUNS_ITS_LINE = re.compile(r"^([ \t]*)%(?:time|prun)[ \t]+(?=[^\s-])", re.MULTILINE)
LARGEST_FILE, LONGEST_CODE = 2**29, 2**22
# What Python says to code that it cannot read.
TOO_MUCH = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Sheet:
    """What a notebook asks for."""

    name: str
    cells: tuple[str, ...]  # the code cells as they were handed out
    asked: dict[str, str]  # the function that students write for each exercise

    def shows(self, exercise: str, name: str) -> bool:
        """Whether the sheet has used a function of the package before it asks for this one."""
        at = next(i for i, c in enumerate(self.cells) if f"def {self.asked[exercise]}(" in c)
        module, function = map(re.escape, name.split(".")[-2:])
        used = rf"\b(mt|{module})\.{function}\b|import\b.*\b{function}\b"
        return ".classroom." not in name and bool(re.search(used, "\n".join(self.cells[:at])))


def code_cells(path: Path) -> list[str]:
    """The code of a notebook: .ipynb, or .py with `# %%` between cells.

    Raises: ValueError: it is neither.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has more than {LARGEST_FILE >> 20} MiB")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    if path.suffix == ".py":
        first, *rest = PERCENT.split(text)
        cells = zip(rest[::2], rest[1::2], strict=True)
        code = [source for kind, source in cells if not re.search(r"\[(markdown|md|raw)\]", kind)]
        return [cell.strip() for cell in [first, *code] if cell.strip()]
    try:
        found = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in found]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is no notebook (.ipynb of format 4)") from None
    if sum(map(len, sources)) > LONGEST_CODE:
        raise ValueError(f"{path} has more than {LONGEST_CODE:,} characters of code")
    return [source.strip() for source in sources if source.strip()]


def read_sheets(folder: Path) -> list[Sheet]:
    """All notebooks of a folder that ask for something. Raises: ValueError: there is none."""
    cells = {path.stem: tuple(code_cells(path)) for path in sorted(folder.glob("*.ipynb"))}
    sheets = [Sheet(name, code, asked_in(code)) for name, code in cells.items()]
    if not any(sheet.asked for sheet in sheets):
        raise ValueError(f"no exercise sheets in {folder}; `make exercises` writes them")
    return [sheet for sheet in sheets if sheet.asked]


def asked_in(cells: Sequence[str]) -> dict[str, str]:
    """For each check of a function that is still to be written, the name of the function."""
    statements = [s for cell in cells for s in ast.parse(runnable(cell)).body]
    functions = [s for s in statements if isinstance(s, ast.FunctionDef)]
    stubs = {f.name for f in functions if "raise NotImpl" in ast.unparse(f)}
    calls = filter(None, map(check_call, statements))
    return {name: argument for name, argument in calls if argument in stubs}


def check_call(statement: ast.stmt) -> tuple[str, str] | None:
    """The two names in a statement such as `mt.check.attention(my_attention)`; None for others."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return None
    called = re.fullmatch(r"(?:\w+\.)?check\.(\w+)", ast.unparse(statement.value.func))
    arguments = ", ".join(ast.unparse(a) for a in statement.value.args)
    return (called[1], arguments) if called else None


def sheet_of(cells: Sequence[str], sheets: Sequence[Sheet], name: str) -> Sheet | None:
    """The sheet that a submission answers, by its content; the file's name settles ties.

    Defining a function that is asked for counts as much as three unchanged cells.
    """
    defined = set().union(*(bound_and_used(cell)[0] for cell in cells))
    plain = {spaceless(cell) for cell in cells}

    def likeness(sheet: Sheet) -> tuple[int, bool]:
        same = len(handed_out(sheet) & plain)
        return 3 * len(defined & set(sheet.asked.values())) + same, sheet.name[:2] in name

    best = max(sheets, key=likeness)
    return best if likeness(best)[0] >= 3 else None


@functools.cache
def runnable(cell: str) -> str:
    """A cell as plain Python: IPython's own translation of its magics, if IPython is installed."""
    code = RUNS_ITS_LINE.sub(
        r"\1", RUNS_ITS_CELL.sub("", cell, count=1) if cell.lstrip()[:2] == "%%" else cell
    )
    if code.lstrip().startswith("%%"):  # another language, or a cell that IPython runs apart
        return ""
    try:
        ast.parse(code)
        return code
    except TOO_MUCH:
        pass
    try:
        from IPython.core.inputtransformer2 import TransformerManager

        return TransformerManager().transform_cell(code)
    except ImportError:
        return MAGIC.sub(r"\1pass", code)
    except Exception:
        return code


def bound_and_used(cell: str) -> tuple[set[str], set[str]]:
    """The global names that a cell assigns, and those that it (or a function in it) reads."""
    code = runnable(cell)
    try:
        top, tree = symtable.symtable(code, "cell", "exec"), ast.parse(code)
    except TOO_MUCH:  # it may not run, but we know what it was meant to define
        return set(re.findall(r"^def (\w+)", cell, re.MULTILINE)), set()
    symbols, tables = [], [top]
    for table in tables:
        tables += table.get_children()
        symbols += [s for s in table.get_symbols() if table is top or s.is_global()]
    bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    used = {s.get_name() for s in symbols if s.is_referenced()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            while isinstance(node, ast.Subscript | ast.Attribute | ast.Call):
                node = node.func if isinstance(node, ast.Call) else node.value
            bound.add(getattr(node, "id", ""))
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            bound.add("*")
    return bound, used


def cells_to_run(sheet: Sheet, cells: Sequence[str]) -> list[int]:
    """The cells that a student wrote, and those handed-out cells that they depend on.

    So a training between two exercises is not repeated for each student.
    """
    given = handed_out(sheet)
    names = [bound_and_used(cell) for cell in cells]
    chosen = {i for i, cell in enumerate(cells) if spaceless(cell) not in given}
    while True:
        wanted = {"*", *sheet.asked.values()}.union(*(names[i][1] for i in chosen))
        more = {i for i, (bound, _) in enumerate(names) if bound & wanted}
        if more <= chosen:
            return sorted(chosen)
        chosen |= more


def handed_out(sheet: Sheet) -> set[str]:
    """The cells of a sheet in the form in which they are compared."""
    return {spaceless(cell) for cell in sheet.cells}


def spaceless(cell: str) -> str:
    """Without trailing spaces and empty lines, which editors change."""
    return "\n".join(line.rstrip() for line in cell.strip().splitlines() if line.strip())
