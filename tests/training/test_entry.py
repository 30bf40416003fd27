"""What is given to finetune, evaluate and predict is checked before a step is made."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from toys import classifier, toy, train

import minitransformer as mt
from minitransformer.training.evaluate import SHOWN, Metrics, shortened
from minitransformer.training.finetune import weights_of_classes
from minitransformer.training.loop import Recipe
from minitransformer.training.objectives import classification_loss

EMPTY = mt.data.EncodedTexts((), (), 0, ("a", "b", "c"))
BARE = replace(toy(), labels=None)


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"lr": -1.0}, {"warmup": -0.5}, {"warmup": 1.0}, {"clip": -1.0}, {"epochs": 0},
     {"weight_decay": -0.1}, {"batch_size": 0}, {"seed": -3}, {"cache_mib": -1}, {"steps": 0},
     {"validate_every": 0}],
    ids=str,
)  # fmt: skip
def test_numbers_are_checked_by_name(options):
    model = classifier()
    labels, weights = model.labels, model.classifier.weight.clone()
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        train(model, toy(), **options)
    assert model.labels == labels and torch.equal(model.classifier.weight, weights)


def test_a_warm_up_may_be_a_number_of_steps():
    rest = dict(validate_every=1, lr=0.01, batch_size=8, weight_decay=0.0, clip=1.0, seed=0,
                precision="highest")  # fmt: skip
    for warmup, steps in product((0, 1, 5, 7, 30), (30, 99)):
        recipe = Recipe(steps=steps, warmup=warmup, **rest)
        rising = [recipe.rate(step) / 0.01 for step in range(warmup)]
        assert rising == pytest.approx([(step + 1) / warmup for step in range(warmup)])
        assert recipe.rate(steps - 1) < 0.01 or warmup == steps
    with pytest.raises(ValueError, match="warmup=31 steps are more than the run's 30"):
        Recipe(steps=30, warmup=31, **rest)


def test_a_clip_of_0_clips_nothing_and_half_epochs_are_counted():
    runs = [train(classifier(), toy(), clip=clip, lr=0.1, epochs=1.5, batch_size=30)
            for clip in (0, math.inf, 0.01)]  # fmt: skip
    one, other, clipped = ([step["loss"] for step in run.steps] for run in runs)
    assert one == other != clipped and len(one) == 3
    assert runs[0].validations[-1]["epoch"] == 1.5


def test_no_data_and_other_data_are_refused():
    model, data = classifier(), toy()
    for arguments, name in (((EMPTY, data), "train"), ((data, EMPTY), "valid")):
        with pytest.raises(ValueError, match=f"^{name} has no texts"):
            mt.finetune(model, *arguments, progress=False)
    with pytest.raises(ValueError, match=r"^valid has no labels"):
        mt.finetune(model, data, BARE, progress=False)
    for use in (mt.evaluate, mt.predict):
        with pytest.raises(ValueError, match="the data has no texts"):
            use(model, EMPTY)
    for odd in (1.0, -1, True):
        with pytest.raises(ValueError, match="labels are whole numbers"):
            mt.evaluate.__wrapped__(model, replace(data, labels=(odd, *data.labels[1:])))


def test_a_language_model_is_no_classifier():
    config = mt.TransformerConfig.gpt2(vocab_size=37, d_model=20, n_heads=5, n_layers=1, d_ff=28)
    gpt = mt.CausalLM(mt.Decoder(config))
    for use in (lambda: mt.finetune(gpt, toy(), toy()), lambda: mt.evaluate(gpt, toy()), lambda: mt.predict(gpt, toy())):  # fmt: skip
        with pytest.raises(
            TypeError, match=r"takes a SequenceClassifier, got a CausalLM; .*pretrain"
        ):
            use()


def test_labels_are_compared_by_name():
    data, model = toy(), classifier()
    mt.evaluate(model, data)  # a new model's classes have no names yet
    train(model, data, epochs=1)
    for names in (("x", "y", "z"), ("b", "a", "c"), ("a", "B", "c")):
        with pytest.raises(ValueError, match=r"label_names=model\.labels"):
            mt.evaluate(model, replace(data, label_names=names))
    two = replace(data, labels=tuple(y % 2 for y in data.labels), label_names=("a", "b"))
    assert mt.evaluate(model, two).label_names == ("a", "b", "c")
    model = classifier()
    with pytest.warns(UserWarning, match="the model has 3 classes, the data only the labels"):
        train(model, two, epochs=1)
    assert model.labels == ("a", "b", "2")
    with pytest.raises(ValueError, match="has 4 labels, the model only 3 classes"):
        train(model, replace(data, label_names=("a", "b", "c", "d")))


def test_weights_of_classes_weigh_the_loss():
    labels = (0,) * 9 + (1,) * 3
    data = mt.data.EncodedTexts(((1, 10, 2),) * 12, labels, 0, ("a", "b", "c"))
    balanced = weights_of_classes("balanced", data, 3)
    assert balanced.tolist() == pytest.approx([12 / 18, 2, 0])
    model, batch = classifier().eval(), next(data.batches(12))
    logp = model(batch.ids, batch.keep).log_softmax(-1)[range(12), batch.labels]
    for weights in (balanced, weights_of_classes([1, 0.5, 3], data, 3)):
        loss = classification_loss(model, batch, weights=weights)
        assert loss.item() == pytest.approx(-(weights[batch.labels] * logp).mean().item(), rel=1e-5)
    for wrong in ("even", [1.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0]):
        with pytest.raises(ValueError, match=r"class_weights must be 'balanced' or 3 numbers"):
            weights_of_classes.__wrapped__(wrong, data, 3)
    losses = [train(classifier(), data, steps=1, class_weights=w).steps[0]["loss"] for w in (None, "balanced")]  # fmt: skip
    assert losses[0] != losses[1]


def metrics(targets, predictions, names) -> Metrics:
    logits = torch.nn.functional.one_hot(torch.tensor(predictions), len(names)).float()
    targets = np.array(targets)
    return Metrics(0.5, float((targets == np.array(predictions)).mean()), logits, targets, names)


def test_averages_leave_out_classes_without_examples():
    report = metrics([0, 1, 0, 1], [0, 0, 0, 1], ("a", "b", "absent")).report()
    line = next(line for line in report.splitlines() if "macro avg" in line)
    assert line.split()[2:] == ["0.833", "0.750", "0.733", "4"] and "absent" in report


def test_the_share_of_the_largest_class_stands_beside_the_accuracy():
    uneven = metrics([0] * 9 + [1], [0] * 10, ("usual", "rare"))
    assert "accuracy 0.900 (always the most frequent class: 0.900)" in repr(uneven)
    report = uneven.report()
    assert "imbalanced: 90% " in report and "class_weights" in report and "macro avg" in report
    even = metrics([0, 1] * 5, [0] * 10, ("a", "b")).report()
    assert "collapsed to one class" in even and "imbalanced" not in even


def test_many_classes_are_a_page_and_odd_names_stay_on_their_line():
    names = tuple(f"class\n {i} {'x' * 5000}" for i in range(500))
    truth = np.arange(2000) % 500
    report = metrics(truth.tolist(), ((truth * 7) % 500).tolist(), names).report()
    assert len(report) < 5000 and len(report.splitlines()) < 2 * SHOWN + 10
    assert max(map(len, report.splitlines())) < 100
    assert shortened("a\x1b[31m b\n c", 5) == "a [3…"
