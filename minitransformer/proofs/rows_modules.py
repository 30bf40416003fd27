"""The ledger's rows for modules: multi-head attention, feed-forward, the encoder block, embeddings.

`torch.func.functional_call` gives a module its weights, so that the gradient of every weight is
compared too. Names in the formula: `W_Q b_Q ... W_O b_O` of attention, with a c at the end those of
cross-attention; `W_1 b_1 W_2 b_2` of feed-forward; `gamma_1 beta_1 ...` of the norms.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..formulas import block_gradients, by_hand, by_hand_decoder, gradients, ops
from ..formulas.numpy_transformer import DECODER_NAMES, turned
from ..model.attention import MultiHeadAttention
from ..model.block import DecoderBlock, EncoderBlock, decoder_sublayer, encoder_sublayer, residual
from ..model.config import TransformerConfig
from ..model.heads import mean_pool
from ..model.layers import Embeddings, FeedForward, LayerNorm
from ..model.transformer import Pooler
from .draws import ATTENTION, EPS, FEED_FORWARD, HEADS, KEYS, MASKS, draw
from .formula import Formula, Inputs, both, per_example
from .rows_formulas import rotating_positions

# --- From the formula's matrices to a module's parameters ---------------------------------------

NAMES = DECODER_NAMES | {"W_3": "feed_forward.W_3.weight"}


def our_state(w: Inputs, part: str = "") -> dict[str, Tensor]:
    """The state dict of our block, or of the part of it that `part` names."""
    return {NAMES[name].removeprefix(part): turned(name, a) for name, a in w.items()}


def torch_state(w: Inputs, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of torch's layer: an encoder's, or a decoder's if `w` has cross-attention."""
    cross, state = "W_Qc" in w, torch_attention_state(w, f"{prefix}self_attn.")
    if cross:
        state |= torch_attention_state(w, f"{prefix}multihead_attn.", "c")
    for i in (1, 2):
        state[f"{prefix}linear{i}.weight"] = w[f"W_{i}"].T
        state[f"{prefix}linear{i}.bias"] = w[f"b_{i}"]
    for i, name in enumerate("1c2" if cross else "12", 1):
        state[f"{prefix}norm{i}.weight"] = w[f"gamma_{name}"]
        state[f"{prefix}norm{i}.bias"] = w[f"beta_{name}"]
    return state


def torch_attention_state(w: Inputs, prefix: str = "", c: str = "") -> dict[str, Tensor]:
    """The state dict of torch's attention, which joins W_Q, W_K and W_V."""
    return {
        f"{prefix}in_proj_weight": torch.cat([w[f"W_{i}{c}"].T for i in "QKV"]),
        f"{prefix}in_proj_bias": torch.cat([w[f"b_{i}{c}"] for i in "QKV"]),
        f"{prefix}out_proj.weight": w[f"W_O{c}"].T,
        f"{prefix}out_proj.bias": w[f"b_O{c}"],
    }


def blocked(keep: Tensor | None, x: Tensor, n_heads: int) -> Tensor | None:
    """A mask for torch's layers: one per example and head, True where attention is forbidden."""
    return None if keep is None else ~keep.expand(len(x), n_heads, -1, -1).flatten(0, 1)


def hide_future(keep: Any, past: Any) -> Any:
    """`keep` and a causal mask, broadcast to (1, queries, keys) or more axes."""
    return past[None] if keep is None else keep & past


# --- Multi-head attention, and the article's two formulas as printed ----------------------------


def cut_into_heads(f: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of `by_hand` take wide maps, and one mask for all heads."""

    @wraps(f)
    def run(n_heads: int, keep: np.ndarray | None, **inputs: Any) -> Any:
        for name in (f"{a}_{i}" for a in "Wb" for i in "QKV"):
            inputs[name] = np.stack(np.split(inputs[name], n_heads, axis=-1))
        return f(keep=None if keep is None else keep[0], **inputs)

    return run


attention_by_hand = cut_into_heads(by_hand.multi_head_attention)


def our_attention(
    kernels: str, x: Tensor, keep: Tensor | None, n_heads: int, z: Tensor | None = None, **w: Tensor
) -> Tensor:
    """Attention to z; without z, causal attention to x."""
    module, causal = MultiHeadAttention(x.shape[-1], n_heads, ops=kernels), {"causal": z is None}
    return functional_call(module, our_state(w, "attention."), (x, z, keep), causal)


def torch_attention(x: Tensor, z: Tensor, keep: Tensor | None, n_heads: int, **w: Any) -> Tensor:
    module = nn.MultiheadAttention(x.shape[-1], n_heads, batch_first=True).to(x.dtype)
    mask = None
    if keep is not None:
        # It returns NaN for a query without keys: let such a query see all, and drop the result.
        mask = blocked(keep | ~keep.any(-1, keepdim=True), x, n_heads)
    options = {"attn_mask": mask, "need_weights": False}
    output, _ = functional_call(module, torch_attention_state(w), (x, z, z), options)
    return output if keep is None else torch.where(keep.any(-1)[:, 0, :, None], output, w["b_O"])


class Sublayer(nn.Module):
    """An attention and a norm, called as the article writes them: of x, or of y and z."""

    def __init__(self, d_model: int, n_heads: int, eps: float, kernels: str):
        super().__init__()
        self.attention = MultiHeadAttention(d_model, n_heads, ops=kernels)
        self.norm = LayerNorm(d_model, eps, kernels)

    def forward(self, keep: Tensor | None, *streams: Tensor) -> Tensor:
        sublayer: Any = encoder_sublayer if len(streams) == 1 else decoder_sublayer
        return sublayer(*streams, self.attention, self.norm, keep)


def our_sublayer(
    kernels: str, gamma: Tensor, beta: Tensor, eps: float, keep: Any, n_heads: int, **w: Tensor
) -> Tensor:
    streams = [w.pop(name) for name in "xyz" if name in w]
    state = our_state(w) | {"norm.weight": gamma, "norm.bias": beta}
    return functional_call(Sublayer(len(gamma), n_heads, eps, kernels), state, (keep, *streams))


def torch_sublayer(
    gamma: Tensor, beta: Tensor, eps: float, keep: Any, n_heads: int, **w: Tensor
) -> Tensor:
    streams = [w.pop(name) for name in "xyz" if name in w]
    attended = torch_attention(streams[0], streams[-1], keep, n_heads, **w)
    return F.layer_norm(streams[0] + attended, gamma.shape, gamma, beta, eps)


# --- Feed-forward -------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable] = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": nn.GELU("tanh")}


def our_feed_forward(kernels: str, x: Tensor, activation: str, **w: Tensor) -> Tensor:
    d_model, d_ff = w["W_1"].shape
    options: Inputs = {"bias": "b_1" in w, "gated": "W_3" in w, "ops": kernels}
    module = FeedForward(d_model, d_ff, activation, **options)
    return functional_call(module, our_state(w, "feed_forward."), (x,))


def torch_feed_forward(x: Tensor, activation: str, **w: Tensor) -> Tensor:
    inner = ACTIVATIONS[activation](F.linear(x, w["W_1"].T, w.get("b_1")))
    if "W_3" in w:
        inner = inner * F.linear(x, w["W_3"].T)
    return F.linear(inner, w["W_2"].T, w.get("b_2"))


# --- The whole block: the encoder's of x, or the decoder's of y and z ---------------------------


def block_by_hand(
    keep: np.ndarray | None, n_heads: int, eps: float, norm_position: str, activation: str,
    memory_keep: np.ndarray | None = None, **w: Any,
) -> np.ndarray:  # fmt: skip
    def attend(x: np.ndarray, z: np.ndarray, keep: np.ndarray | None, c: str = "") -> np.ndarray:
        weights = {f"{a}_{i}": w[f"{a}_{i}{c}"] for a in "Wb" for i in "QKVO"}
        return attention_by_hand(x=x, z=z, keep=keep, n_heads=n_heads, **weights)

    def norm(i: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda a: by_hand.layer_norm(a, w[f"gamma_{i}"], w[f"beta_{i}"], eps)

    parts: Inputs = {
        "attention": lambda a: attend(a, a, keep), "norm_1": norm("1"), "norm_2": norm("2"),
        "feed_forward": lambda a: by_hand.feed_forward(
            a, w["W_1"], w["b_1"], w["W_2"], w["b_2"], activation
        ),
        "norm_position": norm_position,
    }  # fmt: skip
    if "x" in w:
        return by_hand.encoder_block(w["x"], **parts)
    keep = hide_future(keep, by_hand_decoder.causal_mask(len(w["y"]), len(w["y"])))
    parts |= {"cross_attention": lambda a, z: attend(a, z, memory_keep, "c"), "norm_c": norm("c")}
    return by_hand_decoder.decoder_block(w["y"], w["z"], **parts)


def our_block(
    kernels: Any, keep: Tensor | None, n_heads: int, eps: float, norm_position: Any,
    activation: Any, memory_keep: Tensor | None = None, **w: Tensor,
) -> Tensor:  # fmt: skip
    streams = [w.pop(name) for name in "xyz" if name in w]
    d_model, d_ff = w["W_1"].shape
    config = TransformerConfig(
        d_model=d_model, n_heads=n_heads, d_ff=d_ff, norm_eps=eps, norm_position=norm_position,
        activation=activation, dropout=0.0, ops=kernels,
    )  # fmt: skip
    if len(streams) == 1:
        return functional_call(EncoderBlock(config), our_state(w), (*streams, keep))
    y, z = streams
    block = DecoderBlock(config, cross=True)
    return functional_call(block, our_state(w), (y, keep, z, memory_keep))


def torch_layer(
    n_heads: int, eps: float, norm_position: str, activation: str, **w: Tensor
) -> nn.Module:
    """torch's layer: an encoder's, or a decoder's if `w` has cross-attention."""
    layer = nn.TransformerDecoderLayer if "W_Qc" in w else nn.TransformerEncoderLayer
    d_model, d_ff = w["W_1"].shape
    return layer(
        d_model, n_heads, d_ff, 0.0, activation, eps, batch_first=True,
        norm_first=norm_position == "pre", dtype=w["W_1"].dtype,
    )  # fmt: skip


def torch_block(
    keep: Tensor | None, n_heads: int, memory_keep: Tensor | None = None, **w: Any
) -> Tensor:
    streams = [w.pop(name) for name in "xyz" if name in w]
    x = streams[0]
    if len(streams) == 1:
        masks = {"src_mask": blocked(keep, x, n_heads)}
    else:
        past = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril()
        masks = {"tgt_mask": blocked(hide_future(keep, past), x, n_heads)}
        masks["memory_mask"] = blocked(memory_keep, x, n_heads)
    return functional_call(torch_layer(n_heads, **w), torch_state(w), tuple(streams), masks)


# --- Embeddings and pooling ---------------------------------------------------------------------


def embeddings_by_hand(ids: np.ndarray, E: np.ndarray) -> np.ndarray:
    waves, root = by_hand.sinusoidal_positions(len(ids), E.shape[1]), np.sqrt(E.shape[1])
    return np.stack([root * E[v] + wave for v, wave in zip(ids, waves, strict=True)])


@wraps(gradients.embedding_backward)
def embeddings_backward(dx: np.ndarray, ids: np.ndarray, E: np.ndarray) -> np.ndarray:
    return gradients.embedding_backward(np.sqrt(E.shape[1]) * dx, ids, E)


def our_embeddings(ids: Tensor, E: Tensor) -> Tensor:
    vocab_size, d_model = E.shape
    config = TransformerConfig(vocab_size, d_model, HEADS, max_len=ids.shape[1], dropout=0.0)
    # The module keeps its positions in float32; the formula is compared in full precision.
    positions = ops.sinusoidal_positions(ids.shape[1], d_model, E.dtype)
    state = {"tokens.weight": E, "positions": positions}
    return functional_call(Embeddings(config), state, (ids,))


def torch_embeddings(ids: Tensor, E: Tensor) -> Tensor:
    one_hot = F.one_hot(ids, len(E)).to(E.dtype)  # a lookup is a product with one-hot vectors
    waves = rotating_positions(ids.shape[1], E.shape[1]).to(E.dtype)
    return one_hot @ E * E.shape[1] ** 0.5 + waves


def mean_pool_by_hand(hidden: np.ndarray, real: np.ndarray) -> np.ndarray:
    counted = [h for h, is_real in zip(hidden, real, strict=True) if is_real]
    return np.asarray(sum(counted) / len(counted))


# --- The rows -----------------------------------------------------------------------------------


def sublayer(*shapes: str, **others: Any) -> Formula:
    """The row of one of the article's two formulas."""
    return Formula(
        source="article, section 4", cases=MASKS[:-1],
        draw=draw(*shapes, ATTENTION, "gamma beta: d_model", eps=EPS, n_heads=HEADS),
        **both(our_sublayer), reference=torch_sublayer, **others,
    )  # fmt: skip


def blocks(
    name: str, title: str, latex: dict[str, str], shapes: str, **others: Any
) -> list[Formula]:
    """The rows of a block, with the norm in each of its two places."""
    weights = (FEED_FORWARD, ATTENTION, "gamma_1 beta_1 gamma_2 beta_2: d_model")
    source = {"post": "Vaswani et al. 2017, section 3.1", "pre": "Xiong et al. 2020, figure 1"}

    def draw_block(position: str, rng: np.random.Generator, case: str) -> Inputs:
        switches = {"norm_position": position, "activation": "gelu", "n_heads": HEADS, "eps": EPS}
        inputs = draw(shapes, *weights, **switches)(rng, case)
        if "y" in inputs and case == "left padding":
            # The first queries of a decoder would have no keys: torch's layer returns NaN for them.
            inputs["keep"] = None
        return inputs

    return [
        Formula(
            id=f"{p}_ln_{name}", title=f"{title}, {p}-LN", source=source[p], latex=latex[p],
            draw=partial(draw_block, p), **both(our_block), reference=torch_block, **others,
        )
        for p in ("post", "pre")
    ]  # fmt: skip


ROWS = (
    Formula(
        id="multi_head_attention", title="multi-head attention",
        latex=r"\mathrm{MultiHeadAttention}(x, z) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O",
        source="Vaswani et al. 2017, section 3.2.2; article, section 4",
        draw=draw("x: batch queries d_model, z: batch keys d_model, keep: batch 1 queries keys",
                  ATTENTION, n_heads=HEADS), cases=MASKS,
        by_hand=per_example(attention_by_hand), reference=torch_attention,
        backward_by_hand=block_gradients.multi_head_attention_backward,
        **both(our_attention), shows=(MultiHeadAttention.forward, MultiHeadAttention.project),
    ),
    sublayer(
        "x: batch queries d_model, keep: batch 1 queries queries",
        id="encoder_sublayer", title="the article's encoder",
        latex=r"\mathrm{Encoder}(x) = \mathrm{LayerNorm}(x + \mathrm{MultiHeadAttention}(x))",
        by_hand=per_example(cut_into_heads(by_hand.encoder_sublayer)),
        backward_by_hand=block_gradients.encoder_sublayer_backward, shows=(encoder_sublayer,),
    ),
    sublayer(
        "y: batch queries d_model, z: batch keys d_model, keep: batch 1 queries keys",
        id="decoder_sublayer", title="the article's decoder",
        latex=r"\mathrm{Decoder}(y, z) = \mathrm{LayerNorm}(y + \mathrm{MultiHeadAttention}(y, z))",
        by_hand=per_example(cut_into_heads(by_hand.decoder_sublayer)),
        backward_by_hand=block_gradients.decoder_sublayer_backward, shows=(decoder_sublayer,),
    ),
    Formula(
        id="feed_forward", title="feed-forward", source="Vaswani et al. 2017, equation 2",
        latex=r"\mathrm{FFN}(x) = \max(0, xW_1 + b_1)\,W_2 + b_2",
        draw=draw("x: batch queries d_model", FEED_FORWARD, activation=lambda case: case),
        cases=tuple(ACTIVATIONS),
        by_hand=per_example(by_hand.feed_forward),
        backward_by_hand=block_gradients.feed_forward_backward,
        **both(our_feed_forward), shows=(FeedForward.forward,), reference=torch_feed_forward,
    ),
    *blocks(
        "block", "encoder block",
        {"post": r"a = \mathrm{LN}_1(x + \mathrm{MHA}(x)),\quad y = \mathrm{LN}_2(a + \mathrm{FFN}(a))",
         "pre": r"a = x + \mathrm{MHA}(\mathrm{LN}_1(x)),\quad y = a + \mathrm{FFN}(\mathrm{LN}_2(a))"},
        "x: batch queries d_model, keep: batch 1 queries queries", cases=MASKS[:-1],
        by_hand=per_example(block_by_hand, of=by_hand.encoder_block),
        backward_by_hand=block_gradients.encoder_block_backward,
        shows=(EncoderBlock.forward, EncoderBlock.attend, residual),
    ),
    Formula(
        id="embeddings", title="embeddings and positions",
        latex=r"x_t = \sqrt{d_{model}}\,E_{id_t} + PE_t",
        source="Vaswani et al. 2017, sections 3.4 and 3.5",
        draw=draw("ids: batch keys, E: 9 d_model"),
        by_hand=per_example(embeddings_by_hand), backward_by_hand=embeddings_backward,
        ours=our_embeddings, shows=(Embeddings.forward,), reference=torch_embeddings,
    ),
    Formula(
        id="mean_pool", title="mean pooling", source="Reimers and Gurevych 2019, section 3",
        latex=r"\mathrm{pool}(h) = \frac{1}{|\mathrm{real}|} \sum_{t \in \mathrm{real}} h_t",
        # Every example has a different length.
        draw=draw("hidden: batch keys d_model", real=np.arange(KEYS) < np.array([[4], [11], [7]])),
        by_hand=per_example(mean_pool_by_hand), backward_by_hand=gradients.mean_pool_backward,
        ours=mean_pool, reference=lambda hidden, real: torch.stack(
            [h[r].mean(0) for h, r in zip(hidden, real, strict=True)]
        ),
    ),
    Formula(
        id="pooler", title="CLS pooling", source="Devlin et al. 2019, code",
        latex=r"\mathrm{pool}(h) = \tanh(h_{\mathrm{[CLS]}} W + b)",
        draw=draw("hidden: batch keys d_model, W: d_model d_model, b: d_model"),
        by_hand=per_example(lambda hidden, W, b: np.tanh(by_hand.linear(hidden[:1], W, b)[0])),
        backward_by_hand=gradients.cls_pool_backward, shows=(Pooler.forward,),
        ours=lambda hidden, W, b: functional_call(
            Pooler(len(b)), {"dense.weight": W.T, "dense.bias": b}, (hidden,)
        ),
        reference=lambda hidden, W, b: torch.addmm(b, hidden[:, 0], W).tanh(),
    ),
)  # fmt: skip
