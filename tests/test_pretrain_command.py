"""`python -m minitransformer pretrain` as a user meets it: to the end, stopped, gone on, refused."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

import minitransformer as mt
from minitransformer.__main__ import main
from minitransformer.training.checkpointing import Checkpoint
from minitransformer.training.history import History

SMALL = [
    "--layers", "1", "--d-model", "16", "--heads", "2", "--length", "16", "--vocab-size", "300",
    "--batch-size", "4", "--steps", "6", "--checkpoint-every", "2", "--lr", "0.01",
    "--precision", "highest",
]  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> str:
    """Sixty lines, and blank ones between paragraphs."""
    path = tmp_path_factory.mktemp("book") / "book.txt"
    lines = [
        f"line {i} of the book: {'word ' * (i % 7)}end" + "\n" * (i % 5 == 0) for i in range(60)
    ]
    path.write_text("\n".join(lines))
    return str(path)


def pretrain(*arguments: str, out: Path) -> int:
    return main(["pretrain", "--out", str(out), *SMALL, *arguments])


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.fixture
def stopped(monkeypatch):
    """Stops the next run after its first checkpoint in the way that is given."""

    def arrange(stop):
        write = Checkpoint.write

        def write_and_stop(self, step):
            write(self, step)
            monkeypatch.setattr(Checkpoint, "write", write)
            stop()

        monkeypatch.setattr(Checkpoint, "write", write_and_stop)

    return arrange


@pytest.mark.trains
def test_a_gpt_of_ones_own(book, tmp_path, capsys):
    assert pretrain("--texts", book, out=tmp_path / "gpt") == 0
    shown = capsys.readouterr().out
    assert "60 texts: " in shown and "blocks of 16 tokens to train" in shown
    model, tokenizer = mt.load_pretrained(tmp_path / "gpt")
    assert isinstance(model, mt.CausalLM) and model.config.vocab_size == tokenizer.vocab_size == 300
    ids = mt.generate(model, torch.tensor([tokenizer.encode("line")]), 3)
    assert ids.shape[1] > 1
    history = History.read(tmp_path / "gpt" / "training" / "history.jsonl")
    assert len(history.steps) == 6 and history.best["valid_loss"] < 5.8


@pytest.mark.trains
def test_a_t5_of_ones_own_fills_holes(book, tmp_path):
    """Blocks of 16 have one hole: it writes the sentinel, characters, the next sentinel, and ends."""
    options = ["--objective", "spans", "--tokenizer", "characters", "--d-model", "32", "--dropout", "0"]  # fmt: skip
    enough = ["--steps", "300", "--batch-size", "16", "--lr", "0.005", "--precision", "auto"]
    assert pretrain("--texts", book, *options, *enough, out=tmp_path / "t5") == 0
    model, tokenizer = mt.load_pretrained(tmp_path / "t5")
    assert isinstance(model, mt.Seq2SeqLM) and not model.training
    first, second = (tokenizer.special[f"<extra_id_{i}>"] for i in range(2))
    source = torch.tensor([[*tokenizer.encode("of th"), first, *tokenizer.encode("book: wo")]])
    written = mt.generate(model, source, 8)[0].tolist()
    start, sentinel, *hole, last, end = written
    assert (start, sentinel, last, end) == (0, first, second, tokenizer.special["[END]"])
    assert hole and not {*hole} & {*tokenizer.special.values()}, "it is filled with characters"
    # Five tokens in each target, two of them characters: who knew nothing of these had 1.3.
    history = History.read(tmp_path / "t5" / "training" / "history.jsonl")
    assert history.best["valid_loss"] < 1.0


@pytest.mark.parametrize("objective", ["causal", "masked", "spans"])
@pytest.mark.parametrize("way", ["ctrl-c", "kill"])
def test_stopped_it_says_how_to_go_on_and_ends_as_if_nothing_had_happened(
    book, tmp_path, capsys, stopped, way, objective, request
):
    def stop():
        os.kill(os.getpid(), signal.SIGINT if way == "ctrl-c" else signal.SIGTERM)

    # A process that runs tests for another one ignores Ctrl-C.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = ["--texts", book, "--objective", objective, "--schedule", "cosine"]
    assert pretrain(*options, out=tmp_path / "whole") == 0
    handler = signal.getsignal(signal.SIGTERM)
    stopped(stop)
    assert pretrain(*options, out=tmp_path / "parts") == 130
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "stopped; the same command with --resume continues" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["training"], "no half model"
    assert pretrain(*options, out=tmp_path / "parts") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert pretrain(*options, "--resume", out=tmp_path / "parts") == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    kind = {"causal": mt.CausalLM, "masked": mt.MaskedLM, "spans": mt.Seq2SeqLM}[objective]
    assert isinstance(mt.load_pretrained(tmp_path / "parts")[0], kind)


def test_a_masked_model_is_one_to_fine_tune(book, tmp_path):
    options = ["--texts", book, "--objective", "masked", "--tokenizer", "characters"]
    assert pretrain(*options, "--resume", out=tmp_path / "bert") == 0, "nothing to resume: starts"
    rows = [f"{word} {i},{word}" for i in range(30) for word in ("line", "end")]
    (table := tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    arguments = ["--model", str(tmp_path / "bert"), "--out", str(tmp_path / "m"), "--epochs", "1"]
    assert main(["finetune", "--data", str(table), *arguments]) == 0
    assert mt.load_pretrained(tmp_path / "m")[0].labels == ("end", "line")
    # and its tokenizer is one to train another model with
    again = ["--texts", book, "--tokenizer", str(tmp_path / "bert")]
    assert pretrain(*again, out=tmp_path / "gpt") == 0
    one, other = (mt.load_pretrained(tmp_path / name)[1] for name in ("bert", "gpt"))
    assert one.to_json() == other.to_json()


def test_clear_errors(book, tmp_path, capsys):
    def error_of(*arguments: str, out: Path = tmp_path / "x") -> str:
        assert pretrain(*arguments, out=out) == 2
        error = capsys.readouterr().err.strip().splitlines()
        return error[-1]

    (empty := tmp_path / "empty.txt").write_text("\n\n")
    assert "empty.txt is empty" in error_of("--texts", str(empty))
    (short := tmp_path / "short.txt").write_text("a short text")
    error = error_of("--texts", str(short), "--tokenizer", "characters")
    assert "1 texts with 12 tokens are too few for two blocks of 16" in error
    assert "no such folder, and the kinds are characters" in error_of("--texts", book, "--tokenizer", "x")  # fmt: skip
    assert "vocab_size=100 is too small" in error_of("--texts", book, "--vocab-size", "100")
    assert "steps must be at least 1" in error_of("--texts", book, "--steps", "0")
    assert "n_heads=3" in error_of("--texts", book, "--heads", "3")
    gpt = tmp_path / "gpt"
    assert pretrain("--texts", book, out=gpt) == 0
    error = error_of("--texts", book, "--resume", "--layers", "2", out=gpt)
    assert "another run: it had the model's n_layers 1, now 2" in error
    masked = ["--objective", "masked", "--tokenizer", str(gpt)]
    assert "no special token [MASK]" in error_of("--texts", book, *masked)
    spans = ["--objective", "spans", "--tokenizer", str(gpt)]
    assert "no sentinels to put in the holes" in error_of("--texts", book, *spans)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    assert "not a model's folder" in error_of("--texts", book, out=tmp_path / "thesis")


def test_a_full_disk_is_one_line_that_says_how_to_go_on(book, tmp_path, capsys, monkeypatch):
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        patch.setattr("minitransformer.data.atomic.write_whole", lambda *_: None)
        patch.setattr("os.fsync", full)
        assert pretrain("--texts", book, out=tmp_path / "gpt") == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert pretrain("--texts", book, "--resume", out=tmp_path / "gpt") == 0


@pytest.mark.trains
@pytest.mark.skipif("TEST_SEED" in os.environ, reason="other processes do not see the moved seed")
def test_torchrun_trains_the_same_model(book, tmp_path):
    """Two real processes; one model is written, equal to that of one process to rounding."""
    options = ["--texts", book, "--dropout", "0"]
    assert pretrain(*options, out=tmp_path / "one") == 0
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "minitransformer", "pretrain", "--out", str(tmp_path / "two"), *SMALL, *options],
        capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("the model is in") == 1
    one, two = (safetensors.torch.load(weights(tmp_path / name)) for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4
