"""The ledger's rows of whole models: the Transformer, the causal and the masked language model."""

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..formulas import by_hand, by_hand_decoder, model_gradients, ops
from ..formulas.model_gradients import Stack
from ..model.config import TransformerConfig
from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM
from ..model.transformer import Decoder, Encoder, EncoderDecoder
from .draws import HEADS, draw_keep, matrix
from .formula import Formula, Inputs
from .rows_decoder import decoder_block_by_hand, torch_decoder_state
from .rows_modules import EPS, block_by_hand, feed_forward_state, torch_attention_state

# The inputs of these rows are the parameters, by their names in the state dict.

CONFIG = TransformerConfig(
    vocab_size=9, d_model=10, n_heads=HEADS, n_layers=2, n_decoder_layers=1, d_ff=12, max_len=6,
    norm_eps=EPS, dropout=0.0,
)  # fmt: skip
Switches = dict[str, Any]


ROWS: list[Formula] = []
add = ROWS.append


def switches_of(config: TransformerConfig) -> Switches:
    return {
        "n_heads": HEADS, "eps": EPS, "norm_position": config.norm_position,
        "activation": config.activation,
    }  # fmt: skip


def draw_parameters(rng: np.random.Generator, model: nn.Module) -> Inputs:
    parameters = {}
    for name, p in model.state_dict().items():
        table = p.ndim == 1 or "embeddings" in name
        parameters[name] = rng.standard_normal(p.shape) if table else matrix(rng, *p.shape[::-1]).T
    return parameters


def with_waves(parameters: Inputs, *prefixes: str) -> Inputs:
    """The table of waves is a float32 buffer; the models are compared in full precision."""
    E = next(p for name, p in parameters.items() if name.endswith("tokens.weight"))
    waves = ops.sinusoidal_positions(CONFIG.max_len, E.shape[1], E.dtype)
    return parameters | {f"{prefix}embeddings.positions": waves for prefix in prefixes}


def stack_by_hand(
    stack: Stack, x: np.ndarray, keep: np.ndarray | None, z: np.ndarray | None = None
) -> np.ndarray:
    for i in range(stack.depth):
        memory = x if z is None else z
        mask = None if keep is None else np.broadcast_to(keep, (1, len(x), len(memory)))
        if z is None:
            x = block_by_hand(x=x, keep=mask, **stack.block(i))
        else:
            x = decoder_block_by_hand(x, z, None, mask, **stack.block(i))
    norm = stack.norm()
    return x if norm is None else by_hand.layer_norm(x, *norm, EPS)


def embed_by_hand(ids: np.ndarray, E: np.ndarray) -> np.ndarray:
    waves, root = by_hand.sinusoidal_positions(len(ids), E.shape[1]), np.sqrt(E.shape[1])
    return np.stack([root * E[v] + wave for v, wave in zip(ids, waves, strict=True)])


def torch_stack(
    stack: Stack, dtype: torch.dtype, cross: bool = False
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Torch's stack for ours, and its parameters."""
    switches, first, norm = stack.switches, stack.block(0), stack.norm()
    d_model, d_ff = first["W_1"].shape
    sizes = (d_model, HEADS, d_ff, 0.0, switches["activation"], EPS)
    options: dict[str, Any] = dict(
        batch_first=True, norm_first=switches["norm_position"] == "pre", dtype=dtype
    )
    last = None if norm is None else nn.LayerNorm(d_model, EPS, dtype=dtype)
    state: dict[str, Tensor] = {}
    for i in range(stack.depth):
        w, prefix = stack.block(i), f"layers.{i}."
        state |= torch_decoder_state(w, prefix) if cross else torch_encoder_state(w, prefix)
    if norm is not None:
        state |= {"norm.weight": norm[0], "norm.bias": norm[1]}
    if cross:
        decoder = nn.TransformerDecoderLayer(*sizes, **options)
        return nn.TransformerDecoder(decoder, stack.depth, last), state
    encoder = nn.TransformerEncoderLayer(*sizes, **options)
    return nn.TransformerEncoder(encoder, stack.depth, last, enable_nested_tensor=False), state


def torch_encoder_state(w: Inputs, prefix: str) -> dict[str, Tensor]:
    state = torch_attention_state(w, f"{prefix}self_attn.")
    state |= feed_forward_state(w, prefix, ours=False)
    for i in (1, 2):
        state[f"{prefix}norm{i}.weight"] = w[f"gamma_{i}"]
        state[f"{prefix}norm{i}.bias"] = w[f"beta_{i}"]
    return state


def torch_embed(ids: Tensor, E: Tensor) -> Tensor:
    waves = torch.as_tensor(by_hand.sinusoidal_positions(ids.shape[1], E.shape[1]), dtype=E.dtype)
    return F.embedding(ids, E) * E.shape[1] ** 0.5 + waves


def future(length: int) -> Tensor:
    return torch.ones(length, length).triu(1).bool()


# --- The whole Transformer ----------------------------------------------------------------------

SOURCE_TABLE = "encoder_decoder.encoder.embeddings.tokens.weight"


def draw_transformer(rng: np.random.Generator, case: str, config: TransformerConfig) -> Inputs:
    return {
        "source": rng.integers(0, 8, (2, 6)), "target": rng.integers(0, 8, (2, 4)),
        "source_keep": draw_keep(rng, case, (2, 1, 1, 6)),
        **draw_parameters(rng, Seq2SeqLM(EncoderDecoder(config))),
    }  # fmt: skip


def transformer_by_hand(
    source: np.ndarray, target: np.ndarray, source_keep: np.ndarray | None, switches: Switches,
    **p: np.ndarray,
) -> np.ndarray:  # fmt: skip
    E = p[SOURCE_TABLE]
    encoder = Stack(p, "encoder_decoder.encoder.", **switches)
    decoder = Stack(p, "encoder_decoder.decoder.", cross=True, **switches)
    z = stack_by_hand(encoder, embed_by_hand(source, E), source_keep)
    h = stack_by_hand(decoder, embed_by_hand(target, E), source_keep, z)
    return by_hand_decoder.tied_logits(h, E)


def our_transformer(
    ops: str, config: TransformerConfig, source: Tensor, target: Tensor,
    source_keep: Tensor | None, **p: Tensor,
) -> Tensor:  # fmt: skip
    model = Seq2SeqLM(EncoderDecoder(config.with_(ops=ops, pad_id=None)))
    p = with_waves(p, "encoder_decoder.encoder.", "encoder_decoder.decoder.")
    return functional_call(model, p, (source, target, source_keep))


def torch_transformer(
    switches: Switches, source: Tensor, target: Tensor, source_keep: Tensor | None, **p: Tensor
) -> Tensor:
    E = p[SOURCE_TABLE]
    encoder, state = torch_stack(Stack(p, "encoder_decoder.encoder.", **switches), E.dtype)
    stack = Stack(p, "encoder_decoder.decoder.", cross=True, **switches)
    decoder, more = torch_stack(stack, E.dtype, cross=True)
    module = nn.Transformer(
        E.shape[1], HEADS, custom_encoder=encoder, custom_decoder=decoder, batch_first=True
    )
    state = {f"encoder.{k}": a for k, a in state.items()}
    state |= {f"decoder.{k}": a for k, a in more.items()}
    padding = None if source_keep is None else ~source_keep[:, 0, 0]
    masks = {
        "tgt_mask": future(target.shape[1]), "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
    }  # fmt: skip
    h = functional_call(module, state, (torch_embed(source, E), torch_embed(target, E)), masks)
    return h @ E.T


for position in ("post", "pre"):
    config = CONFIG.with_(norm_position=position)
    add(
        Formula(
            id=f"{position}_ln_transformer",
            title=f"the whole Transformer, {position}-LN",
            latex=r"\ell = \mathrm{Decoder}(target,\ \mathrm{Encoder}(source))\,E^\top",
            source="Vaswani et al. 2017, figure 1, section 3.4"
            if position == "post"
            else "Xiong et al. 2020, figure 1",
            draw=partial(draw_transformer, config=config),
            by_hand=by_hand.over_batch(
                partial(transformer_by_hand, switches=switches_of(config)),
                "source",
                "target",
                "source_keep",
            ),
            ours=partial(our_transformer, "formula", config),
            fused=partial(our_transformer, "fused", config),
            reference=partial(torch_transformer, switches_of(config)),
            backward_by_hand=partial(
                model_gradients.transformer_backward, switches=switches_of(config)
            ),
            cases=("no mask", "left padding", "right padding"),
            shows=(EncoderDecoder.forward, Encoder.forward, Decoder.forward, Seq2SeqLM.forward),
        )
    )


# --- The causal language model: learned positions, pre-LN, GELU ---------------------------------

CAUSAL = CONFIG.with_(
    norm_position="pre", positions="learned", scale_embeddings=False, activation="gelu",
    pad_id=None, n_decoder_layers=2,
)  # fmt: skip


def draw_causal_lm(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "ids": rng.integers(0, 8, (2, 5)), "keep": draw_keep(rng, case, (2, 1, 1, 5)),
        **draw_parameters(rng, CausalLM(Decoder(CAUSAL))),
    }  # fmt: skip


def causal_lm_by_hand(ids: np.ndarray, keep: np.ndarray | None, **p: np.ndarray) -> np.ndarray:
    E, P = (p[f"decoder.embeddings.{n}.weight"] for n in ("tokens", "position_table"))
    x = np.stack([E[v] + P[t] for t, v in enumerate(ids)])
    past = by_hand_decoder.causal_mask(len(ids), len(ids))[None]
    stack = Stack(p, "decoder.", **switches_of(CAUSAL))
    h = stack_by_hand(stack, x, past if keep is None else past & keep)
    return by_hand_decoder.tied_logits(h, E)


def our_causal_lm(ops: str, ids: Tensor, keep: Tensor | None, **p: Tensor) -> Tensor:
    return functional_call(CausalLM(Decoder(CAUSAL.with_(ops=ops))), p, (ids, keep))


def torch_causal_lm(ids: Tensor, keep: Tensor | None, **p: Tensor) -> Tensor:
    E, P = (p[f"decoder.embeddings.{n}.weight"] for n in ("tokens", "position_table"))
    module, state = torch_stack(Stack(p, "decoder.", **switches_of(CAUSAL)), E.dtype)
    padding = None if keep is None else ~keep[:, 0, 0]
    masks = {"mask": future(ids.shape[1]), "src_key_padding_mask": padding}
    return functional_call(module, state, (F.embedding(ids, E) + P[: ids.shape[1]],), masks) @ E.T


add(
    Formula(
        id="causal_lm",
        title="causal language model",
        latex=r"\ell_t = \mathrm{Decoder}(x_1 \dots x_t)_t\,E^\top",
        source="Radford et al. 2018, section 3.1",
        draw=draw_causal_lm,
        by_hand=by_hand.over_batch(causal_lm_by_hand, "ids", "keep"),
        ours=partial(our_causal_lm, "formula"),
        fused=partial(our_causal_lm, "fused"),
        reference=torch_causal_lm,
        backward_by_hand=partial(model_gradients.causal_lm_backward, switches=switches_of(CAUSAL)),
        cases=("no mask", "right padding"),
        shows=(CausalLM.forward, Decoder.forward),
    )
)


# --- The masked language model ------------------------------------------------------------------

MASKED = CONFIG.with_(activation="gelu", pad_id=None)


def draw_masked_lm(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "ids": rng.integers(0, 8, (2, 6)), "keep": draw_keep(rng, case, (2, 1, 1, 6)),
        **draw_parameters(rng, MaskedLM(Encoder(MASKED))),
    }  # fmt: skip


def masked_lm_by_hand(ids: np.ndarray, keep: np.ndarray | None, **p: np.ndarray) -> np.ndarray:
    E = p["encoder.embeddings.tokens.weight"]
    stack = Stack(p, "encoder.", **switches_of(MASKED))
    h = stack_by_hand(stack, embed_by_hand(ids, E), keep)
    u = by_hand.gelu(by_hand.linear(h, p["dense.weight"].T, p["dense.bias"]))
    n = by_hand.layer_norm(u, p["norm.weight"], p["norm.bias"], EPS)
    return by_hand_decoder.tied_logits(n, E) + p["head.bias"]


def our_masked_lm(ops: str, ids: Tensor, keep: Tensor | None, **p: Tensor) -> Tensor:
    model = MaskedLM(Encoder(MASKED.with_(ops=ops)))
    return functional_call(model, with_waves(p, "encoder."), (ids, keep))


def torch_masked_lm(ids: Tensor, keep: Tensor | None, **p: Tensor) -> Tensor:
    E = p["encoder.embeddings.tokens.weight"]
    module, state = torch_stack(Stack(p, "encoder.", **switches_of(MASKED)), E.dtype)
    masks = {"src_key_padding_mask": None if keep is None else ~keep[:, 0, 0]}
    h = functional_call(module, state, (torch_embed(ids, E),), masks)
    u = F.gelu(F.linear(h, p["dense.weight"], p["dense.bias"]))
    n = F.layer_norm(u, u.shape[-1:], p["norm.weight"], p["norm.bias"], EPS)
    return F.linear(n, E, p["head.bias"])


add(
    Formula(
        id="masked_lm",
        title="masked language model",
        latex=r"\ell = \mathrm{LN}(f(\mathrm{Encoder}(x)\,W + b))\,E^\top + b_E",
        source="Devlin et al. 2019, section 3.1 and code",
        draw=draw_masked_lm,
        by_hand=by_hand.over_batch(masked_lm_by_hand, "ids", "keep"),
        ours=partial(our_masked_lm, "formula"),
        fused=partial(our_masked_lm, "fused"),
        reference=torch_masked_lm,
        backward_by_hand=partial(model_gradients.masked_lm_backward, switches=switches_of(MASKED)),
        cases=("no mask", "left padding", "right padding"),
        shows=(MaskedLM.forward,),
    )
)
