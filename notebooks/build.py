r"""Write the notebooks from their sources: `python notebooks/build.py [NN ...] [--check | --exercises]`.

Each `source/NN_name.py` (py:percent) gives two notebooks. The solved edition is executed and keeps
its outputs. The student's edition is not executed, and every solution in it is replaced by
`raise NotImplementedError`.

    # BEGIN SOLUTION
    ...
    # END SOLUTION

The solved edition keeps these two lines: they are nbgrader's own, so it can be handed to nbgrader
as the instructor's version as it stands.

Two builds on one machine are equal byte for byte: ids, metadata and kernel are fixed, no times are
recorded, and stderr (progress bars, warnings) is not stored.
"""

import argparse
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

HERE = Path(__file__).parent
SOLUTION = re.compile(
    r"^([ \t]*)# BEGIN SOLUTION\n.*?^[ \t]*# END SOLUTION[ \t]*$", re.MULTILINE | re.DOTALL
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# No exact Python version: it would change with every machine.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


LIMIT = 3600
"""Seconds for one whole notebook: many times what a slow machine needs, so only a hang meets it."""


class BuildError(Exception):
    """A source that cannot be built; the message says which notebook, which cell, and why."""


def sources(numbers: list[str] | None = None) -> list[Path]:
    """The sources in reading order, or those whose name starts with one of `numbers`.

    Raises: BuildError for a number that no source has.
    """
    every = sorted((HERE / "source").glob("[0-9][0-9]_*.py"))
    for number in numbers or []:
        if not any(path.name.startswith(number) for path in every):
            there = ", ".join(path.stem for path in every)
            raise BuildError(f"no source starts with {number!r}; there are: {there}")
    return [p for p in every if not numbers or any(p.name.startswith(n) for n in numbers)]


def read(source: Path, edition: str) -> NotebookNode:
    """The unexecuted notebook of one edition, "solved" or "student"."""
    notebook = jupytext.read(source, fmt="py:percent")
    name = source.stem
    exercises = any("# BEGIN SOLUTION" in cell.source for cell in notebook.cells)
    other = f"the [edition with exercises](exercises/{name}.ipynb)"
    if edition == "student":
        other = f"the [solved edition](../{name}.ipynb)"
    note = f"*Generated from `notebooks/source/{name}.py` by `notebooks/build.py`: edit that file"
    note += f", not this one. There is also {other}.*" if exercises else ", not this one.*"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(note))
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{name}-{i:02}", NotebookNode()
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        if "# BEGIN SOLUTION" in cell.source or "# END SOLUTION" in cell.source:
            stub, replaced = SOLUTION.subn(r"\1raise NotImplementedError", cell.source)
            if "SOLUTION" in stub or replaced == 0:
                raise BuildError(f"{name}: BEGIN and END SOLUTION do not pair in\n\n{cell.source}")
            cell.metadata.nbgrader = nbgrader_metadata(cell.id)
            if edition == "student":
                cell.source = stub
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def nbgrader_metadata(id: str) -> NotebookNode:
    """What nbgrader expects on a cell that a student fills in."""
    kind = {"grade": False, "locked": False, "solution": True, "task": False}
    return nbformat.from_dict({"grade_id": id, "schema_version": 3} | kind)


def execute(notebook: NotebookNode, name: str) -> NotebookNode:
    """Run all cells from top to bottom, in `notebooks/`, and store their outputs.

    Raises: BuildError with the notebook's name, the cell and the traceback.
    """
    until, at = time.monotonic() + LIMIT, {"cell": 0}

    def where() -> str:
        return f"{name}, cell {at['cell'] + 1} of {len(notebook.cells)}"

    client = NotebookClient(
        notebook, kernel_name="python3", record_timing=False,
        timeout_func=lambda cell: max(1, round(until - time.monotonic())),
        on_cell_start=lambda cell, cell_index: at.update(cell=cell_index),
        resources={"metadata": {"path": str(HERE)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no word on each kernel's start
    )  # fmt: skip
    # Strings hash alike in every kernel, so that sets and such print in one order.
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    # Threads that wait should sleep: on a busy machine those that spin cost several times the work.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        raise BuildError(f"{where()} failed:\n\n{ANSI.sub('', str(error))}") from None
    except CellTimeoutError:
        late = notebook.cells[at["cell"]].source
        raise BuildError(
            f"{where()}: not done {LIMIT} seconds after the notebook was started:\n\n{late}"
        ) from None
    except DeadKernelError as error:  # killed: out of memory?
        raise BuildError(f"{where()} did not finish: {error}") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            cell.outputs = list(joined(outputs))
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel adds its exact version
    return notebook


def joined(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    """The outputs with neighbouring prints made one: where they are cut is a matter of timing."""
    last = None
    for output in outputs:
        if last is not None and last.get("name") == output.get("name") == "stdout":
            last.text += output.text
            continue
        last = output
        yield output


def build(source: Path, to: Path = HERE) -> tuple[Path, Path]:
    """Write both editions below `to`; an error leaves what stood there untouched."""
    solved = execute(read(source, "solved"), source.stem)
    return write(solved, to / f"{source.stem}.ipynb"), students(source, to)


def students(source: Path, to: Path = HERE) -> Path:
    """Write the student's edition alone, which takes no time."""
    return write(read(source, "student"), to / "exercises" / f"{source.stem}.ipynb")


def write(notebook: NotebookNode, path: Path) -> Path:
    """Write through a temporary file, so that no half notebook is ever left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    nbformat.write(notebook, half)
    half.replace(path)
    return path


def stale(source: Path, to: Path = HERE) -> list[str]:
    """Which committed editions differ from the source, in cells or metadata; outputs are ignored."""
    different = []
    for edition, path in (
        ("solved", to / f"{source.stem}.ipynb"),
        ("student", to / "exercises" / f"{source.stem}.ipynb"),
    ):
        if not path.exists():
            different.append(f"{path.name}, {edition} edition: missing")
            continue
        there = nbformat.read(path, as_version=4)
        if without_outputs(there) != without_outputs(read(source, edition)):
            different.append(f"{path.name}, {edition} edition: not what the source says")
    return different


def without_outputs(notebook: NotebookNode) -> tuple:
    """What the source decides about a notebook."""
    cells = [(c.cell_type, c.id, c.source, c.metadata) for c in notebook.cells]
    return cells, notebook.metadata


def main() -> int:
    """The command line; returns 1 when something fails or is stale."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("numbers", nargs="*", metavar="NN", help="only these, such as 01 02")
    parser.add_argument(
        "--check", action="store_true",
        help="write nothing: run the sources and say which notebooks are no longer theirs",
    )  # fmt: skip
    parser.add_argument(
        "--exercises", action="store_true",
        help="write only the student's editions, which are not executed",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.check and arguments.exercises:
        parser.error("--check writes nothing, so it goes without --exercises")
    failed, begun = 0, time.perf_counter()
    try:
        chosen = sources(arguments.numbers)
    except BuildError as error:
        parser.error(str(error))
    for source in chosen:
        start, word = time.perf_counter(), "written"
        print(f"{source.stem} ... ", end="", flush=True)
        try:
            if arguments.check:
                execute(read(source, "solved"), source.stem)
                word = "; ".join(stale(source)) or "up to date"
                failed += word != "up to date"
            elif arguments.exercises:
                students(source, HERE)
            else:
                build(source)
            print(f"{time.perf_counter() - start:.0f} s, {word}", flush=True)
        except BuildError as error:
            failed += 1
            print(f"failed after {time.perf_counter() - start:.0f} s\n\n{error}\n", flush=True)
    took = f"{time.perf_counter() - begun:.0f} s"
    print(f"{len(chosen)} notebooks in {took}, {failed} of them failed or out of date")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
