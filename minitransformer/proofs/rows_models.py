"""The ledger's rows for whole models: the Transformer, the causal and the masked language model.

The inputs of these rows are the parameters, by their names in the state dict.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn
from torch.func import functional_call

from ..formulas import by_hand, by_hand_decoder, model_gradients, ops
from ..formulas.numpy_transformer import Stack
from ..model.config import TransformerConfig
from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM
from ..model.transformer import Decoder, Encoder, EncoderDecoder
from . import rows_modules
from .draws import EPS, HEADS, PADDING, draw, matrix
from .formula import Formula, Inputs, both, per_example
from .rows_modules import embeddings_by_hand, torch_embeddings

CONFIG = TransformerConfig(
    vocab_size=9, d_model=15, n_heads=HEADS, n_layers=2, n_decoder_layers=1, d_ff=12, max_len=6,
    norm_eps=EPS, dropout=0.0, pad_id=None,
)  # fmt: skip
Mask = Tensor | None
TOKENS = ("ids", "keep", "source", "target", "source_keep")

# --- What the models share ----------------------------------------------------------------------


def model(
    config: TransformerConfig, build: Callable[[TransformerConfig], nn.Module], shapes: str
) -> dict[str, Any]:
    """Our side of a row: draw tokens, a mask, the switches of the stacks and parameters; run the model."""
    switches = {"norm_position": config.norm_position, "activation": config.activation}
    drawn = draw(shapes, switches=switches | {"n_heads": HEADS, "eps": EPS})

    def draw_parameters(rng: np.random.Generator, case: str) -> Inputs:
        inputs = drawn(rng, case)
        for name, p in build(config).state_dict().items():
            plain = p.ndim == 1 or "embeddings" in name
            inputs[name] = rng.standard_normal(p.shape) if plain else matrix(rng, *p.shape[::-1]).T
        return inputs

    def ours(kernels: Any, switches: Inputs, **inputs: Any) -> Tensor:
        module = build(config.with_(ops=kernels))
        arguments = [inputs.pop(name) for name in TOKENS if name in inputs]
        # The modules keep their table of positions in float32; here it has full precision.
        dtype = next(iter(inputs.values())).dtype
        for name, table in module.named_buffers():
            inputs[name] = ops.sinusoidal_positions(len(table), table.shape[1], dtype)
        return functional_call(module, inputs, tuple(arguments))

    return {"draw": draw_parameters, **both(ours)}


def stack_by_hand(
    stack: Stack, x: ndarray, keep: ndarray | None, z: ndarray | None = None
) -> ndarray:
    """Encoder blocks, or with z decoder blocks, whose mask is the memory's."""
    if keep is not None:
        keep = np.broadcast_to(keep, (1, len(x), keep.shape[-1]))
    for i in range(stack.depth):
        streams: Inputs = {"x": x, "keep": keep}
        if z is not None:
            streams = {"y": x, "z": z, "keep": None, "memory_keep": keep}
        x = rows_modules.block_by_hand(**streams, **stack.block(i))
    norm = stack.norm()
    return x if norm is None else by_hand.layer_norm(x, *norm, EPS)


def torch_stack(stack: Stack) -> tuple[nn.Module, dict[str, Tensor]]:
    """torch's stack for ours, and its parameters."""
    layer: Any = rows_modules.torch_layer(**stack.block(0))
    norm, last = stack.norm(), None
    state: dict[str, Tensor] = {}
    for i in range(stack.depth):
        state |= rows_modules.torch_state(stack.block(i), f"layers.{i}.")
    if norm is not None:
        last = nn.LayerNorm(len(norm[0]), EPS, dtype=norm[0].dtype)
        state |= {"norm.weight": norm[0], "norm.bias": norm[1]}
    if isinstance(layer, nn.TransformerDecoderLayer):
        return nn.TransformerDecoder(layer, stack.depth, last), state
    return nn.TransformerEncoder(layer, stack.depth, last, enable_nested_tensor=False), state


def padding(keep: Mask) -> Mask:
    """A mask of keys as torch's stacks take it: True where there is padding."""
    return None if keep is None else ~keep[:, 0, 0]


# --- The whole Transformer ----------------------------------------------------------------------


def parts(p: Inputs, switches: Inputs) -> tuple[Any, Stack, Stack]:
    """The table of embeddings, the encoder's blocks and the decoder's."""
    encoder = Stack(p, "encoder_decoder.encoder.", **switches)
    decoder = Stack(p, "encoder_decoder.decoder.", cross=True, **switches)
    return p["encoder_decoder.encoder.embeddings.tokens.weight"], encoder, decoder


def transformer_by_hand(
    source: ndarray, target: ndarray, source_keep: Any, switches: Inputs, **p: ndarray
) -> ndarray:
    E, encoder, decoder = parts(p, switches)
    z = stack_by_hand(encoder, embeddings_by_hand(source, E), source_keep)
    h = stack_by_hand(decoder, embeddings_by_hand(target, E), source_keep, z)
    return by_hand_decoder.tied_logits(h, E)


def torch_transformer(
    source: Tensor, target: Tensor, source_keep: Mask, switches: Inputs, **p: Tensor
) -> Tensor:
    E, *stacks = parts(p, switches)
    (encoder, encoder_state), (decoder, decoder_state) = map(torch_stack, stacks)
    module = nn.Transformer(
        E.shape[1], HEADS, custom_encoder=encoder, custom_decoder=decoder, batch_first=True
    )
    state = {f"encoder.{k}": a for k, a in encoder_state.items()}
    state |= {f"decoder.{k}": a for k, a in decoder_state.items()}
    masks = {f"{k}_key_padding_mask": padding(source_keep) for k in ("src", "memory")}
    masks["tgt_mask"] = nn.Transformer.generate_square_subsequent_mask(target.shape[1]) < 0
    embedded = torch_embeddings(source, E), torch_embeddings(target, E)
    return functional_call(module, state, embedded, masks) @ E.T


# --- The causal language model: learned positions, pre-LN, GELU ---------------------------------


def causal_lm_by_hand(ids: ndarray, keep: Any, switches: Inputs, **p: ndarray) -> ndarray:
    E, P = (p[f"decoder.embeddings.{n}.weight"] for n in ("tokens", "position_table"))
    x = np.stack([E[v] + P[t] for t, v in enumerate(ids)])
    keep = rows_modules.hide_future(keep, by_hand_decoder.causal_mask(len(ids), len(ids)))
    return by_hand_decoder.tied_logits(stack_by_hand(Stack(p, "decoder.", **switches), x, keep), E)


def torch_causal_lm(ids: Tensor, keep: Mask, switches: Inputs, **p: Tensor) -> Tensor:
    E, P = (p[f"decoder.embeddings.{n}.weight"] for n in ("tokens", "position_table"))
    module, state = torch_stack(Stack(p, "decoder.", **switches))
    past = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]) == 0
    masks = {"mask": ~past, "src_key_padding_mask": padding(keep)}
    return functional_call(module, state, (F.embedding(ids, E) + P[: ids.shape[1]],), masks) @ E.T


# --- The masked language model ------------------------------------------------------------------


def masked_lm_by_hand(ids: ndarray, keep: Any, switches: Inputs, **p: ndarray) -> ndarray:
    E = p["encoder.embeddings.tokens.weight"]
    h = stack_by_hand(Stack(p, "encoder.", **switches), embeddings_by_hand(ids, E), keep)
    u = by_hand.gelu(by_hand.linear(h, p["dense.weight"].T, p["dense.bias"]))
    n = by_hand.layer_norm(u, p["norm.weight"], p["norm.bias"], EPS)
    return by_hand_decoder.tied_logits(n, E) + p["head.bias"]


def torch_masked_lm(ids: Tensor, keep: Mask, switches: Inputs, **p: Tensor) -> Tensor:
    E = p["encoder.embeddings.tokens.weight"]
    module, state = torch_stack(Stack(p, "encoder.", **switches))
    masks = {"src_key_padding_mask": padding(keep)}
    h = functional_call(module, state, (torch_embeddings(ids, E),), masks)
    u = F.gelu(F.linear(h, p["dense.weight"], p["dense.bias"]))
    n = F.layer_norm(u, u.shape[-1:], p["norm.weight"], p["norm.bias"], EPS)
    return F.linear(n, E, p["head.bias"])


# --- The rows -----------------------------------------------------------------------------------

ROWS = (
    *(
        Formula(
            id=f"{position}_ln_transformer", title=f"the whole Transformer, {position}-LN",
            latex=r"\ell = \mathrm{Decoder}(target,\ \mathrm{Encoder}(source))\,E^\top",
            source=source, cases=PADDING,
            **model(CONFIG.with_(norm_position=position), lambda c: Seq2SeqLM(EncoderDecoder(c)),
                    "source: 2 6, target: 2 4, source_keep: 2 1 1 6"),
            shows=(EncoderDecoder.forward, Encoder.forward, Decoder.forward, Seq2SeqLM.forward),
            by_hand=per_example(transformer_by_hand),
            backward_by_hand=model_gradients.transformer_backward, reference=torch_transformer,
        )
        for position, source in (("post", "Vaswani et al. 2017, figure 1, section 3.4"),
                                 ("pre", "Xiong et al. 2020, figure 1"))
    ),
    Formula(
        id="causal_lm", title="causal language model",
        latex=r"\ell_t = \mathrm{Decoder}(x_1 \dots x_t)_t\,E^\top",
        source="Radford et al. 2018, section 3.1", cases=("no mask", "right padding"),
        **model(CONFIG.with_(norm_position="pre", positions="learned", scale_embeddings=False,
                             activation="gelu", n_decoder_layers=2),
                lambda c: CausalLM(Decoder(c)), "ids: 2 5, keep: 2 1 1 5"),
        shows=(CausalLM.forward, Decoder.forward), reference=torch_causal_lm,
        by_hand=per_example(causal_lm_by_hand), backward_by_hand=model_gradients.causal_lm_backward,
    ),
    Formula(
        id="masked_lm", title="masked language model",
        latex=r"\ell = \mathrm{LN}(f(\mathrm{Encoder}(x)\,W + b))\,E^\top + b_E",
        source="Devlin et al. 2019, section 3.1 and code", cases=PADDING,
        **model(CONFIG.with_(activation="gelu"), lambda c: MaskedLM(Encoder(c)),
                "ids: 2 6, keep: 2 1 1 6"), shows=(MaskedLM.forward,), reference=torch_masked_lm,
        by_hand=per_example(masked_lm_by_hand), backward_by_hand=model_gradients.masked_lm_backward,
    ),
)  # fmt: skip
