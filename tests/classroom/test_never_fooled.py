"""No answer passes by luck, whatever it is called, and none leaves torch as it should not be."""

import functools
import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import minitransformer as mt
from minitransformer.classroom.engine import limits
from minitransformer.classroom.engine.diagnosis import OTHER_SIZES
from minitransformer.formulas import ops
from minitransformer.proofs.draws import OTHER, SIZES

EXERCISES = mt.check.exercises()


# --- Sizes ----------------------------------------------------------------------------------------


def axes_in(inputs):
    """The sizes of all axes, each with its tensor's name; an axis of size 1 is none."""
    tensors = {name: a for name, a in inputs.items() if isinstance(a, torch.Tensor)}
    return {(k, i): n for k, a in tensors.items() for i, n in enumerate(a.shape) if n != 1}


@pytest.mark.parametrize("name", EXERCISES)
def test_no_size_is_the_same_in_all_cases(name):
    """A number written into an answer is wrong in some case."""
    same = {"best_pair": [("words", 0), ("counts", 0)]}.get(name, [])
    cases = [axes_in(inputs) for inputs in EXERCISES[name].inputs().values()]
    for axis in {*itertools.chain(*cases)} - {*same}:
        assert len({case.get(axis) for case in cases}) > 1, axis


def formulas(n):
    """What somebody might write for the root of n, or for n itself."""
    return {
        "n": n,
        "root": n**0.5,
        "half": n / 2,
        "third": n / 3,
        "log": math.log(n),
        "log2": math.log2(n),
    }


@pytest.mark.parametrize("sizes", [SIZES, OTHER], ids=["sizes", "other sizes"])
def test_no_two_formulas_agree(sizes):
    """The root that is right equals nothing that is wrong, and no other size equals d_model."""
    right = sizes["d_k"] ** 0.5
    rows = {(axis, f): x for axis, n in sizes.items() for f, x in formulas(n).items()}
    wrong = {k: x for k, x in rows.items() if k != ("d_k", "root")}
    wrong |= {"floor": sizes["d_k"] // 2, "whole root": math.isqrt(sizes["d_k"])}
    assert not [k for k, x in wrong.items() if abs(x - right) < 0.02]
    used = {axis: n for axis, n in sizes.items() if axis not in ("d_norm", "vocab")}
    products = [
        pair
        for pair in itertools.combinations(used, 2)
        if sizes["d_model"] == math.prod(map(sizes.get, pair))
    ]
    assert products == [("heads", "d_k")] and len({*used.values()}) == len(used)


def test_every_size_differs_in_the_second_setting():
    assert all(SIZES[axis] != OTHER[axis] for axis in SIZES)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("scaled_scores", lambda Q, K: Q @ K.mT / (Q.shape[-1] ** 1 / 2)),
        ("scaled_scores", lambda Q, K: Q @ K.mT / (Q.shape[-1] // 2)),
        ("scaled_scores", lambda Q, K: Q @ K.mT / 6**0.5),
        ("scaled_scores", lambda Q, K: Q @ K.mT / len(Q) ** 0.5),
        ("scaled_scores", lambda Q, K: Q @ K.mT / math.log2(Q.shape[-1])),
        ("split_heads", lambda x, n: x.view(*x.shape[:2], 5, x.shape[2] // 5).transpose(1, 2)),
        ("merge_heads", lambda h: h.transpose(1, 2).reshape(len(h), -1, 30)),
        ("layer_norm", lambda x, g, b, e: g * (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) * 9 / 10 + e) ** 0.5 + b),
        ("encoder_decoder", lambda s, t, k, enc, dec: dec(t, enc(s, k), mt.causal_mask(7), k)),
        ("in_and_out", lambda a: (a.diagonal().mean(), (a.sum() - a.trace()) / 12)),
        ("mean_and_error", lambda a: torch.stack([a.mean(1), a.std(1) / 6**0.5], 1)),
        ("relative_bucket", lambda r, n, far, both: EXERCISES["relative_bucket"].patched()(r, 20, 33, both)),
        ("shift_right", lambda t, start: F.pad(t[:, :-1], (1, 0), value=2)),
    ],
)  # fmt: skip
def test_a_size_written_into_the_answer_is_found(name, answer):
    assert not EXERCISES[name](answer).passed


# --- Scores far above, and borders ----------------------------------------------------------------


def zeroed_and_divided(scores, keep):
    weights = scores.softmax(-1) * keep
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


def softmax_with(hide):
    return lambda scores, keep=None: scores.softmax(-1) if keep is None else hide(scores, keep)


def of_all(scores, keep):
    e = torch.exp(scores - scores.amax(-1, keepdim=True)) * keep
    return e / e.sum(-1, keepdim=True).clamp(min=1e-300)


def attention_with(weights):
    return lambda Q, K, V, keep=None: softmax_with(weights)(Q @ K.mT / Q.shape[-1] ** 0.5, keep) @ V


HIDING = {
    "zeroed and divided": zeroed_and_divided,
    "the largest of all": of_all,
    "-10,000 added": lambda s, keep: (s - 1e4 * ~keep).softmax(-1) * keep,
    "-50 added": lambda s, keep: (s - 50.0 * ~keep).softmax(-1) * keep,
    "-10,000 set": lambda s, keep: s.masked_fill(~keep, -1e4).softmax(-1) * keep,
}


@pytest.mark.parametrize("how", HIDING)
def test_hiding_by_a_finite_number_is_found(how):
    hide = HIDING[how]
    late = lambda s: torch.ones(s.shape[-2:]).tril(s.shape[-1] - s.shape[-2]).bool()  # noqa: E731
    cross = lambda y, z, Q, K, V, keep: attention_with(hide)(y @ Q, z @ K, z @ V, keep)  # noqa: E731
    assert not mt.check.softmax(softmax_with(hide)).passed
    assert not mt.check.attention(attention_with(hide)).passed
    if how != "-10,000 set":  # there the visible scores are of order 1
        assert not mt.check.cross_attention(cross).passed
    assert not mt.check.causal_weights(lambda s: hide(s, late(s))).passed


def nucleus(below):
    def answer(p, top_p):
        ordered, ids = p.sort(-1, descending=True)
        q = ordered * below(ordered.cumsum(-1) - ordered, top_p)
        return torch.zeros_like(q).scatter(-1, ids, q / q.sum(-1, keepdim=True))

    return answer


def rates(thawed):
    return lambda n, s, S: [int(i >= n - min(n, thawed(n, s, S))) for i in range(n)]


def masked(below_1, below_2, from_2, below_3):
    def answer(ids, special, u, v, drawn, mask_id):
        chosen = ~special & below_1(u, 0.15)
        seen = torch.where(chosen & below_2(v, 0.8), mask_id, ids)
        return torch.where(chosen & from_2(v, 0.8) & below_3(v, 0.9), drawn, seen)

    return answer


lt, le, gt, ge = torch.lt, torch.le, torch.gt, torch.ge
BORDERS = [
    ("top_p", nucleus(lt), nucleus(le)),
    ("gradual_rates", rates(lambda n, s, S: 1 + n * s // S), rates(lambda n, s, S: 1 + n * (s + 1) // S)),
    ("gradual_rates", None, rates(lambda n, s, S: 1 + n * s // (S - 1))),
    ("gradual_rates", None, rates(lambda n, s, S: 1 + n * s // (S + 1))),
    ("gradual_rates", None, rates(lambda n, s, S: min(S, 1 + n * s // S))),
    ("mask_tokens", masked(lt, lt, ge, lt), masked(le, lt, ge, lt)),
    ("mask_tokens", None, masked(lt, le, gt, lt)),
    ("mask_tokens", None, masked(lt, lt, ge, le)),
    ("warmup_then_linear", lambda s, S, w: (s + 1) / w if s < w else (S - s) / (S - w),
     lambda s, S, w: min((s + 1) / w, (S - s) / (S - w)) if w else 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "right", "wrong"), BORDERS)
def test_borders_are_met_exactly(name, right, wrong):
    for seed in range(4, 8):
        assert right is None or EXERCISES[name](right, seed).passed
        assert not EXERCISES[name](wrong, seed).passed


def test_merging_by_text_is_found():
    def answer(ids, a, b, new, pad_id):
        text = " ".join(map(str, ids.tolist())).replace(f"{a} {b}", str(new))
        merged = [int(word) for word in text.split()]
        return merged + [pad_id] * (len(ids) - len(merged))

    assert not any(mt.check.merge_pair(answer, seed).passed for seed in range(4, 12))


def test_a_changed_dictionary_is_found():
    def answer(word, vocab, pad_id):
        vocab.pop("[UNK]")
        return [pad_id] * len(word)

    assert "changes its argument vocab" in mt.check.word_pieces(answer).message


# --- Torch's global state -------------------------------------------------------------------------


def attention(Q, K, V, keep=None):
    return F.scaled_dot_product_attention(Q, K, V, keep)


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_a_check_starts_from_the_usual_state(around):
    with around():
        assert mt.check.attention(attention).passed
        assert not mt.check.attention(lambda *given: attention(*given).detach()).passed


def test_what_an_answer_sets_does_not_last():
    def unruly(Q, K, V, keep=None):
        torch.set_default_dtype(torch.float16)
        torch.set_num_threads(2)
        torch.manual_seed(0)
        output = attention(Q, K, V, keep)
        torch.set_grad_enabled(False)
        return output

    def state():
        threads = torch.get_num_threads()
        return torch.is_grad_enabled(), torch.get_default_dtype(), threads, torch.initial_seed()

    before, drawn = state(), torch.get_rng_state()
    assert mt.check.attention(unruly).passed
    assert state() == before and torch.equal(torch.get_rng_state(), drawn)
    assert mt.check.layer_norm(lambda x, g, b, e: F.layer_norm(x, g.shape, g, b, e)).passed


# --- Whose answer it is ---------------------------------------------------------------------------


class Holder:
    def __init__(self, f):
        self.f = f

    def __call__(self, *given):
        return self.f(*given)


package, table = mt.scaled_dot_product_attention, {"it": ops.attention}
BORROWED = {
    "itself": ops.attention,
    "called": lambda Q, K, V, keep=None: package(Q, K, V, keep)[0],
    "default argument": lambda Q, K, V, keep=None, f=ops.attention: f(Q, K, V, keep),
    "dictionary": lambda *given: table["it"](*given),
    "object": Holder(ops.attention),
    "partial": functools.partial(ops.attention),
    "sys.modules": lambda *given: sys.modules["minitransformer.formulas.ops"].attention(*given),
    "right": mt.check.attention.right,
}


@pytest.mark.parametrize("how", BORROWED)
def test_the_packages_own_function_is_recognised_under_any_name(how):
    result = mt.check.attention(BORROWED[how])
    assert not result.passed and "the package's own" in result.message


@pytest.mark.parametrize("name", ["layer_norm", "target_loss", "merge_pair", "chance_loss"])
def test_the_solution_of_a_check_is_recognised(name):
    assert "the package's own" in EXERCISES[name](EXERCISES[name].right).message


def test_a_part_that_is_borrowed_is_said():
    result = mt.check.attention(attention)
    assert result.passed and result.uses == ("torch's scaled_dot_product_attention",)
    assert "It calls torch's scaled_dot_product_attention" in result.message
    half = mt.check.attention(lambda Q, K, V, keep: 1.0 * ops.attention(Q, K, V, keep))
    assert half.passed and half.uses == ("attention",)


# --- Right answers in other clothes ---------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [tuple, list, np.array, torch.stack, lambda pair: np.float32(pair)]
)
def test_numbers_may_come_in_any_form(kind):
    home = lambda a: kind([a.diagonal().mean(), (a.sum() - a.trace()) / (len(a) ** 2 - len(a))])  # noqa: E731
    assert mt.check.in_and_out(home).passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.int32])
def test_zeros_and_ones_may_have_any_type_but_bool(dtype):
    answer = rates(lambda n, s, S: 1 + n * s // S)
    assert mt.check.gradual_rates(lambda *given: torch.tensor(answer(*given), dtype=dtype)).passed
    assert not mt.check.gradual_rates(lambda *given: torch.tensor(answer(*given)).bool()).passed


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("scaled_scores", lambda Q, K: Q @ K.mT / torch.sqrt(torch.tensor(Q.shape[-1]))),
        ("chance_loss", lambda n: torch.log(torch.tensor(n))),
        ("chance_loss", lambda n: torch.tensor(float(n), dtype=torch.float32).log().item()),
        ("mean_pool", lambda h, r: ((r / r.sum(1, keepdim=True))[..., None] * h).sum(1)),
        ("warmup_then_linear", lambda s, S, w: np.float32((s + 1) / w if s < w else (S - s) / (S - w))),
    ],
)  # fmt: skip
def test_constants_of_float32_are_right(name, answer):
    assert EXERCISES[name](answer).passed


NOT_DIFFERENTIATED = [
    "temperature",
    "softmax_backward",
    "accuracy_error",
    "layer_norm_backward",
    "top_p",
]


@pytest.mark.parametrize("name", NOT_DIFFERENTIATED)
def test_no_gradient_is_asked_of_what_is_not_trained(name):
    right = EXERCISES[name].patched()
    assert EXERCISES[name](torch.no_grad()(lambda *given: right(*given))).passed


def test_an_error_of_torch_is_no_unwritten_answer():
    def loss(logits, target, keep):
        return target.log_softmax(-1).mean()  # integers: torch raises NotImplementedError

    said = mt.check.target_loss(loss).message
    assert "does not run" in said and "target.log_softmax(-1)" in said


# --- Messages -------------------------------------------------------------------------------------


def half_a_recipe(scores, keep=None):
    if keep is None:
        return scores.softmax(-1)
    empty = ~keep.any(-1, keepdim=True)
    return scores.masked_fill(~keep, -math.inf).masked_fill(empty, 0.0).softmax(-1)


def inverted(y, z, W_Q, W_K, W_V, keep):
    scores = (y @ W_Q) @ (z @ W_K).mT / W_K.shape[-1] ** 0.5
    return scores.masked_fill(keep, -math.inf).softmax(-1) @ (z @ W_V)


def no_square(x, gamma, beta, eps):
    mu = x.mean(-1, keepdim=True)
    return gamma * (x - mu) / torch.sqrt(((x - mu) ** 1).mean(-1, keepdim=True) + eps) + beta


def uncorrected(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
    return theta - lr * weight_decay * theta - lr * m / (v.sqrt() + eps), m, v


def smoothed(logits, target, keep):
    return F.cross_entropy(logits[keep], target[keep], label_smoothing=0.1)


def in_place(x, gamma, beta, eps):
    x -= x.mean(-1, keepdim=True)
    return x


MESSAGES = [
    ("softmax", half_a_recipe, ["equal weights for a query that may attend to nothing"], ["-inf,"]),
    ("cross_attention", inverted, ["with the mask inverted"], ["None of"]),
    ("encoder_decoder", lambda s, t, k, e, d: d(t, e(s, ~k), mt.causal_mask(t.shape[1]), ~k),
     ["with the source's mask inverted."], ["None of"]),
    ("layer_norm", no_square, ["without the square"], ["rounding"]),
    ("layer_norm", in_place, ["changes its argument x", "`+=`"], ["masked_fill"]),
    ("adamw_step", uncorrected, ["without any bias correction"], ["only on m", "two mistakes"]),
    ("target_loss", smoothed, ["It gives", "the formula gives"], ["a factor", ", at  ("]),
    ("target_loss", lambda lg, t, k: F.cross_entropy(lg[~k], t[~k]), ["keep inverted"], ["nan times"]),
    ("leaks", lambda block, x, t: "yes", ["True or False"], ["tensor"]),
    ("accuracy_error", lambda p, n: (p * (1 - p)).sqrt(), ["without n"], ["None of"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "said", "unsaid"), MESSAGES)
def test_what_a_message_says_is_true(name, answer, said, unsaid):
    message = EXERCISES[name](answer).message
    assert all(text in message for text in said), message
    assert not any(text in message for text in unsaid), message


def test_leaks_tells_the_tests_apart_and_takes_shorter_texts():
    said = mt.check.leaks(lambda block, x, t: True)
    assert (
        said.mistakes == ("that always fires",)
        and "Your verdicts are those of a test" in said.message
    )

    def cut(block, x, t):
        training = block.training
        block.eval()
        moved = not torch.allclose(block(x[:, :t]), block(x)[:, :t], rtol=0, atol=1e-12)
        block.train(training)
        return moved

    assert mt.check.leaks(cut).passed


def test_an_endless_answer_leaves_torch_as_it_was(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.1)

    def endless(Q, K):
        torch.set_grad_enabled(False)
        while True:
            pass

    assert not mt.check.scaled_scores(endless).passed and torch.is_grad_enabled()


def test_the_other_sizes_are_drawn_like_the_first_case():
    for name, exercise in EXERCISES.items():
        if OTHER_SIZES in exercise.cases:
            inputs = exercise.inputs()
            first, other = (axes_in(inputs[case]) for case in (exercise.cases[0], OTHER_SIZES))
            assert first.keys() == other.keys(), name


def test_a_stub_inside_a_with_statement_is_still_to_be_written():
    def stub(Q, K):
        with torch.no_grad():
            raise NotImplementedError

    assert mt.check.scaled_scores(stub).message.startswith("Still to be written")
