"""A class of students, some of whom break things: each is graded, and harms nobody else.

The submissions are made here from the student's edition. They are all graded in one run.
"""

import csv
import functools
import io
import json
import os
import pickle
import re
import sys
from collections import Counter
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import minitransformer as mt
from minitransformer.__main__ import main
from minitransformer.classroom.exercises import nb20_debugging
from minitransformer.classroom.grading import checking, grade, protection, report, submission, table
from minitransformer.classroom.grading import notebooks as sheets
from minitransformer.classroom.grading.checking import NO_SHEET, Grade
from minitransformer.classroom.grading.handed import collect
from minitransformer.classroom.grading.remote import Reader, Writer
from minitransformer.formulas import ops

EXERCISES = Path(__file__).parents[2] / "notebooks" / "exercises"
SHEET = "01_attention"
SCORES = "return Q @ K.mT / math.sqrt(Q.shape[-1])"
SOFTMAX = """if keep is not None:
    scores = scores.masked_fill(~keep, -math.inf)
return scores.softmax(-1).nan_to_num(0.0)"""
ATTENTION = "return my_softmax(my_scaled_scores(Q, K), keep) @ V"
RIGHT = {"my_scaled_scores": SCORES, "my_softmax": SOFTMAX, "my_attention": ATTENTION}
FILES = ["class.csv", "grades.csv", "grades.html", "grades.json", "mistakes.png"]
HALF = {**RIGHT, "my_softmax": SOFTMAX.replace("-1)", "-2)")}


def fill(path: Path, answers: dict[str, str], before: str = "", after: str = "", sheet=SHEET):
    """The student's edition with answers in the stubs, and cells of the student's own."""
    notebook = json.loads((EXERCISES / f"{sheet}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        for function, body in answers.items():
            if f"def {function}(" in source:
                assert "    raise NotImplementedError" in source
                body = "    " + body.replace("\n", "\n    ")
                source = source.replace("    raise NotImplementedError", body)
        cell["source"] = source
    code = {"cell_type": "code", "outputs": [], "execution_count": None, "metadata": {}}
    # After the imports, which are the first code.
    notebook["cells"][3:3] = [{**code, "source": s} for s in before.split("\n# %%\n") if s]
    notebook["cells"] += [{**code, "source": after}] if after else []
    path.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    precious = folder / "precious.txt"
    precious.write_text("keep me")
    fill(folder / "right.ipynb", RIGHT)
    fill(folder / "idle.ipynb", {})
    # In IPython all of this runs; the last cell hides a right answer, the one before is too deep.
    magic = (
        "torch.softmax?\nfiles = !ls\nr = %timeit -o 1+1\nawait __import__('asyncio').sleep(0)\n"
    )
    magic += (
        "get_ipython().run_line_magic('matplotlib', 'inline')\n!pip install \\\n  x\n%time y = 1\n"
    )
    fill(folder / "magic.ipynb", RIGHT, before="x = " + "1+" * 20000 + "1",
         after="def my_attention(Q, K, V, keep=None):\n    return y * Q")  # fmt: skip
    text = (folder / "magic.ipynb").read_text()
    (folder / "magic.ipynb").write_text(
        text.replace("def my_softmax(", json.dumps(magic)[1:-1] + "def my_softmax(")
    )
    fill(folder / "half.ipynb", {**HALF, "my_scaled_scores": "return Q @ K.mT / Q.shape[-1]"})
    fill(folder / "hangs.ipynb", {**RIGHT, "my_softmax": "while True:\n    scores = scores + 0"})
    fill(
        folder / "deaf.ipynb", RIGHT,
        before="import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "while True:\n    pass",
    )  # fmt: skip
    fill(
        folder / "dies.ipynb", {**HALF, "my_scaled_scores": "import os\nos._exit(0)", "my_attention": "return type(r'$\\frac{$', (), {})()"},
        before="import os\nos._exit(1)\n# %%\n1 / 0\n# %%\ndef broken(:\n    pass",
    )  # fmt: skip
    naughty = (
        "import os, subprocess\nos.fork()",
        "subprocess.run(['true'])",
        "import sys\nfor _ in range(20):\n    print('passed' * 10**5)\n"
        "    sys.stderr.write('y' * 10**6)",
        "import shutil\nopen('mine.txt', 'w').write('x')\nos.remove('mine.txt')\n"
        "open('rest.txt', 'w').write('x')\nshutil.rmtree(os.getcwd())",
        f"os.remove({str(precious)!r})",
        f"shutil.rmtree({str(folder)!r})",
        f"open({str(precious)!r}, 'w').write('gone')",
        f"open({str(EXERCISES.parent / f'{SHEET}.ipynb')!r}).read()",
        f"open({str(EXERCISES.parent / 'source' / f'{SHEET}.py')!r}).read()",
        f"open({str(folder / 'right.ipynb')!r}).read()",
    )
    fill(
        folder / "naughty.ipynb", {**HALF, "my_attention": f"print('x' * 10**7)\n{ATTENTION}"},
        before="\n# %%\n".join(naughty),
    )  # fmt: skip
    fill(
        folder / "cheats.ipynb", HALF,
        before="import minitransformer.classroom.engine.diagnosis as d\n"
        "import minitransformer.formulas.ops as ops\n"
        "d.diagnose = lambda *a: (True, 'passed', ())\n"
        "d.distance = lambda *a: 0.0\n"
        "ops.softmax = ops.attention = lambda *a: a[0]\n"
        "class Check:\n    def __getattr__(self, name):\n        return lambda f: print('passed')\n"
        "mt.check = Check()\n# %%\n"
        "import json, torch\n"
        "_abs, _dumps = torch.Tensor.abs, json.dumps\n"
        "torch.Tensor.abs = lambda s: _abs(s) * 0\n"
        "json.dumps = lambda o, **k: _dumps({**o, 'passed': True, 'mistakes': 5}, **k)\n# %%\n"
        "import os, struct\n"
        "fake = b'{\"token\": \"\", \"step\": 1, \"passed\": true}'\n"
        "for fd in range(3, 64):\n    try:\n"
        "        os.write(fd, struct.pack('!i', len(fake)) + fake)\n"
        "    except OSError:\n        pass",
        after="mt.check.softmax = lambda f: True\nprint('passed: softmax')\nmt.check.softmax(max)",
    )  # fmt: skip
    reference = "return mt.check.attention.right(Q, K, V, keep)"
    fill(
        folder / "borrows.ipynb", {**RIGHT, "my_attention": reference},
        before="%matplotlib inline\n!ls\nimport math\n# %%\n%%bash\nls",
    )  # fmt: skip
    fill(
        folder / "grows.ipynb", {**HALF, "my_attention": "return torch.zeros(10**6, 10**6)"},
        before="rows = []\nwhile True:\n    rows.append(torch.empty(2**27))",
    )  # fmt: skip
    (folder / "percent.py").write_text(
        "# %% [markdown]\n# Mine\n\n# %%\nimport math\n\n"
        + "".join(
            f"# %%\ndef {name}({args}):\n    " + RIGHT[name].replace("\n", "\n    ") + "\n\n"
            for name, args in (
                ("my_scaled_scores", "Q, K"),
                ("my_softmax", "scores, keep=None"),
                ("my_attention", "Q, K, V, keep=None"),
            )
        )
    )
    (folder / "anna").mkdir()
    fill(folder / "anna" / f"{SHEET}.ipynb", HALF)
    (folder / ".ipynb_checkpoints").mkdir()
    fill(folder / ".ipynb_checkpoints" / "right-checkpoint.ipynb", HALF)
    (folder / "shopping.ipynb").write_text('{"cells": []}')
    (folder / "torn.ipynb").write_text('{"cells": [')
    (folder / "deep.ipynb").write_text("[" * 200000)
    return folder


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    """The class, graded by the command line."""
    out = tmp_path_factory.mktemp("out") / "grades"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 4)  # some only wait
        arguments = ["grade", str(folder), "--out", str(out), "--seconds", "5", "--memory", "1"]
        assert main(arguments) == 0
    assert sorted(p.name for p in out.iterdir()) == FILES
    return out


@pytest.fixture(scope="module")
def rows(out):
    with open(out / "grades.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["student"], row["exercise"]): row for row in rows}


def passed(rows, student):
    return [rows[student, name]["passed"] for name in ("scaled_scores", "softmax", "attention")]


@pytest.mark.parametrize("student", ["right", "percent", "borrows", "deaf"])
def test_right_answers_pass(rows, student):
    assert passed(rows, student) == ["yes"] * 3


def test_nothing_written_is_nothing_wrong(rows):
    assert passed(rows, "idle") == ["no"] * 3
    assert rows["idle", "softmax"]["diagnosis"].startswith("Still to be written. The formula:")


def test_mistakes_are_named(rows):
    assert rows["half", "scaled_scores"]["mistakes"] == "divided by d_k, not by its root"
    assert rows["half", "softmax"]["mistakes"] == "with the softmax over the queries"
    assert passed(rows, "half") == ["no"] * 3


# Half right: what surrounds the answers must make them neither better nor worse.
@pytest.mark.parametrize("student", ["naughty", "cheats", "anna"])
def test_a_wrong_answer_stays_wrong_and_a_right_one_right(rows, student):
    assert passed(rows, student) == ["yes", "no", "no"]
    assert rows[student, "softmax"]["mistakes"] == "with the softmax over the queries"


def test_what_ipython_understands_costs_nothing(rows):
    assert passed(rows, "magic") == ["yes", "yes", "no"]
    note = rows["magic", "attention"]["note"]
    assert "its definition in code cell 13 is right; a later one hides it" in note
    assert note.count("code cell") == 2 and "code cell 2: RecursionError" in note


def test_a_consequence_is_counted_apart(rows, out):
    assert rows["anna", "attention"]["only_because"] == "softmax"
    assert not rows["anna", "softmax"]["only_because"]
    assert "With a right answer to softmax it passes." in (out / "grades.html").read_text("utf-8")


def test_a_second_start_grades_only_what_is_new(rows, folder, out, monkeypatch):
    """One file named by itself is graded again, into the same table."""
    asked = []

    def graded(handed, *_):
        asked.append(handed.student)
        return [Grade(handed.student, SHEET, "softmax", True, "once more")]

    monkeypatch.setattr(grade, "in_a_process", graded)
    before = (out / "grades.csv").read_bytes()
    kept = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["grade", str(folder), "--out", str(out)]) == 0
    assert not asked and (out / "grades.csv").read_bytes() == before
    assert main(["grade", str(folder / "half.ipynb"), "--out", str(out)]) == 0
    text = (out / "grades.csv").read_text("utf-8-sig")
    assert asked == ["half"] and "once more" in text and '"right","01_attention"' in text
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_grades_are_their_owners(out):
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}
    assert out.stat().st_mode & 0o777 == 0o700


def test_a_loop_in_an_answer_costs_that_answer_only(rows):
    assert passed(rows, "hangs") == ["yes", "no", "no"]
    assert rows["hangs", "softmax"]["diagnosis"].startswith("Stopped after 5 seconds")


def test_a_cell_that_nothing_can_stop_is_left_out(rows):
    assert "code cell 2: did not end after 5 seconds" in rows["deaf", "softmax"]["note"]


def test_a_cell_or_an_answer_that_ends_the_process_is_left_out(rows):
    assert passed(rows, "dies") == ["no", "no", "no"]
    assert rows["dies", "scaled_scores"]["diagnosis"] == "Checking it ended the process."
    assert rows["dies", "attention"]["diagnosis"].endswith("but it returns frac.")
    assert rows["dies", "softmax"]["mistakes"] == "with the softmax over the queries"
    note = rows["dies", "softmax"]["note"]
    assert "code cell 2: ended the process" in note
    assert "code cell 3: ZeroDivisionError: division by zero, at the line `1 / 0`" in note
    assert "code cell 4: SyntaxError" in note and "`def broken(:`" in note


def test_what_a_submission_may_not_do_is_said(rows):
    note = rows["naughty", "softmax"]["note"]
    assert note.count("start or end processes") == 2
    assert note.count("read solutions or other submissions") == 3
    assert note.count("outside its own folder") == 3
    assert "code cell 5" not in note, "a submission's own files are its own"


def test_nothing_was_harmed(rows, folder):
    assert (folder / "precious.txt").read_text() == "keep me"
    assert (folder / "right.ipynb").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_memory_is_limited(rows):
    assert passed(rows, "grows")[:2] == ["yes", "no"]
    assert "allocate memory" in rows["grows", "softmax"]["note"]
    assert rows["grows", "attention"]["diagnosis"].startswith("It does not run")


def test_the_packages_own_answer_is_shown_to_the_teacher(rows):
    assert "package's own mt.check" in rows["borrows", "attention"]["note"]
    assert not rows["borrows", "softmax"]["note"] and not rows["right", "attention"]["note"]


def test_what_cannot_be_graded_stands_in_the_table(rows):
    assert "no notebook" in rows["torn", NO_SHEET]["diagnosis"]
    assert "no notebook" in rows["deep", NO_SHEET]["diagnosis"]
    assert "answers none of the exercise sheets" in rows["shopping", NO_SHEET]["diagnosis"]
    assert not any("checkpoint" in student for student, _ in rows)


def test_the_page_has_the_class_its_mistakes_and_each_student(out, rows):
    page = (out / "grades.html").read_text(encoding="utf-8")
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    assert 'src="data:image/png;base64,' in page
    for student in {student for student, _ in rows}:
        assert student in text
    hints = {m.name: m.hint for m in mt.check.softmax.mistakes}
    assert hints["with the softmax over the queries"] in text
    assert re.search(r"right\s+✓\s+✓\s+✓\s+3 of 3", text)
    assert (out / "mistakes.png").read_bytes().startswith(b"\x89PNG")


def test_a_quiz_is_graded_by_its_names_alone(tmp_path):
    """Without the trainings that an answer to a student is made of."""
    sheet = "import minitransformer as mt\n# %%\ndef my_names():\n    raise NotImplementedError\n"
    sheet = [*sheet.split("# %%\n"), "mt.check.diagnoses(my_names)"]
    cells = [{"cell_type": "code", "source": source} for source in sheet]
    (tmp_path / "sheets").mkdir()
    (tmp_path / "sheets" / "20_quiz.ipynb").write_text(json.dumps({"cells": cells}))
    right = nb20_debugging.RIGHT
    for name, answer in {"right": right, "one": right | {"C": "no shift"}}.items():
        handed = [sheet[0], sheet[1].replace("raise NotImplementedError", f"return {answer}")]
        (tmp_path / f"{name}.py").write_text("# %%\n" + "\n# %%\n".join(handed))
    handed_in = [tmp_path / "one.py", tmp_path / "right.py"]
    one, all_right = grade.grade(handed_in, tmp_path / "sheets")
    assert all_right.passed and not one.passed
    assert one.mistakes == ("C taken for 'no shift'",)
    report.write([one, all_right], tmp_path / "out")
    page = (tmp_path / "out" / "grades.html").read_text(encoding="utf-8")
    assert "diagnoses, nine diagnoses" in page and "C taken for &#39;no shift&#39;" in page


# --- Without running anything -----------------------------------------------------------------


VALUES = [None, True, 7, 0.5, "text", [1, (2, {"a": 3})], torch.ones(2, 3), torch.zeros(0, 4).bool(),
          torch.tensor(2j), np.float32(1.5), np.arange(6).reshape(2, 3)]  # fmt: skip


def test_values_travel_as_they_are():
    [back] = Reader(Writer([VALUES]).file.getvalue()).load()
    assert list(map(type, back)) == list(map(type, VALUES))
    for a, b in zip(back, VALUES, strict=True):
        assert np.array_equal(a, b) if isinstance(b, np.ndarray) else torch.equal(a, b) \
            if isinstance(b, torch.Tensor) else a == b  # fmt: skip
    back = Reader(
        Writer([torch.nn.Linear, os.system, Counter("aab"), nn.ReLU()]).file.getvalue()
    ).load()
    assert [type(x).__name__ for x in back] == [
        "type",
        "builtin_function_or_method",
        "dict",
        "ReLU",
    ]


@pytest.mark.parametrize("call", [os.system, exec, getattr, torch.load], ids=lambda f: f.__name__)
def test_nothing_that_is_sent_can_run(call):
    class Evil:
        def __reduce__(self):
            return call, ("x",)

    with pytest.raises(KeyError):
        Reader(pickle.dumps(Evil())).load()


def closure(f):
    return lambda *given: f(*given)


class Callable:
    f = staticmethod(ops.attention)

    def __call__(self, *given):
        return self.f(*given)


def by_default(*given, f=mt.check.attention.right):
    return f(*given)


@pytest.mark.parametrize(
    "student",
    [ops.attention, functools.partial(ops.attention), closure(ops.attention), Callable(), by_default,
     lambda *given: sys.modules["minitransformer.formulas.ops"].attention(*given),
     lambda *given: {"a": ops.attention}["a"](*given)],
    ids=["itself", "partial", "closure", "object", "default", "modules", "dictionary"],
)  # fmt: skip
def test_the_packages_own_function_is_known_by_any_name(student):
    host = submission.Host(2**30)
    host.function = student
    Q = torch.ones(1, 1, 2, 3)
    assert host.call((Q, Q, Q), False, 10.0)["used"] == {"minitransformer.formulas.ops.attention"}
    host.function = lambda f, x: f(x).softmax(-1)
    assert host.call((lambda x: ops.relu(x), Q), False, 10.0)["used"] >= set()


def test_torchs_own_attention_is_known_too():
    host = submission.Host(2**30)
    host.function = torch.nn.functional.scaled_dot_product_attention
    Q = torch.ones(1, 1, 2, 3)
    assert host.call((Q, Q, Q), False, 10.0)["used"] == {"torch.scaled_dot_product_attention"}


def test_who_handed_in_what(tmp_path):
    """Names, and what is not read; nothing is run."""
    every = sheets.read_sheets(EXERCISES)
    moodle = tmp_path / "Anna Müller_123_assignsubmission_file_"
    for place in (moodle, tmp_path / "Bo"):
        place.mkdir()
        fill(place / f"{SHEET}.ipynb", {})
    fill(moodle / "02.ipynb", {}, sheet="02_multi_head_attention")
    for name in ("pair", f"zoe_{SHEET}", f"mullerjorg_LATE_12_345_{SHEET}-1"):
        fill(tmp_path / f"{name}.ipynb", {})
    (tmp_path / "pair.py").write_text("def my_softmax(scores, keep): pass")
    for name in ("OLD.IPYNB", "x.ipynb.txt", "all.zip"):
        (tmp_path / name).write_text("x")
    (tmp_path / "gone.ipynb").symlink_to(tmp_path / "nowhere")
    handed = collect([tmp_path], every)
    assert [(h.student, h.sheet.name[:2]) for h in handed if h.sheet] == [
        ("Anna Müller", "01"), ("Anna Müller", "02"), ("Bo", "01"), ("mullerjorg", "01"),
        ("pair.ipynb", "01"), ("pair.py", "01"), ("zoe", "01"),
    ]  # fmt: skip
    unread = {h.student for h in handed if "is not read" in h.wrong}
    assert unread == {"OLD.IPYNB", "x.ipynb.txt", "all.zip", "gone.ipynb"}


GRADES = [Grade("müller_anna", "01_attention", "softmax", True, ""),
          Grade("müller_anna", "02_heads", "split_heads", True, ""),
          Grade("bo", "01_attention", "softmax", False, "")]  # fmt: skip
MOODLE = "Identifier,Full name,Grade,Maximum Grade\nParticipant 1,Anna Müller,,10\nParticipant 2,Bo,,10\n"
CANVAS = 'Student,ID,01_attention (77)\n"    Points Possible",,2\n"Müller, Anna",5,\n"Li, Cem",6,\n'


@pytest.mark.parametrize(
    ("text", "wanted", "missing"),
    [
        ("name\nBo\nAnna Mueller;Müller\n", None, ["Anna Mueller;Müller"]),
        ("\ufeffname;group\nAnna Müller;a\nCem Li;b\n", "Anna Müller,a,2,1,3,3", ["Cem Li b"]),
        (MOODLE, "Participant 1,Anna Müller,10,10", []),
        (CANVAS, '"Müller, Anna",5,2', ["Li, Cem 6 "]),
    ],
    ids=["stranger", "list", "moodle", "canvas"],
)
def test_a_class_list_comes_back_with_the_points(tmp_path, text, wanted, missing):
    (tmp_path / "class.csv").write_text(text, encoding="utf-8")
    students, points = table.ClassList(tmp_path / "class.csv"), {"softmax": 2.0}
    assert students.missing(["müller_anna", "bo"]) == missing
    filled = io.StringIO()
    csv.writer(filled, lineterminator="\n").writerows(students.filled(GRADES, points))
    assert wanted is None or wanted in filled.getvalue().splitlines()
    head, anna, bo = table.sheets(GRADES, points)
    assert head == ["student", "01_attention", "02_heads", "points", "of"]
    assert anna[1:] == ["2", "1", "3", "3"] and bo[1:] == ["0", "0", "0", "3"]


@pytest.mark.skipif(os.name == "nt", reason="bubblewrap is for Linux")
def test_bubblewrap_is_used_where_it_is_installed(tmp_path, monkeypatch):
    """In front of everything stands its command line; here one that only drops it."""
    program = tmp_path / "bwrap"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\nwhile [ "$1" != "--chdir" ]; do shift; done\n'
                       'cd "$2"; shift 2; exec "$@"\n')  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setattr(protection.shutil, "which", lambda name: str(program))
    protection.bubblewrap.cache_clear()
    assert protection.protection().startswith("bubblewrap")
    hidden = frozenset({str(EXERCISES / f"{SHEET}.ipynb")})
    with checking.student_process(hidden, 2**30) as link:
        answer, _ = link.ask("cell", "import os\nx = 1 / 0", "cell 1", 20.0, seconds=20.0)
    assert answer["trouble"].startswith("ZeroDivisionError")
    said = (tmp_path / "said").read_text()
    assert f"--ro-bind /dev/null {EXERCISES}" in said and "--unshare-all" in said
    protection.bubblewrap.cache_clear()


def test_nothing_of_a_student_becomes_markup_or_a_formula(tmp_path):
    evil = Grade("=cmd()", SHEET, "softmax", False, "<script>alert(1)</script>", note="<b>&")
    report.write([evil], tmp_path)
    page = (tmp_path / "grades.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<b>&" not in page
    assert 'name="viewport"' in page and "light dark" in page
    row = next(csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8-sig")))
    assert row["student"] == "'=cmd()"


def test_every_sheet_asks_for_what_its_checks_check():
    every = sheets.read_sheets(EXERCISES)
    assert {"01_attention", "15_generating_text"} <= {sheet.name for sheet in every}
    for sheet in every:
        stubs = "\n".join(sheet.cells).count("raise NotImplementedError")
        assert 1 <= len(sheet.asked) <= stubs, sheet.name
        assert sheets.sheet_of(sheet.cells, every, "x") == sheet


def test_a_training_between_exercises_is_run_only_if_it_is_needed():
    sheet = next(s for s in sheets.read_sheets(EXERCISES) if s.name == "15_generating_text")
    run = sheets.cells_to_run(sheet, sheet.cells)
    assert not any("mt.pretrain(" in sheet.cells[i] for i in run)
    mine = [*sheet.cells, "print(model(torch.zeros(1, 1).long()))"]
    run = sheets.cells_to_run(sheet, mine)
    assert any("mt.pretrain(" in mine[i] for i in run) and len(mine) - 1 in run


@pytest.mark.parametrize(
    ("cell", "bound", "used"),
    [
        ("import a.b\nfrom c import d as e", {"a", "e"}, set()),
        ("def f(x):\n    y = x\n    return y + g", {"f"}, {"g"}),
        ("x[0] = 1\ny.z = 2", {"x", "y"}, {"x", "y"}),
        ("from c import *", {"*"}, set()),
        ("def f(:\n  pass", {"f"}, set()),
        ("def f():\n    global g\n    g = 1", {"f", "g"}, set()),
    ],
)
def test_what_a_cell_defines_and_needs(cell, bound, used):
    assert sheets.bound_and_used(cell)[0] >= bound
    assert sheets.bound_and_used(cell)[1] >= used
    assert "y" not in sheets.bound_and_used("def f(x):\n    y = x")[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.ipynb", None, "no such file"),
        ("torn.ipynb", "{", "no notebook"),
        ("image.ipynb", b"\x89PNG\xff", "UTF-8"),
        ("other.ipynb", '{"cells": []}', "answers none of the exercise sheets"),
        ("other.py", "x = 1", "answers none"),
    ],
)
def test_usage_errors(tmp_path, capsys, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["grade", str(path), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "out")


def test_empty_folders(tmp_path, capsys):
    assert main(["grade", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no notebook" in capsys.readouterr().err
    arguments = ["grade", str(tmp_path), "--exercises", str(tmp_path)]
    assert main(arguments) == 2
    assert "make exercises" in capsys.readouterr().err
