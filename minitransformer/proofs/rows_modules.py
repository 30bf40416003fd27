"""The ledger's rows for modules: multi-head attention, feed-forward, the blocks, the article's formulas.

A module is given its weights by `torch.func.functional_call`, so the gradient of every weight is
compared too.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..formulas import block_gradients, by_hand, gradients, ops
from ..model.attention import MultiHeadAttention
from ..model.block import EncoderBlock, decoder_sublayer, encoder_sublayer
from ..model.config import TransformerConfig
from ..model.heads import mean_pool
from ..model.layers import Embeddings, FeedForward, LayerNorm
from ..model.transformer import Pooler
from .draws import (
    BATCH,
    D_FF,
    D_MODEL,
    HEADS,
    KEYS,
    MASKS,
    QUERIES,
    draw_attention_weights,
    draw_keep,
    matrix,
)
from .formula import Formula, Inputs
from .rows_formulas import rotating_positions

EPS = 0.1  # large, to show where it stands
ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")


ROWS: list[Formula] = []
add = ROWS.append


def draw_multi_head(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "x": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "z": rng.standard_normal((BATCH, KEYS, D_MODEL)),
        **draw_attention_weights(rng),
        "keep": draw_keep(rng, case, (BATCH, 1, QUERIES, KEYS)),
    }


def attention_by_hand(
    x: np.ndarray, z: np.ndarray, keep: np.ndarray | None = None, **w: np.ndarray
) -> np.ndarray:
    """One sequence through `by_hand.multi_head_attention`: cut the wide maps into heads."""

    def cut(W: np.ndarray) -> np.ndarray:  # (d_model, h d_k) -> (h, d_model, d_k)
        return np.stack(np.split(W, HEADS, axis=-1))

    heads = {name: cut(w[name]) for name in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V")}
    if keep is not None:
        keep = keep[0]  # one mask for all heads
    return by_hand.multi_head_attention(x, z, keep=keep, W_O=w["W_O"], b_O=w["b_O"], **heads)


def attention_state(w: Inputs, prefix: str = "") -> dict[str, Tensor]:
    """Our module's parameters from the formula's matrices; nn.Linear stores them transposed."""
    state = {}
    for i in ("Q", "K", "V", "O"):
        state[f"{prefix}W_{i}.weight"] = w[f"W_{i}"].T
        state[f"{prefix}W_{i}.bias"] = w[f"b_{i}"]
    return state


def our_attention(x: Tensor, z: Tensor, keep: Tensor | None, ops: str, **w: Tensor) -> Tensor:
    module = MultiHeadAttention(D_MODEL, HEADS, ops=ops)
    return functional_call(module, attention_state(w), (x, z, keep))


def torch_attention_state(w: Inputs, prefix: str = "") -> dict[str, Tensor]:
    return {
        f"{prefix}in_proj_weight": torch.cat([w["W_Q"].T, w["W_K"].T, w["W_V"].T]),
        f"{prefix}in_proj_bias": torch.cat([w["b_Q"], w["b_K"], w["b_V"]]),
        f"{prefix}out_proj.weight": w["W_O"].T,
        f"{prefix}out_proj.bias": w["b_O"],
    }


def torch_multi_head(x: Tensor, z: Tensor, keep: Tensor | None, **w: Tensor) -> Tensor:
    module = nn.MultiheadAttention(D_MODEL, HEADS, batch_first=True).to(x.dtype)
    # torch's module means the opposite by a boolean mask (True = blocked) and wants it per head.
    blocked = None
    if keep is not None:
        # It gives NaN for a query without keys: let that see all keys, and drop what it says.
        blocked = ~keep & keep.any(-1, keepdim=True)
        blocked = blocked.expand(-1, HEADS, -1, -1).flatten(0, 1)
    output, _ = functional_call(
        module,
        torch_attention_state(w),
        (x, z, z),
        {"attn_mask": blocked, "need_weights": False},
    )
    return output if keep is None else torch.where(keep.any(-1)[:, 0, :, None], output, w["b_O"])


add(
    Formula(
        id="multi_head_attention",
        title="multi-head attention",
        latex=r"\mathrm{MultiHeadAttention}(x, z) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O",
        source="Vaswani et al. 2017, section 3.2.2; article, section 4",
        draw=draw_multi_head,
        by_hand=by_hand.over_batch(attention_by_hand, "x", "z", "keep"),
        ours=partial(our_attention, ops="formula"),
        fused=partial(our_attention, ops="fused"),
        reference=torch_multi_head,
        backward_by_hand=partial(block_gradients.multi_head_attention_backward, n_heads=HEADS),
        cases=MASKS,
        shows=(MultiHeadAttention.forward, MultiHeadAttention.project),
    )
)


# --- The article's two formulas, as printed -----------------------------------------------------


def draw_sublayer(rng: np.random.Generator, case: str, decoder: bool) -> Inputs:
    keys = KEYS if decoder else QUERIES
    inputs: Inputs = {"x": rng.standard_normal((BATCH, QUERIES, D_MODEL))}
    if decoder:
        inputs = {"y": inputs["x"], "z": rng.standard_normal((BATCH, KEYS, D_MODEL))}
    return inputs | {
        **draw_attention_weights(rng),
        "gamma": rng.standard_normal(D_MODEL), "beta": rng.standard_normal(D_MODEL),
        "keep": draw_keep(rng, case, (BATCH, 1, QUERIES, keys)),
    }  # fmt: skip


def by_hand_sublayer(
    z: np.ndarray, gamma: np.ndarray, beta: np.ndarray, y: np.ndarray, keep=None, **w: np.ndarray
) -> np.ndarray:
    added = y + attention_by_hand(y, z, keep, **w)
    return by_hand.layer_norm(added, gamma, beta, EPS)


def by_hand_encoder(x: np.ndarray, **inputs: Any) -> np.ndarray:
    return by_hand_sublayer(z=x, y=x, **inputs)


class Sublayer(nn.Module):
    """An attention and a norm, called as the article writes them."""

    def __init__(self, ops: str):
        super().__init__()
        self.attention = MultiHeadAttention(D_MODEL, HEADS, ops=ops)
        self.norm = LayerNorm(D_MODEL, EPS, ops)

    def forward(self, y: Tensor, z: Tensor | None, keep: Tensor | None) -> Tensor:
        if z is None:
            return encoder_sublayer(y, self.attention, self.norm, keep)
        return decoder_sublayer(y, z, self.attention, self.norm, keep)


def our_sublayer(
    ops: str, gamma: Tensor, beta: Tensor, keep: Tensor | None, x: Tensor | None = None,
    y: Tensor | None = None, z: Tensor | None = None, **w: Tensor,
) -> Tensor:  # fmt: skip
    state = attention_state(w, "attention.") | {"norm.weight": gamma, "norm.bias": beta}
    return functional_call(Sublayer(ops), state, (x if y is None else y, z, keep))


def torch_sublayer(
    gamma: Tensor, beta: Tensor, keep: Tensor | None, x: Any = None, y: Any = None, z: Any = None,
    **w: Tensor,
) -> Tensor:  # fmt: skip
    y = x if y is None else y
    attended = torch_multi_head(y, y if z is None else z, keep, **w)
    return nn.functional.layer_norm(y + attended, (D_MODEL,), gamma, beta, EPS)


for decoder in (False, True):
    add(
        Formula(
            id="decoder_sublayer" if decoder else "encoder_sublayer",
            title="the article's decoder" if decoder else "the article's encoder",
            latex=r"\mathrm{Decoder}(y, z) = \mathrm{LayerNorm}(y + \mathrm{MultiHeadAttention}(y, z))"
            if decoder
            else r"\mathrm{Encoder}(x) = \mathrm{LayerNorm}(x + \mathrm{MultiHeadAttention}(x))",
            source="article, section 4",
            draw=partial(draw_sublayer, decoder=decoder),
            by_hand=by_hand.over_batch(
                by_hand_sublayer if decoder else by_hand_encoder, "x", "y", "z", "keep"
            ),
            ours=partial(our_sublayer, "formula"),
            fused=partial(our_sublayer, "fused"),
            reference=torch_sublayer,
            backward_by_hand=partial(
                block_gradients.decoder_sublayer_backward
                if decoder
                else block_gradients.encoder_sublayer_backward,
                n_heads=HEADS,
                eps=EPS,
            ),
            cases=MASKS[:-1],
            shows=(decoder_sublayer if decoder else encoder_sublayer,),
        )
    )


# --- Feed-forward and the whole block -----------------------------------------------------------


def draw_feed_forward(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "x": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "W_1": matrix(rng, D_MODEL, D_FF), "b_1": rng.standard_normal(D_FF),
        "W_2": matrix(rng, D_FF, D_MODEL), "b_2": rng.standard_normal(D_MODEL),
        "activation": case,
    }  # fmt: skip


def feed_forward_state(w: Inputs, prefix: str = "", ours: bool = True) -> dict[str, Tensor]:
    first, second = ("W_1", "W_2") if ours else ("linear1", "linear2")
    return {
        f"{prefix}{first}.weight": w["W_1"].T, f"{prefix}{first}.bias": w["b_1"],
        f"{prefix}{second}.weight": w["W_2"].T, f"{prefix}{second}.bias": w["b_2"],
    }  # fmt: skip


def our_feed_forward(ops: str, x: Tensor, activation: str, **w: Tensor) -> Tensor:
    module = FeedForward(D_MODEL, D_FF, activation, ops=ops)
    return functional_call(module, feed_forward_state(w), (x,))


def torch_feed_forward(x: Tensor, activation: str, **w: Tensor) -> Tensor:
    f = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}[activation]
    module = nn.Sequential(nn.Linear(D_MODEL, D_FF), f, nn.Linear(D_FF, D_MODEL))
    state = {
        "0.weight": w["W_1"].T, "0.bias": w["b_1"], "2.weight": w["W_2"].T, "2.bias": w["b_2"],
    }  # fmt: skip
    return functional_call(module, state, (x,))


add(
    Formula(
        id="feed_forward",
        title="feed-forward",
        latex=r"\mathrm{FFN}(x) = \max(0, xW_1 + b_1)\,W_2 + b_2",
        source="Vaswani et al. 2017, equation 2",
        draw=draw_feed_forward,
        by_hand=by_hand.over_batch(by_hand.feed_forward, "x"),
        ours=partial(our_feed_forward, "formula"),
        fused=partial(our_feed_forward, "fused"),
        reference=torch_feed_forward,
        backward_by_hand=block_gradients.feed_forward_backward,
        cases=("relu", "gelu", "gelu_tanh"),
        shows=(FeedForward.forward,),
    )
)


def draw_block(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_feed_forward(rng, "gelu") | draw_attention_weights(rng)
    for name in ("gamma_1", "beta_1", "gamma_2", "beta_2"):
        inputs[name] = rng.standard_normal(D_MODEL)
    return inputs | {"keep": draw_keep(rng, case, (BATCH, 1, QUERIES, QUERIES))}


def block_by_hand(
    norm_position: str, x: np.ndarray, keep: np.ndarray | None, activation: str, **w: Any
) -> np.ndarray:
    attention_weights = {name: w[name] for name in ATTENTION}
    ffn_weights = {name: w[name] for name in ("W_1", "b_1", "W_2", "b_2")}
    return by_hand.encoder_block(
        x,
        attention=lambda a: attention_by_hand(a, a, keep, **attention_weights),
        feed_forward=lambda a: by_hand.feed_forward(a, activation=activation, **ffn_weights),
        norm_1=lambda a: by_hand.layer_norm(a, w["gamma_1"], w["beta_1"], EPS),
        norm_2=lambda a: by_hand.layer_norm(a, w["gamma_2"], w["beta_2"], EPS),
        norm_position=norm_position,
    )


def our_block(
    ops: str, norm_position: str, x: Tensor, keep: Tensor | None, activation: str, **w: Tensor
) -> Tensor:
    switches: Inputs = {"norm_position": norm_position, "activation": activation, "ops": ops}
    config = TransformerConfig(
        d_model=D_MODEL, n_heads=HEADS, d_ff=D_FF, norm_eps=EPS, dropout=0.0, **switches
    )
    state = attention_state(w, "attention.") | feed_forward_state(w, "feed_forward.")
    for i in (1, 2):
        state |= {f"norm_{i}.weight": w[f"gamma_{i}"], f"norm_{i}.bias": w[f"beta_{i}"]}
    return functional_call(EncoderBlock(config), state, (x, keep))


def torch_block(
    norm_position: str, x: Tensor, keep: Tensor | None, activation: str, **w: Tensor
) -> Tensor:
    module = nn.TransformerEncoderLayer(
        D_MODEL, HEADS, D_FF, 0.0, activation, EPS, batch_first=True,
        norm_first=norm_position == "pre", dtype=x.dtype,
    )  # fmt: skip
    state = torch_attention_state(w, "self_attn.") | feed_forward_state(w, ours=False)
    for i in (1, 2):
        state |= {f"norm{i}.weight": w[f"gamma_{i}"], f"norm{i}.bias": w[f"beta_{i}"]}
    blocked = None if keep is None else ~keep.expand(-1, HEADS, -1, -1).flatten(0, 1)
    return functional_call(module, state, (x,), {"src_mask": blocked})


for position in ("post", "pre"):
    add(
        Formula(
            id=f"{position}_ln_block",
            title=f"encoder block, {position}-LN",
            latex=r"a = \mathrm{LN}_1(x + \mathrm{MHA}(x)),\quad y = \mathrm{LN}_2(a + \mathrm{FFN}(a))"
            if position == "post"
            else r"a = x + \mathrm{MHA}(\mathrm{LN}_1(x)),\quad y = a + \mathrm{FFN}(\mathrm{LN}_2(a))",
            source="Vaswani et al. 2017, section 3.1"
            if position == "post"
            else "Xiong et al. 2020, figure 1",
            draw=draw_block,
            by_hand=by_hand.over_batch(partial(block_by_hand, position), "x", "keep"),
            ours=partial(our_block, "formula", position),
            fused=partial(our_block, "fused", position),
            reference=partial(torch_block, position),
            backward_by_hand=partial(
                block_gradients.encoder_block_backward,
                n_heads=HEADS,
                eps=EPS,
                norm_position=position,
            ),
            cases=MASKS[:-1],
            shows=(EncoderBlock.forward,),
        )
    )


# --- Embeddings and pooling ---------------------------------------------------------------------


def draw_embeddings(rng: np.random.Generator, case: str) -> Inputs:
    # Fewer words than places, so that some repeat, and one that never occurs.
    return {"ids": rng.integers(0, 8, (BATCH, KEYS)), "E": rng.standard_normal((9, D_MODEL))}


def embeddings_by_hand(ids: np.ndarray, E: np.ndarray) -> np.ndarray:
    table = by_hand.sinusoidal_positions(len(ids), D_MODEL)
    x = np.zeros((len(ids), D_MODEL))
    for t, word in enumerate(ids):
        for j in range(D_MODEL):
            x[t, j] = np.sqrt(D_MODEL) * E[word, j] + table[t, j]
    return x


def embeddings_backward(dx: np.ndarray, ids: np.ndarray, E: np.ndarray) -> np.ndarray:
    return gradients.embedding_backward(np.sqrt(D_MODEL) * dx, ids, E)


def our_embeddings(ids: Tensor, E: Tensor) -> Tensor:
    config = TransformerConfig(
        vocab_size=len(E), d_model=D_MODEL, n_heads=HEADS, max_len=KEYS, dropout=0.0
    )
    # The table of positions is a float32 buffer; the formula is compared in full precision.
    positions = ops.sinusoidal_positions(KEYS, D_MODEL, E.dtype)
    state = {"tokens.weight": E, "positions": positions}
    return functional_call(Embeddings(config), state, (ids,))


def torch_embeddings(ids: Tensor, E: Tensor) -> Tensor:
    one_hot = nn.functional.one_hot(ids, len(E)).to(E.dtype)  # a lookup is a product with one-hots
    return one_hot @ E * D_MODEL**0.5 + rotating_positions(ids.shape[1], D_MODEL).to(E.dtype)


add(
    Formula(
        id="embeddings",
        title="embeddings and positions",
        latex=r"x_t = \sqrt{d_{model}}\,E_{id_t} + PE_t",
        source="Vaswani et al. 2017, sections 3.4 and 3.5",
        draw=draw_embeddings,
        by_hand=by_hand.over_batch(embeddings_by_hand, "ids"),
        ours=our_embeddings,
        reference=torch_embeddings,
        backward_by_hand=embeddings_backward,
        shows=(Embeddings.forward,),
    )
)


def draw_mean_pool(rng: np.random.Generator, case: str) -> Inputs:
    real = np.arange(KEYS) < np.array([[4], [11], [7]])  # another length for every example
    return {"hidden": rng.standard_normal((BATCH, KEYS, D_MODEL)), "real": real}


def mean_pool_by_hand(hidden: np.ndarray, real: np.ndarray) -> np.ndarray:
    counted = [t for t in range(len(hidden)) if real[t]]
    return np.array([sum(hidden[t, j] for t in counted) / len(counted) for j in range(D_MODEL)])


def torch_mean_pool(hidden: Tensor, real: Tensor) -> Tensor:
    return torch.stack([h[r].mean(0) for h, r in zip(hidden, real, strict=True)])


add(
    Formula(
        id="mean_pool",
        title="mean pooling",
        latex=r"\mathrm{pool}(h) = \frac{1}{|\mathrm{real}|} \sum_{t \in \mathrm{real}} h_t",
        source="Reimers and Gurevych 2019, section 3",
        draw=draw_mean_pool,
        by_hand=by_hand.over_batch(mean_pool_by_hand, "hidden", "real"),
        ours=mean_pool,
        reference=torch_mean_pool,
        backward_by_hand=gradients.mean_pool_backward,
    )
)


def draw_pooler(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "hidden": rng.standard_normal((BATCH, KEYS, D_MODEL)),
        "W": matrix(rng, D_MODEL, D_MODEL), "b": rng.standard_normal(D_MODEL),
    }  # fmt: skip


def pooler_by_hand(hidden: np.ndarray, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.tanh(by_hand.linear(hidden[:1], W, b)[0])


def our_pooler(hidden: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return functional_call(Pooler(D_MODEL), {"dense.weight": W.T, "dense.bias": b}, (hidden,))


def torch_pooler(hidden: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(b, hidden[:, 0], W).tanh()


add(
    Formula(
        id="pooler",
        title="CLS pooling",
        latex=r"\mathrm{pool}(h) = \tanh(h_{\mathrm{[CLS]}} W + b)",
        source="Devlin et al. 2019, code",
        draw=draw_pooler,
        by_hand=by_hand.over_batch(pooler_by_hand, "hidden"),
        ours=our_pooler,
        reference=torch_pooler,
        backward_by_hand=gradients.cls_pool_backward,
        shows=(Pooler.forward,),
    )
)
