"""The ledger's rows for the decoder: its masks, its positions, its feed-forward, its logits, its block."""

from functools import wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..formulas import by_hand, by_hand_decoder, decoder_gradients, gradients, ops
from ..model import attention
from ..model.block import DecoderBlock, residual
from ..model.config import TransformerConfig
from ..model.heads import LanguageModelHead
from ..model.layers import FeedForward, RMSNorm
from . import draws, rows_formulas, rows_modules
from .draws import ATTENTION, CROSS_ATTENTION, HEADS, HUGE, KEYS, MASKS, PADDING, draw
from .formula import Formula, both, per_example

# --- Attention ----------------------------------------------------------------------------------


def output_and_weights(Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None) -> Tensor:
    return torch.cat(attention.scaled_dot_product_attention(Q, K, V, keep), -1)


def torch_output_and_weights(Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None) -> Tensor:
    # torch's kernel does not return its weights; one-hot values bring them out.
    one_hot = torch.eye(K.shape[-2], dtype=V.dtype).expand(*V.shape[:-1], -1)
    return F.scaled_dot_product_attention(Q, K, torch.cat([V, one_hot], -1), attn_mask=keep)


@wraps(decoder_gradients.attention_and_weights_backward)
def output_and_weights_backward(dy: np.ndarray, **inputs: Any) -> tuple[np.ndarray, ...]:
    d_v = inputs["V"].shape[-1]
    return decoder_gradients.attention_and_weights_backward(dy[..., :d_v], dy[..., d_v:], **inputs)


def causal_by_hand(x: np.ndarray, keep: np.ndarray | None, **inputs: Any) -> np.ndarray:
    keep = rows_modules.hide_future(keep, by_hand_decoder.causal_mask(len(x), len(x)))
    return rows_modules.attention_by_hand(x=x, z=x, keep=keep, **inputs)


def torch_causal(x: Tensor, keep: Tensor | None, **inputs: Any) -> Tensor:
    past = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril()
    return rows_modules.torch_attention(x, x, rows_modules.hide_future(keep, past), **inputs)


def our_position_bias(E: Tensor, queries: int, keys: int, **how: Any) -> Tensor:
    module = attention.RelativePositionBias(E.shape[1], len(E), **how)
    return functional_call(module, {"buckets.weight": E}, (queries, keys))


def torch_position_bias(E: Tensor, **sizes: Any) -> Tensor:
    b = rows_formulas.bucketized(n_buckets=len(E), **sizes)
    return torch.einsum("qkb,bh->hqk", F.one_hot(b, len(E)).to(E.dtype), E)[None]


# --- Norm and logits ----------------------------------------------------------------------------


def our_rms_norm(kernels: str, x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return functional_call(RMSNorm(len(gamma), eps, kernels), {"weight": gamma}, (x,))


def tied_by_hand(ids: np.ndarray, E: np.ndarray, W: np.ndarray, scaled: bool) -> np.ndarray:
    return by_hand_decoder.tied_logits(by_hand.linear(E[ids], W), E, scaled)


def our_tied(ids: Tensor, E: Tensor, W: Tensor, scaled: bool) -> Tensor:
    vocab_size, d_model = E.shape
    config = TransformerConfig(vocab_size, d_model, HEADS, scale_logits=scaled)
    return LanguageModelHead(config)(F.embedding(ids, E) @ W, E)


def torch_tied(ids: Tensor, E: Tensor, W: Tensor, scaled: bool) -> Tensor:
    h = F.one_hot(ids, len(E)).to(E.dtype) @ E @ W
    return torch.einsum("btj,vj->btv", h, E) / (E.shape[1] ** 0.5 if scaled else 1.0)


# --- The rows -----------------------------------------------------------------------------------

ROWS = (
    Formula(
        id="attention_and_weights", title="attention and its weights",
        latex=r"P = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right),\quad O = PV",
        source="Vaswani et al. 2017, equation 1; article, section 4",
        draw=draws.draw_attention, cases=(*MASKS, HUGE),
        by_hand=per_example(
            lambda **i: np.concatenate(by_hand.attention(**i), -1), axes=2, of=by_hand.attention
        ),
        backward_by_hand=output_and_weights_backward,
        ours=output_and_weights, shows=(attention.scaled_dot_product_attention,),
        reference=torch_output_and_weights,
    ),
    Formula(
        id="causal_mask", title="causal mask", source="Vaswani et al. 2017, section 3.2.3",
        latex=r"M_{ij} = [\,j \le i + (\text{keys} - \text{queries})\,]",
        draw=draw(queries=lambda case: KEYS if case == "all at once" else 3, keys=KEYS),
        cases=("all at once", "a cache"),
        by_hand=by_hand_decoder.causal_mask, ours=attention.causal_mask,
        reference=lambda queries, keys: (
            nn.Transformer.generate_square_subsequent_mask(keys)[keys - queries :] == 0
        ),
    ),
    Formula(
        id="causal_self_attention", title="masked self-attention",
        latex=r"\mathrm{head}_i = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}} + M\right) V,\quad M_{ij} = -\infty \text{ where } j > i",
        source="Vaswani et al. 2017, section 3.2.3", cases=PADDING,
        draw=draw("x: batch keys d_model, keep: batch 1 keys keys", ATTENTION, n_heads=HEADS),
        by_hand=per_example(causal_by_hand, of=by_hand.multi_head_attention),
        backward_by_hand=decoder_gradients.causal_self_attention_backward,
        **both(rows_modules.our_attention), shows=(attention.MultiHeadAttention.forward, ops.visible),
        reference=torch_causal,
    ),
    Formula(
        id="relative_position_bias", title="relative position bias",
        latex=r"B_{hij} = E_{b(j-i),\,h}", source="Raffel et al. 2020, section 2.1",
        draw=draw("E: 12 heads", queries=lambda case: 3 if case == "a cache" else KEYS, keys=KEYS,
                  max_distance=9, bidirectional=lambda case: case == "bidirectional"),
        cases=("bidirectional", "causal", "a cache"),
        by_hand=by_hand_decoder.relative_position_bias,
        backward_by_hand=decoder_gradients.relative_position_bias_backward,
        ours=our_position_bias, shows=(attention.RelativePositionBias.forward,),
        reference=torch_position_bias,
    ),
    Formula(
        id="rms_norm_module", title="RMSNorm, the module",
        latex=r"\mathrm{RMSNorm}(x) = \gamma \odot \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}",
        source="Zhang and Sennrich 2019, equation 4", draw=draws.draw_rms_norm, cases=("plain", "tiny"),
        by_hand=per_example(by_hand.rms_norm), backward_by_hand=gradients.rms_norm_backward,
        **both(our_rms_norm), shows=(RMSNorm.forward,), reference=rows_formulas.torch_rms_norm,
    ),
    Formula(
        id="gated_feed_forward", title="gated feed-forward", source="Shazeer 2020, equation 6",
        latex=r"\mathrm{FFN}(x) = (f(xW_1) \odot xW_3)\,W_2",
        draw=draw("x: batch queries d_model, W_1 W_3: d_model d_ff, W_2: d_ff d_model",
                  activation=lambda case: case), cases=tuple(rows_modules.ACTIVATIONS),
        by_hand=per_example(by_hand_decoder.gated_feed_forward),
        backward_by_hand=decoder_gradients.gated_feed_forward_backward,
        **both(rows_modules.our_feed_forward), shows=(FeedForward.forward,),
        reference=rows_modules.torch_feed_forward,
    ),
    Formula(
        id="tied_logits", title="tied embeddings", latex=r"\ell = (E_{ids} W)\,E^\top",
        source="Vaswani et al. 2017, section 3.4; Press and Wolf 2017",
        draw=draw("ids: batch keys, E: 9 d_model, W: d_model d_model",
                  scaled=lambda case: case == "scaled"), cases=("plain", "scaled"),
        by_hand=per_example(tied_by_hand, of=by_hand_decoder.tied_logits),
        backward_by_hand=decoder_gradients.lookup_and_tied_logits_backward,
        ours=our_tied, shows=(LanguageModelHead.forward,), reference=torch_tied,
    ),
    *rows_modules.blocks(
        "decoder_block", "decoder block",
        {"post": r"a = \mathrm{LN}_1(y + \mathrm{MHA}(y)),\ c = \mathrm{LN}_c(a + \mathrm{MHA}_c(a, z)),\ y' = \mathrm{LN}_2(c + \mathrm{FFN}(c))",
         "pre": r"a = y + \mathrm{MHA}(\mathrm{LN}_1(y)),\ c = a + \mathrm{MHA}_c(\mathrm{LN}_c(a), z),\ y' = c + \mathrm{FFN}(\mathrm{LN}_2(c))"},
        "y: batch queries d_model, keep: batch 1 queries queries, z: batch keys d_model, "
        "memory_keep: batch 1 queries keys, gamma_c beta_c: d_model, " + CROSS_ATTENTION, cases=PADDING,
        by_hand=per_example(rows_modules.block_by_hand, of=by_hand_decoder.decoder_block),
        backward_by_hand=decoder_gradients.decoder_block_backward,
        shows=(DecoderBlock.forward, DecoderBlock.attend, residual),
    ),
)  # fmt: skip
