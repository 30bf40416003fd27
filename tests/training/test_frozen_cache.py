"""Frozen layers computed once: the same result as computing them every epoch, and within memory."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from toys import classifier, state_of, toy, train
from untyped import untyped

import minitransformer as mt
from minitransformer.training.frozen_cache import FrozenPrefix, prefixes
from minitransformer.training.strategies import Strategy, named


def count_texts(model) -> list[int]:
    """Fills with the number of texts each time the embeddings compute."""
    seen: list[int] = []
    model.encoder.embeddings.register_forward_hook(lambda m, x, y: seen.append(len(y)))
    return seen


@pytest.mark.parametrize(
    "name", ["head-only", "last-layers:1", "last-layers:3", "gradual", "gradual:even", "lp-ft", "lora:2"]
)  # fmt: skip
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("switches", [{}, {"norm_position": "pre"}], ids=str)
def test_cached_equals_uncached(name, pooling, switches):
    """In float64, with dropout in what learns: every loss, every weight."""
    runs = []
    for mib in (0, 64):
        model = classifier(0.2, pooling, **switches).double()
        with nullcontext() if mib else untyped():
            history = train(model, toy(70), named(name), epochs=5, lr=1e-2, cache_mib=mib)
        runs.append((history, state_of(model)))
    (plain, expected), (cached, state) = runs
    losses = [[s["loss"] for s in h.steps] for h in (plain, cached)]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-12)
    for name, value in expected.items():
        if name.endswith("W_K.bias"):
            continue  # its gradient is 0 but for rounding, which AdamW makes into steps
        torch.testing.assert_close(state[name], value, atol=1e-11, rtol=0, msg=name)
    for a, b in zip(plain.validations, cached.validations, strict=True):
        assert a["valid_loss"] == pytest.approx(b["valid_loss"], abs=1e-6)


def test_each_text_is_computed_once():
    model, data = classifier(pooling="mean"), toy(50)
    seen = count_texts(model)
    train(model, data, named("head-only"), epochs=6, batch_size=8)
    assert sum(seen) == 2 * len(data), "once for training, once for validation"


def test_a_small_budget_keeps_a_part_says_so_and_changes_nothing():
    data = toy(2000)
    expected = classifier(0.1, "mean")
    train(expected, data, named("head-only"), epochs=2, cache_mib=0)
    model = classifier(0.1, "mean")
    seen = count_texts(model)
    with pytest.warns(
        UserWarning, match=r"for all 2000 texts takes 2 MiB, the budget is 1: .*cache_"
    ):
        train(model, data, named("head-only"), epochs=2, cache_mib=1)
    assert 2.5 * len(data) < sum(seen) < 3.9 * len(data)
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)


def test_no_budget_keeps_nothing():
    model, data = classifier(pooling="mean"), toy(50)
    seen = count_texts(model)
    train(model, data, named("head-only"), epochs=3, cache_mib=0)
    assert sum(seen) == 6 * len(data)


def test_thawing_below_and_freezing_again_never_serves_old_features():
    """Frozen layers that learned in between give other features: a kept one would be wrong."""

    class Breathe(Strategy):
        def rates(self, n_layers, at):
            return [0.0] * (n_layers - 1) + [1.0] if at.epoch % 2 == 0 else [1.0] * n_layers

    losses = []
    for mib in (0, 64):
        model = classifier(pooling="mean").double()
        history = train(model, toy(), Breathe(), epochs=4, lr=1e-2, cache_mib=mib)
        losses.append([s["loss"] for s in history.steps])
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-12)


def test_a_text_does_not_depend_on_its_batch():
    """Looked up beside longer and shorter neighbours than those it was computed with."""
    model, data = classifier(pooling="mean").double().eval(), toy(40)
    prefix = FrozenPrefix(model, data, 8)
    prefix.freeze(3)
    for batch in data.batches(4, seed=1):
        prefix.logits(batch)
    for batch in data.batches(7, seed=2):
        expected = model(batch.ids, batch.keep)
        torch.testing.assert_close(prefix.logits(batch), expected, atol=1e-12, rtol=0)


def test_half_known_batches_are_put_together_right():
    model, data = classifier(pooling="mean").double().eval(), toy(40)
    prefix = FrozenPrefix(model, data, 8)
    prefix.freeze(2)
    prefix.logits(next(data.batches(10, seed=1)))
    for batch in data.batches(40, seed=2):
        expected = model(batch.ids, batch.keep)
        torch.testing.assert_close(prefix.logits(batch), expected, atol=1e-12, rtol=0)


def test_the_budget_is_shared_validation_first():
    model, data = classifier(), toy(2000)
    first, second = prefixes(model, (data, data), 3)
    assert (first.need, first.budget, second.budget) == (2, 3, 1)
    assert [p.budget for p in prefixes(model, (data, data), 1)] == [1, 0]


def test_real_features_are_the_same():
    """MiniLM in float32: the looked-up features against the model, on real reviews."""
    encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
    model = mt.SequenceClassifier(encoder, 2, "mean").eval()
    data = mt.data.encode(mt.data.samples(), tokenizer)
    prefix = FrozenPrefix(model, data, 64)
    prefix.freeze(5)
    with torch.no_grad():
        for seed in range(2):
            for batch in data.batches(5, seed=seed):
                expected = model(batch.ids, batch.keep)
                torch.testing.assert_close(prefix.logits(batch), expected, atol=1e-5, rtol=0)
