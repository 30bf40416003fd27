"""Text becomes batches: sources, tokenizer, splits, padding."""

from .batches import Batch, EncodedTexts, pad
from .cache import data_folder
from .datasets import DOMAINS, LabelledTexts, load, read_table, read_texts, samples
from .tokenizers import Tokenizer, encode

__all__ = [
    "DOMAINS",
    "Batch",
    "EncodedTexts",
    "LabelledTexts",
    "Tokenizer",
    "data_folder",
    "encode",
    "load",
    "pad",
    "read_table",
    "read_texts",
    "samples",
]
