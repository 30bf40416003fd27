"""The loop against plain torch, and what a strategy may and may not move."""

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix
from toys import CLASSES, classifier, state_of, toy, train

import minitransformer as mt
from minitransformer.training import finetune as training
from minitransformer.training import loop
from minitransformer.training.objectives import classification_loss
from minitransformer.training.optim import make_adamw, warmup_then_cosine, warmup_then_linear
from minitransformer.training.precision import matmul_precision, resolve
from minitransformer.training.strategies import Full, HeadOnly, Progress, Strategy, layers_of

START = Progress(0, 1, 0)


def test_finetune_equals_a_plain_torch_loop():
    """Two epochs in float64 by hand: shuffled batches, warm-up, clipping, AdamW in its plain form."""
    ours, plain, data = classifier().double(), classifier().double(), toy()
    options = dict(
        epochs=2, lr=0.01, batch_size=16, warmup=0.25, weight_decay=0.3, clip=0.5, seed=3
    )
    history = train(ours, data, **options)

    decayed = [p for n, p in plain.named_parameters() if p.ndim > 1]
    rest = [p for n, p in plain.named_parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": rest, "weight_decay": 0.0}], weight_decay=0.3, fused=False
    )
    losses, step = [], 0
    for epoch in range(2):
        for batch in data.batches(16, seed=3000 + epoch):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * min((step + 1) / 2, (8 - step) / 6)
            loss = torch.nn.functional.cross_entropy(plain(batch.ids, batch.keep), batch.labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
    assert history.best is history.validations[1], "the comparison needs the last epoch's weights"
    np.testing.assert_allclose([s["loss"] for s in history.steps], losses, atol=1e-10)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0, msg=name)


@pytest.mark.trains
def test_finetune_learns_what_can_be_learned():
    model, data = classifier(dropout=0.1, pooling="mean"), toy(200)
    train(model, data, epochs=25, lr=1e-2, precision="auto")
    assert mt.evaluate(model, data).accuracy == 1.0


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_head_only_moves_the_head_and_nothing_else(pooling):
    model = classifier(dropout=0.3, pooling=pooling)
    before = state_of(model)
    train(model, toy(), HeadOnly(), epochs=2)
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    pooler = {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
    head = {"classifier.weight", "classifier.bias"}
    assert moved == (head | pooler if pooling == "cls" else head)


def test_full_moves_every_weight():
    model = classifier()
    before = state_of(model)
    train(model, toy(), Full(), epochs=1, lr=1e-2)
    still = {name for name, t in model.state_dict().items() if torch.equal(t, before[name])}
    assert not still


def test_frozen_layers_have_no_dropout():
    """Mistake 54: without gradients but with dropout, the head would learn from noisy features."""
    model, batch = classifier(dropout=0.5), next(toy().batches(16))
    layers = layers_of(model)
    loop.set_trainable(model, layers, HeadOnly().rates(len(layers), START), HeadOnly())
    features = [model.encoder(batch.ids, batch.keep) for _ in range(2)]
    assert torch.equal(*features)
    assert model.dropout.training and not model.encoder.blocks[0].training
    loop.set_trainable(model, layers, Full().rates(len(layers), START), Full())
    assert not torch.equal(model.encoder(batch.ids), model.encoder(batch.ids))


def test_optimizer_keeps_state_only_for_what_learns():
    model, batch = classifier(), next(toy().batches(16))
    layers = layers_of(model)
    optimizer = make_adamw(layers, 0.01)
    loop.set_trainable(model, layers, HeadOnly().rates(len(layers), START), HeadOnly())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    classification_loss(model, batch).backward()
    optimizer.step()
    head = [*model.classifier.parameters(), *model.encoder.pooler.parameters()]
    assert set(optimizer.state) == set(head)


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm_position": "pre"}, {"norm": "rms", "norm_position": "pre", "bias": False}],
    ids=str,
)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_make_adamw_has_every_parameter_once_and_decays_only_matrices(changes, pooling):
    config = classifier().encoder.config.with_(pooler=pooling == "cls", **changes)
    model = mt.SequenceClassifier(mt.Encoder(config), CLASSES, pooling)
    groups = make_adamw(layers_of(model), 0.2).param_groups
    listed = [p for g in groups for p in g["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    names = {p: n for n, p in model.named_parameters()}
    for group in groups:
        for p in group["params"]:
            assert (group["weight_decay"] == 0.0) == (p.ndim == 1), names[p]


def test_seed_decides_order_and_dropout():
    def losses(seed):
        model = classifier(0.2)
        torch.rand(next(draws))  # what the caller drew before must not matter
        return [s["loss"] for s in train(model, toy(), epochs=1, seed=seed).steps]

    draws = iter(range(1, 9))

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


@pytest.mark.trains
def test_best_epoch_is_kept():
    model, data = classifier(pooling="mean"), toy(120)

    class Wreck(Full):
        """Learns for an epoch; after it whatever speaks for a class speaks against it."""

        def rates(self, n_layers, at):
            if (at.epoch, at.step % 4) == (1, 0):  # four steps per epoch
                with torch.no_grad():
                    model.classifier.weight.neg_()
            return super().rates(n_layers, at)

    train(model, data, epochs=20, lr=1e-2, precision="auto")  # something to lose
    history = train(model, data, Wreck(), epochs=3, lr=1e-3, warmup=0.0, precision="auto")
    assert history.best is history.validations[0]
    assert mt.evaluate(model, data).accuracy == history.validations[0]["valid_accuracy"]
    assert history.validations[0]["valid_accuracy"] > history.validations[2]["valid_accuracy"]


def test_clip_bounds_the_gradient(monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [p.grad.flatten() for g in self.param_groups for p in g["params"]]
        norms.append(torch.cat(grads).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(classifier(), toy(), epochs=1, clip=0.01)
    assert max(norms) < 0.0101 and min(norms) > 0.0099


def test_finetune_leaves_the_callers_torch_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    torch.set_float32_matmul_precision("high")
    model = classifier()
    torch.manual_seed(7)
    train(model, toy(), epochs=1, precision="medium")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    assert not model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.trains
def test_bfloat16_trains_close_to_float32():
    exact, rough = classifier(), classifier()
    a = train(exact, toy(), epochs=1, lr=1e-3).steps
    b = train(rough, toy(), epochs=1, lr=1e-3, precision="bfloat16").steps
    difference = max(abs(x["loss"] - y["loss"]) for x, y in zip(a, b, strict=True))
    assert 0 < difference < 0.1
    assert all(p.dtype == torch.float32 for p in rough.parameters())


@pytest.mark.parametrize(
    ("has", "allowed", "expected"),
    [
        ({"avx512_bf16": True}, "", "bfloat16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "ALL", "bfloat16"),
        ({"avx512_bf16": True, "amx_bf16": True}, "AVX512_CORE_BF16", "bfloat16"),
        ({"avx512_bf16": True, "amx_bf16": True}, "avx512_core", "highest"),
        ({"avx512_bf16": True, "amx_bf16": True}, "AVX2", "highest"),
        ({"avx512_f": True, "avx512_bf16": False}, "", "highest"),
        ({}, "", "highest"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it_and_plain_float32_elsewhere(
    monkeypatch, has, allowed, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert resolve("auto") == expected
    assert resolve("medium") == "medium"


def test_auto_is_plain_float32_where_torch_cannot_say_what_the_cpu_has(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve("auto") == "highest"


def test_a_loss_that_is_no_number_says_so():
    model = classifier()
    model.classifier.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 0 .*lower learning rate"):
        train(model, toy(), epochs=1)


def test_a_last_step_that_destroys_the_model_says_so():
    """The loss of a step is that before it; only validation sees what the last one did."""
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step 1 "):
        train(classifier(), toy(), epochs=1, batch_size=60, lr=1e30, warmup=0.0)


def test_labels_numbered_otherwise_are_refused():
    """A table of its own with fewer labels counts them anew: 1 would mean another class."""
    data, model = toy(), classifier()
    other = mt.data.EncodedTexts(data.ids, data.labels, 0, ("c", "b", "a"))
    with pytest.raises(ValueError, match=r"train has the labels \('a', 'b', 'c'\), valid \('c'"):
        mt.finetune(model, data, other, progress=False)
    train(model, data, epochs=1)
    assert model.labels == ("a", "b", "c")
    fewer = mt.data.EncodedTexts(data.ids, tuple(y % 2 for y in data.labels), 0, ("b", "c"))
    for wrong in (other, fewer):
        with pytest.raises(ValueError, match=r"read_table\(path, label_names=model.labels\)"):
            mt.evaluate(model, wrong)
    mt.evaluate(model, mt.data.EncodedTexts(data.ids, data.labels, 0))  # without names: as they are


def test_each_strategy_has_a_rate_of_its_own_and_the_caller_overrides_it():
    def peak(strategy, **options):
        return max(s["lr"] for s in train(classifier(), toy(), strategy, epochs=1, **options).steps)

    assert peak(Full()) == peak(None) == Full.learning_rate
    assert peak(HeadOnly()) == HeadOnly.learning_rate > Full.learning_rate
    assert peak(HeadOnly(), lr=0.25) == 0.25


def test_rates_scale_each_layer_and_thaw_it_when_asked():
    """The interface for the strategies to come: another rate a layer, another set an epoch."""

    class Thaw(Strategy):
        def rates(self, n_layers, at):
            return [0.0] * (n_layers - 2) + ([0.0, 1.0] if at.epoch == 0 else [0.5, 1.0])

    seen = {}
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        moved = {
            g["layer"] for g in self.param_groups if any(p.grad is not None for p in g["params"])
        }
        rates = {g["layer"]: g["lr"] for g in self.param_groups}
        seen[len(seen)] = moved, rates
        return step(self, *args, **kwargs)

    model, data = classifier(), toy(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        train(model, data, Thaw(), epochs=2, batch_size=20)
    assert seen[0][0] == {4} and seen[1][0] == {3, 4}  # embeddings, three blocks, head
    assert seen[0][1][3] == 0 and seen[1][1][3] == 0.5 * seen[1][1][4] > 0


def test_best_epoch_of_equal_accuracies_has_the_smaller_loss(monkeypatch):
    figures = iter([(0.5, 3.0), (0.5, 1.0), (0.5, 2.0)])

    def fixed(*_):
        accuracy, loss = next(figures)
        return mt.evaluate(model, data).__class__(
            loss, accuracy, torch.zeros(1, 3), np.zeros(1, int), ()
        )

    model, data = classifier(), toy(20)
    states = []
    monkeypatch.setattr(
        training, "evaluate", lambda *a, **k: (states.append(state_of(model)), fixed())[1]
    )
    history = train(model, data, epochs=3, lr=1e-3)
    assert history.best is history.validations[1]
    assert all(torch.equal(t, states[1][name]) for name, t in model.state_dict().items())
    assert not all(torch.equal(t, states[2][name]) for name, t in model.state_dict().items())


def test_an_unknown_precision_is_refused_and_the_setting_put_back_after_an_error():
    with pytest.raises(
        ValueError, match=r"precision='half' is not known; choose one of .*bfloat16"
    ):
        getattr(resolve, "__wrapped__", resolve)("half")  # without its types checked
    torch.set_float32_matmul_precision("highest")
    with pytest.raises(RuntimeError, match="stop"), matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        raise RuntimeError("stop")
    assert torch.get_float32_matmul_precision() == "highest"


def test_predict_builds_no_graph_and_draws_no_random_numbers():
    model, data = classifier(dropout=0.4).train(), toy(20)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    logits = mt.predict(model, data, batch_size=3)
    assert not logits.requires_grad and torch.equal(torch.rand(1), expected)
    assert torch.equal(mt.predict(model, data, batch_size=3), logits)


def test_labels_must_fit_the_model():
    data = toy()
    unknown = mt.data.EncodedTexts(data.ids, (*data.labels[:-1], 3), 0)
    with pytest.raises(ValueError, match="train has label 3, the model only 3 classes"):
        train(classifier(), unknown)
    bare = mt.data.EncodedTexts(data.ids, None, 0)
    with pytest.raises(ValueError, match="train has no labels"):
        train(classifier(), bare)
    with pytest.raises(ValueError, match="no labels to evaluate"):
        mt.evaluate(classifier(), bare)


@pytest.mark.parametrize("schedule", [warmup_then_linear, warmup_then_cosine])
def test_schedules_start_above_zero_rise_to_1_and_end_near_zero(schedule):
    for steps, warmup in ((1, 0.1), (7, 0.1), (100, 0.1), (7, 0.0)):
        factors = [schedule(s, steps, warmup) for s in range(steps)]
        assert 0 < factors[0] <= 1 and max(factors) == 1.0
        assert 0 < factors[-1] <= max(1.2 / steps, 0.02)
        peak = factors.index(1.0)
        assert factors[: peak + 1] == sorted(factors[: peak + 1])
        assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_cosine_is_torchs_after_the_warm_up():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    for step in range(2, 10):
        assert warmup_then_cosine(step, 10, 0.2) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_the_schedule_that_is_asked_for_is_used():
    recipe = loop.Recipe(
        steps=10, validate_every=1, lr=0.5, batch_size=8, warmup=0.2, weight_decay=0.0, clip=1.0,
        seed=0, precision="highest", schedule="cosine",
    )  # fmt: skip
    assert [recipe.rate(s) for s in (0, 4)] == pytest.approx([0.25, 0.5 * 0.854], abs=1e-3)


def test_evaluate_agrees_with_scikit_learn_in_the_order_of_the_data():
    model, data = classifier(dropout=0.4).train(), toy(50)
    metrics = mt.evaluate(model, data, batch_size=7, precision="highest")
    with torch.no_grad():
        alone = [copy.deepcopy(model).eval()(torch.tensor([ids]))[0] for ids in data.ids]
    torch.testing.assert_close(metrics.logits, torch.stack(alone), atol=1e-5, rtol=0)
    assert metrics.accuracy == accuracy_score(data.labels, metrics.predictions)
    assert np.array_equal(metrics.confusion, confusion_matrix(data.labels, metrics.predictions))
    assert model.training, "the mode is put back"


def test_report_says_when_the_model_has_collapsed():
    model = classifier()
    model.classifier.bias.data[1] = 1e3
    assert "says 'b' to everything" in mt.evaluate(model, toy()).report()


def test_history_plots_itself():
    history = train(classifier(), toy(), epochs=2)
    ax = history.plot()
    assert {line.get_label() for line in ax.lines} >= {"training loss", "validation loss"}
    assert "<- kept" in repr(history)
