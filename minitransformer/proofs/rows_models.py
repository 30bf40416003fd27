"""The ledger's rows for whole models: the Transformer, the causal and the masked language model.

The inputs of these rows are the parameters, by their names in the state dict.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..formulas import by_hand, by_hand_decoder, model_gradients, ops
from ..formulas.model_gradients import Stack
from ..model.config import TransformerConfig
from ..model.language_models import CausalLM, MaskedLM, Seq2SeqLM
from ..model.transformer import Decoder, Encoder, EncoderDecoder
from .draws import EPS, HEADS, draw, matrix
from .formula import Formula, Inputs, both, per_example
from .rows_decoder import decoder_block_by_hand, past_by_hand
from .rows_formulas import Keep
from .rows_modules import (
    block_by_hand,
    embeddings_by_hand,
    torch_embeddings,
    torch_layer,
    torch_state,
)  # fmt: skip

CONFIG = TransformerConfig(
    vocab_size=9, d_model=10, n_heads=HEADS, n_layers=2, n_decoder_layers=1, d_ff=12, max_len=6,
    norm_eps=EPS, dropout=0.0, pad_id=None,
)  # fmt: skip
CAUSAL = CONFIG.with_(
    norm_position="pre", positions="learned", scale_embeddings=False, activation="gelu",
    n_decoder_layers=2,
)  # fmt: skip
MASKED = CONFIG.with_(activation="gelu")
Switches = dict[str, Any]

# --- What the models share ----------------------------------------------------------------------


def draw_model(
    shapes: str, model: Callable[[TransformerConfig], nn.Module], config: TransformerConfig
) -> Callable[[np.random.Generator, str], Inputs]:
    """Tokens and a mask, the switches, and parameters for a model."""
    c = config
    drawn = draw(shapes, switches={
        "n_heads": HEADS, "eps": EPS, "norm_position": c.norm_position, "activation": c.activation,
    })  # fmt: skip

    def run(rng: np.random.Generator, case: str) -> Inputs:
        inputs = drawn(rng, case)
        for name, p in model(config).state_dict().items():
            plain = p.ndim == 1 or "embeddings" in name
            inputs[name] = rng.standard_normal(p.shape) if plain else matrix(rng, *p.shape[::-1]).T
        return inputs

    return run


def with_waves(parameters: Inputs, *prefixes: str) -> Inputs:
    """Add the table of positions in full precision; the modules keep it in float32."""
    E = next(p for name, p in parameters.items() if name.endswith("tokens.weight"))
    waves = ops.sinusoidal_positions(CONFIG.max_len, E.shape[1], E.dtype)
    return parameters | {f"{prefix}.embeddings.positions": waves for prefix in prefixes}


def stack_by_hand(
    stack: Stack, x: np.ndarray, keep: np.ndarray | None, z: np.ndarray | None = None
) -> np.ndarray:
    if keep is not None:
        keep = np.broadcast_to(keep, (1, len(x), keep.shape[-1]))
    for i in range(stack.depth):
        if z is None:
            x = block_by_hand(x, keep, **stack.block(i))
        else:
            x = decoder_block_by_hand(x, None, z=z, memory_keep=keep, **stack.block(i))
    norm = stack.norm()
    return x if norm is None else by_hand.layer_norm(x, *norm, EPS)


def torch_stack(stack: Stack) -> tuple[nn.Module, dict[str, Tensor]]:
    """torch's stack for ours, and its parameters."""
    layer, norm = torch_layer(**stack.block(0)), stack.norm()
    state: dict[str, Tensor] = {}
    for i in range(stack.depth):
        state |= torch_state(stack.block(i), f"layers.{i}.")
    last = None
    if norm is not None:
        last = nn.LayerNorm(len(norm[0]), EPS, dtype=norm[0].dtype)
        state |= {"norm.weight": norm[0], "norm.bias": norm[1]}
    if isinstance(layer, nn.TransformerDecoderLayer):
        return nn.TransformerDecoder(layer, stack.depth, last), state
    return nn.TransformerEncoder(layer, stack.depth, last, enable_nested_tensor=False), state


def future(length: int) -> Tensor:
    return torch.ones(length, length).triu(1).bool()


def padding(keep: Keep) -> Keep:
    """A mask of keys as torch's stacks take it: True where there is padding."""
    return None if keep is None else ~keep[:, 0, 0]


# --- The whole Transformer ----------------------------------------------------------------------

ENCODER, DECODER = "encoder_decoder.encoder", "encoder_decoder.decoder"


def stacks(p: Inputs, switches: Switches) -> tuple[Any, Stack, Stack]:
    """The table of embeddings, the encoder's blocks and the decoder's."""
    encoder = Stack(p, f"{ENCODER}.", **switches)
    decoder = Stack(p, f"{DECODER}.", cross=True, **switches)
    return p[f"{ENCODER}.embeddings.tokens.weight"], encoder, decoder


def transformer_by_hand(
    source: np.ndarray, target: np.ndarray, source_keep: np.ndarray | None, switches: Switches,
    **p: np.ndarray,
) -> np.ndarray:  # fmt: skip
    E, encoder, decoder = stacks(p, switches)
    z = stack_by_hand(encoder, embeddings_by_hand(source, E), source_keep)
    h = stack_by_hand(decoder, embeddings_by_hand(target, E), source_keep, z)
    return by_hand_decoder.tied_logits(h, E)


def our_transformer(
    kernels: str, source: Tensor, target: Tensor, source_keep: Keep, switches: Switches, **p: Tensor
) -> Tensor:
    config = CONFIG.with_(ops=kernels, norm_position=switches["norm_position"])
    model = Seq2SeqLM(EncoderDecoder(config))
    return functional_call(model, with_waves(p, ENCODER, DECODER), (source, target, source_keep))


def torch_transformer(
    source: Tensor, target: Tensor, source_keep: Keep, switches: Switches, **p: Tensor
) -> Tensor:
    E, *ours = stacks(p, switches)
    (encoder, encoder_state), (decoder, decoder_state) = map(torch_stack, ours)
    module = nn.Transformer(
        E.shape[1], HEADS, custom_encoder=encoder, custom_decoder=decoder, batch_first=True
    )
    state = {f"encoder.{k}": a for k, a in encoder_state.items()}
    state |= {f"decoder.{k}": a for k, a in decoder_state.items()}
    masks = {
        "tgt_mask": future(target.shape[1]), "src_key_padding_mask": padding(source_keep),
        "memory_key_padding_mask": padding(source_keep),
    }  # fmt: skip
    embedded = torch_embeddings(source, E), torch_embeddings(target, E)
    return functional_call(module, state, embedded, masks) @ E.T


# --- The causal language model: learned positions, pre-LN, GELU ---------------------------------


def causal_lm_by_hand(
    ids: np.ndarray, keep: np.ndarray | None, switches: Switches, **p: np.ndarray
) -> np.ndarray:
    E, P = (p[f"decoder.embeddings.{n}.weight"] for n in ("tokens", "position_table"))
    x = np.stack([E[v] + P[t] for t, v in enumerate(ids)])
    h = stack_by_hand(Stack(p, "decoder.", **switches), x, past_by_hand(keep, len(ids)))
    return by_hand_decoder.tied_logits(h, E)


def our_causal_lm(kernels: str, ids: Tensor, keep: Keep, switches: Switches, **p: Tensor) -> Tensor:
    return functional_call(CausalLM(Decoder(CAUSAL.with_(ops=kernels))), p, (ids, keep))


def torch_causal_lm(ids: Tensor, keep: Keep, switches: Switches, **p: Tensor) -> Tensor:
    E, P = (p[f"decoder.embeddings.{n}.weight"] for n in ("tokens", "position_table"))
    module, state = torch_stack(Stack(p, "decoder.", **switches))
    masks = {"mask": future(ids.shape[1]), "src_key_padding_mask": padding(keep)}
    return functional_call(module, state, (F.embedding(ids, E) + P[: ids.shape[1]],), masks) @ E.T


# --- The masked language model ------------------------------------------------------------------


def masked_lm_by_hand(
    ids: np.ndarray, keep: np.ndarray | None, switches: Switches, **p: np.ndarray
) -> np.ndarray:
    E = p["encoder.embeddings.tokens.weight"]
    h = stack_by_hand(Stack(p, "encoder.", **switches), embeddings_by_hand(ids, E), keep)
    u = by_hand.gelu(by_hand.linear(h, p["dense.weight"].T, p["dense.bias"]))
    n = by_hand.layer_norm(u, p["norm.weight"], p["norm.bias"], EPS)
    return by_hand_decoder.tied_logits(n, E) + p["head.bias"]


def our_masked_lm(kernels: str, ids: Tensor, keep: Keep, switches: Switches, **p: Tensor) -> Tensor:
    model = MaskedLM(Encoder(MASKED.with_(ops=kernels)))
    return functional_call(model, with_waves(p, "encoder"), (ids, keep))


def torch_masked_lm(ids: Tensor, keep: Keep, switches: Switches, **p: Tensor) -> Tensor:
    E = p["encoder.embeddings.tokens.weight"]
    module, state = torch_stack(Stack(p, "encoder.", **switches))
    masks = {"src_key_padding_mask": padding(keep)}
    h = functional_call(module, state, (torch_embeddings(ids, E),), masks)
    u = F.gelu(F.linear(h, p["dense.weight"], p["dense.bias"]))
    n = F.layer_norm(u, u.shape[-1:], p["norm.weight"], p["norm.bias"], EPS)
    return F.linear(n, E, p["head.bias"])


# --- The rows -----------------------------------------------------------------------------------


def transformer(norm_position: str, source: str) -> Formula:
    """The whole Transformer with the norm in one of its two places."""
    return Formula(
        id=f"{norm_position}_ln_transformer",
        title=f"the whole Transformer, {norm_position}-LN",
        latex=r"\ell = \mathrm{Decoder}(target,\ \mathrm{Encoder}(source))\,E^\top",
        source=source,
        draw=draw_model(
            "source: 2 6, target: 2 4, source_keep: 2 1 1 6",
            lambda config: Seq2SeqLM(EncoderDecoder(config)),
            CONFIG.with_(norm_position=norm_position),
        ),
        by_hand=per_example(transformer_by_hand),
        **both(our_transformer),
        reference=torch_transformer,
        backward_by_hand=model_gradients.transformer_backward,
        cases=("no mask", "left padding", "right padding"),
        shows=(EncoderDecoder.forward, Encoder.forward, Decoder.forward, Seq2SeqLM.forward),
    )


ROWS = (
    transformer("post", "Vaswani et al. 2017, figure 1, section 3.4"),
    transformer("pre", "Xiong et al. 2020, figure 1"),
    Formula(
        id="causal_lm",
        title="causal language model",
        latex=r"\ell_t = \mathrm{Decoder}(x_1 \dots x_t)_t\,E^\top",
        source="Radford et al. 2018, section 3.1",
        draw=draw_model("ids: 2 5, keep: 2 1 1 5", lambda c: CausalLM(Decoder(c)), CAUSAL),
        by_hand=per_example(causal_lm_by_hand),
        **both(our_causal_lm),
        reference=torch_causal_lm,
        backward_by_hand=model_gradients.causal_lm_backward,
        cases=("no mask", "right padding"),
        shows=(CausalLM.forward, Decoder.forward),
    ),
    Formula(
        id="masked_lm",
        title="masked language model",
        latex=r"\ell = \mathrm{LN}(f(\mathrm{Encoder}(x)\,W + b))\,E^\top + b_E",
        source="Devlin et al. 2019, section 3.1 and code",
        draw=draw_model("ids: 2 6, keep: 2 1 1 6", lambda c: MaskedLM(Encoder(c)), MASKED),
        by_hand=per_example(masked_lm_by_hand),
        **both(our_masked_lm),
        reference=torch_masked_lm,
        backward_by_hand=model_gradients.masked_lm_backward,
        cases=("no mask", "left padding", "right padding"),
        shows=(MaskedLM.forward,),
    ),
)
