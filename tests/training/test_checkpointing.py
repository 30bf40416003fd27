"""Runs that are killed go on bit for bit; what cannot go on is refused."""

import json
import multiprocessing
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from resumable import STEPS, model, run, run_in_a_process, texts

import minitransformer as mt
from minitransformer.data.atomic import write_whole
from minitransformer.training import loop
from minitransformer.training.checkpointing import FILE, HISTORY, Checkpoint, read, refuse_existing
from minitransformer.training.history import History
from minitransformer.training.loop import Recipe, endless

RECIPE = dict(
    steps=20, validate_every=1, lr=0.1, batch_size=8, warmup=0.1, weight_decay=0.0, clip=1.0, seed=3,
    precision="highest",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the killed processes have: with other numbers of threads sums are rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run without an interruption: model, history, folder."""
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder), folder


def assert_same_run(trained: mt.CausalLM, history: History, folder: Path, whole) -> None:
    """Weights, optimizer, random numbers, best weights, history: every bit."""
    for (name, a), b in zip(trained.named_parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(a, b), name
    mine, other = read(folder / FILE), read(whole[2] / FILE)
    assert mine[0] | {"seconds": 0} == other[0] | {"seconds": 0}
    assert mine[1].keys() == other[1].keys() and len(mine[1]) > 100
    assert all(torch.equal(t, other[1][name]) for name, t in mine[1].items())
    assert history.steps == whole[1].steps and history.validations == whole[1].validations
    assert history.best == whole[1].best
    assert (folder / HISTORY).read_bytes() == (whole[2] / HISTORY).read_bytes()


def test_checkpoints_change_nothing(whole):
    plain, history = run(None)
    assert all(map(torch.equal, plain.parameters(), whole[0].parameters()))
    assert history == History(whole[1].steps, whole[1].validations, whole[1].best, history.seconds)
    assert sorted(p.name for p in whole[2].iterdir()) == [FILE, HISTORY]
    assert history.best is not history.validations[-1], "else the best weights are not tested"


def test_a_run_killed_at_random_and_in_the_middle_of_writes_ends_as_if_nothing_had_happened(
    whole, tmp_path
):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minitransformer"])
    rng, kills = random.Random(0), 0
    # fsync is called for the history, the checkpoint and the folder: 2 is the very first checkpoint
    for die_at_sync in (2, 5, 7, None, 3, None):
        process = context.Process(target=run_in_a_process, args=(tmp_path, die_at_sync))
        process.start()
        if die_at_sync is None:
            before = progress_of(tmp_path)
            while progress_of(tmp_path) == before and process.is_alive():
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        process.join(600)
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 5 and (tmp_path / FILE).exists()
    assert read(tmp_path / FILE)[0]["step"] < STEPS, "killed too late to tell"
    assert_same_run(*run(tmp_path), tmp_path, whole)


def progress_of(folder: Path) -> int:
    """Lines of the history."""
    return (folder / HISTORY).read_bytes().count(b"\n") if (folder / HISTORY).exists() else 0


@pytest.mark.parametrize("stop_at", [1, 17, 35])
def test_an_error_anywhere_and_then_on(whole, tmp_path, stop_at, monkeypatch):
    """Also where the step was counted, but its checkpoint not written."""
    add = History.add

    def stop(self, entry):
        if "lr" in entry and entry["step"] == stop_at and self.file:
            raise RuntimeError("stop")
        return add(self, entry)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stop"):
        patch.setattr(History, "add", stop)
        run(tmp_path)
    torch.manual_seed(99)  # what the caller drew in between does not matter, nor do his weights
    again = model(seed=5) if stop_at > 4 else model()
    assert_same_run(*run(tmp_path, model=again), tmp_path, whole)


def test_a_finished_run_returns_at_once(whole, monkeypatch):
    monkeypatch.setattr(loop, "backward", lambda *_: pytest.fail("trained"))
    again, history = run(whole[2])
    assert all(map(torch.equal, again.parameters(), whole[0].parameters()))
    assert history == History(whole[1].steps, whole[1].validations, whole[1].best, history.seconds)
    assert history.seconds == pytest.approx(whole[1].seconds, abs=0.5) and not again.training


@pytest.mark.parametrize(
    "strategy",
    [mt.strategies.LoRA(2), mt.strategies.LinearProbeThenFull(0.5), mt.strategies.LastLayers(1)],
    ids=str,
)
def test_strategies_go_on_too(tmp_path, strategy, monkeypatch):
    """What thaws in the middle, and what a strategy adds."""
    plain, history = run(None, strategy=strategy)
    write, written = Checkpoint.write, []

    def stop(self, step):
        write(self, step)
        written.append(step)
        if step == 20:
            raise RuntimeError("stop")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stop"):
        patch.setattr(Checkpoint, "write", stop)
        run(tmp_path, strategy=strategy)
    resumed, again = run(tmp_path, strategy=strategy)
    assert again.steps == history.steps and again.validations == history.validations
    assert all(map(torch.equal, plain.parameters(), resumed.parameters()))


def test_a_run_that_is_there_is_not_overwritten(whole):
    before = (whole[2] / FILE).read_bytes()
    with pytest.raises(FileExistsError, match=r"holds a run already .*resume=True.*--resume"):
        run(whole[2], resume=False)
    assert (whole[2] / FILE).read_bytes() == before


def test_a_second_process_that_comes_later_is_not_refused(whole, monkeypatch):
    """The first one has begun the history already."""
    monkeypatch.setattr("minitransformer.training.checkpointing.rank_and_size", lambda: (1, 2))
    refuse_existing(whole[2], resume=False)
    monkeypatch.setattr("minitransformer.training.checkpointing.rank_and_size", lambda: (0, 2))
    with pytest.raises(FileExistsError, match="holds a run already"):
        refuse_existing(whole[2], resume=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 37}, r"it had steps 36, now 37\. Use"),
        ({"lr": 0.03, "seed": 4}, r"lr 0\.02, now 0\.03; seed 3, now 4\. "),
        ({"schedule": "cosine"}, "schedule linear, now cosine"),
        ({"accumulate": 2}, "accumulate 1, now 2"),
        ({"model": model(n_layers=1)}, "the model's n_layers 2, now 1; the shape of .*and 11 more"),
        ({"model": model(dropout=0.1)}, "the model's dropout 0.3, now 0.1"),
        ({"strategy": mt.strategies.LastLayers(1)}, r"strategy Full\(\), now LastLayers\(n=1\)"),
        ({"objective": lambda model, batch: model(batch.ids).sum()}, "objective causal_lm_loss, now"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_the_checkpoint_of_another_run_is_refused(whole, changes, message):
    with pytest.raises(ValueError, match=f"is the checkpoint of another run: .*{message}"):
        run(whole[2], **changes)


@pytest.mark.parametrize("which", ["train", "valid"])
def test_other_data_are_refused(whole, which):
    """As many texts as before, one token of one of them is another."""
    data = {"train": texts(), "valid": texts(20, 1)}
    first, *rest = data[which].ids
    other = mt.data.EncodedTexts(((first[0] % 20 + 1, *first[1:]), *rest), None, 0)
    with pytest.raises(ValueError, match=rf"it had {which} \d+ examples, hash \w+, now \d+ ex"):
        mt.pretrain(
            model(), **data | {which: other}, checkpoint=whole[2], resume=True, steps=STEPS,
            validate_every=9, lr=0.02, batch_size=8, seed=3, precision="highest", progress=False,
        )  # fmt: skip


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(whole, tmp_path):
    """A limit on the size of files fails in the middle of the write, as a full disk does."""
    write = Checkpoint.write

    def limited(self, step):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if step == 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        try:
            write(self, step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError) as error:
        patch.setattr(Checkpoint, "write", limited)
        run(tmp_path)
    assert "could not be written (File too large); the previous one is unchanged: make room" in str(
        error.value
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE, HISTORY]
    assert read(tmp_path / FILE)[0]["step"] == 8
    assert_same_run(*run(tmp_path), tmp_path, whole)


def test_a_disk_that_is_full_for_a_line_of_the_history(whole, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(OSError, match=r"history.jsonl could not be written \(File too large\)"):
            run(tmp_path, checkpoint_every=STEPS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < len(History.read(tmp_path / HISTORY).steps) < STEPS, "its half line is passed over"
    assert_same_run(*run(tmp_path), tmp_path, whole)


def test_write_whole_leaves_the_old_file_on_any_error(tmp_path, monkeypatch):
    (path := tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_damaged_files_say_so(whole, tmp_path):
    raw = (whole[2] / FILE).read_bytes()
    (tmp_path / HISTORY).write_bytes((whole[2] / HISTORY).read_bytes())
    for damaged in (raw[:5000], b"", safetensors.torch.save({"w": torch.ones(2)})):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is not a whole checkpoint .*to start afresh"):
            run(tmp_path)
    (tmp_path / FILE).write_bytes(raw)
    (tmp_path / HISTORY).write_text("")
    with pytest.raises(ValueError, match="has 0 bytes, at the checkpoint it had"):
        run(tmp_path)


def test_a_history_is_read_while_it_is_written(whole, tmp_path):
    history = History.read(whole[2] / HISTORY)
    assert history == History(whole[1].steps, whole[1].validations, whole[1].best)
    assert repr(history) == repr(whole[1]) and history.plot().lines
    lines = (whole[2] / HISTORY).read_text().splitlines()
    assert len(lines) == STEPS + len(whole[1].validations)
    (path := tmp_path / HISTORY).write_text("\n".join(lines[:12])[:-3])
    assert len(History.read(path).steps) == 10 and len(History.read(path).validations) == 1
    path.write_text(json.dumps({"step": 0, "loss": 1.0}) + "\nnonsense\n")
    with pytest.raises(ValueError, match=r"history.jsonl, line 2: not an entry of a history"):
        History.read(path)


def test_each_line_is_in_the_file_at_once(tmp_path, monkeypatch):
    add, seen = History.add, []

    def spy(self, entry):
        result = add(self, entry)
        seen.append(progress_of(tmp_path))
        return result

    monkeypatch.setattr(History, "add", spy)
    run(tmp_path, steps=10)
    assert seen == list(range(1, 13))


@pytest.mark.parametrize("first", [0, 1, 5, 6, 7, 12, 17])
def test_endless_goes_on_in_the_middle_of_an_epoch(first):
    recipe = Recipe(**RECIPE)
    everything = [(s, e, b.indices) for s, e, b in endless(texts(), recipe)]
    assert [(s, e, b.indices) for s, e, b in endless(texts(), recipe, first)] == everything[first:]
    assert len(everything) == 20 and everything[6][1] == 1 and everything[5][1] == 0


def test_numbers_that_make_no_run_are_refused(tmp_path):
    for name in ("steps", "batch_size", "accumulate"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got -1"):
            run(None, **{name: -1})
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got -1"):
        run(tmp_path, checkpoint_every=-1)
    with pytest.raises(ValueError, match="schedule='steps' is not known; choose one of linear"):
        Recipe(**RECIPE, schedule="steps")


def test_a_tokenizer_of_another_model_is_refused_before_the_first_step():
    data = mt.data.EncodedTexts(((5, 23, 4),), None, 0)
    with pytest.raises(ValueError, match=r"valid has the id 23, the model only 23 tokens .*belong"):
        mt.pretrain(model(), texts(), data, steps=1, progress=False)
