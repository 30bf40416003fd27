"""The command line as a user meets it: a process, its output, its exit code."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import minitransformer as mt
from minitransformer.__main__ import main, parser

SAMPLES = Path(__file__).parents[1] / "data" / "samples" / "reviews.csv"
GOOD, BAD = "A lovely thing.", "An awful thing."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer) -> str:
    """A small pretrained model with MiniLM's tokenizer, so that training takes a second."""
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(d_model=16, n_heads=2, n_layers=1, d_ff=8, max_len=64)
    folder = tmp_path_factory.mktemp("tiny") / "encoder"
    return str(mt.save_pretrained(mt.Encoder(config), tokenizer, folder))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("table") / "reviews.csv"
    rows = [(f"{GOOD} {i}", "good") for i in range(30)] + [(f"{BAD} {i}", "bad") for i in range(30)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


@pytest.fixture(scope="module")
def trained(tiny, table, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("trained") / "my-model")
    options = ["--epochs", "8", "--lr", "0.01", "--precision", "medium"]
    assert main(["finetune", "--data", table, "--model", tiny, "--out", folder, *options]) == 0
    return folder


@pytest.mark.trains
def test_finetune_then_predict_from_the_shell(trained):
    run = subprocess.run(
        [sys.executable, "-m", "minitransformer", "predict", trained, GOOD, BAD],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    labels = [line.split()[0] for line in run.stdout.splitlines()]
    assert labels == ["good", "bad"]


def test_finetune_prints_figures_on_the_test_part(tiny, table, tmp_path, capsys):
    out = tmp_path / "m"
    assert (
        main(["finetune", "--data", table, "--model", tiny, "--out", str(out), "--epochs", "1"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "48 to train, 6 to validate, 6 to test" in shown
    assert re.search(r"on the 6 texts kept for the test: accuracy .*, 6 examples", shown)
    for part in ("predicted", "actual", "precision", "recall", "validation loss", "predict"):
        assert part in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("strategy", ["full", "head-only"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_finetune_saves_a_model_with_its_labels(tiny, table, tmp_path, strategy, pooling):
    arguments = ["--strategy", strategy, "--pooling", pooling, "--epochs", "1"]
    folder = str(tmp_path / "m")
    assert main(["finetune", "--data", table, "--model", tiny, "--out", folder, *arguments]) == 0
    model, _ = mt.load_pretrained(folder)
    assert model.labels == ("bad", "good") and model.pooling == pooling


@pytest.mark.trains
def test_predict_files(trained, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text(f"{GOOD}\n{BAD}\n")
    out = tmp_path / "labels.csv"
    assert main(["predict", trained, "--file", str(tmp_path / "lines.txt"), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [r["label"] for r in rows] == ["good", "bad"] and rows[0]["text"] == GOOD
    assert all(0.5 <= float(r["probability"]) <= 1 for r in rows)
    (plain := tmp_path / "plain").touch()
    assert out.stat().st_mode == plain.stat().st_mode, "readable for whom a new file is"
    assert main(["predict", trained, "--file", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("bad")


def test_warnings_are_shown_as_before_after_a_command(trained):
    shown = warnings.showwarning
    assert main(["predict", trained, GOOD]) == 0
    assert warnings.showwarning is shown


def test_evaluate_prints_the_confusion_matrix(trained, table, capsys):
    assert main(["evaluate", trained, "--data", table]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("accuracy 1.000") and "actual" in shown


def test_verify_exits_1_when_a_formula_is_off(monkeypatch, capsys):
    assert main(["verify", "softmax", "layer_norm"]) == 0
    assert "all 2 formulas hold" in capsys.readouterr().out
    wrong = mt.ledger.LEDGER["softmax"]
    monkeypatch.setitem(
        mt.ledger.LEDGER, "softmax", wrong.__class__(**vars(wrong) | {"reference": twice_as_hot})
    )
    assert main(["verify", "softmax"]) == 1
    assert "1 of 1 formulas are off" in capsys.readouterr().out


def twice_as_hot(scores, keep):
    return mt.ledger.LEDGER["softmax"].ours(2 * scores, keep)


def bad(tmp_path, text: str, name: str = "bad.csv") -> str:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("text,label\n", "has no rows"),
        (
            "review,label\nx,good\n",
            "line 1: there is no column 'text' (columns: 'review', 'label')",
        ),
        ("text,stars\nx,good\n", "line 2: there is no column 'label'"),
        ("text,label\nx,good\n  ,bad\n", "line 3: the text is empty"),
        ("text,label\nx,good\ny,\n", "line 3: the label is empty"),
        ("text,label\nx,good\ny,good\n", "every row has the label 'good'"),
        ("text,label\na,good\nb,good\nc,good\nd,bad\n", "label 'bad' has 1 different text,"),
        ("text,label\ncafé,good\n", "line 2: the byte 0xe9 is not UTF-8"),
        ("text,label\na, b,good\n", "line 2: 3 fields where the first line names 2"),
        ('text,label\n"a,good\n', "check the quotes"),
    ],
)
def test_finetune_names_the_place_of_bad_rows(tiny, tmp_path, capsys, content, message):
    out = tmp_path / "out"
    code = main(["finetune", "--data", bad(tmp_path, content), "--model", tiny, "--out", str(out)])
    error = capsys.readouterr().err.strip()
    assert code == 2 and message in error and "bad.csv" in error
    assert len(error.splitlines()) == 1 and not out.exists()


def test_clear_errors_for_what_is_not_there(trained, tiny, table, tmp_path, capsys, monkeypatch):
    def error_of(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err.strip()

    out = str(tmp_path / "x")
    assert "there is no file" in error_of("finetune", "--data", "none.csv", "--out", out)
    assert "at least 1" in error_of("finetune", "--data", table, "--out", out, "--epochs", "0")
    assert "without a classifier" in error_of("predict", tiny, "text")
    assert "give texts" in error_of("predict", trained)
    assert "text 1 (counted from 0) is empty" in error_of("predict", trained, "x", " ")
    unknown = bad(tmp_path, "text,label\nx,good\ny,ugly\n")
    assert "line 3: the label 'ugly' was not in the training data" in error_of(
        "evaluate", trained, "--data", unknown
    )
    monkeypatch.setenv("MINITRANSFORMER_DATA", str(tmp_path))
    assert "run `make data`" in error_of("finetune", "--data", "movies", "--out", out)
    assert "run `make data`" in error_of("finetune", "--data", table, "--out", out)
    assert not (tmp_path / "x").exists()


def test_a_text_that_is_cut_is_said(trained, capsys):
    assert main(["predict", trained, "word " * 100]) == 0
    assert "1 of 1 texts are longer than 64 tokens and were cut" in capsys.readouterr().err


def error_of(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.strip()


WRONG_NUMBERS = {
    "finetune --data {table} --out x": (
        "--lr 0", "--lr -0.02", "--lr nan", "--epochs -1", "--batch-size 0", "--seed -1",
        "--seed 18446744073709551616", "--max-length 2",
    ),
    "pretrain --texts {table} --out x": (
        "--warmup -1", "--warmup 2.5", "--warmup nan", "--length 1", "--checkpoint-every 0", "--lr 0",
        "--dropout 1", "--vocab-size 10000000000000",
    ),
    "experiment --data {table} --out x": (
        "--batch-size 0", "--lr-factors 0", "--lr-factors 1 -1", "--labels 16 1", "--seeds 0 -1",
        "--min-steps 0",
    ),
    "verify": ("--seed -1",),
    "grade x": ("--seconds 0", "--memory -1"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option"), [(c, o) for c, options in WRONG_NUMBERS.items() for o in options]
)
def test_numbers_are_checked_before_anything_else(command, option, table, capsys):
    error = error_of(capsys, *command.format(table=table).split(), *option.split())
    assert error.startswith(f"minitransformer: {option.split()[0]} must be")


def test_an_output_that_cannot_be_written_is_noticed_at_once(
    trained, table, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "minitransformer.commands.inputs.read_table", lambda *_: pytest.fail("read")
    )
    monkeypatch.setattr(
        "minitransformer.commands.predict.read_texts", lambda *_: pytest.fail("read")
    )
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    places = {
        "file/m": "is a file, not a folder",
        "link": "a link to something",
        "/proc/none/m": "No such",
    }
    for out, problem in places.items():
        for command in (["finetune", "--data", table], ["experiment", "--data", table], ["predict", trained, "--file", table]):  # fmt: skip
            error = error_of(capsys, *command, "--out", str(tmp_path / out))
            assert "cannot be written" in error and (problem in error or "no folder" in error)

    def full(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    error = error_of(capsys, "finetune", "--data", table, "--out", str(tmp_path / "m"))
    assert "Read-only file system; choose another place" in error


def test_predict_replaces_nothing_but_its_own_tables(trained, table, tmp_path, capsys):
    mine = shutil.copy(table, tmp_path / "mine.csv")
    (tmp_path / "same.csv").hardlink_to(mine)
    (tmp_path / "link.csv").symlink_to(mine)
    before = mine.read_bytes()
    for out in ("mine.csv", "same.csv", "link.csv", "../" + tmp_path.name + "/mine.csv"):
        error = error_of(
            capsys, "predict", trained, "--file", str(mine), "--out", str(tmp_path / out)
        )
        assert "is the file to be labelled" in error
    assert "holds something else" in error_of(capsys, "predict", trained, GOOD, "--out", str(mine))
    assert "is a folder" in error_of(capsys, "predict", trained, GOOD, "--out", str(tmp_path))
    assert mine.read_bytes() == before
    out = str(tmp_path / "out.csv")
    for text in (GOOD, "=1+1"):
        assert main(["predict", trained, text, "a;-1", "--out", out]) == 0
    with open(out, newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["'=1+1", "a;'-1"]


@pytest.mark.trains
def test_the_command_to_try_is_one_line_that_runs_only_predict(tiny, tmp_path, capsys):
    mark = tmp_path / "mark"
    nasty = f"\"; touch {mark}; `touch {mark}` $(touch {mark}) it's\n\x1b[31m" + "x" * 300
    rows = [(f"{i} {nasty}", "ab"[i % 2]) for i in range(20)]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    out = str(tmp_path / "a model")
    assert main(["finetune", "--data", str(tmp_path / "t.csv"), "--model", tiny, "--out", out, "--epochs", "1"]) == 0  # fmt: skip
    shown = capsys.readouterr().out
    line = shown.splitlines()[-1].strip()
    assert line.isprintable() and len(line) < 300 and "only show that everything runs" in shown
    echo = line.replace("python -m minitransformer", "printf '%s|'")
    said = subprocess.run(["sh", "-c", echo], capture_output=True, text=True, check=True).stdout
    assert said.split("|")[:2] == ["predict", out] and not mark.exists()


def test_max_length_is_kept_with_the_model(tiny, table, tmp_path, capsys):
    options = ["--epochs", "0.1", "--max-length", "5", "--balance"]
    out = str(tmp_path / "m")
    assert main(["finetune", "--data", table, "--model", tiny, "--out", out, *options]) == 0
    assert mt.load_pretrained(out)[1].max_length == 5
    assert main(["predict", out, "one two three four five"]) == 0
    assert "longer than 5 tokens and were cut" in capsys.readouterr().err


def test_a_fault_that_was_not_foreseen_is_one_line_too(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("gears")

    monkeypatch.setattr("minitransformer.proofs.verify.verify", fail)
    assert "not foreseen, RuntimeError: gears" in error_of(capsys, "verify")
    monkeypatch.setenv("MINITRANSFORMER_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        main(["verify"])


@pytest.mark.parametrize("text", ["\udcc3\udca4", "\ud800 x"])
def test_broken_characters_are_one_line(trained, text, capsys):
    assert "has the broken character" in error_of(capsys, "predict", trained, text)


def test_a_terminal_of_ascii_shows_what_it_can(trained, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["predict", trained, "naïve 😀"]) == 0
    assert b"na\\xefve" in shown.buffer.getvalue()


def test_a_reader_that_has_enough_ends_it_silently():
    """As `| head` does; in a process of its own, whose output the command closes."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "minitransformer", "verify", "softmax"]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert run.stderr == b"" and run.returncode == 0


COMMANDS = ["verify", "finetune", "pretrain", "predict", "evaluate"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and len(shown) > 200
    choices = next(a for a in parser()._actions if a.choices).choices
    for action in choices[command]._actions:
        assert action.help and (action.option_strings or [action.dest])[0] in shown


NO_TORCH = """
import sys
from minitransformer.__main__ import main

for arguments in {cases}:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    print(code, [name for name in ("torch", "sklearn", "matplotlib") if name in sys.modules])
"""


def test_what_needs_no_model_is_answered_before_torch_is_loaded(tmp_path):
    """Loading torch takes seconds; a mistyped option or file name is answered at once."""
    every = [*COMMANDS, "mistakes", "experiment", "grade"]
    cases = [["--help"], *([command, "--help"] for command in every)]
    cases += [[command, "--mistyped"] for command in every]
    cases += [
        ["finetune", "--data", "none.csv", "--out", "m"], ["pretrain", "--texts", "none.txt", "--out", "m"],
        ["experiment", "--data", "none.csv", "--out", "r"], ["evaluate", "m", "--data", "none.csv"],
        ["predict", "m", "--file", "none.txt"], ["predict", "m", "a text"],
    ]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(cases=cases)], capture_output=True, text=True,
        check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(mt.__file__).parents[1])},
    )  # fmt: skip
    said = [line for line in run.stdout.splitlines() if line.endswith("]") and line[0] in "02"]
    assert said == [f"{0 if '--help' in case else 2} []" for case in cases], run.stderr
    assert run.stderr.count("there is no f") == 6 and not [*tmp_path.iterdir()]


def test_no_or_an_unknown_command_lists_those_there_are(capsys):
    for arguments in ([], ["train"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert (
            stop.value.code == 2 and "usage: python -m minitransformer" in capsys.readouterr().err
        )
    with pytest.raises(SystemExit):
        main(["--help"])
    assert all(command in capsys.readouterr().out for command in COMMANDS[:1])


def test_verify_names_the_formulas_there_are(capsys):
    assert main(["verify", "atention"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("minitransformer: no formula 'atention'") and "attention" in error
    assert len(error.splitlines()) == 1


def test_verify_from_the_shell_prints_the_whole_ledger():
    run = subprocess.run(
        [sys.executable, "-m", "minitransformer", "verify"], capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stderr == ""
    for row in mt.ledger.LEDGER.values():
        assert row.title in run.stdout and row.source in run.stdout


@pytest.mark.trains
def test_finetune_the_samples_with_the_real_model(tmp_path, capsys):
    """The README's first command, one epoch of it: real weights, our own sentences."""
    samples, out = str(SAMPLES), str(tmp_path / "my-model")
    options = ["--strategy", "head-only", "--epochs", "1", "--precision", "medium"]
    assert main(["finetune", "--data", samples, "--out", out, *options]) == 0
    assert "32 to train, 4 to validate, 4 to test" in capsys.readouterr().out
    assert main(["predict", out, "A wonderful film."]) == 0
    assert capsys.readouterr().out.split()[0] in ("good", "bad")
    assert main(["evaluate", out, "--data", samples]) == 0
    assert float(capsys.readouterr().out.split()[1].rstrip(",")) > 0.6


def test_finetune_refuses_a_foreign_folder_before_it_trains(
    tiny, table, tmp_path, capsys, monkeypatch
):
    """An hour of training must not end in a message about the folder."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    monkeypatch.setattr(
        "minitransformer.training.finetune.finetune", lambda *a, **k: pytest.fail("trained")
    )
    out = str(tmp_path / "thesis")
    assert main(["finetune", "--data", table, "--model", tiny, "--out", out]) == 2
    assert "not a model's folder; choose another name" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.txt"]


def test_stopping_by_hand_leaves_nothing(tiny, table, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("minitransformer.training.finetune.evaluate", interrupt)
    out = str(tmp_path / "m")
    assert main(["finetune", "--data", table, "--model", tiny, "--out", out]) == 130
    assert "nothing was written" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_loss_that_explodes_is_one_line_and_leaves_nothing(tiny, table, tmp_path, capsys):
    options = ["--lr", "1e30", "--precision", "medium", "--epochs", "2"]
    out = str(tmp_path / "m")
    assert main(["finetune", "--data", table, "--model", tiny, "--out", out, *options]) == 2
    assert "minitransformer: the loss is" in capsys.readouterr().err and not list(
        tmp_path.iterdir()
    )


def test_broken_models_are_one_clear_error(trained, tmp_path, capsys):
    def error_of(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err.strip()

    broken = shutil.copytree(trained, tmp_path / "broken")
    raw = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(raw[:1000])
    assert "damaged or cut off" in error_of("predict", str(broken), "text")
    (broken / "config.json").write_text('{"model_type": "roberta"}')
    assert "model_type 'roberta' is not a family" in error_of("predict", str(broken), "text")
    assert "no folder" in error_of("predict", str(tmp_path / "none"), "text")
    out = str(tmp_path / "nowhere" / "labels.csv")
    assert "nowhere" in error_of("predict", trained, "text", "--out", out)
    assert "at most 64" in error_of(
        "finetune", "--data", samples_of(tmp_path), "--model", trained, "--out", str(tmp_path / "m"),
        "--max-length", "65",
    )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "samples.csv"]


def samples_of(tmp_path) -> str:
    return str(shutil.copy(SAMPLES, tmp_path / "samples.csv"))


def test_finetune_goes_on_from_a_classifier_with_a_new_head(trained, tmp_path):
    out = tmp_path / "m"
    arguments = [
        "--data",
        samples_of(tmp_path),
        "--model",
        trained,
        "--out",
        str(out),
        "--epochs",
        "1",
    ]
    assert main(["finetune", *arguments]) == 0
    assert mt.load_pretrained(out)[0].labels == ("bad", "good")


def test_the_same_seed_gives_the_same_model(tiny, table, tmp_path, capsys):
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        options = ["--seed", seed, "--epochs", "1", "--lr", "0.01", "--precision", "highest"]
        out = tmp_path / name
        assert (
            main(["finetune", "--data", table, "--model", tiny, "--out", str(out), *options]) == 0
        )
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
