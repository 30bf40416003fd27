"""The exercises on pretraining: right answers however written, and the package's own functions."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import minitransformer as mt
from minitransformer.data import spans

NAMES = ("mask_tokens", "masked_loss", "corrupt_spans")
PAIRS = [
    (name, a, b)
    for name in NAMES
    for a, b in combinations(getattr(mt.check, name).mistakes, 2)
    if not a.change.keys() & b.change.keys()
]


def masks_in_place(ids, special, u, v, drawn, mask_id):
    seen, chosen = ids.clone(), (u < 0.15) & ~special
    seen[chosen & (v < 0.8)] = mask_id
    replaced = chosen & (v >= 0.8) & (v < 0.9)
    seen[replaced] = drawn[replaced]
    return seen


def masks_last(ids, special, u, v, drawn, mask_id):
    chosen = u.masked_fill(special, 1) < 0.15
    seen = torch.where(chosen & (v < 0.9), drawn, ids)
    return seen.masked_fill(chosen & (v < 0.8), mask_id)


def loss_with_ignored_index(logits, targets, chosen, keep):
    return F.cross_entropy(logits.mT, targets.masked_fill(~chosen, -100))


def loss_by_weights(logits, targets, chosen, keep):
    log_p = F.log_softmax(logits, -1)
    each = -log_p[torch.arange(len(logits))[:, None], torch.arange(targets.shape[1]), targets]
    return (each * chosen).sum() / chosen.sum()


def spans_of_the_package(ids, noise, sentinels, pad_id):
    source, _ = spans.corrupt_spans(ids.tolist(), noise.tolist(), [*sentinels.tolist(), 999])
    return F.pad(torch.tensor(source), (0, len(ids) - len(source)), value=pad_id)


def spans_by_counting(ids, noise, sentinels, pad_id):
    starts = noise & ~F.pad(noise, (1, 0))[:-1]
    with_sentinels = torch.where(starts, sentinels[starts.cumsum(0) - 1], ids)
    source = with_sentinels[starts | ~noise]
    return torch.cat([source, ids.new_full((len(ids) - len(source),), pad_id)])


RIGHT = [
    ("mask_tokens", masks_in_place), ("mask_tokens", masks_last),
    ("masked_loss", loss_with_ignored_index), ("masked_loss", loss_by_weights),
    ("corrupt_spans", spans_of_the_package), ("corrupt_spans", spans_by_counting),
]  # fmt: skip


@pytest.mark.parametrize("seed", [4, 5, 6])
@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_pass_however_written(name, answer, seed):
    result = getattr(mt.check, name)(answer, seed)
    assert result.passed, result


@pytest.mark.parametrize(("name", "a", "b"), PAIRS)
def test_two_mistakes_at_once_are_never_accepted(name, a, b):
    exercise = getattr(mt.check, name)
    assert not exercise(lambda *x: exercise.variant(*x, **a.change, **b.change)).passed


def test_slips_of_students_are_named():
    def one_number(ids, special, u, v, drawn, mask_id):
        chosen = ~special & (u < 0.15)
        return torch.where(chosen & (u < 0.8), mask_id, torch.where(chosen & (u < 0.9), drawn, ids))

    assert "number of its own, v" in mt.check.mask_tokens(one_number).message

    def in_the_ids(ids, special, u, v, drawn, mask_id):
        ids[(u < 0.15) & ~special & (v < 0.8)] = mask_id
        return ids

    assert "changes its argument ids" in mt.check.mask_tokens(in_the_ids).message

    def shared_criterion(logits, targets, chosen, keep):
        return F.cross_entropy(logits.mT, targets * chosen, ignore_index=0)

    assert mt.check.masked_loss(shared_criterion).mistakes == ("with token 0 never counted",)

    def wraps(ids, noise, sentinels, pad_id):
        starts = noise & ~noise.roll(1)
        source = torch.where(starts, sentinels[starts.cumsum(0) - 1], ids)[starts | ~noise]
        return F.pad(source, (0, len(ids) - len(source)), value=pad_id)

    assert "with the first token compared" in mt.check.corrupt_spans(wraps).message
    short = mt.check.corrupt_spans(lambda ids, noise, s, p: ids[~noise])
    assert "The shape is wrong" in short.message


def test_the_masking_of_the_package_is_this_rule():
    """With the random numbers that it draws itself."""
    rng = np.random.default_rng(0)
    vocab = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(20))])
    tokenizer = mt.data.Tokenizer.from_vocab(vocab)
    texts = mt.data.EncodedTexts(
        tuple((2, *rng.integers(5, 25, 9).tolist(), 3) for _ in range(50)), None, 0
    )
    (batch,) = texts.batches(50)
    data = mt.data.MaskedTexts(texts, tokenizer)
    masked = data.mask(batch, np.random.default_rng(7))
    again = np.random.default_rng(7)
    u = torch.from_numpy(again.random(batch.ids.shape))
    v, drawn = torch.ones_like(u), batch.ids.clone()
    v[masked.chosen] = torch.from_numpy(again.random(masked.n_targets))
    drawn[masked.chosen] = torch.from_numpy(
        data.replacements[again.integers(20, size=masked.n_targets)]
    )
    special = batch.ids < 5
    right = mt.check.mask_tokens.reference(batch.ids, special, u, v, drawn, 4)
    assert torch.equal(masked.ids, right)
