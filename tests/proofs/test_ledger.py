"""The ledger holds, and it can fail: planted mistakes are caught."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from untyped import untyped

import minitransformer as mt
from minitransformer.commands.verify import run
from minitransformer.formulas import ops
from minitransformer.model.heads import LanguageModelHead
from minitransformer.model.layers import Embeddings
from minitransformer.model.transformer import Pooler
from minitransformer.proofs import rows_modules as rows
from minitransformer.proofs.draws import D_MODEL, MASKS, SIZES, draw
from minitransformer.proofs.formula import per_example
from minitransformer.proofs.ledger import LEDGER, places
from minitransformer.proofs.measure import SEED, Errors, distance, measure

PACKAGE = Path(mt.__file__).parent


@pytest.mark.parametrize("seed", [0, 1])
def test_every_formula_holds(seed):
    with untyped() if seed else nullcontext():  # the shapes are those of the first
        report = mt.verify(seed=seed)
    assert report.ok, str(report)
    for id, errors in report.rows.items():
        assert (errors["by-hand grad"] is None) == (LEDGER[id].backward_by_hand is None)


def verify_from_the_shell(*ids: str) -> int:
    return run(Namespace(formulas=list(ids), seed=SEED))


def test_measuring_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    measure(LEDGER["multi_head_attention"])
    assert torch.equal(before, torch.random.get_rng_state())


def defined_in(module: str) -> set[str]:
    """Every function of a module, and `forward` of every torch module in it."""
    loaded, names = importlib.import_module(module), set()
    for name, member in inspect.getmembers(loaded):
        if getattr(member, "__module__", "") != loaded.__name__:
            continue
        if inspect.isfunction(member):
            names.add(name)
        elif inspect.isclass(member) and "forward" in vars(member):
            names.add(f"{name}.forward")
    return names


NOT_IN_TORCH = re.compile(r"by_hand|gradients|numpy|\.(config|compare|kv_cache|shapes)$")


def test_verify_runs_every_formula_and_module():
    """A third seed; a new operation or module that no row computes with fails here."""
    rooms = [mt.formulas, mt.model]
    modules = [m.name for r in rooms for m in pkgutil.iter_modules(r.__path__, f"{r.__name__}.")]
    modules = [name for name in modules if not NOT_IN_TORCH.search(name)]
    files = {importlib.import_module(name).__file__: set() for name in modules}

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename in files:
            files[frame.f_code.co_filename].add(frame.f_code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        with untyped():  # the same shapes as above
            report = mt.verify(seed=2)
    finally:
        sys.setprofile(before)
    assert report.ok, str(report)
    missed = {
        name for m, ran in zip(modules, files.values(), strict=True) for name in defined_in(m) - ran
    }
    assert {name for name in missed if not name.startswith("check_")} <= {
        "padding_mask",
        "token_positions",
        "init_weights",
        "eval_mode",  # no formulas
        "rows",  # picks queries; test_some_positions.py compares with all of them
        "SequenceClassifier.forward",  # made of rows; compared in test_bert.py
    }


def hot(Q, K, V, keep):
    return ops.attention(Q * math.sqrt(Q.shape[-1]), K, V, keep)  # no 1 / sqrt(d_k)


def unmasked(Q, K, V, keep):
    return ops.attention(Q, K, V, None)


def inverted(Q, K, V, keep):
    return ops.attention(Q, K, V, None if keep is None else ~keep)


def eps_outside(x, gamma, beta, eps):
    return gamma * (x - x.mean(-1, True)) / (x.std(-1, correction=0, keepdim=True) + eps) + beta


def unbiased(x, gamma, beta, eps):
    return gamma * (x - x.mean(-1, True)) / torch.sqrt(x.var(-1, keepdim=True) + eps) + beta


def no_gain(x, gamma, beta, eps):
    return F.layer_norm(x, (x.shape[-1],), eps=eps) + 0 * gamma + 0 * beta


def from_one(length, d_model):
    return ops.sinusoidal_positions(length + 1, d_model, torch.float64)[1:]


def halves(length, d_model):
    table = ops.sinusoidal_positions(length, d_model, torch.float64)
    return torch.cat([table[:, 0::2], table[:, 1::2]], 1)


def counts_ignored(logits, targets, ignore, label_smoothing):
    kept = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="sum")
    return kept / len(targets)


def smooths_others_only(logits, targets, ignore, label_smoothing):
    loss = ops.cross_entropy(logits, targets, ignore)
    return (1 - label_smoothing) * loss


def not_corrected(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
    return theta * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


def adam_with_l2(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    options = dict(beta_1=beta_1, beta_2=beta_2, eps=eps, weight_decay=0.0)
    return ops.adamw_step(theta, g + weight_decay * theta, m, v, t, lr, **options)


@pytest.mark.parametrize(
    ("row", "mistake"),
    [
        ("attention", hot), ("attention", unmasked), ("attention", inverted),
        ("layer_norm", eps_outside), ("layer_norm", unbiased), ("layer_norm", no_gain),
        ("gelu", ops.gelu_tanh), ("gelu_tanh", ops.gelu), ("relu", ops.gelu),
        ("sinusoidal_positions", from_one), ("sinusoidal_positions", halves),
        ("cross_entropy", counts_ignored), ("cross_entropy", smooths_others_only),
        ("adamw", not_corrected), ("adamw", adam_with_l2),
    ],
)  # fmt: skip
def test_a_planted_mistake_is_caught(row, mistake, monkeypatch, capsys):
    errors = measure(dataclasses.replace(LEDGER[row], ours=mistake))
    assert {"by hand", "torch", "float32"} <= set(errors.wrong())
    if LEDGER[row].fused is not None:
        fused = measure(dataclasses.replace(LEDGER[row], fused=mistake))
        assert "fused" in fused.wrong()
    monkeypatch.setitem(LEDGER, row, dataclasses.replace(LEDGER[row], ours=mistake))
    assert not mt.verify([row]).ok and verify_from_the_shell(row) == 1
    assert "1 of 1 formulas are off" in capsys.readouterr().out


def tokens_mixed_into_heads(self, x, z, keep):
    """Mistake 16: a view where a transpose belongs."""
    maps = (self.W_Q(x), self.W_K(z), self.W_V(z))
    return tuple(y.reshape(len(y), self.n_heads, y.shape[1], -1) for y in maps)


def queries_as_keys(self, x, z, keep):
    """Mistake 19: one matrix for two."""
    maps = (self.W_Q(x), self.W_Q(z), self.W_V(z) + 0 * self.W_K(z))
    return tuple(y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in maps)


def heads_interleaved(self, x, z, keep):
    """Mistake 18: (d_k, h) instead of (h, d_k)."""
    maps = (self.W_Q(x), self.W_K(z), self.W_V(z))
    return tuple(y.unflatten(-1, (-1, self.n_heads)).permute(0, 3, 1, 2) for y in maps)


def merged_without_transpose(self, x, memory=None, keep=None, **others):
    """Mistake 17."""
    heads = ops.attention(*self.project(x, x if memory is None else memory, keep), keep)
    return self.W_O(heads.reshape(x.shape))


def heads_never_mixed(self, x, memory=None, keep=None, **others):
    """Mistake 21: no output projection."""
    heads = ops.attention(*self.project(x, x if memory is None else memory, keep), keep)
    return heads.transpose(1, 2).flatten(2) + 0 * self.W_O(x)


def block_without_residual(self, x, keep=None, bias=None):
    """Mistake 22."""
    x = self.norm_1(self.attention(x, keep=keep))
    return self.norm_2(x + self.feed_forward(x))


def block_of_the_other_kind(self, x, keep=None, bias=None):
    """Mistake 23: pre-LN where post-LN is asked for."""
    x = x + self.attention(self.norm_1(x), keep=keep)
    return x + self.feed_forward(self.norm_2(x))


def post_ln_always(self, x, keep=None, bias=None):
    x = self.norm_1(x + self.attention(x, keep=keep))
    return self.norm_2(x + self.feed_forward(x))


def block_ignores_mask(self, x, keep=None, bias=None):
    """Mistake 13."""
    return post_ln_always(self, x)


def memory_forgotten(y, z, attention, norm, keep=None):
    """Mistake 33: the decoder looks at itself."""
    return norm(y + attention(y, y) + 0 * z.sum())


def relu_always(self, x):
    """Mistake 28."""
    return self.W_2(torch.relu(self.W_1(x)))


def unscaled(self, ids, segments=None, positions=None, first=0):
    """Mistake 31."""
    return self.tokens(ids) + self.positions[: ids.shape[1]]


def future_in_view(keep, causal, queries, keys, device):
    """Mistake 12: the decoder sees what it has to predict."""
    return keep


def sees_itself_alone(keep, causal, queries, keys, device):
    """The diagonal and what is above, where it should be below."""
    past = torch.ones(queries, keys, dtype=torch.bool).triu()
    return (past if keep is None else keep & past) if causal else keep


def no_cross_attention(
    self, y, keep=None, memory=None, memory_keep=None, bias=None, cache=None, last=None
):
    y = self.norm_1(y + self.attention(y, keep=keep, causal=True))
    y = self.norm_cross(y + 0 * self.cross_attention(y, memory, memory_keep))
    return self.norm_2(y + self.feed_forward(y))


def cross_before_self(
    self, y, keep=None, memory=None, memory_keep=None, bias=None, cache=None, last=None
):
    y = self.norm_cross(y + self.cross_attention(y, memory, memory_keep))
    y = self.norm_1(y + self.attention(y, keep=keep, causal=True))
    return self.norm_2(y + self.feed_forward(y))


def memory_unmasked(
    self, y, keep=None, memory=None, memory_keep=None, bias=None, cache=None, last=None
):
    return right_decoder_block(self, y, keep, memory, None, bias, cache)


right_decoder_block = mt.DecoderBlock.forward


def gate_on_the_wrong_side(self, x):
    f = getattr(ops.OPS[self.ops], self.activation)
    return self.W_2(self.W_1(x) * f(self.W_3(x)))


def distance_turned_round(self, queries, keys):
    E = self.buckets.weight
    b = ops.relative_buckets(keys, keys, len(E), self.max_distance, self.bidirectional).T
    return E[b[-queries:]].permute(2, 0, 1)[None]


def head_of_its_own(self, hidden, E):
    return hidden @ E.detach().mT


def last_position(self, hidden):
    return torch.tanh(self.dense(hidden[:, -1]))


@pytest.mark.parametrize(
    ("row", "owner", "name", "mistake"),
    [
        ("multi_head_attention", mt.MultiHeadAttention, "project", tokens_mixed_into_heads),
        ("multi_head_attention", mt.MultiHeadAttention, "project", heads_interleaved),
        ("multi_head_attention", mt.MultiHeadAttention, "project", queries_as_keys),
        ("encoder_sublayer", mt.MultiHeadAttention, "forward", merged_without_transpose),
        ("decoder_sublayer", mt.MultiHeadAttention, "forward", heads_never_mixed),
        ("decoder_sublayer", rows, "decoder_sublayer", memory_forgotten),
        ("post_ln_block", mt.EncoderBlock, "forward", block_without_residual),
        ("post_ln_block", mt.EncoderBlock, "forward", block_of_the_other_kind),
        ("post_ln_block", mt.EncoderBlock, "forward", block_ignores_mask),
        ("pre_ln_block", mt.EncoderBlock, "forward", post_ln_always),
        ("feed_forward", mt.FeedForward, "forward", relu_always),
        ("embeddings", Embeddings, "forward", unscaled),
        ("pooler", Pooler, "forward", last_position),
        ("causal_self_attention", ops, "visible", sees_itself_alone),
        ("post_ln_decoder_block", ops, "visible", future_in_view),
        ("causal_lm", ops, "visible", future_in_view),
        ("post_ln_decoder_block", mt.DecoderBlock, "forward", no_cross_attention),
        ("post_ln_decoder_block", mt.DecoderBlock, "forward", cross_before_self),
        ("post_ln_decoder_block", mt.DecoderBlock, "forward", memory_unmasked),
        ("pre_ln_transformer", mt.DecoderBlock, "forward", memory_unmasked),
        ("gated_feed_forward", mt.FeedForward, "forward", gate_on_the_wrong_side),
        ("relative_position_bias", mt.RelativePositionBias, "forward", distance_turned_round),
    ],
)
def test_a_mistake_in_a_module_is_caught(row, owner, name, mistake, monkeypatch, capsys):
    monkeypatch.setattr(owner, name, mistake)
    report = mt.verify([row])
    assert not report.ok and {"by hand", "torch"} <= set(report.rows[row].wrong())
    assert verify_from_the_shell(row) == 1 and "!" in capsys.readouterr().out


@pytest.mark.parametrize("row", ["tied_logits", "post_ln_transformer", "causal_lm"])
def test_a_gradient_from_one_of_two_places_is_caught(row, monkeypatch):
    """Tied embeddings learn from both ends: cut at the head, all values are right."""
    monkeypatch.setattr(LanguageModelHead, "forward", head_of_its_own)
    wrong = mt.verify([row]).rows[row].wrong()
    assert {"gradient", "by-hand grad"} <= set(wrong) and (
        row == "tied_logits" or not {"by hand", "torch"} & set(wrong)
    )


def test_mean_pool_with_padding_is_caught():
    """Mistake 59."""
    broken = dataclasses.replace(LEDGER["mean_pool"], ours=lambda hidden, real: hidden.mean(1))
    assert {"by hand", "torch", "gradient"} <= set(measure(broken).wrong())


def test_a_wrong_gradient_is_caught_where_the_value_is_right():
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.relu(x)

        @staticmethod
        def backward(ctx, g):
            return g  # forgets where x was negative

    errors = measure(dataclasses.replace(LEDGER["relu"], ours=Cut.apply))
    assert "gradient" in errors.wrong() and "torch" not in errors.wrong()


def test_nan_is_wrong():
    assert Errors({"torch": float("nan"), "fused": None, "float32": 1e-6}).wrong() == ["torch"]
    broken = dataclasses.replace(LEDGER["softmax"], ours=lambda scores, keep: scores * math.nan)
    assert "torch" in measure(broken).wrong()


def test_a_nan_is_not_forgotten_over_a_right_number_that_comes_later():
    """Neither in another tensor of the same case nor in another case."""
    nan, fine = torch.full((2,), math.nan), torch.ones(2)
    assert math.isnan(distance([nan, fine], [fine, fine]))

    def nan_in_the_first_case(scores, keep):
        return scores * math.nan if keep is None else ops.softmax(scores, keep)

    broken = dataclasses.replace(LEDGER["softmax"], ours=nan_in_the_first_case)
    assert {"by hand", "torch", "float32", "gradient"} <= set(measure(broken).wrong())


def test_an_empty_row_repaired_after_its_nan_is_caught_by_the_gradient():
    """The numbers are right; the NaN goes on into the gradients of Q and K, not into that of V."""

    def repaired(Q, K, V, keep):
        scores = Q @ K.mT / math.sqrt(Q.shape[-1])
        hidden = torch.zeros_like(scores)
        if keep is not None:
            hidden = hidden.masked_fill(~keep, -math.inf)
        return (scores + hidden).softmax(-1).nan_to_num(0.0) @ V

    errors = measure(dataclasses.replace(LEDGER["attention"], ours=repaired))
    assert "gradient" in errors.wrong() and "torch" not in errors.wrong()


@pytest.mark.parametrize("row", LEDGER)
def test_show_puts_formula_code_and_errors_side_by_side(row):
    card = mt.ledger.show(row)
    html = card._repr_html_()
    assert LEDGER[row].latex in html and "largest error" in html and "<pre>" in html
    assert "def " in card.code and '"""' not in card.code and LEDGER[row].source in repr(card)
    assert {"by hand", "ours", "torch"} <= set(card.places)
    assert all(place in html and place in repr(card) for place in card.places.values())


@pytest.mark.parametrize("row", LEDGER)
def test_a_place_is_the_line_of_a_definition(row):
    found = places(LEDGER[row])
    assert found["ours"].split(", ")[0] == mt.ledger.where(row)
    for place in ", ".join(found.values()).split(", "):
        if place.startswith("torch."):
            continue
        file, line = place.split(":")
        code = (PACKAGE / file).read_text().splitlines()[int(line) - 1]
        assert re.search(r"^ *def |^ *@|lambda", code), place


def test_the_places_of_a_function_of_a_module_and_of_a_twin():
    found = places(LEDGER["layer_norm"])
    line = inspect.getsourcelines(inspect.unwrap(ops.FUSED.layer_norm))[1]
    assert found["fused"].startswith("formulas/") and found["fused"].endswith(f".py:{line}")
    assert found["by hand"].startswith("formulas/by_hand.py:")
    assert mt.ledger.where("feed_forward").startswith("model/layers.py:")
    assert places(LEDGER["relu"])["torch"] == "torch.nn.functional.relu"


def test_inputs_are_drawn_from_their_shapes():
    shapes = "x: batch keys d_model, W_1 W_2: d_model 6, keep: batch 1 queries keys, ids: 2 4"
    inputs = draw(shapes, eps=0.5, right=lambda case: case == MASKS[3])(
        np.random.default_rng(0), MASKS[3]
    )
    assert list(inputs) == ["x", "W_1", "W_2", "keep", "ids", "eps", "right"]
    assert inputs["W_2"].shape == (D_MODEL, 6) and (inputs["W_1"] != inputs["W_2"]).all()
    assert inputs["keep"].dtype == bool and not inputs["keep"][2, ..., -3:].any()
    assert inputs["ids"].dtype.kind == "i" and inputs["eps"] == 0.5 and inputs["right"] is True
    assert len(set(SIZES.values())) == len(SIZES)


def test_a_function_of_one_example_runs_over_the_batch():
    def f(x, keep, W):
        assert x.shape == (5,) and W.shape == (5, 2)
        return x @ W if keep is None else (x * keep) @ W

    rng = np.random.default_rng(0)
    x, W, keep = rng.random((3, 4, 5)), rng.random((5, 2)), rng.random((1, 4, 5)) < 0.5
    assert np.allclose(per_example(f, axes=2)(x=x, keep=None, W=W), x @ W)
    assert np.allclose(per_example(f, axes=2)(x=x, keep=keep, W=W), (x * keep) @ W)


def test_an_unknown_formula_lists_those_there_are():
    with pytest.raises(KeyError, match=r"no formula 'atention'.*attention.*adamw"):
        mt.verify(["atention"])


def test_cross_entropy_of_nothing_is_zero():
    logits, targets = torch.randn(3, 4, requires_grad=True), torch.full((3,), -100)
    for f in (ops.cross_entropy, ops.FUSED.cross_entropy):
        loss = f(logits, targets)
        loss.backward()
        assert loss == 0 and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.75])
def test_inverted_dropout_keeps_the_mean_and_drops_the_share(p):
    torch.manual_seed(0)
    n = 400_003  # not a multiple of four
    y = ops.inverted_dropout(torch.ones(n, dtype=torch.float64), p)
    assert abs((y == 0).double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert abs(y.mean().item() - 1) < 5 * math.sqrt(p / (1 - p) / n)
    assert set(y.unique().tolist()) == {0.0, 1 / (1 - p)}


def test_inverted_dropout_decides_every_entry_on_its_own():
    torch.manual_seed(0)
    dropped = (ops.inverted_dropout(torch.ones(100_000, 8), 0.3) == 0).numpy()
    correlation = np.corrcoef(dropped, rowvar=False) - np.eye(8)
    assert np.abs(correlation).max() < 0.015  # 4.7 standard errors


def test_inverted_dropout_follows_the_seed_and_p_zero_changes_nothing():
    x = torch.randn(7, 5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(ops.inverted_dropout(x, 0.4))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert ops.inverted_dropout(x, 0.0) is x


def test_inverted_dropout_near_its_ends_drops_nothing_or_all():
    """Sixteen bits are compared: one step beyond their range would turn all into nothing."""
    torch.manual_seed(0)
    x = torch.ones(1000, dtype=torch.float64)
    torch.testing.assert_close(ops.inverted_dropout(x, 1e-9), x)
    assert torch.equal(ops.inverted_dropout(x, 1 - 1e-9), 0 * x)
    share = (ops.inverted_dropout(torch.ones(400_000), 1 - 2**-10) != 0).double().mean().item()
    assert abs(share * 2**10 - 1) < 0.25  # five standard errors
    assert ops.inverted_dropout(x, 1e-9) is x, "less than 16 bits can say"
    assert not ops.inverted_dropout(x, 1 - 1e-9).any()
