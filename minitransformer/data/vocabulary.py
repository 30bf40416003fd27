"""A tokenizer of one's own, learned from texts: by the `tokenizers` library."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ..options import TokenizerKind
from .tokenizers import Tokenizer, framed

SPECIAL = ("[PAD]", "[UNK]", "[START]", "[END]")
"""The special tokens of a decoder, ids 0 to 3. Encoding adds none of them."""
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Those of an encoder, ids 0 to 4. Encoding puts [CLS] before a text and [SEP] after it."""


def train_tokenizer(
    texts: Iterable[str],
    kind: TokenizerKind = "bytes",
    vocab_size: int = 2000,
    max_length: int = 512,
    *,
    bert: bool | None = None,
    min_count: int = 1,
    extra: Sequence[str] = (),
) -> Tokenizer:
    """Learn a vocabulary from texts.

    Args:
        kind: "characters" makes every character that occurs a token; others become `[UNK]`.
            "bytes" is byte-pair encoding: it starts with the 256 bytes and joins, again and again,
            the two neighbouring tokens that are most often seen together, never across words. Any
            text can be written with it.
            "words" is BERT's way: lower case, without accents, words and marks apart, a word cut
            into the longest pieces there are; a piece that goes on a word starts with `##`.
        vocab_size: for "bytes" and "words" how many tokens there are in the end at most, the special
            ones included.
        max_length: the most ids that the model has positions for.
        bert: the special tokens of an encoder that learns by masking, and [CLS] and [SEP] around
            every text; by default for "words" alone.
        min_count: how often a character ("characters") or two neighbours ("bytes", "words") must
            occur to become a token.
        extra: more special tokens, after the usual ones, such as T5's `<extra_id_0>`.

    Raises:
        ValueError: an unknown kind, no texts, a vocabulary that has no room for the single bytes or
            characters and the special tokens, a special token given twice, a `min_count` under 1.

    Source: Sennrich, Haddow and Birch 2016, section 3.2; over bytes Radford et al. 2019, section 2.2;
    word pieces Devlin et al. 2019, section 3. The library finds word pieces by how often neighbours
    occur, as byte pairs; Google's own learner was never published.

    >>> tokenizer = train_tokenizer(["a cab"], "characters")
    >>> tokenizer.encode("bac?"), tokenizer.decode(tokenizer.encode("bac"))
    ([6, 5, 7, 1], 'bac')
    >>> tokenizer = train_tokenizer(["a cab"], "characters", bert=True)
    >>> tokenizer.tokens(tokenizer.encode("bac?"))
    ['[CLS]', 'b', 'a', 'c', '[UNK]', '[SEP]']
    """
    if kind not in get_args(TokenizerKind):
        raise ValueError(f"kind={kind!r} is not known; choose one of {get_args(TokenizerKind)}")
    if min_count < 1:
        raise ValueError(f"min_count={min_count} must be at least 1")
    bert = kind == "words" if bert is None else bert
    special = [*(BERT_SPECIAL if bert else SPECIAL), *extra]
    if len(set(special)) < len(special) or not all(special):
        raise ValueError(f"every special token needs a name of its own, got {', '.join(special)}")
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise ValueError("there are no texts to learn a vocabulary from")
    if kind == "characters":
        backend = character_backend(texts, special, min_count)
    else:
        backend = (byte_backend if kind == "bytes" else word_backend)(
            texts, special, vocab_size, min_count
        )
    backend.add_special_tokens(special)
    if bert:
        backend.post_processor = framed(special.index("[CLS]"), special.index("[SEP]"))
    return Tokenizer(backend, max_length)


def character_backend(texts: Sequence[str], special: Sequence[str], min_count: int) -> Backend:
    """Every character that occurs often enough is a token, in the order of Unicode."""
    count = Counter(c for text in texts for c in text)
    characters = sorted(c for c in count if count[c] >= min_count and c not in special)
    vocab = {token: i for i, token in enumerate((*special, *characters))}
    backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def byte_backend(
    texts: Sequence[str], special: Sequence[str], vocab_size: int, min_count: int
) -> Backend:
    """Byte pairs, joined within words."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(special)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for 256 bytes and {len(special)} special tokens; "
            f"give at least {least}"
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=list(special),
        initial_alphabet=sorted(alphabet), show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    return backend


def word_backend(
    texts: Sequence[str], special: Sequence[str], vocab_size: int, min_count: int
) -> Backend:
    """BERT's word pieces.

    The library numbers the pieces `##c` of one character in an order that changes from run to run,
    and settles equal counts by number. Naming them as special tokens while it learns fixes that.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = (w for t in texts for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t)))
    inner = [f"##{c}" for c in sorted({c for word in set(words) for c in word[1:]})]
    learner = Backend(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=[*special, *inner],
        show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator(texts, trainer)
    vocab = learner.get_vocab()
    if len(vocab) > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for the single characters, alone and inside a "
            f"word, and {len(special)} special tokens; give at least {len(vocab)}"
        )
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    backend.decoder = decoders.WordPiece()
    return backend
