"""The ledger's rows of the decoder: causal and cross-attention, positions, tied logits, whole models."""

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..formulas import by_hand, by_hand_decoder, decoder_gradients, gradients, ops
from ..model.attention import (
    MultiHeadAttention,
    RelativePositionBias,
    causal_mask,
    scaled_dot_product_attention,
)
from ..model.block import DecoderBlock
from ..model.config import TransformerConfig
from ..model.heads import LanguageModelHead
from ..model.layers import FeedForward, RMSNorm
from .draws import (
    BATCH,
    D_FF,
    D_MODEL,
    HEADS,
    HUGE,
    KEYS,
    MASKS,
    QUERIES,
    draw_attention,
    draw_attention_weights,
    draw_keep,
    matrix,
)
from .formula import Formula, Inputs
from .rows_formulas import bucketized, draw_rms, torch_rms_norm
from .rows_modules import (
    ATTENTION,
    EPS,
    attention_by_hand,
    attention_state,
    draw_feed_forward,
    feed_forward_state,
    torch_attention_state,
)

# --- Attention, as it is called -----------------------------------------------------------------


ROWS: list[Formula] = []
add = ROWS.append


def output_and_weights_by_hand(
    Q: np.ndarray, K: np.ndarray, V: np.ndarray, keep: np.ndarray | None
) -> np.ndarray:
    both = np.zeros((*Q.shape[:-1], V.shape[-1] + K.shape[-2]))
    for i in np.ndindex(Q.shape[:2]):
        mask = None if keep is None else keep[i]
        both[i] = np.concatenate(by_hand.attention(Q[i], K[i], V[i], mask), -1)
    return both


def output_and_weights(Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None) -> Tensor:
    return torch.cat(scaled_dot_product_attention(Q, K, V, keep), -1)


def torch_output_and_weights(Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None) -> Tensor:
    # Torch's kernel keeps its weights to itself; values of one-hots bring them out.
    one_hot = torch.eye(K.shape[-2], dtype=V.dtype).expand(*V.shape[:-1], -1)
    return F.scaled_dot_product_attention(Q, K, torch.cat([V, one_hot], -1), attn_mask=keep)


def output_and_weights_backward(dy: np.ndarray, **inputs: Any) -> tuple[np.ndarray, ...]:
    d_v = inputs["V"].shape[-1]
    return decoder_gradients.attention_and_weights_backward(dy[..., :d_v], dy[..., d_v:], **inputs)


add(
    Formula(
        id="attention_and_weights",
        title="attention and its weights",
        latex=r"P = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right),\quad O = PV",
        source="Vaswani et al. 2017, equation 1; article, section 4",
        draw=draw_attention,
        by_hand=output_and_weights_by_hand,
        ours=output_and_weights,
        reference=torch_output_and_weights,
        backward_by_hand=output_and_weights_backward,
        cases=(*MASKS, HUGE),
        shows=(scaled_dot_product_attention,),
    )
)


def draw_mask(rng: np.random.Generator, case: str) -> Inputs:
    return {"queries": KEYS if case == "all at once" else 3, "keys": KEYS}


def torch_causal_mask(queries: int, keys: int) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(keys)[keys - queries :] == 0


add(
    Formula(
        id="causal_mask",
        title="causal mask",
        latex=r"M_{ij} = [\,j \le i + (\text{keys} - \text{queries})\,]",
        source="Vaswani et al. 2017, section 3.2.3",
        draw=draw_mask,
        by_hand=by_hand_decoder.causal_mask,
        ours=causal_mask,
        reference=torch_causal_mask,
        cases=("all at once", "a cache"),
    )
)


def draw_self_attention(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "x": rng.standard_normal((BATCH, KEYS, D_MODEL)), **draw_attention_weights(rng),
        "keep": draw_keep(rng, case, (BATCH, 1, KEYS, KEYS)),
    }  # fmt: skip


def causal_by_hand(x: np.ndarray, keep: np.ndarray | None, **w: np.ndarray) -> np.ndarray:
    past = by_hand_decoder.causal_mask(len(x), len(x))[None]
    return attention_by_hand(x, x, past if keep is None else past & keep, **w)


def our_causal(ops: str, x: Tensor, keep: Tensor | None, **w: Tensor) -> Tensor:
    module, masks = MultiHeadAttention(D_MODEL, HEADS, ops=ops), {"keep": keep, "causal": True}
    return functional_call(module, attention_state(w), (x,), masks)


def torch_causal(x: Tensor, keep: Tensor | None, **w: Tensor) -> Tensor:
    Q, K, V = (
        F.linear(x, w[f"W_{i}"].T, w[f"b_{i}"]).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
        for i in "QKV"
    )
    past = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    mask = past if keep is None else past & keep
    heads = F.scaled_dot_product_attention(Q, K, V, attn_mask=mask)
    return F.linear(heads.transpose(1, 2).reshape(x.shape), w["W_O"].T, w["b_O"])


add(
    Formula(
        id="causal_self_attention",
        title="masked self-attention",
        latex=r"\mathrm{head}_i = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}} + M\right) V,\quad M_{ij} = -\infty \text{ where } j > i",
        source="Vaswani et al. 2017, section 3.2.3",
        draw=draw_self_attention,
        by_hand=by_hand.over_batch(causal_by_hand, "x", "keep"),
        ours=partial(our_causal, "formula"),
        fused=partial(our_causal, "fused"),
        reference=torch_causal,
        backward_by_hand=partial(decoder_gradients.causal_self_attention_backward, n_heads=HEADS),
        cases=("no mask", "left padding", "right padding"),
        shows=(MultiHeadAttention.forward, ops.visible),
    )
)


def draw_position_bias(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "E": rng.standard_normal((12, HEADS)), "queries": 3 if case == "a cache" else KEYS,
        "keys": KEYS, "max_distance": 9, "bidirectional": case == "bidirectional",
    }  # fmt: skip


def our_position_bias(
    E: Tensor, queries: int, keys: int, max_distance: int, bidirectional: bool
) -> Tensor:
    module = RelativePositionBias(HEADS, len(E), max_distance, bidirectional)
    return functional_call(module, {"buckets.weight": E}, (queries, keys))


def torch_position_bias(E: Tensor, **sizes: Any) -> Tensor:
    one_hot = F.one_hot(bucketized(n_buckets=len(E), **sizes), len(E)).to(E.dtype)
    return torch.einsum("qkb,bh->hqk", one_hot, E)[None]


add(
    Formula(
        id="relative_position_bias",
        title="relative position bias",
        latex=r"B_{hij} = E_{b(j-i),\,h}",
        source="Raffel et al. 2020, section 2.1",
        draw=draw_position_bias,
        by_hand=by_hand_decoder.relative_position_bias,
        ours=our_position_bias,
        reference=torch_position_bias,
        backward_by_hand=decoder_gradients.relative_position_bias_backward,
        cases=("bidirectional", "causal", "a cache"),
        shows=(RelativePositionBias.forward,),
    )
)


# --- Norm, feed-forward, logits -----------------------------------------------------------------


def our_rms_norm(ops: str, x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return functional_call(RMSNorm(x.shape[-1], eps, ops), {"weight": gamma}, (x,))


add(
    Formula(
        id="rms_norm_module",
        title="RMSNorm, the module",
        latex=r"\mathrm{RMSNorm}(x) = \gamma \odot \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}",
        source="Zhang and Sennrich 2019, equation 4",
        draw=draw_rms,
        by_hand=by_hand.over_batch(by_hand.rms_norm, "x"),
        ours=partial(our_rms_norm, "formula"),
        fused=partial(our_rms_norm, "fused"),
        reference=torch_rms_norm,
        backward_by_hand=gradients.rms_norm_backward,
        cases=("plain", "tiny"),
        shows=(RMSNorm.forward,),
    )
)


def draw_gated(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_feed_forward(rng, case)
    del inputs["b_1"], inputs["b_2"]
    return inputs | {"W_3": matrix(rng, D_MODEL, D_FF)}


def our_gated(ops: str, x: Tensor, activation: str, **w: Tensor) -> Tensor:
    module = FeedForward(D_MODEL, D_FF, activation, bias=False, ops=ops, gated=True)
    return functional_call(module, {f"{name}.weight": W.T for name, W in w.items()}, (x,))


def torch_gated(x: Tensor, activation: str, W_1: Tensor, W_2: Tensor, W_3: Tensor) -> Tensor:
    f = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}[activation]
    inner = f(F.linear(x, W_1.T)) * F.linear(x, W_3.T)
    return F.linear(inner, W_2.T)


add(
    Formula(
        id="gated_feed_forward",
        title="gated feed-forward",
        latex=r"\mathrm{FFN}(x) = (f(xW_1) \odot xW_3)\,W_2",
        source="Shazeer 2020, equation 6",
        draw=draw_gated,
        by_hand=by_hand.over_batch(by_hand_decoder.gated_feed_forward, "x"),
        ours=partial(our_gated, "formula"),
        fused=partial(our_gated, "fused"),
        reference=torch_gated,
        backward_by_hand=decoder_gradients.gated_feed_forward_backward,
        cases=("relu", "gelu", "gelu_tanh"),
        shows=(FeedForward.forward,),
    )
)


def draw_tied(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "ids": rng.integers(0, 8, (BATCH, KEYS)), "E": rng.standard_normal((9, D_MODEL)),
        "W": matrix(rng, D_MODEL, D_MODEL), "scaled": case == "scaled",
    }  # fmt: skip


def tied_by_hand(ids: np.ndarray, E: np.ndarray, W: np.ndarray, scaled: bool) -> np.ndarray:
    x = np.stack([E[v] for v in ids])
    return by_hand_decoder.tied_logits(by_hand.linear(x, W), E, scaled)


def our_tied(ids: Tensor, E: Tensor, W: Tensor, scaled: bool) -> Tensor:
    config = TransformerConfig(len(E), D_MODEL, HEADS, scale_logits=scaled)
    return LanguageModelHead(config)(F.embedding(ids, E) @ W, E)


def torch_tied(ids: Tensor, E: Tensor, W: Tensor, scaled: bool) -> Tensor:
    h = F.one_hot(ids, len(E)).to(E.dtype) @ E @ W
    return torch.einsum("btj,vj->btv", h, E) / (D_MODEL**0.5 if scaled else 1.0)


add(
    Formula(
        id="tied_logits",
        title="tied embeddings",
        latex=r"\ell = (E_{ids} W)\,E^\top",
        source="Vaswani et al. 2017, section 3.4; Press and Wolf 2017",
        draw=draw_tied,
        by_hand=by_hand.over_batch(tied_by_hand, "ids"),
        ours=our_tied,
        reference=torch_tied,
        backward_by_hand=decoder_gradients.lookup_and_tied_logits_backward,
        cases=("plain", "scaled"),
        shows=(LanguageModelHead.forward,),
    )
)


# --- The decoder block --------------------------------------------------------------------------

NORMS = {"1": "norm_1", "c": "norm_cross", "2": "norm_2"}
TORCH_NORMS = {"1": "norm1", "c": "norm2", "2": "norm3"}


def draw_decoder_block(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_feed_forward(rng, "gelu") | draw_attention_weights(rng)
    inputs |= {f"{name}c": W for name, W in draw_attention_weights(rng).items()}
    for name in NORMS:
        inputs[f"gamma_{name}"] = rng.standard_normal(D_MODEL)
        inputs[f"beta_{name}"] = rng.standard_normal(D_MODEL)
    # Padding on the left leaves the first queries without keys: torch's layer gives NaN for them.
    own = "no mask" if case == "left padding" else case
    return {"y": inputs.pop("x"), "z": rng.standard_normal((BATCH, KEYS, D_MODEL))} | inputs | {
        "keep": draw_keep(rng, own, (BATCH, 1, QUERIES, QUERIES)),
        "memory_keep": draw_keep(rng, case, (BATCH, 1, QUERIES, KEYS)),
    }  # fmt: skip


def crossing(w: Inputs) -> Inputs:
    """The weights of the cross-attention under the names of an attention's."""
    return {name: w[f"{name}c"] for name in ATTENTION}


def decoder_block_by_hand(
    y: np.ndarray, z: np.ndarray, keep: np.ndarray | None, memory_keep: np.ndarray | None,
    activation: str, norm_position: str, **w: Any,
) -> np.ndarray:  # fmt: skip
    def norm(name: str) -> Any:
        return lambda a: by_hand.layer_norm(a, w[f"gamma_{name}"], w[f"beta_{name}"], EPS)

    own = {name: w[name] for name in ATTENTION}
    ffn = {name: w[name] for name in ("W_1", "b_1", "W_2", "b_2")}
    return by_hand_decoder.decoder_block(
        y, z,
        attention=lambda a: causal_by_hand(a, keep, **own),
        cross_attention=lambda a, z: attention_by_hand(a, z, memory_keep, **crossing(w)),
        feed_forward=lambda a: by_hand.feed_forward(a, activation=activation, **ffn),
        norm_1=norm("1"), norm_c=norm("c"), norm_2=norm("2"), norm_position=norm_position,
    )  # fmt: skip


def our_decoder_block(
    ops: str, norm_position: str, y: Tensor, z: Tensor, keep: Tensor | None,
    memory_keep: Tensor | None, activation: str, **w: Tensor,
) -> Tensor:  # fmt: skip
    switches: Inputs = {"norm_position": norm_position, "activation": activation, "ops": ops}
    config = TransformerConfig(
        d_model=D_MODEL, n_heads=HEADS, d_ff=D_FF, norm_eps=EPS, dropout=0.0, **switches
    )
    state = attention_state(w, "attention.") | attention_state(crossing(w), "cross_attention.")
    state |= feed_forward_state(w, "feed_forward.")
    for name, place in NORMS.items():
        state |= {f"{place}.weight": w[f"gamma_{name}"], f"{place}.bias": w[f"beta_{name}"]}
    return functional_call(DecoderBlock(config, cross=True), state, (y, keep, z, memory_keep))


def torch_decoder_state(w: Inputs, prefix: str = "") -> dict[str, Tensor]:
    state = torch_attention_state(w, f"{prefix}self_attn.") | torch_attention_state(
        crossing(w), f"{prefix}multihead_attn."
    )
    state |= feed_forward_state(w, prefix, ours=False)
    for name, place in TORCH_NORMS.items():
        state[f"{prefix}{place}.weight"] = w[f"gamma_{name}"]
        state[f"{prefix}{place}.bias"] = w[f"beta_{name}"]
    return state


def blocked(keep: Tensor | None) -> Tensor | None:
    """Torch's layers mean the opposite by a mask and want it for each head."""
    return None if keep is None else ~keep.expand(-1, HEADS, -1, -1).flatten(0, 1)


def torch_decoder_block(
    norm_position: str, y: Tensor, z: Tensor, keep: Tensor | None, memory_keep: Tensor | None,
    activation: str, **w: Tensor,
) -> Tensor:  # fmt: skip
    module = nn.TransformerDecoderLayer(
        D_MODEL, HEADS, D_FF, 0.0, activation, EPS, batch_first=True,
        norm_first=norm_position == "pre", dtype=y.dtype,
    )  # fmt: skip
    length = y.shape[1]
    past = torch.ones(length, length).tril().bool().expand(len(y), 1, -1, -1)
    masks = {
        "tgt_mask": blocked(past if keep is None else past & keep),
        "memory_mask": blocked(memory_keep),
    }
    return functional_call(module, torch_decoder_state(w), (y, z), masks)


for position in ("post", "pre"):
    add(
        Formula(
            id=f"{position}_ln_decoder_block",
            title=f"decoder block, {position}-LN",
            latex=r"a = \mathrm{LN}_1(y + \mathrm{MHA}(y)),\ c = \mathrm{LN}_c(a + \mathrm{MHA}_c(a, z)),\ y' = \mathrm{LN}_2(c + \mathrm{FFN}(c))"
            if position == "post"
            else r"a = y + \mathrm{MHA}(\mathrm{LN}_1(y)),\ c = a + \mathrm{MHA}_c(\mathrm{LN}_c(a), z),\ y' = c + \mathrm{FFN}(\mathrm{LN}_2(c))",
            source="Vaswani et al. 2017, section 3.1"
            if position == "post"
            else "Xiong et al. 2020, figure 1",
            draw=draw_decoder_block,
            by_hand=by_hand.over_batch(
                partial(decoder_block_by_hand, norm_position=position),
                "y",
                "z",
                "keep",
                "memory_keep",
            ),
            ours=partial(our_decoder_block, "formula", position),
            fused=partial(our_decoder_block, "fused", position),
            reference=partial(torch_decoder_block, position),
            backward_by_hand=partial(
                decoder_gradients.decoder_block_backward,
                n_heads=HEADS,
                eps=EPS,
                norm_position=position,
            ),
            cases=("no mask", "left padding", "right padding"),
            shows=(DecoderBlock.forward,),
        )
    )
