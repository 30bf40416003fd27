"""Text becomes batches: sources, tokenizer, splits, padding."""

from .batches import Batch, EncodedTexts, pad
from .corpora import CORPORA, corpus
from .datasets import LabelledTexts, read_table, read_texts, samples
from .domains import DOMAINS, load, newspaper
from .downloads import data_folder
from .masking import MaskedBatch, MaskedTexts
from .sequences import EncodedPairs, PairBatch, encode_pairs, pack
from .spans import CorruptedSpans
from .stream import BlockFile, write_blocks
from .tokenizers import Tokenizer, encode
from .vocabulary import train_tokenizer

__all__ = [
    "CORPORA",
    "DOMAINS",
    "Batch",
    "BlockFile",
    "CorruptedSpans",
    "EncodedPairs",
    "EncodedTexts",
    "LabelledTexts",
    "MaskedBatch",
    "MaskedTexts",
    "PairBatch",
    "Tokenizer",
    "corpus",
    "data_folder",
    "encode",
    "encode_pairs",
    "load",
    "newspaper",
    "pack",
    "pad",
    "read_table",
    "read_texts",
    "samples",
    "train_tokenizer",
    "write_blocks",
]
