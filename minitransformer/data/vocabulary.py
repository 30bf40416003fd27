"""A tokenizer of one's own, learned from texts: by the `tokenizers` library."""

from collections.abc import Iterable
from typing import Literal, get_args

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from .tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[START]", "[END]")
"""The special tokens, ids 0 to 3. Encoding adds none of them."""

Kind = Literal["characters", "bytes"]


def train_tokenizer(
    texts: Iterable[str], kind: Kind = "bytes", vocab_size: int = 2000, max_length: int = 512
) -> Tokenizer:
    """Learn a vocabulary from texts.

    Args:
        kind: "characters" makes every character that occurs a token; others become `[UNK]`.
            "bytes" is byte-pair encoding: it starts with the 256 bytes and joins, again and again,
            the two neighbouring tokens that are most often seen together, never across words. Any
            text can be written with it.
        vocab_size: for "bytes" how many tokens there are in the end, the special ones included.
        max_length: the most ids that the model has positions for.

    Raises:
        ValueError: an unknown kind, or a vocabulary smaller than the bytes and the special tokens.

    Source: Sennrich, Haddow and Birch 2016, section 3.2; over bytes Radford et al. 2019, section 2.2.

    >>> tokenizer = train_tokenizer(["a cab"], "characters")
    >>> tokenizer.encode("bac?"), tokenizer.decode(tokenizer.encode("bac"))
    ([6, 5, 7, 1], 'bac')
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is not known; choose one of {get_args(Kind)}")
    if kind == "characters":
        vocab = {
            token: i for i, token in enumerate((*SPECIAL, *sorted({c for t in texts for c in t})))
        }
        backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens(list(SPECIAL))
        return Tokenizer(backend, max_length)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIAL)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for 256 bytes and {len(SPECIAL)} special tokens; "
            f"give at least {least}"
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )  # fmt: skip
    return Tokenizer(backend, max_length)
