"""T5's files. Nothing outside this module knows their names, which are those of `transformers`.

v1.0 has a ReLU feed-forward and ties the last map to the embeddings, scaled; v1.1 has a gated GELU
and a last map of its own, not scaled.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..model.config import TransformerConfig
from ..model.heads import Seq2SeqLM
from ..model.transformer import EncoderDecoder
from . import hf_config as hf

MODELS = Seq2SeqLM
NAMES = hf.ENTRIES["families"]["t5"]["switches"]
DROPOUTS = ("attention_dropout", "feed_forward_dropout", "final_dropout")
"""T5 has a single rate for all of ours."""
FREE = (*DROPOUTS, "n_decoder_layers", "gated", "activation", "tie_embeddings", "scale_logits",
        "init_std")  # fmt: skip
ATTENTIONS = (
    ("attention", "norm_1", "SelfAttention"),
    ("cross_attention", "norm_cross", "EncDecAttention"),
)
MARK, PREFIX = "shared.weight", ""
SCALED = ("scale_decoder_outputs", "tie_word_embeddings")
TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
BUCKETS = "relative_attention_bias.weight"
UNUSED = f"decoder.block.0.layer.1.EncDecAttention.{BUCKETS}"
"""Left in the first files by a bug: cross-attention has no relative positions."""


def read_config(config: dict[str, Any], state: dict[str, Tensor]) -> TransformerConfig:
    """Our switches from a config.json; the weights say whether the last map is tied.

    New files have `scale_decoder_outputs` for scaled logits (and `tie_word_embeddings` is true even
    for v1.1); in old ones `tie_word_embeddings: false` means that logits are not scaled.
    """
    config = {"d_kv": 64, "decoder_start_token_id": config.get("pad_token_id", 0)} | config
    switches = hf.read_entries(config, NAMES)
    depth = hf.read_entries(config, {"n_decoder_layers": "num_decoder_layers"})
    if depth and depth["n_decoder_layers"] != switches["n_layers"]:
        switches |= depth
    projection = str(config.get("feed_forward_proj", "relu"))
    gated = projection.startswith("gated-")
    # "gated-gelu" means the tanh approximation, although "gelu" elsewhere does not.
    inner = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
    scale = next((e for e in SCALED if e in config), None)
    scaled = hf.read_entries(config, {"scale_logits": scale}) if scale else {}
    return TransformerConfig.t5(
        **switches,
        **dict.fromkeys(DROPOUTS, config.get("dropout_rate", 0.1)),
        gated=gated,
        activation=hf.activation({"feed_forward_proj": inner}, "feed_forward_proj", "relu"),
        tie_embeddings="lm_head.weight" not in state,
        **scaled,
    )


def normalise(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """One spelling for the weights of all T5 files: every tied tensor once, as `shared.weight`.

    A last map with numbers of its own stays, as `lm_head.weight`.
    """
    clean = {key: tensor for key, tensor in state.items() if key != UNUSED}
    for alias in TABLES:
        if alias in clean:
            clean.setdefault(MARK, clean[alias])
    for alias in (*TABLES, "lm_head.weight"):
        hf.drop_alias(clean, alias, MARK)
    return clean


def restore(state: dict[str, Tensor], model: Seq2SeqLM) -> dict[str, Tensor]:
    """The names as a file has them: the same."""
    return state


def build(config: dict[str, Any], state: dict[str, Tensor], ours: TransformerConfig) -> Seq2SeqLM:
    """The model that the file holds."""
    return Seq2SeqLM(EncoderDecoder(ours))


def key_map(model: Seq2SeqLM) -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs, for every weight."""
    whole = model.encoder_decoder
    yield "encoder_decoder.encoder.embeddings.tokens.weight", MARK
    for side, stack in (("encoder", whole.encoder), ("decoder", whole.decoder)):
        ours = f"encoder_decoder.{side}"
        buckets = f"{side}.block.0.layer.0.SelfAttention.{BUCKETS}"
        yield f"{ours}.relative_positions.buckets.weight", buckets
        for i in range(len(stack.blocks)):
            mine, other = f"{ours}.blocks.{i}", f"{side}.block.{i}.layer"
            yield from block(mine, other, side, model.config.gated)
        yield f"{ours}.norm.weight", f"{side}.final_layer_norm.weight"
    if not model.config.tie_embeddings:
        yield "head.weight", "lm_head.weight"


def block(mine: str, other: str, side: str, gated: bool) -> Iterator[tuple[str, str]]:
    """The pairs of one block."""
    sublayers = ATTENTIONS[: 2 if side == "decoder" else 1]
    for j, (attention, norm, theirs) in enumerate(sublayers):
        for w in "QKVO":
            yield f"{mine}.{attention}.W_{w}.weight", f"{other}.{j}.{theirs}.{w.lower()}.weight"
        yield f"{mine}.{norm}.weight", f"{other}.{j}.layer_norm.weight"
    j = len(sublayers)
    inner = {"W_1": "wi_0", "W_3": "wi_1"} if gated else {"W_1": "wi"}
    for w, theirs in (inner | {"W_2": "wo"}).items():
        yield f"{mine}.feed_forward.{w}.weight", f"{other}.{j}.DenseReluDense.{theirs}.weight"
    yield f"{mine}.norm_2.weight", f"{other}.{j}.layer_norm.weight"


def write_config(model: Seq2SeqLM) -> dict[str, Any]:
    """The config.json of a model with T5's switches."""
    c, entries = model.config, hf.write_entries(model.config, NAMES, FREE, "T5")
    rates = {name: getattr(c, name) for name in ("dropout", *DROPOUTS)}
    if len(set(rates.values())) > 1:
        said = ", ".join(f"{name}={rate}" for name, rate in rates.items())
        raise ValueError(f"T5's files have one dropout for all, this config has {said}")
    if c.gated and c.activation == "gelu":
        raise ValueError("T5's files cannot express a gated 'gelu', only 'gelu_tanh' and 'relu'")
    inner = hf.activation_name(c.activation)
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        **entries,
        "num_decoder_layers": c.n_decoder_layers or c.n_layers,
        "feed_forward_proj": f"gated-{inner.removesuffix('_new')}" if c.gated else inner,
        "tie_word_embeddings": c.scale_logits,  # says only whether logits are scaled
        "scale_decoder_outputs": c.scale_logits,
    }
