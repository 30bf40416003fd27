"""Text becomes batches: sources, tokenizer, splits, padding."""

from .batches import Batch, EncodedTexts, pad
from .cache import data_folder
from .datasets import DOMAINS, LabelledTexts, load, read_table, read_texts, samples
from .masking import MaskedBatch, MaskedTexts
from .sequences import EncodedPairs, PairBatch, encode_pairs, pack
from .spans import CorruptedSpans
from .tokenizers import Tokenizer, encode
from .vocabulary import train_tokenizer

__all__ = [
    "DOMAINS",
    "Batch",
    "CorruptedSpans",
    "EncodedPairs",
    "EncodedTexts",
    "LabelledTexts",
    "MaskedBatch",
    "MaskedTexts",
    "PairBatch",
    "Tokenizer",
    "data_folder",
    "encode",
    "encode_pairs",
    "load",
    "pack",
    "pad",
    "read_table",
    "read_texts",
    "samples",
    "train_tokenizer",
]
