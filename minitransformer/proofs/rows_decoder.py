"""The ledger's rows for the decoder: its mask, its positions, its feed-forward, its block, its logits."""

from functools import wraps
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
from ..model.language_models import LanguageModelHead
from ..model.layers import FeedForward, RMSNorm
from .draws import (
    ATTENTION,
    CROSS_ATTENTION,
    EPS,
    FEED_FORWARD,
    HEADS,
    HUGE,
    KEYS,
    MASKS,
    draw,
    draw_attention,
)  # fmt: skip
from .formula import Formula, Inputs, both, per_example
from .rows_formulas import Keep, bucketized, draw_rms_norm, torch_attention, torch_rms_norm
from .rows_modules import (
    ACTIVATIONS,
    attention_by_hand,
    block_by_hand,
    blocked,
    our_attention,
    our_block,
    torch_layer,
    torch_state,
)
from .rows_modules import torch_attention as torch_multi_head_attention

# --- Attention as the package calls it, masked self-attention -----------------------------------


@wraps(by_hand.attention)
def output_and_weights_by_hand(**inputs: Any) -> np.ndarray:
    return np.concatenate(by_hand.attention(**inputs), -1)


def output_and_weights(Q: Tensor, K: Tensor, V: Tensor, keep: Keep) -> Tensor:
    return torch.cat(scaled_dot_product_attention(Q, K, V, keep), -1)


def torch_output_and_weights(Q: Tensor, K: Tensor, V: Tensor, keep: Keep) -> Tensor:
    # torch's kernel does not return its weights; one-hot values bring them out.
    one_hot = torch.eye(K.shape[-2], dtype=V.dtype).expand(*V.shape[:-1], -1)
    return torch_attention(Q, K, torch.cat([V, one_hot], -1), keep)


@wraps(decoder_gradients.attention_and_weights_backward)
def output_and_weights_backward(dy: np.ndarray, **inputs: Any) -> tuple[np.ndarray, ...]:
    d_v = inputs["V"].shape[-1]
    return decoder_gradients.attention_and_weights_backward(dy[..., :d_v], dy[..., d_v:], **inputs)


def torch_causal_mask(queries: int, keys: int) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(keys)[keys - queries :] == 0


def hide_future(keep: Keep, length: int) -> Tensor:
    """The mask, and no key later than its query."""
    past = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    return past if keep is None else past & keep


def past_by_hand(keep: np.ndarray | None, length: int) -> np.ndarray:
    past = by_hand_decoder.causal_mask(length, length)[None]
    return past if keep is None else past & keep


@wraps(by_hand.multi_head_attention)
def causal_by_hand(x: np.ndarray, keep: np.ndarray | None, **inputs: Any) -> np.ndarray:
    return attention_by_hand(x=x, z=x, keep=past_by_hand(keep, len(x)), **inputs)


def torch_causal(x: Tensor, keep: Keep, **inputs: Any) -> Tensor:
    return torch_multi_head_attention(x, x, hide_future(keep, x.shape[1]), **inputs)


def our_position_bias(
    E: Tensor, queries: int, keys: int, max_distance: int, bidirectional: bool
) -> Tensor:
    module = RelativePositionBias(E.shape[1], len(E), max_distance, bidirectional)
    return functional_call(module, {"buckets.weight": E}, (queries, keys))


def torch_position_bias(E: Tensor, **sizes: Any) -> Tensor:
    one_hot = F.one_hot(bucketized(n_buckets=len(E), **sizes), len(E)).to(E.dtype)
    return torch.einsum("qkb,bh->hqk", one_hot, E)[None]


# --- Norm, feed-forward, logits -----------------------------------------------------------------


def our_rms_norm(kernels: str, x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return functional_call(RMSNorm(len(gamma), eps, kernels), {"weight": gamma}, (x,))


def our_gated(kernels: str, x: Tensor, activation: str, **w: Tensor) -> Tensor:
    module = FeedForward(*w["W_1"].shape, activation, bias=False, ops=kernels, gated=True)
    return functional_call(module, {f"{name}.weight": W.T for name, W in w.items()}, (x,))


def torch_gated(x: Tensor, activation: str, W_1: Tensor, W_2: Tensor, W_3: Tensor) -> Tensor:
    inner = ACTIVATIONS[activation](F.linear(x, W_1.T)) * F.linear(x, W_3.T)
    return F.linear(inner, W_2.T)


@wraps(by_hand_decoder.tied_logits)
def tied_by_hand(ids: np.ndarray, E: np.ndarray, W: np.ndarray, scaled: bool) -> np.ndarray:
    x = np.stack([E[v] for v in ids])
    return by_hand_decoder.tied_logits(by_hand.linear(x, W), E, scaled)


def our_tied(ids: Tensor, E: Tensor, W: Tensor, scaled: bool) -> Tensor:
    config = TransformerConfig(*E.shape, HEADS, scale_logits=scaled)
    return LanguageModelHead(config)(F.embedding(ids, E) @ W, E)


def torch_tied(ids: Tensor, E: Tensor, W: Tensor, scaled: bool) -> Tensor:
    h = F.one_hot(ids, len(E)).to(E.dtype) @ E @ W
    return torch.einsum("btj,vj->btv", h, E) / (E.shape[1] ** 0.5 if scaled else 1.0)


# --- The decoder block --------------------------------------------------------------------------


def draw_decoder_block(norm_position: str) -> Any:
    drawn = draw(
        "y: batch queries d_model, z: batch keys d_model", FEED_FORWARD, ATTENTION, CROSS_ATTENTION,
        "gamma_1 beta_1 gamma_c beta_c gamma_2 beta_2: d_model",
        "keep: batch 1 queries queries, memory_keep: batch 1 queries keys",
        norm_position=norm_position, activation="gelu", n_heads=HEADS, eps=EPS,
    )  # fmt: skip

    def run(rng: np.random.Generator, case: str) -> Inputs:
        # Left padding leaves the first queries without keys: torch's layer returns NaN for them.
        return drawn(rng, case) | ({"keep": None} if case == "left padding" else {})

    return run


@wraps(by_hand_decoder.decoder_block)
def decoder_block_by_hand(y: np.ndarray, keep: np.ndarray | None, **inputs: Any) -> np.ndarray:
    return block_by_hand(y, past_by_hand(keep, len(y)), **inputs)


def our_decoder_block(kernels: str, y: Tensor, **inputs: Any) -> Tensor:
    return our_block(kernels, y, **inputs)


def torch_decoder_block(
    y: Tensor, z: Tensor, keep: Keep, memory_keep: Keep, n_heads: int, **inputs: Any
) -> Tensor:
    masks = {
        "tgt_mask": blocked(hide_future(keep, y.shape[1]), y, n_heads),
        "memory_mask": blocked(memory_keep, y, n_heads),
    }
    return functional_call(torch_layer(n_heads, **inputs), torch_state(inputs), (y, z), masks)


# --- The rows -----------------------------------------------------------------------------------


def block(norm_position: str, latex: str, source: str) -> Formula:
    """The decoder block with the norm in one of its two places."""
    return Formula(
        id=f"{norm_position}_ln_decoder_block",
        title=f"decoder block, {norm_position}-LN",
        latex=latex,
        source=source,
        draw=draw_decoder_block(norm_position),
        by_hand=per_example(decoder_block_by_hand),
        **both(our_decoder_block),
        reference=torch_decoder_block,
        backward_by_hand=decoder_gradients.decoder_block_backward,
        cases=("no mask", "left padding", "right padding"),
        shows=(DecoderBlock.forward,),
    )


ROWS = (
    Formula(
        id="attention_and_weights",
        title="attention and its weights",
        latex=r"P = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right),\quad O = PV",
        source="Vaswani et al. 2017, equation 1; article, section 4",
        draw=draw_attention,
        by_hand=per_example(output_and_weights_by_hand, axes=2),
        ours=output_and_weights,
        reference=torch_output_and_weights,
        backward_by_hand=output_and_weights_backward,
        cases=(*MASKS, HUGE),
        shows=(scaled_dot_product_attention,),
    ),
    Formula(
        id="causal_mask",
        title="causal mask",
        latex=r"M_{ij} = [\,j \le i + (\text{keys} - \text{queries})\,]",
        source="Vaswani et al. 2017, section 3.2.3",
        draw=draw(queries=lambda case: KEYS if case == "all at once" else 3, keys=KEYS),
        by_hand=by_hand_decoder.causal_mask,
        ours=causal_mask,
        reference=torch_causal_mask,
        cases=("all at once", "a cache"),
    ),
    Formula(
        id="causal_self_attention",
        title="masked self-attention",
        latex=r"\mathrm{head}_i = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}} + M\right) V,\quad M_{ij} = -\infty \text{ where } j > i",
        source="Vaswani et al. 2017, section 3.2.3",
        draw=draw("x: batch keys d_model, keep: batch 1 keys keys", ATTENTION, n_heads=HEADS),
        by_hand=per_example(causal_by_hand),
        **both(our_attention),
        reference=torch_causal,
        backward_by_hand=decoder_gradients.causal_self_attention_backward,
        cases=("no mask", "left padding", "right padding"),
        shows=(MultiHeadAttention.forward, ops.visible),
    ),
    Formula(
        id="relative_position_bias",
        title="relative position bias",
        latex=r"B_{hij} = E_{b(j-i),\,h}",
        source="Raffel et al. 2020, section 2.1",
        draw=draw(
            "E: 12 heads",
            queries=lambda case: 3 if case == "a cache" else KEYS,
            keys=KEYS,
            max_distance=9,
            bidirectional=lambda case: case == "bidirectional",
        ),
        by_hand=by_hand_decoder.relative_position_bias,
        ours=our_position_bias,
        reference=torch_position_bias,
        backward_by_hand=decoder_gradients.relative_position_bias_backward,
        cases=("bidirectional", "causal", "a cache"),
        shows=(RelativePositionBias.forward,),
    ),
    Formula(
        id="rms_norm_module",
        title="RMSNorm, the module",
        latex=r"\mathrm{RMSNorm}(x) = \gamma \odot \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}",
        source="Zhang and Sennrich 2019, equation 4",
        draw=draw_rms_norm,
        by_hand=per_example(by_hand.rms_norm),
        **both(our_rms_norm),
        reference=torch_rms_norm,
        backward_by_hand=gradients.rms_norm_backward,
        cases=("plain", "tiny"),
        shows=(RMSNorm.forward,),
    ),
    Formula(
        id="gated_feed_forward",
        title="gated feed-forward",
        latex=r"\mathrm{FFN}(x) = (f(xW_1) \odot xW_3)\,W_2",
        source="Shazeer 2020, equation 6",
        draw=draw(
            "x: batch queries d_model, W_1 W_3: d_model d_ff, W_2: d_ff d_model",
            activation=lambda case: case,
        ),
        by_hand=per_example(by_hand_decoder.gated_feed_forward),
        **both(our_gated),
        reference=torch_gated,
        backward_by_hand=decoder_gradients.gated_feed_forward_backward,
        cases=("relu", "gelu", "gelu_tanh"),
        shows=(FeedForward.forward,),
    ),
    Formula(
        id="tied_logits",
        title="tied embeddings",
        latex=r"\ell = (E_{ids} W)\,E^\top",
        source="Vaswani et al. 2017, section 3.4; Press and Wolf 2017",
        draw=draw(
            "ids: batch keys, E: 9 d_model, W: d_model d_model",
            scaled=lambda case: case == "scaled",
        ),
        by_hand=per_example(tied_by_hand),
        ours=our_tied,
        reference=torch_tied,
        backward_by_hand=decoder_gradients.lookup_and_tied_logits_backward,
        cases=("plain", "scaled"),
        shows=(LanguageModelHead.forward,),
    ),
    block(
        "post",
        r"a = \mathrm{LN}_1(y + \mathrm{MHA}(y)),\ c = \mathrm{LN}_c(a + \mathrm{MHA}_c(a, z)),\ y' = \mathrm{LN}_2(c + \mathrm{FFN}(c))",
        "Vaswani et al. 2017, section 3.1",
    ),
    block(
        "pre",
        r"a = y + \mathrm{MHA}(\mathrm{LN}_1(y)),\ c = a + \mathrm{MHA}_c(\mathrm{LN}_c(a), z),\ y' = c + \mathrm{FFN}(\mathrm{LN}_2(c))",
        "Xiong et al. 2020, figure 1",
    ),
)
