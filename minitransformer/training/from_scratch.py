"""What pretraining from scratch needs: blocks of text, the objective's examples, a new model."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.atomic import write_whole
from ..data.batches import EncodedTexts
from ..data.masking import MaskedTexts
from ..data.sequences import pack
from ..data.spans import CorruptedSpans, span_numbers
from ..data.tokenizers import Tokenizer, encode
from ..model.config import TransformerConfig
from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM
from ..model.transformer import Decoder, Encoder, EncoderDecoder
from ..options import Objective
from .checkpointing import FILE, checksum, refuse_other
from .loop import Data

TOKENIZER = "learned_tokenizer.json"

ENDS = {
    "causal": ("[END]", "<|endoftext|>", "</s>", "[SEP]"),
    "masked": ("[SEP]", "[END]", "</s>", "<|endoftext|>"),
    "spans": ("</s>", "[END]", "[SEP]", "<|endoftext|>"),
}
"""The token that ends a text: the first of these that the tokenizer has."""
SENTINEL = "<extra_id_%d>"
"""The token for the n-th hole, as T5 names it."""
VALIDATION = 20
"""One block in this many is for validation, from the end of the texts."""


def sentinels_for(length: int) -> list[str]:
    """One sentinel per hole of a block, and one that marks the end of the holes."""
    _, n_spans = span_numbers(length, CorruptedSpans.share, CorruptedSpans.mean_span)
    return [SENTINEL % i for i in range(n_spans + 1)]


def end_of(tokenizer: Tokenizer, objective: Objective) -> int:
    """The id of the token that ends a text."""
    for token in ENDS[objective]:
        with contextlib.suppress(KeyError):
            return tokenizer.id_of(token)
    raise ValueError(
        f"the tokenizer has no token that ends a text; add one of {', '.join(ENDS[objective])}"
    )


def keep_tokenizer(tokenizer: Tokenizer, folder: Path, options: dict[str, Any]) -> None:
    """Save a run's tokenizer, with the options it was learned with and a hash."""
    learned = [options, tokenizer.to_json()]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TOKENIZER, json.dumps([*learned, checksum(learned, {})]).encode())


def kept_tokenizer(folder: Path, options: dict[str, Any], max_length: int) -> Tokenizer | None:
    """The tokenizer of the run that is resumed; None if there is no run yet to resume.

    A run that failed before its first checkpoint may have learned one from other texts.

    Raises: ValueError: a damaged or missing file, or a run with other options.
    """
    if not (folder / FILE).exists():
        return None
    try:
        *learned, digest = json.loads((folder / TOKENIZER).read_bytes())
        whole = digest == checksum(learned, {})
    except (OSError, ValueError, TypeError):
        whole = False
    if not whole:
        raise ValueError(
            f"{folder / TOKENIZER} is missing or damaged: put back the file of this run (unless it had "
            "another --tokenizer), or start afresh in another folder"
        )
    refuse_other(learned[0], options, folder)
    return Tokenizer.from_json(learned[1], max_length)


def blocks_of(
    texts: Sequence[str], tokenizer: Tokenizer, length: int, end_id: int
) -> tuple[EncodedTexts, EncodedTexts]:
    """Blocks of `length` tokens to train on and, from the end of the texts, to validate on."""
    encoded = encode(texts, tokenizer)
    n_tokens = sum(map(len, encoded.ids))
    if n_tokens < 2 * length:
        raise ValueError(
            f"{len(texts)} texts with {n_tokens} tokens are too few for two blocks of {length}, one to "
            "train on and one to validate; give more text, or a smaller --length"
        )
    ids = pack(encoded, length, end_id).ids
    n = len(ids) - max(1, len(ids) // VALIDATION)
    pad_id = encoded.pad_id
    return EncodedTexts(ids[:n], None, pad_id), EncodedTexts(ids[n:], None, pad_id)


def examples(objective: Objective, blocks: EncodedTexts, tokenizer: Tokenizer, end_id: int) -> Data:
    """The blocks in the form that the objective trains on."""
    if objective == "masked":
        return MaskedTexts(blocks, tokenizer)
    if objective == "spans":
        names = (SENTINEL % i for i in range(len(tokenizer.special)))
        sentinels = [tokenizer.special[name] for name in names if name in tokenizer.special]
        return CorruptedSpans(blocks, sentinels, end_id)
    return blocks


def new_model(
    objective: Objective, tokenizer: Tokenizer, end_id: int, *, d_model: int, n_heads: int,
    n_layers: int, length: int, dropout: float,
) -> CausalLM | MaskedLM | Seq2SeqLM:  # fmt: skip
    """A new GPT-2, BERT or T5 of these sizes, with weights drawn from torch's random state."""
    sizes: dict[str, Any] = dict(
        vocab_size=tokenizer.vocab_size, d_model=d_model, n_heads=n_heads, n_layers=n_layers,
        d_ff=4 * d_model, max_len=length, dropout=dropout, attention_dropout=dropout,
        # if the padding is the end token too, only a mask can tell them apart
        pad_id=tokenizer.pad_id if tokenizer.pad_id != end_id else None,
    )  # fmt: skip
    if objective == "causal":
        return CausalLM(Decoder(TransformerConfig.gpt2(**sizes, start_id=end_id, eos_id=end_id)))
    if objective == "spans":
        sizes |= dict(feed_forward_dropout=dropout, final_dropout=dropout)
        config = TransformerConfig.t5(**sizes, start_id=tokenizer.pad_id, eos_id=end_id)
        return Seq2SeqLM(EncoderDecoder(config))
    return MaskedLM(Encoder(TransformerConfig.bert(**sizes, pooler=False)))
