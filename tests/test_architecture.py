"""The house itself: rooms import upwards, everything public explains itself, files stay short."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import minitransformer as mt
from minitransformer.formulas import ops
from minitransformer.model.compare import shown

PACKAGE = Path(mt.__file__).parent
ROOMS = [
    "formulas",
    "model",
    "data",
    "training",
    "pretrained",
    "inference",
    "proofs",
    "lab",
    "classroom",
    "plots",
    "commands",
    "__main__",
]
# `preload` loads the whole package a second time, which is for a process of its own.
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(mt.__path__, "minitransformer.")
    if "__main__" not in m.name and "preload" not in m.name  # importing that copies the package
)


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, also inside functions."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(parts[: len(parts) - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, a.name]) for a in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("minitransformer.") and "." in n}
    return rooms & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room):
    files = (
        [PACKAGE / f"{room}.py"]
        if room in ("plots", "__main__")
        else (PACKAGE / room).rglob("*.py")
    )
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for path in files:
        assert imported_rooms(path) <= allowed, path.name


def test_imported_rooms_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "minitransformer")
    path = tmp_path / "minitransformer" / "formulas" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import minitransformer.data\nfrom ..model.layers import y\ndef f():\n  from .. import plots"
    )
    assert imported_rooms(path) == {"data", "model", "plots"}


@pytest.mark.parametrize("name", mt.__all__)
def test_every_public_name_explains_itself(name):
    assert len(inspect.getdoc(getattr(mt, name)) or "") > 20


@pytest.mark.parametrize("module", ["formulas.ops", "formulas.masks", "formulas.by_hand",
                                    "formulas.by_hand_decoder", "model.attention", "model.block",
                                    "model.layers", "model.transformer", "model.heads"])  # fmt: skip
def test_what_implements_a_formula_gives_formula_shapes_and_source(module):
    loaded = importlib.import_module(f"minitransformer.{module}")
    for name, member in inspect.getmembers(loaded):
        if name.startswith("_") or getattr(member, "__module__", "") != loaded.__name__:
            continue
        doc = inspect.getdoc(member) or ""
        assert doc, f"{module}.{name} has no docstring"
        if "Source:" in doc:
            assert "Shapes:" in doc or "\n" not in doc.split("Source:")[0].strip(), name
            assert "$" in doc or name in ("Encoder", "EncoderBlock", "causal_mask"), name


@pytest.mark.parametrize("name", ops.Ops._fields)
def test_every_operation_has_its_formula_source_and_a_fused_twin(name):
    written = inspect.getdoc(getattr(ops.FORMULA, name))
    assert written.count("$") >= 2 and "Source:" in written, name
    assert getattr(ops.FORMULA, name).__module__ == ops.__name__, "written out, not torch's"
    assert getattr(ops.FUSED, name) is not getattr(ops.FORMULA, name)


@pytest.mark.parametrize(
    "room", ["formulas", "model", "data", "training", "pretrained", "inference"]
)
def test_every_public_function_and_method_explains_itself(room):
    for path in (PACKAGE / room).rglob("*.py"):
        if path.name.startswith("rows_"):  # the ledger's rows explain themselves
            continue
        tree = ast.parse(path.read_text())
        inner = {
            n
            for f in ast.walk(tree)
            if isinstance(f, ast.FunctionDef)
            for n in ast.walk(f)
            if n is not f
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and node not in inner
                and not node.name.startswith("_")
            ):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_annotations_are_not_postponed():
    """As strings they could not be enforced: jaxtyping and beartype need the objects."""
    for path in PACKAGE.rglob("*.py"):
        assert "from __future__ import annotations" not in path.read_text(), path.name


def test_only_pretrained_knows_other_libraries_names():
    """One model, many families: the model has switches, and `pretrained` alone translates."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "pretrained":
            for name in (
                "hidden_size",
                "token_type",
                "model_type",
                "self.query",
                "import transformers",
            ):
                assert name not in path.read_text(), f"{path.name}: {name}"


def test_nothing_is_unpickled_or_run_from_a_download():
    for path in PACKAGE.rglob("*.py"):
        called = {
            ast.unparse(n.func)
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call)
        }
        forbidden = {"torch.load", "pickle.load", "pickle.loads", "eval", "exec", "tar.extractall"}
        if path.name in (
            "submission.py",
            "patches.py",
        ):  # the process of one student's notebook runs its cells
            forbidden = forbidden - {"exec"}
        assert not called & forbidden, path.name


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module):
    results = doctest.testmod(
        importlib.import_module(module), extraglobs={"torch": __import__("torch")}
    )
    assert results.failed == 0


BUDGETS = {
    "formulas": 2100,
    "model": 1700,
    "data": 1880,
    "training": 2300,
    "pretrained": 1140,
    "inference": 490,
    "proofs": 1500,
    "lab": 560,
    "classroom": 6400,
    "commands": 620,
    ".": 365,
}
"""Lines of each room's files; "." is what stands in the package's own folder."""


def lines_of(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_house_keeps_its_budgets():
    """Small is the promise: the table shows where the lines are."""
    rooms = dict.fromkeys(BUDGETS, 0)
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).parts
        rooms[place[0] if len(place) > 1 else "."] += lines_of(path)
    over = {room: n for room, n in rooms.items() if n > BUDGETS[room]}
    for room, n in rooms.items():
        print(f"{room:12} {n:6,} of {BUDGETS[room]:6,}")
    print(f"{'all':12} {sum(rooms.values()):6,} of 19,000")
    assert not over and sum(rooms.values()) <= 19_000


def test_no_file_is_too_long_to_read():
    long = {
        str(p.relative_to(PACKAGE)): n for p in PACKAGE.rglob("*.py") if (n := lines_of(p)) > 400
    }
    assert not long


README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")


def test_the_readme_points_to_what_is_there():
    root = PACKAGE.parent
    links = re.findall(r"\]\(([^)#:]+)(?:#L\d+)?\)", README)
    assert len(links) > 40 and not [link for link in links if not (root / link).exists()]
    for source in (root / "notebooks" / "source").glob("*.py"):
        assert f"notebooks/{source.stem}.ipynb" in README


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 150


def test_the_readmes_map_leads_to_the_code():
    """Every formula's id leads to the file that defines it, at its line; every file has its length."""
    spec = importlib.util.spec_from_file_location("map", PACKAGE.parent / "notebooks/readme_map.py")
    readme_map = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme_map)
    assert readme_map.written(README) == README, "run: python notebooks/readme_map.py"
    ids = {i for _, _, places, _ in readme_map.MAP for i in places.split() if "." not in i}
    assert len(ids) > 15
    for id in ids:
        file, line = mt.ledger.where(id).split(":")
        code = (PACKAGE / file).read_text(encoding="utf-8").splitlines()[int(line) - 1 :]
        assert re.match(r"\s*(def|class|@)", code[0]), id
        assert f"{PACKAGE.name}/{file}#L{line}" in README, id


def test_the_readme_has_the_switches_of_the_families():
    head, _, *lines = README.split("turns them one by one.")[1].split("\n\n")[1].splitlines()
    names = [cell.strip() for cell in head.split("|")[2:-1]]
    assert names == ["Vaswani et al. 2017", "BERT", "GPT-2", "T5", "T5 v1.1"]
    c = mt.TransformerConfig
    table = mt.compare_switches(c(), c.bert(), c.gpt2(), c.t5(), c.t5_v1_1())
    assert len(lines) > 10
    for line in lines:
        switch, *said = (cell.strip(" `") for cell in line.split("|")[1:-1])
        assert said == [shown(value) for value in table.rows[switch]], switch
