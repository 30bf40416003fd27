"""Several threads, one model: each is right, and nothing of the caller's is left changed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import minitransformer as mt
from minitransformer.model.layers import IN_EVAL_MODE, eval_mode
from minitransformer.training.precision import SETTINGS, matmul_precision

CONFIG = dict(vocab_size=40, d_model=16, n_heads=2, n_layers=2, d_ff=24, max_len=12, dropout=0.5)


def classifier() -> mt.SequenceClassifier:
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(**CONFIG, attention_dropout=0.5, init_std=0.5)
    return mt.SequenceClassifier(mt.Encoder(config), 3, "mean")


def gpt() -> mt.CausalLM:
    torch.manual_seed(0)
    return mt.CausalLM(mt.Decoder(mt.TransformerConfig.gpt2(**CONFIG, attention_dropout=0.5, init_std=0.5)))  # fmt: skip


IDS = torch.randint(5, 40, (24, 9), generator=torch.Generator().manual_seed(0))
DATA = mt.data.EncodedTexts(tuple(map(tuple, IDS.tolist())), None, 0)
WAYS = {
    "predict": (classifier, lambda model: mt.predict(model, DATA, batch_size=4)),
    "generate": (gpt, lambda model: mt.generate(model, IDS, 3)),
    "beams": (gpt, lambda model: mt.generate(model, IDS, 3, n_beams=2)),
    "attention maps": (gpt, lambda model: torch.cat(mt.attention_maps(model.decoder, IDS))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_threads_are_right_in_any_mode_and_leave_it(way, training):
    make, work = WAYS[way]
    model = make()
    right = work(model.eval())
    model.train(training)
    frozen = next(m for name, m in model.named_modules() if name.endswith("blocks.0"))
    frozen.eval()  # as a frozen layer is
    modes = {m: m.training for m in model.modules()}
    torch.set_float32_matmul_precision("high")
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: work(model), range(8)))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.allclose(a.float(), right.float(), atol=1e-5) for a in answers)
    assert modes == {m: m.training for m in model.modules()}
    assert torch.is_grad_enabled() and not IN_EVAL_MODE and not SETTINGS


def test_the_first_to_leave_does_not_put_training_mode_back():
    model, entered, leave = classifier().train(), threading.Event(), threading.Event()

    def other() -> None:
        with eval_mode(model), matmul_precision("medium"):
            entered.set()
            leave.wait(10)
            assert not model.training

    with eval_mode(model), matmul_precision("highest"):
        (thread := threading.Thread(target=other)).start()
        assert entered.wait(10)
    assert not model.training and torch.get_float32_matmul_precision() == "medium"
    with eval_mode(model.encoder):
        assert not model.encoder.training
    leave.set()
    thread.join()
    assert model.training and torch.get_float32_matmul_precision() == "highest"


def test_nothing_is_left_changed_after_an_error():
    model = classifier().train()
    with pytest.raises(ZeroDivisionError), eval_mode(model), matmul_precision("medium"):
        1 / 0  # noqa: B018
    assert model.training and torch.get_float32_matmul_precision() == "highest"
    assert not IN_EVAL_MODE and not SETTINGS
