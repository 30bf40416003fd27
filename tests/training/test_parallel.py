"""A batch in parts, one after the other and side by side, has the gradient of the whole."""

import multiprocessing
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from resumable import VOCAB, model, run, texts
from torch import Tensor

import minitransformer as mt
from minitransformer.data.batches import cut
from minitransformer.data.masking import MaskedBatch, MaskedTexts
from minitransformer.data.sequences import EncodedPairs
from minitransformer.training.objectives import causal_lm_loss, masked_lm_loss, seq2seq_loss
from minitransformer.training.parallel import LossOfPart, backward, rank_and_size

TOKENIZER = mt.data.train_tokenizer(["abcdefghijklmnopqr"], "characters", bert=True)
assert TOKENIZER.vocab_size == VOCAB


def n_targets(batch) -> int:
    return batch.n_targets


def masked_model() -> mt.MaskedLM:
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(
        vocab_size=VOCAB, d_model=20, n_heads=5, n_layers=1, d_ff=28, max_len=16, dropout=0.0,
        attention_dropout=0.0, init_std=0.3, pooler=False,
    )  # fmt: skip
    return mt.MaskedLM(mt.Encoder(config)).double()


def masked_texts(n: int = 8) -> MaskedTexts:
    """Of ordinary tokens only, half of which are asked for."""
    ids = tuple(tuple(max(i, 5) for i in text) for text in texts(n).ids)
    return MaskedTexts(mt.data.EncodedTexts(ids, None, 0), TOKENIZER, share=0.5)


def masked_batch() -> MaskedBatch:
    """Of the last two texts nothing is asked."""
    (batch,) = masked_texts().batches(99, seed=0)
    chosen = batch.chosen.clone()
    chosen[-2:] = False
    return replace(batch, chosen=chosen)


def cases() -> dict:
    """A loss, a model without dropout in float64, and a batch of unequal lengths, of each kind."""
    lm = model(0.0).double()
    pair = mt.Seq2SeqLM(mt.EncoderDecoder(lm.config)).double()
    (causal,) = texts(9).batches(99)
    (pairs,) = EncodedPairs(texts(9).ids, texts(9, 1).ids, 0).batches(99)
    return {
        "causal": (causal_lm_loss, lm, causal),
        "pairs": (seq2seq_loss, pair, pairs),
        "masked": (masked_lm_loss, masked_model(), masked_batch()),
    }


def gradient(lm: torch.nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])
    lm.zero_grad()
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("kind", ["causal", "pairs", "masked"])
def test_the_gradient_of_a_batch_in_parts_is_that_of_the_whole(kind, k):
    loss_of, lm, batch = cases()[kind]
    whole = loss_of(lm, batch)
    whole.backward()
    wanted = gradient(lm)
    part_loss = LossOfPart(lm, lambda part: loss_of(lm, part), n_targets)
    value = backward(part_loss, batch, n_targets, k)
    torch.testing.assert_close(gradient(lm), wanted, atol=1e-12, rtol=0)
    assert value == pytest.approx(whole.item(), abs=1e-12)

    full = [part for part in cut(batch, k) if part.n_targets]
    if k > 1:  # the mean of the means is another number
        sum(loss_of(lm, part) / len(full) for part in full).backward()
        assert (gradient(lm) - wanted).abs().max() > 1e-3


def test_a_part_without_a_target_counts_for_nothing():
    lm, batch = masked_model(), masked_batch()
    last = cut(batch, 4)[-1]
    assert len(last) == 2 and last.n_targets == 0
    part_loss = LossOfPart(lm, lambda part: masked_lm_loss(lm, part), n_targets)
    part_loss(last).backward()
    assert gradient(lm).abs().max() == 0
    with pytest.raises(ValueError, match="a batch has no target"):
        backward(part_loss, last, n_targets)


@pytest.mark.parametrize("k", [1, 2, 4, 9, 20])
@pytest.mark.parametrize("kind", ["causal", "pairs", "masked"])
def test_the_parts_of_a_batch_are_its_rows_once_each(kind, k):
    batch = cases()[kind][2]
    parts = cut(batch, k)
    assert len(parts) == k and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sum(p.n_targets for p in parts) == batch.n_targets
    for name, value in vars(batch).items():
        mine = [getattr(part, name) for part in parts]
        if isinstance(value, Tensor):
            assert torch.equal(torch.cat(mine), value)
        elif isinstance(value, tuple):
            assert sum(mine, ()) == value
        else:
            assert all(m is value for m in mine)


def test_accumulating_trains_as_the_whole_batch_does():
    plain, parts = (run(None, steps=12, model=model(0.0).double(), accumulate=k) for k in (1, 3))
    for a, b in zip(plain[0].parameters(), parts[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    losses = [[s["loss"] for s in history.steps] for _, history in (plain, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


# --- Several processes ----------------------------------------------------------------------------


def train_as_one_of_two(rank: int, folder, results, options: dict) -> None:
    """What torchrun does for each process, in one line."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    if options.pop("masked", False):
        options |= {"model": masked_model(), "data": (masked_texts(45), masked_texts(20))}
    else:
        options["model"] = model(**options.pop("model")).double()
    trained, history = run(folder / "run", **options)
    results.put((rank, [p.tolist() for p in trained.parameters()], history.steps))
    dist.barrier()
    dist.destroy_process_group()


def train_as_two(folder, **options) -> list:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minitransformer"])
    results = context.Queue()
    processes = [
        context.Process(target=train_as_one_of_two, args=(rank, folder, results, options))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=600) for _ in processes)
    for process in processes:
        process.join(60)
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one(tmp_path, accumulate):
    """Also with a checkpoint, layers that thaw, and 45 texts in batches of 8: the last one has 5."""
    options = dict(
        steps=12, accumulate=accumulate, strategy=mt.strategies.LinearProbeThenFull(0.5)
    )  # fmt: skip
    alone, history = run(None, model=model(0.0).double(), **options)
    found = train_as_two(tmp_path, model={"dropout": 0.0}, **options)
    for _, weights, steps in found:
        for mine, wanted in zip(weights, alone.parameters(), strict=True):
            assert (torch.tensor(mine, dtype=torch.float64) - wanted).abs().max() < 1e-10
        assert [s["loss"] for s in steps] == pytest.approx(
            [s["loss"] for s in history.steps], abs=1e-10
        )
    assert found[0][1:] == found[1][1:], "both have the same weights, bit for bit"
    assert (tmp_path / "run" / "history.jsonl").read_text().count('"lr"') == 12, "written once"


def test_two_processes_share_the_masked_tokens(tmp_path):
    """Of each batch they have different numbers; each counts once."""
    alone, history = run(
        None, steps=6, model=masked_model(), data=(masked_texts(45), masked_texts(20))
    )
    for _, weights, steps in train_as_two(tmp_path, masked=True, steps=6):
        for mine, wanted in zip(weights, alone.parameters(), strict=True):
            assert (torch.tensor(mine, dtype=torch.float64) - wanted).abs().max() < 1e-10
        assert [s["loss"] for s in steps] == pytest.approx(
            [s["loss"] for s in history.steps], abs=1e-10
        )


def test_two_processes_go_on_bit_for_bit_with_dropout(tmp_path):
    """Each has random numbers of its own, and all of them are in the checkpoint."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    options = dict(steps=12, model={"dropout": 0.3}, checkpoint_every=5)
    whole = train_as_two(tmp_path / "whole", **options)
    fail_at(tmp_path / "parts", 8, options)
    assert (tmp_path / "parts" / "run" / "history.jsonl").read_text().count('"lr"') == 8
    assert train_as_two(tmp_path / "parts", **options) == whole


def fail_at(folder, step: int, options: dict) -> None:
    """Both processes die at this step, one after the other."""
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=train_and_fail, args=(rank, folder, step, dict(options)))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 1
    (folder / "meet").unlink(missing_ok=True)


def train_and_fail(rank: int, folder, step: int, options: dict) -> None:
    import os

    from minitransformer.training import loop

    refuse = loop.refuse_nan

    def stop(loss, at, rate):
        if at == step:
            os._exit(1)
        refuse(loss, at, rate)

    loop.refuse_nan = stop
    train_as_one_of_two(rank, folder, None, options)


def test_processes_that_nothing_has_joined_are_refused(monkeypatch):
    """Each would train alone, and all would write the same files."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"torchrun started 2 processes.*init_process_group"):
        run(None, steps=1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert rank_and_size() == (0, 1)
