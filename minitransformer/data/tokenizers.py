"""Text into ids: a thin coat over the `tokenizers` library."""

import json
import warnings
from collections.abc import Sequence
from functools import cached_property

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from .batches import Batch, EncodedTexts, pad
from .datasets import LabelledTexts
from .tables import lines_of

FILLING = ("[PAD]", "<pad>", "<|endoftext|>")
"""Padding tokens; GPT-2 has none, and fills with a text's end: the mask of a batch tells them apart."""


class Tokenizer:
    """Text into token ids and back.

    Args:
        backend: a tokenizer of the `tokenizers` library; its own truncation and padding are turned
            off, since here they belong to the batch.
        max_length: the most ids that the model has positions for, special tokens included.

    Raises:
        ValueError: a backend without one of the usual padding tokens.
    """

    def __init__(self, backend: Backend, max_length: int = 512):
        backend.no_truncation()
        backend.no_padding()
        self.backend, self.max_length = backend, max_length
        pad_id = next((i for i in map(backend.token_to_id, FILLING) if i is not None), None)
        if pad_id is None:
            raise ValueError(f"the tokenizer has no padding token ({', '.join(FILLING)})")
        self.pad_id: int = pad_id

    @classmethod
    def from_json(cls, text: str, max_length: int = 512) -> "Tokenizer":
        """From the contents of a tokenizer.json."""
        return cls(Backend.from_str(text), max_length)

    @classmethod
    def from_vocab(cls, text: str, lowercase: bool = True, max_length: int = 512) -> "Tokenizer":
        """BERT's word pieces from the contents of a vocab.txt, one token a line.

        Raises:
            ValueError: a special token is missing.
        """
        vocab = {token: i for i, token in enumerate(lines_of(text))}
        missing = [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if t not in vocab]
        if missing:
            raise ValueError(f"vocab.txt has no line {', '.join(missing)}; is it BERT's?")
        backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.post_processor = framed(vocab["[CLS]"], vocab["[SEP]"])
        backend.add_special_tokens(
            [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocab]
        )
        return cls(backend, max_length)

    @classmethod
    def from_merges(cls, vocab: str, merges: str, max_length: int = 512) -> "Tokenizer":
        """GPT-2's byte pairs from the contents of a vocab.json and a merges.txt.

        Raises:
            ValueError: files that are damaged or do not belong together.
        """
        lines = [line for line in lines_of(merges) if line and not line.startswith("#version")]
        try:
            pairs = [(a, b) for a, b in (line.split(" ") for line in lines)]
            backend = Backend(models.BPE(json.loads(vocab), pairs))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"vocab.json and merges.txt do not fit together ({error})") from error
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(["<|endoftext|>"])
        return cls(backend, max_length)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self.backend.get_vocab_size()

    @cached_property
    def special(self) -> dict[str, int]:
        """The special tokens and their ids: those that are no part of a text, like `[CLS]`."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    def id_of(self, token: str) -> int:
        """The id of one token, such as a special one.

        Raises:
            KeyError: there is none of that name.
        """
        found = self.backend.token_to_id(token)
        if found is None:
            raise KeyError(f"the vocabulary has no token {token!r}")
        return found

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """The ids of one text, as `encode_all`."""
        return self.encode_all([text], max_length)[0]

    def encode_all(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """The ids of each text, special tokens included, cut to `max_length` (by default the model's).

        What is cut is the end of the text, the last special token stays; a warning says how many
        texts were cut.

        Raises:
            ValueError: a `max_length` under 3 (no room between the special tokens) or over the
                model's.
        """
        longest = self.max_length if max_length is None else max_length
        if not 3 <= longest <= self.max_length:
            raise ValueError(
                f"max_length={longest} must be at least 3 and at most {self.max_length}, the "
                "positions of the model"
            )
        ids = [e.ids for e in self.backend.encode_batch_fast(list(texts))]
        cut = sum(len(i) > longest for i in ids)
        if cut:
            warnings.warn(
                f"{cut} of {len(ids)} texts are longer than {longest} tokens and were cut",
                stacklevel=3,
            )
            self.backend.enable_truncation(longest)
            ids = [e.ids for e in self.backend.encode_batch_fast(list(texts))]
            self.backend.no_truncation()
        return ids

    def batch(self, texts: Sequence[str], max_length: int | None = None) -> Batch:
        """The texts as one padded batch."""
        return pad(self.encode_all(texts, max_length), self.pad_id)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The token of each id, as written in the vocabulary (`##ing` goes on a word)."""
        return [self.backend.id_to_token(int(i)) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text again, without special tokens."""
        return self.backend.decode([int(i) for i in ids])

    def to_json(self) -> str:
        """The contents of a tokenizer.json."""
        return self.backend.to_str(pretty=True)


def framed(cls_id: int, sep_id: int) -> processors.TemplateProcessing:
    """BERT's frame: [CLS] before a text, [SEP] after it, and between the two texts of a pair."""
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls_id), ("[SEP]", sep_id)],
    )


def encode(
    texts: LabelledTexts | Sequence[str], tokenizer: Tokenizer, max_length: int | None = None
) -> EncodedTexts:
    """Tokenise many texts, with their labels where they have any.

    Raises:
        ValueError: no texts, an empty text, or as `Tokenizer.encode_all`.
    """
    labelled = texts if isinstance(texts, LabelledTexts) else None
    raw = texts.texts if isinstance(texts, LabelledTexts) else tuple(texts)
    if not raw:
        raise ValueError("there are no texts to encode")
    for number, text in enumerate(raw):
        if not text.strip():
            raise ValueError(f"text {number} (counted from 0) is empty; remove it")
    ids = tokenizer.encode_all(raw, max_length)
    return EncodedTexts(
        tuple(map(tuple, ids)),
        labelled.labels if labelled else None,
        tokenizer.pad_id,
        labelled.label_names if labelled else (),
    )
