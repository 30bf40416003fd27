"""A tokenizer of your own, learned from texts with the `tokenizers` library."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ..options import TokenizerKind
from .tokenizers import BERT_SPECIAL, Tokenizer, byte_pairs, framed, word_pieces

SPECIAL = ("[PAD]", "[UNK]", "[START]", "[END]")
"""The special tokens of a decoder, ids 0 to 3. Encoding adds none of them."""


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
        kind: "characters" turns every character of the texts into a token; others become `[UNK]`.
            "bytes" is byte-pair encoding: starting from the 256 bytes, it repeatedly joins the most
            frequent pair of neighbouring tokens, never across words. It can encode any text.
            "words" is BERT's: lower case, no accents, split at spaces and punctuation, each word
            then into the longest known pieces; a piece that continues a word starts with `##`.
        vocab_size: the most tokens for "bytes" and "words", special ones included.
        max_length: how many ids the model has positions for.
        bert: use the special tokens of an encoder that learns by masking, and put [CLS] and [SEP]
            around every text; by default only for "words".
        min_count: how often a character ("characters") or a pair ("bytes", "words") must occur to
            become a token.
        extra: more special tokens, after the usual ones, such as T5's `<extra_id_0>`.

    Raises:
        ValueError: an unknown kind, no texts, a vocabulary too small for the single bytes or
            characters and the special tokens, a special token given twice, or `min_count` under 1.

    Source: Sennrich, Haddow and Birch 2016, section 3.2; over bytes Radford et al. 2019, section 2.2;
    word pieces Devlin et al. 2019, section 3. The library learns word pieces by the frequency of
    pairs, as for bytes; Google never published its own learner.

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
        learn = byte_backend if kind == "bytes" else word_backend
        backend = learn(texts, special, vocab_size, min_count)
    backend.add_special_tokens(special)
    if bert:
        backend.post_processor = framed(backend)
    return Tokenizer(backend, max_length)


def character_backend(texts: list[str], special: list[str], min_count: int) -> Backend:
    """One token per character that occurs often enough, in the order of Unicode."""
    count = Counter(c for text in texts for c in text)
    characters = sorted(c for c in count if count[c] >= min_count and c not in special)
    vocab = {token: i for i, token in enumerate((*special, *characters))}
    backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def byte_backend(texts: list[str], special: list[str], vocab_size: int, min_count: int) -> Backend:
    """Byte-pair encoding."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(special)
    if vocab_size < least:
        parts = f"256 bytes and {len(special)} special tokens"
        raise ValueError(f"vocab_size={vocab_size} is too small for {parts}; give at least {least}")
    backend = byte_pairs(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=special,
        initial_alphabet=sorted(alphabet), show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    return backend


def word_backend(texts: list[str], special: list[str], vocab_size: int, min_count: int) -> Backend:
    """BERT's word pieces.

    The library numbers the one-character pieces `##c` in an order that changes from run to run, and
    breaks ties between counts by number. Declaring them special while it learns fixes the order.
    """
    learner = word_pieces({})
    normalise, split = learner.normalizer.normalize_str, learner.pre_tokenizer.pre_tokenize_str
    words = {word for text in texts for word, _ in split(normalise(text))}
    inner = [f"##{c}" for c in sorted({c for word in words for c in word[1:]})]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=[*special, *inner],
        show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator(texts, trainer)
    vocab = learner.get_vocab()
    if (least := len(vocab)) > vocab_size:
        parts = f"the single characters, alone and inside a word, and {len(special)} special tokens"
        raise ValueError(f"vocab_size={vocab_size} is too small for {parts}; give at least {least}")
    return word_pieces(vocab)
