"""Text becomes batches: sources, tokenizer, splits, padding."""

from .batches import Batch, EncodedTexts, pad
from .datasets import DOMAINS, LabelledTexts, load, read_table, read_texts, samples
from .tokenizers import Tokenizer, encode

__all__ = [
    "DOMAINS",
    "Batch",
    "EncodedTexts",
    "LabelledTexts",
    "Tokenizer",
    "encode",
    "load",
    "pad",
    "read_table",
    "read_texts",
    "samples",
]
