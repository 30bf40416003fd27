"""Whatever happened to the files of a run, resuming it refuses with the reason, or ends as it should."""

import json
import shutil

import pytest
from resumable import model, run

import minitransformer as mt
from minitransformer.__main__ import main
from minitransformer.training.checkpointing import FILE, HISTORY
from minitransformer.training.from_scratch import TOKENIZER
from minitransformer.training.history import History

OPTIONS = [
    "--layers", "1", "--d-model", "16", "--heads", "2", "--length", "16", "--vocab-size", "300",
    "--batch-size", "4", "--steps", "4", "--checkpoint-every", "2", "--precision", "highest",
]  # fmt: skip
DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "lines of zeros": lambda path: path.write_bytes(b"\0" * (path.stat().st_size - 1) + b"\n"),
    "text": lambda path: path.write_bytes(b"[]" * (path.stat().st_size // 2 + 1)),
    "a bit changed": lambda path: path.write_bytes(flipped(path.read_bytes())),
}


def flipped(raw: bytes) -> bytes:
    """One bit of the last third is another: a digit, a letter, a weight."""
    at = len(raw) * 5 // 6
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def pretrain(out, texts, *options: str) -> int:
    return main(["pretrain", "--texts", str(texts), "--out", str(out), *OPTIONS, *options])


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("\n".join(f"line {i} of the book: {'word ' * (i % 7)}end" for i in range(60)))
    return path


@pytest.fixture(scope="module")
def done(book):
    """A run that has come to its end."""
    assert pretrain(book.with_name("done"), book) == 0
    return book.with_name("done")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [FILE, HISTORY, TOKENIZER])
def test_a_damaged_file_of_a_run_is_refused_with_the_reason(done, book, tmp_path, capsys, name, damage):  # fmt: skip
    shutil.copytree(done, tmp_path / "gpt")
    DAMAGES[damage](tmp_path / "gpt" / "training" / name)
    before = {p.name: p.read_bytes() for p in (tmp_path / "gpt").iterdir() if p.is_file()}
    capsys.readouterr()
    code, (out, error) = pretrain(tmp_path / "gpt", book, "--resume"), capsys.readouterr()
    if (name, damage) == (FILE, "missing"):
        assert code == 0, "there is no run to resume: it starts anew"
        return
    assert code == 2 and not out.count("Traceback")
    assert name in error and "Traceback" not in error
    assert "afresh" in error or "another run" in error
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "gpt").iterdir() if p.is_file()}


def test_a_history_of_zeros_is_none(tmp_path):
    for raw in (bytes(40), b'{"step": 0, "loss": 1.0}\n' + bytes(9)):
        (tmp_path / HISTORY).write_bytes(raw)
        with pytest.raises(ValueError, match="not an entry of a history"):
            History.read(tmp_path / HISTORY)


@pytest.mark.parametrize(
    "change", [["--tokenizer", "characters"], ["--vocab-size", "290"]], ids=["kind", "size"]
)
def test_another_tokenizer_is_another_run(done, book, tmp_path, capsys, change):
    shutil.copytree(done, tmp_path / "gpt")
    capsys.readouterr()
    assert pretrain(tmp_path / "gpt", book, "--resume", *change) == 2
    assert f"another run: it had {change[0]} " in capsys.readouterr().err


def test_a_tokenizer_that_a_failed_run_left_is_learned_anew(book, tmp_path, capsys):
    (text := tmp_path / "text.txt").write_text("hello")
    out = tmp_path / "gpt"
    assert pretrain(out, text) == 2 and "too few" in capsys.readouterr().err
    assert pretrain(out, book, "--resume") == 0 == pretrain(tmp_path / "fresh", book)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_stopped_in_its_final_save_it_answers_and_is_resumed(done, book, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.link", stop)  # the new files count, and none is in its place
        assert pretrain(tmp_path / "gpt", book) == 130
    assert [p.name for p in (tmp_path / "gpt").iterdir() if p.is_file()] == []
    assert isinstance(mt.load_pretrained(tmp_path / "gpt")[0], mt.CausalLM)
    assert pretrain(tmp_path / "gpt", book, "--resume") == 0
    for name in ("model.safetensors", "tokenizer.json", "config.json", f"training/{HISTORY}"):
        assert (tmp_path / "gpt" / name).read_bytes() == (done / name).read_bytes()


def test_other_frozen_parameters_are_another_run(tmp_path):
    run(tmp_path, steps=4)
    frozen = model()
    frozen.decoder.blocks[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"another run: it had .*frozen parameters None, now \["):
        run(tmp_path, steps=4, model=frozen)


def test_checkpoint_every_0_is_no_default(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        run(tmp_path, checkpoint_every=0)


def test_a_model_of_another_kind_is_replaced_only_when_asked(done, book, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "gpt")
    shutil.rmtree(tmp_path / "gpt" / "training")
    masked = ["--objective", "masked"]
    assert pretrain(tmp_path / "gpt", book, *masked) == 2
    assert "a model of another kind, GPT2LMHeadModel" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "gpt").iterdir() if p.is_dir()] == []
    rows = [f"{word} {word},{'xy'[i % 2]}" for i, word in enumerate("abcdefghijklmnopqrst")]
    (table := tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    arguments = ["--data", str(table), "--model", str(done), "--out", str(tmp_path / "gpt")]
    assert main(["finetune", *arguments]) == 2
    assert "a model of another kind, GPT2LMHeadModel" in capsys.readouterr().err
    assert pretrain(tmp_path / "gpt", book, *masked, "--overwrite") == 0
    config = json.loads((tmp_path / "gpt" / "config.json").read_bytes())
    assert config["model_type"] == "bert"
