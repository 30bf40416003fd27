"""What each strategy moves, when, and what it says before."""

import copy

import pytest
import torch
from toys import classifier, state_of, toy, train

import minitransformer as mt
from minitransformer.training import loop, lora
from minitransformer.training.optim import make_adamw
from minitransformer.training.strategies import (
    STRATEGIES,
    BiasOnly,
    Full,
    GradualUnfreezing,
    HeadOnly,
    LastLayers,
    LayerwiseDecay,
    LinearProbeThenFull,
    LoRA,
    Progress,
    layers_of,
    named,
)
from minitransformer.training.summary import most_trained

LAYERS = ["embeddings", "block 0", "block 1", "block 2", "head"]


def moved_layers(model, before, strategy, **options) -> set[str]:
    """The layers of which any parameter changed in training."""
    train(model, toy(), strategy, **({"epochs": 1, "lr": 1e-2} | options))
    names = {p: n for n, p in model.named_parameters()}
    return {
        layer.name
        for layer in layers_of(model)
        for module in layer.modules
        for p in module.parameters()
        if not torch.equal(p, before[names[p]])
    }


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Full(), LAYERS),
        (LastLayers(1), LAYERS[3:]),
        (LastLayers(3), LAYERS[1:]),
        (HeadOnly(), LAYERS[4:]),
        (LayerwiseDecay(0.5), LAYERS),
        (LinearProbeThenFull(0.5), LAYERS),
        (BiasOnly(), LAYERS),
        (LoRA(2), LAYERS[1:]),
    ],
    ids=str,
)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_strategy_moves_its_layers_and_no_others(strategy, expected, pooling):
    model = classifier(0.1, pooling)
    assert moved_layers(model, state_of(model), strategy) == set(expected)


def test_gradual_unfreezing_goes_top_down_by_epoch_by_step_and_evenly():
    def thawed(strategy, **at):
        rates = strategy.rates(5, Progress(**({"step": 0, "steps": 100, "epoch": 0} | at)))
        assert rates == sorted(rates), "a thawed layer never lies below a frozen one"
        return int(sum(rates))

    assert [thawed(GradualUnfreezing(), epoch=e) for e in range(7)] == [1, 2, 3, 4, 5, 5, 5]
    assert [thawed(GradualUnfreezing(2), epoch=e) for e in range(5)] == [1, 1, 2, 2, 3]
    by_step = GradualUnfreezing(10, "step")
    assert [thawed(by_step, step=s) for s in (0, 9, 10, 39, 40, 99)] == [1, 1, 2, 4, 5, 5]
    even = GradualUnfreezing(None)
    assert [thawed(even, step=s) for s in (0, 19, 20, 79, 80, 99)] == [1, 1, 2, 4, 5, 5]
    model = classifier()
    assert moved_layers(model, state_of(model), GradualUnfreezing(), epochs=2) == {*LAYERS[3:]}


def test_probe_moves_the_head_alone_at_its_own_rate_then_everything():
    strategy, seen = LinearProbeThenFull(0.5), []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        learning = {g["layer"] for g in self.param_groups if any(p.grad is not None for p in g["params"])}  # fmt: skip
        seen.append((learning, {g["layer"]: g["lr"] for g in self.param_groups}[4]))
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        train(classifier(), toy(20), strategy, steps=4, batch_size=20, warmup=0.0)
    assert [learning for learning, _ in seen] == [{4}, {4}, set(range(5)), set(range(5))]
    assert seen[0][1] == pytest.approx(HeadOnly.learning_rate)
    assert seen[2][1] == pytest.approx(strategy.learning_rate / 2)  # half of the schedule is over


def test_layerwise_decay_has_the_rates_of_its_formula():
    rates = LayerwiseDecay(0.5).rates(4, Progress(0, 1, 0))
    assert rates == [0.125, 0.25, 0.5, 1.0]
    assert LayerwiseDecay(1.0).rates(4, Progress(0, 1, 0)) == Full().rates(4, Progress(0, 1, 0))


def test_bias_only_moves_biases_and_the_head():
    model = classifier(pooling="mean")
    before = state_of(model)
    train(model, toy(), BiasOnly(), epochs=1, lr=1e-2)
    for name, p in model.named_parameters():
        if name.startswith("encoder.pooler"):
            continue  # a head with mean pooling does not use it
        learns = name.endswith("bias") or name.startswith("classifier")
        # Adding one vector to all keys changes no softmax: the key's bias has no gradient.
        if not name.endswith("W_K.bias"):
            assert torch.equal(p, before[name]) != learns, name


def test_lora_starts_at_no_change_and_merges_to_the_same_function():
    model, batch = classifier(pooling="mean").double().eval(), next(toy().batches(16))
    expected = model(batch.ids, batch.keep)
    lora.insert(model.encoder, 3, 5.0, ("W_Q", "W_V", "W_1"))
    assert torch.equal(model(batch.ids, batch.keep), expected), "B = 0: nothing is changed"
    for name, p in model.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(p)
    unmerged = model(batch.ids, batch.keep)
    assert (unmerged - expected).abs().max() > 0.1
    lora.merge(model.encoder)
    torch.testing.assert_close(model(batch.ids, batch.keep), unmerged, atol=1e-10, rtol=0)
    assert set(model.state_dict()) == set(classifier(pooling="mean").state_dict())


def test_lora_changes_only_its_matrices_and_by_its_rank():
    model = classifier(pooling="mean").double()
    before = state_of(model)
    train(model, toy(), LoRA(2, targets=("W_K", "W_O")), epochs=2, lr=1e-2)
    for name, now in model.state_dict().items():
        change = now - before[name]
        if name.endswith(("W_K.weight", "W_O.weight")):
            assert torch.linalg.matrix_rank(change, tol=1e-9) == 2, name
        elif not name.startswith("classifier"):
            assert torch.equal(now, before[name]), name


def test_lora_passes_the_gradient_of_the_matrix_on_to_B():
    r"""The gradient of B is $\frac{\alpha}{r} G A^\top$ with G that of W: the chain rule."""
    plain = classifier(pooling="mean").double().eval()
    model, batch = copy.deepcopy(plain), next(toy().batches(16))
    plain(batch.ids, batch.keep).logsumexp(-1).sum().backward()
    lora.insert(model.encoder, 4, 6.0, ("W_Q",))
    model(batch.ids, batch.keep).logsumexp(-1).sum().backward()
    for name, module in model.named_modules():
        if isinstance(module, lora.LoRALinear):
            G = plain.get_parameter(f"{name}.weight").grad
            torch.testing.assert_close(module.B.grad, 6 / 4 * G @ module.A.T, atol=1e-12, rtol=0)


def test_lora_of_one_seed_is_one_model_and_draws_nothing_of_the_callers():
    """Its A starts random: from the run's seed, not from whatever was drawn before."""
    models = []
    for drawn_before, seed in ((1, 0), (7, 0), (1, 1)):
        model = classifier(pooling="mean")
        torch.rand(drawn_before)
        state = torch.get_rng_state()
        train(model, toy(), LoRA(2), epochs=1, lr=1e-2, seed=seed)
        mt.plan(model, LoRA(2))
        assert torch.equal(torch.get_rng_state(), state)
        models.append(model.encoder.blocks[1].attention.W_Q.weight)
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])


def test_lora_leaves_a_plain_model_even_when_training_fails():
    model = classifier()
    model.classifier.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        train(model, toy(), LoRA(2), epochs=1)
    assert not any(isinstance(m, lora.LoRALinear) for m in model.modules())
    assert not model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.trains
@pytest.mark.parametrize("name", [*STRATEGIES, "gradual:even"])
@pytest.mark.parametrize(
    "switches", [{}, {"norm_position": "pre"}, {"norm": "rms", "bias": False}],
    ids=str,
)  # fmt: skip
def test_every_strategy_trains_any_model_and_the_best_weights_come_back(name, switches):
    """What was kept must score in the end what it scored when it was kept: in float64, as LoRA's
    matrices are beside the others then and merged with them now, and many a CPU rounds in float32.
    """
    model, data = classifier(0.1, "mean", **switches).double(), toy(90)
    history = train(model, data, named(name), epochs=4, lr=3e-2)
    metrics = mt.evaluate(model, data)
    assert metrics.accuracy == history.best["valid_accuracy"]
    assert metrics.loss == pytest.approx(history.best["valid_loss"], abs=1e-9)
    assert max(e["valid_accuracy"] for e in history.validations) == metrics.accuracy


@pytest.mark.trains
def test_best_weights_come_back_for_layers_that_thawed_later():
    """The best moment was before a layer moved at all: it must be where it was then."""

    model = classifier(pooling="mean")

    class Wreck(GradualUnfreezing):
        def rates(self, n_layers, at):
            if (at.epoch, at.step % 4) == (1, 0):  # four steps per epoch
                with torch.no_grad():
                    model.classifier.weight.neg_()
            return super().rates(n_layers, at)

    train(model, toy(120), epochs=20, lr=1e-2, precision="auto")  # something to lose
    before = state_of(model)
    history = train(model, toy(120), Wreck(), epochs=4, lr=1e-3, warmup=0.0, precision="auto")
    assert history.best is history.validations[0]
    for name, now in model.state_dict().items():
        assert name.startswith("classifier") or torch.equal(now, before[name]), name


@pytest.mark.parametrize("validate_every", [1, None])
def test_frozen_layers_stay_in_evaluation_mode_after_a_validation(validate_every, monkeypatch):
    model, modes = classifier(0.3, "mean"), []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        modes.append((model.encoder.blocks[0].training, model.dropout.training))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(model, toy(), HeadOnly(), epochs=3, validate_every=validate_every, cache_mib=0)
    assert set(modes) == {(False, True)}


def test_plan_counts_what_the_optimizer_moves():
    for name in STRATEGIES:
        model, strategy = classifier(0.1, "mean"), named(name)
        with strategy.applied(model):
            layers, most = layers_of(model), 0
            for epoch in range(3):
                rates = strategy.rates(len(layers), Progress(epoch, 3, epoch))
                loop.set_trainable(model, layers, rates, strategy)
                most = max(most, sum(p.numel() for p in model.parameters() if p.requires_grad))
        assert most_trained(model, strategy) == most, name
        text = mt.plan(model, strategy)
        assert f"{most:,} (" in text and text.startswith(str(strategy)), name
        assert all(layer in text for layer in LAYERS)
        assert not any(isinstance(m, lora.LoRALinear) for m in model.modules())


def test_plan_shows_when_a_layer_thaws():
    lines = mt.plan(classifier(), GradualUnfreezing(), epochs=3, lr=0.25).splitlines()
    assert "from 0%  from 33%  from 67%" in lines[1]
    assert lines[4].split()[4:] == ["frozen", "frozen", "2e-01", "0.01", "on"]  # block 1
    assert lines[5].split()[4:] == ["frozen", "2e-01", "2e-01", "0.01", "on"]  # block 2
    assert lines[3].split()[3:] == ["0", "frozen", "frozen", "frozen", "-", "off"]  # block 0


def test_the_optimizer_has_lora_parameters_once():
    model = classifier()
    with LoRA(2).applied(model):
        listed = [p for g in make_adamw(layers_of(model), 0.1).param_groups for p in g["params"]]
        assert len(listed) == len(set(listed)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train(classifier(), toy(), LastLayers(4)), r"LastLayers\(4\): the model has 3 bl"),
        (lambda: mt.plan(classifier(), LastLayers(9)), r"the model has 3 blocks"),
        (lambda: train(classifier(), toy(), LoRA(21)), r"rank=21 is over the size of .*W_Q, 20 to"),
        (lambda: train(classifier(), toy(), LoRA(2, targets=("W_Q", "query"))),
         r"no linear map is called 'query'; targets may be: W_1, W_2, W_K, W_O, W_Q, W_V, classifier, dense"),
        (lambda: LoRA(0), "rank must be at least 1, got 0"),
        (lambda: LastLayers(0), "n must be at least 1, got 0"),
        (lambda: LayerwiseDecay(1.5), r"factor must be in \(0, 1\], got 1.5"),
        (lambda: LinearProbeThenFull(1.0), "probe is a share of the steps, between 0 and 1"),
        (lambda: GradualUnfreezing(0), "every must be at least 1, got 0"),
        (lambda: named("frozen"), r"no strategy 'frozen'; choose one of full, last-layers, head-only"),
        (lambda: named("last-layers:two"), r"'last-layers:two': 'two' is not int"),
        (lambda: named("full:2"), "'full:2': Full takes no argument"),
    ],
)  # fmt: skip
def test_a_strategy_that_does_not_fit_says_why(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_failed_lora_leaves_the_model_plain():
    model = classifier()
    names = [n for n, _ in model.named_modules()]
    for strategy in (LoRA(21), LoRA(2, targets=("nothing",))):
        with pytest.raises(ValueError, match=r"rank=21|nothing"):
            train(model, toy(), strategy)
        assert [n for n, _ in model.named_modules()] == names


def test_named_reads_every_argument():
    assert named("lora:4") == LoRA(4) and named("last-layers:3") == LastLayers(3)
    assert named("gradual:2") == GradualUnfreezing(2)
    assert named("gradual:even") == GradualUnfreezing(None)
    assert named("layerwise-decay:0.9") == LayerwiseDecay(0.9)
    assert named("lp-ft:0.25") == LinearProbeThenFull(0.25)


def language_models():
    """A small one of each family, all tables and biases there are."""
    sizes = dict(vocab_size=30, d_model=12, n_heads=3, n_layers=2, d_ff=18, max_len=16)
    bert, gpt2 = mt.TransformerConfig.bert(**sizes), mt.TransformerConfig.gpt2(**sizes)
    t5 = mt.TransformerConfig.t5_v1_1(**sizes, n_decoder_layers=3)
    return [
        mt.MaskedLM(mt.Encoder(bert.with_(pooler=False))), mt.CausalLM(mt.Decoder(gpt2)),
        mt.Seq2SeqLM(mt.EncoderDecoder(t5)),
        mt.Seq2SeqLM(mt.EncoderDecoder(mt.TransformerConfig(**sizes, norm_position="pre"))),
    ]  # fmt: skip


@pytest.mark.parametrize("model", language_models(), ids=lambda m: type(m).__name__)
def test_every_family_has_each_parameter_in_one_layer(model):
    layers = layers_of(model)
    listed = [p for layer in layers for m in layer.modules for p in m.parameters()]
    assert len(listed) == len(set(listed)) and set(listed) == set(model.parameters())
    assert layers[0].name == "embeddings" and layers[-1].name == "head"


@pytest.mark.parametrize("model", language_models(), ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", ["last-layers:1", "lora:2", "bias-only", "gradual:even"])
def test_strategies_plan_for_every_family(model, name):
    text = mt.plan(model, named(name))
    assert "head" in text and not any(isinstance(m, lora.LoRALinear) for m in model.modules())


def test_a_language_model_trains_with_lora_and_nothing_else_moves():
    _, model, *_ = language_models()
    before = state_of(model)
    data = mt.data.EncodedTexts(tuple((5, 7, 9, 5, 7, 9, i + 10) for i in range(8)), None, 0)
    mt.pretrain(model, data, data, strategy=LoRA(2), steps=4, lr=1e-2, progress=False)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    final = {"decoder.norm.weight", "decoder.norm.bias"}  # above the last block: the head's
    assert moved <= {n for n in before if n.endswith(("W_Q.weight", "W_V.weight"))} | final
    assert any(n.endswith("W_Q.weight") for n in moved)


def test_a_model_without_a_head_has_no_layers_to_train():
    encoder = classifier().encoder
    with pytest.raises(
        TypeError, match="Encoder has no head to train; SequenceClassifier, CausalLM"
    ):
        layers_of(encoder)
