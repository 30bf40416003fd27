"""What the caller has is the caller's: frozen parameters, the encoder, weights after a failure."""

import math

import pytest
import torch
from toys import CLASSES, classifier, state_of, toy, train

import minitransformer as mt
from minitransformer.training import loop
from minitransformer.training.strategies import STRATEGIES, Full, HeadOnly, LoRA, named


def frozen_of(model, *parts: str) -> dict[str, torch.Tensor]:
    """Freeze the parameters whose names begin so; return their values."""
    for name, parameter in model.named_parameters():
        if name.startswith(parts):
            parameter.requires_grad_(False)
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", [*STRATEGIES, "gradual:even"])
@pytest.mark.parametrize(
    "parts",
    [("encoder.embeddings",), ("encoder.blocks.0", "encoder.blocks.2"), ("encoder.blocks.2.attention.W_Q",)],
    ids=["embeddings", "blocks", "a matrix"],
)  # fmt: skip
def test_what_the_caller_froze_stays_in_every_strategy(name, parts):
    model = classifier(dropout=0.2)
    before = frozen_of(model, *parts)
    start = state_of(model)
    train(model, toy(32), named(name), epochs=4, lr=1e-2, weight_decay=0.1)
    after = dict(model.named_parameters())
    assert {n for n, p in after.items() if not p.requires_grad} == before.keys()
    assert all(torch.equal(after[n], value) for n, value in before.items())
    assert not torch.equal(after["classifier.weight"], start["classifier.weight"])
    if name in ("full", "lora"):
        assert not torch.equal(after["encoder.blocks.1.attention.W_V.weight"], start["encoder.blocks.1.attention.W_V.weight"])  # fmt: skip


def test_an_encoder_frozen_by_hand_is_head_only():
    by_hand, by_strategy = classifier(dropout=0.2, pooling="mean"), classifier(dropout=0.2, pooling="mean")  # fmt: skip
    by_hand.encoder.requires_grad_(False)
    a = train(by_hand, toy(), Full(), epochs=2, lr=1e-2)
    b = train(by_strategy, toy(), HeadOnly(), epochs=2, lr=1e-2)
    assert a.steps == b.steps and not any(p.requires_grad for p in by_hand.encoder.parameters())
    for mine, other in zip(by_hand.parameters(), by_strategy.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_pretraining_leaves_frozen_parameters_too():
    torch.manual_seed(0)
    config = mt.TransformerConfig.gpt2(
        vocab_size=37, d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=13, pad_id=0
    )
    model, data = mt.CausalLM(mt.Decoder(config)), mt.data.EncodedTexts(toy().ids, None, 0)
    before = frozen_of(model, "decoder.embeddings", "decoder.blocks.0")
    mt.pretrain(model, data, data, steps=3, progress=False)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], value) for n, value in before.items())
    assert {n for n, p in after.items() if not p.requires_grad} == before.keys()


def test_a_strategy_that_may_train_nothing_says_why():
    model = classifier()
    model.requires_grad_(False)
    start = state_of(model)
    for strategy in (Full(), HeadOnly()):
        with pytest.raises(ValueError, match=r"nothing would learn.*requires_grad=False\); thaw"):
            train(model, toy(), strategy)
    with pytest.raises(ValueError, match=r"LoRA would change are frozen .*LoRA itself trains only"):
        train(model, toy(), LoRA(2))
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, start[n]) for n, t in model.state_dict().items())


def test_two_classifiers_of_one_encoder_are_two():
    first = classifier(pooling="mean")
    encoder = first.encoder
    start = state_of(encoder)
    torch.manual_seed(1)
    one, other = (mt.SequenceClassifier(encoder, CLASSES, "mean") for _ in range(2))
    said = mt.predict(other, toy())
    train(one, toy(), epochs=1, lr=1e-2)
    assert torch.equal(mt.predict(other, toy()), said)
    assert all(torch.equal(t, start[n]) for n, t in encoder.state_dict().items())
    late = mt.SequenceClassifier(encoder, CLASSES, "mean")
    assert all(torch.equal(t, start[n]) for n, t in late.encoder.state_dict().items())


def test_a_new_heads_weights_follow_from_the_seed():
    encoder = classifier().encoder

    def head(seed: int, drawn_before: int) -> torch.Tensor:
        torch.manual_seed(drawn_before)
        state = torch.get_rng_state()
        weight = mt.SequenceClassifier(encoder, CLASSES, "mean", seed=seed).classifier.weight
        assert torch.equal(torch.get_rng_state(), state)
        return weight

    assert torch.equal(head(0, 1), head(0, 2)) and not torch.equal(head(0, 1), head(1, 1))
    torch.manual_seed(3)
    assert torch.equal(mt.SequenceClassifier(encoder, CLASSES).classifier.weight, head(0, 1))


@pytest.mark.parametrize("name", ["full", "lora:2", "head-only"])
@pytest.mark.parametrize("bad_step", [1, 5])
def test_after_a_nan_the_best_weights_so_far_are_back(name, bad_step, monkeypatch):
    model, data = classifier(), toy()
    refuse, start = loop.refuse_nan, state_of(model)
    best = {}

    def stop(loss, step, rate):
        refuse(math.nan if step == bad_step else loss, step, rate)

    def validate(*args, **kwargs):
        metrics = evaluate(*args, **kwargs)
        best.update(loss=metrics.loss, accuracy=metrics.accuracy)
        return metrics

    from minitransformer.training import finetune as module

    evaluate = module.evaluate
    monkeypatch.setattr(loop, "refuse_nan", stop)
    monkeypatch.setattr(module, "evaluate", validate)
    step = "step 3" if bad_step == 5 else "those it began with"
    with pytest.raises(FloatingPointError, match=f"lower learning rate.*best weights so far.*{step}"):  # fmt: skip
        train(model, data, named(name), steps=9, validate_every=3, lr=1e-2, weight_decay=0.2)
    if bad_step == 1:
        torch.testing.assert_close(state_of(model), start)
    else:
        assert mt.evaluate(model, data).loss == pytest.approx(best["loss"], abs=5e-3)


@pytest.mark.parametrize("lr", [10.0, 20.0])
def test_a_decay_to_nothing_does_not_make_the_unread_rows_nan(lr):
    model, data = classifier(), toy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "refuse_nan", lambda *_: None)  # such a rate may well end so
        train(model, data, steps=2, lr=lr, weight_decay=0.1, warmup=0.0, validate_every=1)
    assert torch.isfinite(model.encoder.embeddings.tokens.weight[[3, 4]]).all(), "no text has these"


def test_weights_of_16_bits_are_refused():
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=r"too coarse .*model.float\(\) first"):
            train(classifier().to(dtype), toy(), epochs=1)
