r"""The known mistakes, planted in the package: would its own tests see them?

Most exercises ask for a formula that has a row in the ledger. `ROWS` puts a student's version in the
place of the package's code, as a row that `verify` can run.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..formulas import ops
from ..formulas.numpy_transformer import Stack
from ..proofs.draws import HEADS, HUGE
from ..proofs.formula import Formula, Inputs
from ..proofs.ledger import LEDGER
from ..proofs.measure import SEED, measure
from ..proofs.rows_decoder import crossing, our_causal
from ..proofs.rows_models import CONFIG, SOURCE_TABLE, switches_of, torch_embed
from ..proofs.rows_modules import ATTENTION, EPS, our_attention, our_feed_forward
from .exercises.checks import block_reference
from .exercises.mistakes import merge_heads, split_heads
from .exercises.nb04_decoder import block_reference as decoder_block_reference

Answer = Callable[..., Any]


def plant(id: str, ours: Answer, **others: Any) -> Formula:
    """The row with another implementation, and nothing else that could be off."""
    return replace(LEDGER[id], ours=ours, fused=None, **others)


def caught(row: Formula) -> bool:
    """Whether `verify` sees that the row is off, in one of its cases; a crash is seen as well."""
    try:
        return any(measure(one_case(row, case)).wrong() for case in row.cases)
    except RuntimeError:
        return True


def one_case(row: Formula, case: str) -> Formula:
    """A single case of the row, whose result by hand is computed once for all mistakes."""
    by_hand = result_by_hand(row.draw, row.by_hand, case)
    return replace(row, cases=(case,), by_hand=lambda **_: by_hand)


@cache
def result_by_hand(draw: Answer, by_hand: Answer, case: str) -> Any:
    return by_hand(**draw(np.random.default_rng(SEED), case))


# --- Attention and heads ----------------------------------------------------------------------


def heads(
    x: Tensor, z: Tensor, keep: Tensor | None, split: Answer = split_heads,
    merge: Answer = merge_heads, **w: Tensor,
) -> Tensor:  # fmt: skip
    """Multi-head attention with biases, cut and merged in one way or another."""
    Q, K, V = (split(a @ w[f"W_{i}"] + w[f"b_{i}"], HEADS) for a, i in ((x, "Q"), (z, "K"), (z, "V")))  # fmt: skip
    return merge(ops.attention(Q, K, V, keep)) @ w["W_O"] + w["b_O"]


BIASES = ("b_Q", "b_K", "b_V", "b_O")


def draw_without_biases(rng: np.random.Generator, case: str) -> Inputs:
    inputs = LEDGER["multi_head_attention"].draw(rng, case)
    return inputs | {b: np.zeros_like(inputs[b]) for b in BIASES}


def multi_head(f: Answer) -> Formula:
    """The row with its biases at zero: the exercise has none."""

    def ours(x: Tensor, z: Tensor, keep: Tensor | None, **w: Tensor) -> Tensor:
        return f(x, z, *(w[f"W_{i}"] for i in "QKVO"), HEADS, keep)

    return plant("multi_head_attention", ours, draw=draw_without_biases, no_gradient=BIASES)


# --- Blocks -----------------------------------------------------------------------------------


def norm(w: Inputs, name: str) -> Answer:
    return lambda a: ops.layer_norm(a, w[f"gamma_{name}"], w[f"beta_{name}"], EPS)


def ffn(w: Inputs, activation: str) -> Answer:
    names = ("W_1", "b_1", "W_2", "b_2")
    return lambda a: our_feed_forward("formula", a, activation, **{n: w[n] for n in names})


def encoder_block(f: Answer, position: str) -> Formula:
    def ours(x: Tensor, keep: Tensor | None, activation: str, **w: Tensor) -> Tensor:
        own = {name: w[name] for name in ATTENTION}
        attention = lambda a: our_attention(a, a, keep, "formula", **own)  # noqa: E731
        return f(x, attention, ffn(w, activation), norm(w, "1"), norm(w, "2"), position)

    return plant(f"{position}_ln_block", ours)


def decoder_block(f: Answer, position: str) -> Formula:
    def ours(
        y: Tensor, z: Tensor, keep: Tensor | None, memory_keep: Tensor | None, activation: str,
        **w: Tensor,
    ) -> Tensor:  # fmt: skip
        own = {name: w[name] for name in ATTENTION}
        attention = lambda a: our_causal("formula", a, keep, **own)  # noqa: E731
        look = lambda a, z: our_attention(a, z, memory_keep, "formula", **crossing(w))  # noqa: E731
        norms = (norm(w, name) for name in ("1", "c", "2"))
        return f(y, z, attention, look, ffn(w, activation), *norms, position)

    return plant(f"{position}_ln_decoder_block", ours)


def encoder_decoder(f: Answer) -> Formula:
    """The whole Transformer out of one function that joins its two stacks."""

    def ours(source: Tensor, target: Tensor, source_keep: Tensor, **p: Tensor) -> Tensor:
        E, switches = p[SOURCE_TABLE], switches_of(CONFIG)
        reader = Stack(p, "encoder_decoder.encoder.", **switches)
        writer = Stack(p, "encoder_decoder.decoder.", cross=True, **switches)

        def parts(w: Inputs) -> tuple[Answer, Answer]:
            return (lambda a: (a @ w["W_1"] + w["b_1"]).relu() @ w["W_2"] + w["b_2"], norm(w, "1"))

        def encoder(x: Tensor, keep: Tensor | None = None) -> Tensor:
            for i in range(reader.depth):
                w = reader.block(i)
                own = {name: w[name] for name in ATTENTION}
                attention = partial(lambda own, a: heads(a, a, keep, **own), own)
                x = block_reference(x, attention, *parts(w), norm(w, "2"), "post")
            return x

        def decoder(
            y: Tensor, z: Tensor, keep: Tensor | None = None, memory_keep: Tensor | None = None
        ) -> Tensor:
            for i in range(writer.depth):
                w = writer.block(i)
                own = {name: w[name] for name in ATTENTION}
                attention = partial(lambda own, a: heads(a, a, keep, **own), own)
                look = partial(lambda w, a, z: heads(a, z, memory_keep, **crossing(w)), w)
                last = (norm(w, "c"), norm(w, "2"))
                y = decoder_block_reference(y, z, attention, look, *parts(w), *last, "post")
            return y

        return f(torch_embed(source, E), torch_embed(target, E), source_keep, encoder, decoder) @ E.T  # fmt: skip

    return plant("post_ln_transformer", ours, cases=("left padding", "right padding"))


# --- Positions, loss, optimiser, gradients ------------------------------------------------------


def buckets(f: Answer) -> Formula:
    def ours(queries: int, keys: int, *rest: Any, **named: Any) -> Tensor:
        r = torch.arange(keys) - torch.arange(keys - queries, keys)[:, None]
        return f(r, *rest, **named)

    return plant("relative_buckets", ours)


def loss(f: Answer) -> Formula:
    """The row's positions cut into texts of four, the last one padded."""

    def ours(logits: Tensor, targets: Tensor, ignore: int, label_smoothing: float) -> Tensor:
        more = -len(logits) % 4
        logits = torch.cat([logits, logits[:more]]).unflatten(0, (-1, 4))
        targets = torch.cat([targets, targets.new_full((more,), ignore)]).view(-1, 4)
        return f(logits, targets.clamp(min=0), targets != ignore)

    return plant("cross_entropy", ours, cases=("plain", "ignored positions"))


def masked_loss(f: Answer) -> Formula:
    """The same texts of four: what the row ignores is not chosen, and real all the same."""
    return loss(lambda logits, targets, chosen: f(logits, targets, chosen, torch.ones_like(chosen)))


def adamw(f: Answer) -> Formula:
    def ours(theta: Tensor, **rest: Any) -> tuple[Tensor, ...]:
        return tuple(a.view_as(theta) for a in f(theta, **rest).chunk(3))

    return plant("adamw", ours)


def backward(id: str, f: Answer) -> Formula:
    """The derivative in NumPy replaced; the exercise gives all gradients as one row."""
    row = LEDGER[id]

    def backward_by_hand(d_output: np.ndarray, **inputs: Any) -> tuple[np.ndarray, ...]:
        given = {
            name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a
            for name, a in inputs.items()
        }
        wanted = [a for a in given.values() if isinstance(a, Tensor) and a.is_floating_point()]
        grads = f(torch.from_numpy(d_output), *given.values())
        parts = grads.flatten().split([a.numel() for a in wanted])
        return tuple(part.view_as(a).numpy() for part, a in zip(parts, wanted, strict=True))

    return replace(row, fused=None, backward_by_hand=backward_by_hand)


ROWS: dict[str, Callable[[Answer], tuple[Formula, ...]]] = {
    "scaled_scores": lambda f: (
        plant("attention", lambda Q, K, V, keep: ops.softmax(f(Q, K), keep) @ V),
    ),
    "softmax": lambda f: (plant("softmax", f),),
    "attention": lambda f: (plant("attention", f),),
    "split_heads": lambda f: (plant("multi_head_attention", partial(heads, split=f)),),
    "merge_heads": lambda f: (plant("multi_head_attention", partial(heads, merge=f)),),
    "multi_head_attention": lambda f: (multi_head(f),),
    "layer_norm": lambda f: (plant("layer_norm", f),),
    "feed_forward": lambda f: (
        plant("feed_forward", lambda activation, **inputs: f(**inputs), cases=("relu",)),
    ),
    "encoder_block": lambda f: (encoder_block(f, "post"), encoder_block(f, "pre")),
    "causal_weights": lambda f: (
        plant("softmax", lambda scores, keep: f(scores), cases=("causal", HUGE)),
    ),
    "cross_attention": lambda f: (
        plant(
            "head",
            lambda x, z, W_Q, W_K, W_V, keep: f(x, z, W_Q, W_K, W_V, keep),
            cases=("left padding", "right padding"),
        ),
    ),
    "decoder_block": lambda f: (decoder_block(f, "post"), decoder_block(f, "pre")),
    "encoder_decoder": lambda f: (encoder_decoder(f),),
    "mean_pool": lambda f: (plant("mean_pool", f),),
    "relative_bucket": lambda f: (buckets(f),),
    "target_loss": lambda f: (loss(f),),
    "masked_loss": lambda f: (masked_loss(f),),
    "adamw_step": lambda f: (adamw(f),),
    "softmax_backward": lambda f: (
        backward("softmax", lambda d, scores, keep: f(d, ops.softmax(scores, keep))),
    ),
    "layer_norm_backward": lambda f: (backward("layer_norm", f),),
    "attention_backward": lambda f: (backward("attention", f),),
}
"""For an exercise the rows of its formula, with this answer in the place of the package's code."""
