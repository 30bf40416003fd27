"""Text into ids: a thin wrapper around the `tokenizers` library."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from .batches import Batch, EncodedTexts, pad
from .datasets import LabelledTexts
from .tables import half_character, lines_of

ROLES = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]",),
    "bos_token": ("[START]", "<|endoftext|>"),
    "eos_token": ("[END]", "</s>", "<|endoftext|>"),
}
"""What special tokens are for, and their usual names. GPT-2 has no padding token and pads with the
end of a text; only the mask tells them apart."""
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The special tokens of BERT and other encoders. Encoding adds [CLS] before a text and [SEP] after it."""


class Tokenizer:
    """Text into token ids and back.

    Args:
        backend: a tokenizer of the `tokenizers` library. Its own truncation and padding are turned
            off: batches are padded here.
        max_length: how many ids the model has positions for, special tokens included.
        roles: the special tokens by what they are for, such as {"pad_token": "[PAD]"}; by default
            those with the usual names.
        padding_side, truncation_side: where `batch` pads and long texts are cut, "right" or "left"; by
            default as the backend would.

    Raises: ValueError: a backend without a token for padding or for the end of a text.
    """

    def __init__(
        self, backend: Backend, max_length: int = 512, roles: dict[str, str] | None = None,
        padding_side: str | None = None, truncation_side: str | None = None,
    ):  # fmt: skip
        self.padding_side = padding_side or (backend.padding or {}).get("direction", "right")
        self.truncation_side = truncation_side or (backend.truncation or {}).get(
            "direction", "right"
        )
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # [SEP] in a user's text is text
        self.backend, self.max_length = backend, max_length
        usual = {
            role: token
            for role, names in ROLES.items()
            for token in reversed(names)
            if backend.token_to_id(token) is not None
        }
        self.roles = usual if roles is None else roles
        """The special tokens by what they are for."""
        both = usual | self.roles
        pad = both.get("pad_token") or both.get("eos_token")
        if pad is None or (pad_id := backend.token_to_id(pad)) is None:
            known = ", ".join(ROLES["pad_token"] + ROLES["eos_token"])
            raise ValueError(f"the tokenizer has no token to pad with ({known})")
        self.pad_id = pad_id

    @classmethod
    def from_json(cls, text: str, max_length: int = 512) -> "Tokenizer":
        """From the contents of a tokenizer.json."""
        return cls(Backend.from_str(text), max_length)

    @classmethod
    def from_vocab(cls, text: str, lowercase: bool = True, max_length: int = 512) -> "Tokenizer":
        """BERT's word pieces from a vocab.txt; ValueError if it lacks a special token."""
        vocab = {token: i for i, token in enumerate(lines_of(text))}
        if missing := [t for t in BERT_SPECIAL[:4] if t not in vocab]:
            raise ValueError(f"vocab.txt has no line {', '.join(missing)}; is it BERT's?")
        backend = word_pieces(vocab, lowercase)
        backend.post_processor = framed(backend)
        backend.add_special_tokens([t for t in BERT_SPECIAL if t in vocab])
        return cls(backend, max_length)

    @classmethod
    def from_merges(cls, vocab: str, merges: str, max_length: int = 512) -> "Tokenizer":
        """GPT-2's byte pairs from a vocab.json and a merges.txt; ValueError if they do not fit."""
        lines = [line for line in lines_of(merges) if line and not line.startswith("#version")]
        try:
            pairs = [(a, b) for a, b in (line.split(" ") for line in lines)]
            backend = byte_pairs(models.BPE(json.loads(vocab), pairs))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"vocab.json and merges.txt do not fit together ({error})") from error
        backend.add_special_tokens(["<|endoftext|>"])
        return cls(backend, max_length)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self.backend.get_vocab_size()

    @cached_property
    def special(self) -> dict[str, int]:
        """The tokens that stand for no text, such as `[CLS]`, and their ids."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    def id_of(self, token: str) -> int:
        """The id of one token, special or not; KeyError if there is none."""
        if (found := self.backend.token_to_id(token)) is None:
            raise KeyError(f"the vocabulary has no token {token!r}")
        return found

    @cached_property
    def unknown_id(self) -> int | None:
        """The id that stands for all that the vocabulary cannot say, if it has one."""
        token = getattr(self.backend.model, "unk_token", None) or "<unk>"
        return self.backend.token_to_id(token)

    @cached_property
    def parsing(self) -> Backend:
        """The same tokenizer, but the name of a special token in a text stands for this token."""
        return Backend.from_str(self.backend.to_str())

    def encode(self, text: str, max_length: int | None = None, special: bool = False) -> list[int]:
        """The ids of one text, as in `encode_all`."""
        return self.encode_all([text], max_length, special)[0]

    def encode_all(
        self, texts: Sequence[str], max_length: int | None = None, special: bool = False
    ) -> list[list[int]]:
        """The ids of each text, special tokens included, cut to `max_length` (by default the model's).

        The end of a long text is cut off, but its last special token stays. Warnings say how many
        texts were cut, and how much the vocabulary cannot say.

        Args:
            special: read the names of special tokens in a text, such as [MASK], as these tokens; they
                are text otherwise, since anybody may write them.

        Raises:
            TypeError: a text that is no string, such as a pair.
            ValueError: a `max_length` under 3 (no room between the special tokens) or over the
                model's, or a text with half a character.
        """
        longest = self.max_length if max_length is None else max_length
        if not 3 <= longest <= self.max_length:
            allowed = f"at least 3 and at most {self.max_length}, the positions of the model"
            raise ValueError(f"max_length={longest} must be {allowed}")
        refuse_no_texts(texts)
        backend = self.parsing if special else self.backend
        ids = [e.ids for e in backend.encode_batch_fast(list(texts))]
        if cut := sum(len(i) > longest for i in ids):
            text = f"{cut} of {len(ids)} texts are longer than {longest} tokens and were cut"
            warnings.warn(text, stacklevel=3)
            backend.enable_truncation(longest, direction=self.truncation_side)
            ids = [e.ids for e in backend.encode_batch_fast(list(texts))]
            backend.no_truncation()
        unknown = -1 if self.unknown_id is None else self.unknown_id
        if hit := [n for i in ids if (n := i.count(unknown))]:
            warnings.warn(
                f"{len(hit)} of {len(ids)} texts have words or characters that the vocabulary lacks: "
                f"{sum(hit)} of {sum(map(len, ids))} tokens are unknown to the model",
                stacklevel=3,
            )
        return ids

    def batch(self, texts: Sequence[str], special: bool = False) -> Batch:
        """The texts as one batch, padded on `padding_side`; `special` as in `encode_all`."""
        ids = self.encode_all(texts, special=special)
        if self.padding_side == "right":
            return pad(ids, self.pad_id)
        batch = pad([i[::-1] for i in ids], self.pad_id)
        return replace(batch, ids=batch.ids.flip(-1), keep=batch.keep.flip(-1))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The token of each id, as the vocabulary spells it (`##ing` continues a word)."""
        return [self.backend.id_to_token(int(i)) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, without special tokens."""
        return self.backend.decode([int(i) for i in ids])

    def to_json(self) -> str:
        """The contents of a tokenizer.json."""
        return self.backend.to_str(pretty=True)


def refuse_no_texts(texts: Sequence[str]) -> None:
    """Reject what is no text: pairs, numbers, halves of characters."""
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"text {number} (counted from 0) must be a str, got {text!r:.60}; join a pair of texts "
                "into one"
            )
        if problem := half_character(text):
            raise ValueError(f"text {number} (counted from 0) {problem}")


def word_pieces(vocab: dict[str, int], lowercase: bool = True, unk: str = "[UNK]") -> Backend:
    """BERT's tokenizer: split at spaces and punctuation, then into the longest pieces it knows."""
    backend = Backend(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def byte_pairs(model: models.BPE) -> Backend:
    """GPT-2's tokenizer: byte pairs, joined within words."""
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def framed(backend: Backend, cls: str = "[CLS]", sep: str = "[SEP]") -> processors.PostProcessor:
    """BERT's frame: [CLS] before a text, and [SEP] after each text."""
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )


def encode(
    texts: LabelledTexts | Sequence[str], tokenizer: Tokenizer, max_length: int | None = None
) -> EncodedTexts:
    """Tokenise many texts, with their labels if they have any.

    Raises: ValueError: no texts, one text instead of many, an empty text, or as
        `Tokenizer.encode_all`.
    """
    plain = texts.texts if isinstance(texts, LabelledTexts) else texts
    if isinstance(plain, str):
        raise ValueError("give a list of texts; a single one is tokenizer.encode(text)")
    if not len(plain):
        raise ValueError("there are no texts to encode")
    refuse_no_texts(plain)
    if blank := [number for number, text in enumerate(plain) if not text.strip()]:
        raise ValueError(f"text {blank[0]} (counted from 0) is empty; remove it")
    ids = tuple(map(tuple, tokenizer.encode_all(plain, max_length)))
    if isinstance(texts, LabelledTexts):
        return EncodedTexts(ids, texts.labels, tokenizer.pad_id, texts.label_names)
    return EncodedTexts(ids, None, tokenizer.pad_id)
