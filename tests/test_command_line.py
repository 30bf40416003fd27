"""The command line as a user meets it: a process, its output, its exit code."""

import csv
import subprocess
import sys

import pytest
import torch

import minitransformer as mt
from minitransformer.__main__ import main

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


def test_predict_files(trained, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text(f"{GOOD}\n{BAD}\n")
    out = tmp_path / "labels.csv"
    assert main(["predict", trained, "--file", str(tmp_path / "lines.txt"), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [r["label"] for r in rows] == ["good", "bad"] and rows[0]["text"] == GOOD
    assert all(0.5 <= float(r["probability"]) <= 1 for r in rows)
    assert main(["predict", trained, "--file", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("bad")


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


@pytest.mark.parametrize("command", ["verify", "finetune", "predict", "evaluate"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and len(capsys.readouterr().out) > 200
