"""A tokenizer of one's own, learned from texts: by the `tokenizers` library."""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from .tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[START]", "[END]")
"""The special tokens of every vocabulary, ids 0 to 3. Encoding adds none of them."""

Kind = Literal["characters", "bytes"]


def train_tokenizer(
    texts: Iterable[str],
    kind: Kind = "bytes",
    vocab_size: int = 2000,
    max_length: int = 512,
    around: tuple[str, str] | None = None,
    extra: Sequence[str] = (),
) -> Tokenizer:
    """Learn a vocabulary from texts.

    Args:
        kind: "characters" makes every character that occurs a token; others become `[UNK]`.
            "bytes" is byte-pair encoding: it starts with the 256 bytes and joins, again and again,
            the two neighbouring tokens that are most often seen together, never across words. Any
            text can be written with it.
        vocab_size: for "bytes" how many tokens there are in the end, the special ones included.
        max_length: the most ids that the model has positions for.
        around: special tokens that encoding puts before and after each text, as BERT's tokenizer does:
            `("[CLS]", "[SEP]")`.
        extra: more special tokens, `("[MASK]",)` for a `MaskedLM`. The ids of both follow on 3.

    Raises:
        ValueError: an unknown kind, or a vocabulary smaller than the bytes and the special tokens.

    Source: Sennrich, Haddow and Birch 2016, section 3.2; over bytes Radford et al. 2019, section 2.2.

    >>> tokenizer = train_tokenizer(["a cab"], "characters")
    >>> tokenizer.encode("bac?"), tokenizer.decode(tokenizer.encode("bac"))
    ([6, 5, 7, 1], 'bac')
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is not known; choose one of {get_args(Kind)}")
    special = list(dict.fromkeys((*SPECIAL, *(around or ()), *extra)))
    if kind == "characters":
        letters = sorted({c for t in texts for c in t})
        vocab = {token: i for i, token in enumerate((*special, *letters))}
        backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens(special)
        return finished(backend, max_length, around)
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
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )  # fmt: skip
    return finished(backend, max_length, around)


def finished(backend: Backend, max_length: int, around: tuple[str, str] | None) -> Tokenizer:
    """The tokenizer, with its two tokens around each text where it has any."""
    if around is not None:
        before, after = around
        backend.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {after}",
            special_tokens=[(t, backend.token_to_id(t)) for t in dict.fromkeys(around)],
        )
    return Tokenizer(backend, max_length)
