"""The notebooks run, are what their sources say, and give no solution away."""

import ast
import contextlib
import json
import re
import sys
import time
from pathlib import Path

import pytest

import minitransformer as mt

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted((NOTEBOOKS / "source").glob("[0-9][0-9]_*.py"))

pytest.importorskip("jupytext", reason="notebooks need the extra `notebooks`")
sys.path.insert(0, str(NOTEBOOKS))
import build  # noqa: E402

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def text(cell: dict) -> str:
    return "".join(cell["source"])


def outputs(notebook: dict) -> list[dict]:
    return [o for cell in notebook["cells"] for o in cell.get("outputs", [])]


def check_outputs(notebook: dict) -> None:
    for output in outputs(notebook):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        words = json.dumps({k: v for k, v in output.get("data", {}).items() if "image" not in k})
        words += "".join(output.get("text", ""))
        assert not re.search(r"0x[0-9a-f]{6}", words), "an address in memory: a new one each time"
        assert not re.search(r"/(home|root|tmp|work|usr)/|site-packages", words), "a machine's path"


@contextlib.contextmanager
def announced(source: Path, capsys):
    """Which notebook is running and how long it took, although pytest keeps what tests print."""
    start = time.perf_counter()
    with capsys.disabled():
        print(f"\n{source.stem} ... ", end="", flush=True)
    yield
    with capsys.disabled():
        print(f"{time.perf_counter() - start:.0f} s ", end="", flush=True)


@each_source
def test_runs_from_top_to_bottom_and_all_exercises_pass(source, capsys):
    """The solved edition; then, in the same kernel, the exercises again with nothing written."""
    notebook = build.read(source, "solved")
    n = len(notebook.cells)
    notebook.cells += exercises(source, "student")
    with announced(source, capsys):
        build.execute(notebook, source.stem)
    solved, stubs = notebook.cells[:n], notebook.cells[n:]
    check_outputs(notebook)
    for cell in solved:
        assert "execution" not in cell.metadata
        if "# BEGIN SOLUTION" in cell.source and "mt.check." in cell.source:
            said = cell.outputs[-1]["data"]["text/plain"]
            assert said.startswith("passed"), said
    said = json.dumps([cell.get("outputs", []) for cell in stubs])
    stubs = [cell for cell in stubs if "raise NotImplementedError" in cell.source]
    assert said.count("Still to be written") >= sum("mt.check." in c.source for c in stubs)


def exercises(source: Path, edition: str) -> list:
    """The cells in which something is to be written, or is checked."""
    marks = ("# BEGIN SOLUTION", "raise NotImplementedError", "mt.check.")
    cells = build.read(source, edition).cells
    return [c for c in cells if c.cell_type == "code" and any(m in c.source for m in marks)]


@each_source
def test_no_other_cell_needs_what_a_student_writes(source):
    """So the student's edition runs from top to bottom with nothing written."""
    ids, written = {cell.id for cell in exercises(source, "student")}, set()
    for cell in build.read(source, "solved").cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse("\n".join(line for line in cell.source.split("\n") if line[:1] != "%"))
        if cell.id in ids:
            written |= bound(tree)
            continue
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not read & (written - bound(tree)), cell.source
        written -= bound(tree)


def bound(tree: ast.Module) -> set[str]:
    """The names that a cell defines for the cells after it."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
        names |= {n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return names


@each_source
def test_committed_notebooks_are_what_the_source_says(source):
    assert build.stale(source) == [], "run: python notebooks/build.py"
    check_outputs(load(NOTEBOOKS / f"{source.stem}.ipynb"))


@each_source
def test_students_edition_gives_nothing_away(source):
    student = load(NOTEBOOKS / "exercises" / f"{source.stem}.ipynb")
    everything = "\n".join(text(cell) for cell in student["cells"])
    assert "SOLUTION" not in everything
    assert not outputs(student)
    for cell in student["cells"]:
        assert cell.get("execution_count") is None
    regions = build.SOLUTION.findall(source.read_text(encoding="utf-8"))
    assert everything.count("raise NotImplementedError") >= len(regions)


@each_source
def test_there_are_exercises_and_each_ends_in_a_check_that_is_kind_to_the_stub(source):
    cells = [c.source for c in build.read(source, "student").cells if c.cell_type == "code"]
    exercises = [c for c in cells if "raise NotImplementedError" in c]
    assert len(exercises) >= (3 if source.name < "07" else 2)
    for exercise in exercises:
        name, argument = re.fullmatch(
            r"mt\.check\.(\w+)\((\w+)\)", exercise.splitlines()[-1]
        ).groups()
        assert f"def {argument}(" in exercise

        def stub(*args):
            raise NotImplementedError

        assert getattr(mt.check, name)(stub).message.startswith("Still to be written")


@each_source
def test_first_cells_say_what_a_reader_needs(source):
    generated, first, *_ = build.read(source, "solved").cells
    assert f"source/{source.name}" in generated.source
    assert re.search(r"Runs in .*two cores", first.source, re.DOTALL)
    assert "article" in first.source
    assert "What to read next" in source.read_text(encoding="utf-8")


def write_source(folder: Path, code: str, number: int = 99) -> Path:
    (folder / "source").mkdir(exist_ok=True)
    path = folder / "source" / f"{number}_test.py"
    path.write_text(code, encoding="utf-8")
    return path


def test_two_builds_are_equal_byte_for_byte(tmp_path):
    code = "# %%\nimport sys, tqdm\nfor i in tqdm.tqdm(range(9)):\n    print(i, flush=True)\n"
    source = write_source(tmp_path, code + "{'b', 'a', 'c'}\n")
    first = [path.read_bytes() for path in build.build(source, tmp_path)]
    again = [path.read_bytes() for path in build.build(source, tmp_path)]
    assert first == again


def test_students_editions_are_written_without_executing(tmp_path, monkeypatch):
    source = write_source(tmp_path, "# %%\n1 / 0\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py", "--exercises"])
    assert build.main() == 0
    assert [p.name for p in tmp_path.rglob("*.ipynb")] == [f"{source.stem}.ipynb"]
    assert "1 / 0" in (tmp_path / "exercises" / f"{source.stem}.ipynb").read_text()


def test_an_error_names_the_cell_and_leaves_the_old_notebook(tmp_path):
    source = write_source(tmp_path, "# %%\nprint('good')\n")
    solved, _ = build.build(source, tmp_path)
    before = solved.read_bytes()
    write_source(tmp_path, "# %%\nx = 1\n\n# %%\nassert x == 2, 'not so'\n")
    told = r"99_test, cell 3 of 3 failed(.|\n)*assert x == 2(.|\n)*not so"
    with pytest.raises(build.BuildError, match=told):
        build.build(source, tmp_path)
    assert solved.read_bytes() == before
    assert build.stale(source, tmp_path)


def test_the_limit_is_the_whole_notebooks_and_names_the_cell(tmp_path, monkeypatch):
    code = "# %%\nimport time\n\n# %%\ntime.sleep(3600)\n"
    monkeypatch.setattr(build, "LIMIT", 5)
    with pytest.raises(build.BuildError, match=r"99_test, cell \d of 3(.|\n)*not done 5 seconds"):
        build.build(write_source(tmp_path, code), tmp_path)


def test_a_failing_notebook_is_named_and_the_others_are_built(tmp_path, monkeypatch, capsys):
    write_source(tmp_path, "# %%\n1 / 0\n", 98)
    write_source(tmp_path, "# %%\n1 + 1\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py"])
    monkeypatch.setattr(build.build, "__defaults__", (tmp_path,))
    assert build.main() == 1
    said = capsys.readouterr().out
    assert "98_test ... failed after" in said and "98_test, cell 2 of 2 failed" in said
    assert re.search(r"99_test \.\.\. \d+ s, written\n2 notebooks in \d+ s, 1 of them", said)
    assert [p.name for p in tmp_path.glob("*.ipynb")] == ["99_test.ipynb"]


def test_unpaired_markers_are_refused(tmp_path):
    source = write_source(tmp_path, "# %%\ndef f():\n    # BEGIN SOLUTION\n    return 1\n")
    with pytest.raises(build.BuildError, match="do not pair"):
        build.read(source, "student")


def test_an_unknown_number_is_refused():
    with pytest.raises(build.BuildError, match="no source starts with 'xx'"):
        build.sources(["xx"])
