"""The runner: nothing lost, nothing twice, the rate chosen on validation, the measures right."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import minitransformer as mt
from minitransformer.__main__ import main
from minitransformer.lab import experiments as ex
from minitransformer.lab import results as res
from minitransformer.lab.baseline import tf_idf
from minitransformer.lab.forgetting import CANDIDATES, moved, pairing_accuracy
from minitransformer.lab.memory import PeakMemory

TRIAL = res.Trial("toys", "head-only", 16, 0, 1e-2, 4)
RESULT = res.Result(TRIAL, 0.5, 0.7, {"toys": 0.25}, False, 1.5, 34, 8.0, 0.125, {"head": 0.5})


def words(n: int = 200, seed: int = 0) -> mt.data.LabelledTexts:
    """Texts whose label is a word that occurs in them."""
    rng = np.random.default_rng(seed)
    fill = ["film", "plot", "music", "the", "a", "of", "actor", "scene"]
    labels = tuple(int(y) for y in rng.integers(0, 2, n))
    texts = tuple(
        " ".join([*rng.choice(fill, rng.integers(2, 6)), ["bad", "good"][y], str(i)])
        for i, y in enumerate(labels)
    )
    return mt.data.LabelledTexts(texts, labels, ("negative", "positive"), "toys")


@pytest.fixture
def lab(tokenizer):
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=32)
    domains = {"toys": words(), "others": words(60, 1)}
    return ex.Lab(
        mt.Encoder(config), tokenizer, domains, words(40, 2).texts, precision="highest"
    )  # fmt: skip


GRID = ex.Grid(("toys",), ("head-only", "tf-idf"), (16, 40), (0, 1), (0.5, 1.0), 16, 3, 1)


def test_a_grid_searches_the_rate_for_few_labels_and_takes_it_over_for_more():
    def pretend(trial):
        better = 0.9 if trial.lr == 1.5e-3 else 0.5
        return dataclasses.replace(RESULT, trial=trial, valid_accuracy=better)

    made = [r.trial for r in ex.trials(GRID, pretend)]
    head = [(t.labels, t.seed, t.lr, t.steps) for t in made if t.method == "head-only"]
    assert head == [
        (16, 0, 1.5e-3, 3), (16, 0, 3e-3, 3), (16, 1, 1.5e-3, 3),
        (40, 0, 1.5e-3, 3), (40, 1, 1.5e-3, 3),
    ]  # fmt: skip
    assert [(t.labels, t.seed, t.lr) for t in made if t.method == "tf-idf"] == [
        (16, 0, 0.0), (16, 1, 0.0), (40, 0, 0.0), (40, 1, 0.0)
    ]  # fmt: skip
    assert len(GRID) == len(made) == len(set(made))


def test_the_rate_is_the_one_with_the_best_validation_not_test():
    def result(seed, lr, valid, test):
        trial = dataclasses.replace(TRIAL, seed=seed, lr=lr)
        return dataclasses.replace(
            RESULT, trial=trial, valid_accuracy=valid, accuracy={"toys": test}
        )

    results = [result(0, 1e-2, 0.6, 0.9), result(0, 1e-3, 0.8, 0.7), result(1, 1e-3, 0.5, 0.6)]
    (cell,) = res.chosen(results).values()
    assert cell == results[1:]
    assert "0.650 ± 0.071" in res.table(results)


def test_every_strategy_has_the_same_number_of_steps():
    grid = ex.Grid(min_steps=50, epochs=2, batch_size=32)
    assert [grid.steps(n) for n in (16, 800, 801, 8000)] == [50, 50, 52, 500]


def test_a_run_is_measured_and_resumed_without_doing_anything_twice(lab, tmp_path, monkeypatch):
    path = tmp_path / "new" / "results.jsonl"
    results = ex.run(lab, GRID, path, progress=False)
    assert len(results) == len(GRID) == len(path.read_text().splitlines())
    assert res.read(path) == results
    first = results[0]
    assert set(first.accuracy) == {"toys", "others"} and first.trained == 42
    assert first.moved["head"] > 0 == first.moved["block 0"] and first.seconds > 0
    assert first.pairs == lab.pairs_before, "a frozen encoder forgets nothing"
    text = path.read_text()
    monkeypatch.setattr(ex.Lab, "run", lambda *_: pytest.fail("ran again"))
    assert ex.run(lab, GRID, path, progress=False) == results
    assert path.read_text() == text


def test_a_result_is_repeated_by_the_same_trial(lab):
    for method in ("full", "lora:2"):
        a, b = (lab.run(dataclasses.replace(TRIAL, method=method)) for _ in range(2))
        assert (a.accuracy, a.valid_loss, a.moved) == (b.accuracy, b.valid_loss, b.moved)
        assert a.moved["block 0"] > 0
    a = lab.run(dataclasses.replace(TRIAL, method="full"))
    other = lab.run(dataclasses.replace(TRIAL, method="full", seed=1))
    assert other.valid_loss != a.valid_loss


def test_a_cut_off_last_line_is_done_again_and_a_broken_one_refused(lab, tmp_path):
    path = tmp_path / "results.jsonl"
    whole = ex.run(lab, GRID, path, progress=False)
    text = path.read_text()
    path.write_text(text[:-30])
    again = ex.run(lab, GRID, path, progress=False)
    assert [r.trial for r in again] == [r.trial for r in whole]
    lines = map(json.loads, path.read_text().splitlines())
    assert [line["trial"] for line in lines] == [dataclasses.asdict(r.trial) for r in whole]
    assert len(path.read_text().splitlines()) == len(GRID)
    path.write_text(text.replace('"labels": 40', '"labels": forty', 1))
    with pytest.raises(ValueError, match=r"results.jsonl, line \d+: not a result"):
        ex.run(lab, GRID, path, progress=False)
    path.write_text('{"text": "hello"}\n')
    with pytest.raises(ValueError, match="line 1: not a result of these experiments"):
        res.read(path)
    assert res.read(tmp_path / "none.jsonl") == []


def test_a_file_that_is_not_of_results_is_left_as_it_is(lab, tmp_path):
    path = tmp_path / "mine"
    line = json.dumps(dataclasses.asdict(RESULT))
    for foreign in (
        "text,label\na,good\nlast row,good", '{"name": "mine"}', "[1]", '"trial"', "3",
        line + "\nlast row", line + '\n{"text": 1}', 'note\n{"trial": {"dom', "\xff",
    ):  # fmt: skip
        path.write_text(foreign, encoding="latin1")
        with pytest.raises(ValueError, match=r"mine, line \d: not a result"):
            ex.run(lab, GRID, path, progress=False)
        assert path.read_text(encoding="latin1") == foreign


def test_a_last_line_is_cut_only_if_it_begins_as_a_result(tmp_path):
    path, line = tmp_path / "results.jsonl", json.dumps(dataclasses.asdict(RESULT))
    for rest in ("", "{", '{"tri', line[:40], line[:-1]):
        path.write_text(f"{line}\n{rest}")
        assert res.read(path) == [RESULT] and path.read_text() == f"{line}\n{rest}"
        assert res.read(path, mend=True) == [RESULT] and path.read_text() == f"{line}\n"
    path.write_text(line)  # whole but for the end of the line
    assert res.read(path, mend=True) == [RESULT] and path.read_text() == f"{line}\n"


def test_a_trial_is_known_by_all_that_it_depends_on(lab, tokenizer, tmp_path):
    torch.manual_seed(1)
    other = mt.Encoder(lab.encoder.config)
    first, second, unrelated = words(), words(60, 1), words(40, 2).texts
    domains = {"toys": first, "others": second}
    noise = dataclasses.replace(first, labels=tuple(1 - y for y in first.labels))
    renamed = dataclasses.replace(first, label_names=("bad", "good"))
    text = dataclasses.replace(second, texts=("another text", *second.texts[1:]))
    words_of = mt.data.train_tokenizer(first.texts, "words", 80, 32)

    def lab_of(encoder=lab.encoder, tokenizer=tokenizer, domains=domains, unrelated=unrelated, **options):  # fmt: skip
        return ex.Lab(encoder, tokenizer, domains, unrelated, **{"precision": "highest"} | options)

    same = lab_of(domains={n: dataclasses.replace(d, source="elsewhere") for n, d in domains.items()})  # fmt: skip
    changed = [
        lab_of(other), lab_of(pooling="cls"), lab_of(precision="medium"), lab_of(tokenizer=words_of),
        lab_of(domains={"toys": first}), lab_of(domains={"toys": noise, "others": second}),
        lab_of(domains={"toys": renamed, "others": second}), lab_of(unrelated=unrelated[1:]),
        lab_of(domains={"toys": first, "others": text}),
    ]  # fmt: skip
    assert same.basis == lab.basis
    assert len({lab.basis, *(c.basis for c in changed)}) == 1 + len(changed)
    grid = dataclasses.replace(GRID, methods=("head-only",), labels=(16,), seeds=(0,))
    path = tmp_path / "results.jsonl"
    mine, others = (ex.run(a, grid, path, progress=False) for a in (lab, changed[5]))
    assert ex.run(lab, grid, path, progress=False) == mine != others
    assert len(res.read(path)) == len(mine) + len(others)
    (cell,) = res.chosen(res.read(path)).values()
    assert {r.trial.basis for r in cell} == {changed[5].basis}, "the last ones count"


SCRIPT = """
import sys, test_experiments as t
lab = t.lab.__wrapped__(t.mt.load_pretrained("all-MiniLM-L6-v2")[1])
t.ex.run(lab, t.GRID, sys.argv[1], progress=False)
"""


def test_killed_at_any_moment_it_goes_on_without_loss_or_doubling(lab, tmp_path):
    path = tmp_path / "results.jsonl"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(path)]
    kept: list[str] = []
    for lines in (1, 3):  # killed as soon as this many results are there
        process = subprocess.Popen(command, env=env)
        while not path.exists() or path.read_text().count("\n") < lines:
            if process.poll() is not None:
                break  # the machine is busy, and it has come to the end before
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(600) in (0, -signal.SIGKILL)
        now = path.read_text().splitlines()
        assert now[: len(kept)] == kept
        kept = [line for line in now if line.endswith("}}") or line.endswith("null}")]
    ex.run(lab, GRID, path, progress=False)
    results = res.read(path)
    assert path.read_text().splitlines()[: len(kept)] == kept
    assert len({r.trial for r in results}) == len(results) == len(GRID)


@pytest.mark.trains
def test_a_collapsed_model_is_counted(lab):
    trial = dataclasses.replace(TRIAL, method="full", lr=3.0, steps=3)
    result = lab.run(trial)
    assert result.collapsed
    table = res.table([result])
    assert "1 of 1" in table and "nan" not in table, "one seed has no spread"


def test_too_many_texts_an_unknown_domain_and_one_label_only(lab):
    with pytest.raises(ValueError, match="cannot take 1000 of"):
        lab.run(dataclasses.replace(TRIAL, labels=1000))
    with pytest.raises(KeyError, match="no domain 'plays'; choose one of toys, others"):
        lab.run(dataclasses.replace(TRIAL, domain="plays"))
    with pytest.raises(ValueError, match="1 texts of toys with seed 0 all have one label"):
        lab.run(dataclasses.replace(TRIAL, labels=1))


@pytest.mark.parametrize("method", ["full", "tf-idf"])
def test_test_parts_are_compared_by_the_names_of_labels(lab, tokenizer, method, monkeypatch):
    """The same texts, numbered the other way round, give the same accuracy; other names none."""
    toys = words()
    turned = dataclasses.replace(
        toys, labels=tuple(1 - y for y in toys.labels), label_names=toys.label_names[::-1]
    )
    both = ex.Lab(lab.encoder, tokenizer, {"toys": toys, "turned": turned}, words(40, 2).texts)
    names = [t.label_names for t in both.numbered(TRIAL).values()]
    assert names == [toys.label_names] * 2
    accuracy = both.run(dataclasses.replace(TRIAL, method=method, lr=1e-2)).accuracy
    assert abs(accuracy["toys"] - accuracy["turned"]) < 0.35, "two random halves of one task"
    other = dataclasses.replace(toys, label_names=("favourable", "unfavourable"))
    mixed = ex.Lab(lab.encoder, tokenizer, {"toys": toys, "others": other}, words(40, 2).texts)
    monkeypatch.setattr(ex.Lab, "run", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="has the label 'favourable'; known labels: 'negative'"):
        ex.run(mixed, GRID, "nowhere.jsonl", progress=False)


def test_what_would_stop_a_later_trial_stops_the_first(lab, monkeypatch):
    monkeypatch.setattr(ex.Lab, "run", lambda *_: pytest.fail("trained"))
    for change, message in (
        ({"labels": (16, 1000)}, "cannot take 1000 of .*; take from 1 to 160"),
        ({"methods": ("tf-idf", "nonsense")}, "no strategy 'nonsense'"),
    ):
        with pytest.raises(ValueError, match=message):
            ex.run(lab, dataclasses.replace(GRID, **change), "nowhere.jsonl", progress=False)
    for wrong in ({"batch_size": 0}, {"lr_factors": (1.0, -1.0)}, {"labels": (1,)}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
            dataclasses.replace(GRID, **wrong)


def test_two_runs_do_not_write_to_one_file(lab, tmp_path):
    with open(tmp_path / "r.jsonl", "a") as file:
        ex.refuse_second(file)
        with pytest.raises(ValueError, match="another process is adding results to"):
            ex.run(lab, GRID, tmp_path / "r.jsonl", progress=False)


def test_a_label_with_one_example_is_named(tokenizer):
    texts = words(20)
    odd = mt.data.LabelledTexts(
        (*texts.texts, "so so"), (*texts.labels, 2), (*texts.label_names, "mixed"), "toys"
    )
    with pytest.raises(ValueError, match="label 'mixed' has 1 different text, too few for 3 parts"):
        ex.Lab(mt.load_pretrained("all-MiniLM-L6-v2")[0], tokenizer, {"toys": odd}, ())


def test_tf_idf_learns_the_word():
    train, valid, test = words(300).split(seed=0)
    assert tf_idf(train, valid).score(test.texts, test.labels) == 1.0


def test_pairing_is_chance_without_knowledge_and_one_with_equal_halves(tokenizer):
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(d_model=20, n_heads=5, n_layers=1, d_ff=28, positions="none")
    encoder = mt.Encoder(config)
    twice = [f"{t} {t}" for t in words(60).texts]
    assert pairing_accuracy(encoder, tokenizer, [*twice, "alone"]) == 1.0
    shuffled = [f"good film {i} of {i * 7 % 60 + 100} scenes" for i in range(60)]
    assert pairing_accuracy(encoder, tokenizer, shuffled) < 0.5
    with pytest.raises(ValueError, match=f"at least {CANDIDATES} texts"):
        pairing_accuracy(encoder, tokenizer, twice[:5])


def test_moved_is_relative_to_the_layers_size(lab):
    a, b = lab.new_model(TRIAL), lab.new_model(TRIAL)
    with torch.no_grad():
        for p in b.encoder.blocks[1].parameters():
            p *= 1.5
    assert moved(a, b) == pytest.approx(
        {"embeddings": 0, "block 0": 0, "block 1": 0.5, "head": 0}, abs=1e-6
    )


def test_peak_memory_sees_what_is_freed_again():
    with PeakMemory() as memory:
        block = torch.ones(100 * 2**18)  # 100 MiB
        time.sleep(1)  # to be seen, also when the machine is busy
        del block
    assert 80 < memory.mib < 200


def test_the_command_runs_and_resumes(tmp_path, capsys, tokenizer, monkeypatch):
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=32)
    mt.save_pretrained(mt.Encoder(config), tokenizer, tmp_path / "tiny")
    table, out = tmp_path / "toys.csv", tmp_path / "results.jsonl"
    texts = words(120)
    table.write_text("text,label\n" + "".join(
        f"{t},{texts.label_names[y]}\n" for t, y in zip(texts.texts, texts.labels, strict=True)
    ))  # fmt: skip
    command = [
        "experiment", "--data", str(table), "--methods", "head-only", "tf-idf", "--labels", "16",
        "--seeds", "0", "1", "--lr-factors", "1", "--min-steps", "2", "--model",
        str(tmp_path / "tiny"), "--out", str(out),
    ]  # fmt: skip
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "head-only" in first and "±" in first and "before fine-tuning: pairs" in first
    text = out.read_text()
    assert main(command) == 0
    assert capsys.readouterr().out == first and out.read_text() == text
    assert "most frequent label: " in first, "beside the accuracies"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ex, "run", interrupt)
        assert main(command) == 130
    assert "results.jsonl has the results so far; the same command" in capsys.readouterr().err
    assert main(["experiment", "--methods", "nonsense", "--out", str(out)]) == 2
    assert "no strategy 'nonsense'" in capsys.readouterr().err
