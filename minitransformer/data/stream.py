"""Text larger than memory: token ids in one file, read block by block."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt

from ..progress import progress_bar
from .atomic import whole_file
from .batches import Batch, generator_of
from .sequences import ended
from .tables import decode, existing
from .tokenizers import Tokenizer

CHUNK = 2**20
"""Bytes of text that are tokenised at a time."""


class BlockFile:
    """Full blocks of `n` tokens, as `pack` makes them, from a file of token ids on disk.

    Opening reads only the header; a batch reads only its own blocks. A `CausalLM` trains on them
    directly, other models through `MaskedTexts` and `CorruptedSpans`.

    Args:
        path: a file from `write_blocks`.
        tokenizer: the one it was written with.
        n: tokens per block; one file serves every n.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a damaged one, one of another tokenizer, or too few tokens.
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer, n: int):
        self.path, self.n, self.pad_id = Path(path), n, tokenizer.pad_id
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {path}; make it with write_blocks")
        with self.path.open("rb") as file:
            line = file.readline(1000)
        try:
            about = json.loads(line)
            self.dtype, self.n_tokens = np.dtype(about["dtype"]), int(about["tokens"])
            made_with = about["tokenizer"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not a file of token ids; make it anew") from None
        expected = len(line) + self.n_tokens * self.dtype.itemsize
        if (size := self.path.stat().st_size) != expected:
            raise ValueError(f"{path} is damaged: {size} bytes, not {expected}; make it anew")
        if made_with != fingerprint(tokenizer):
            raise ValueError(f"{path} was made with another tokenizer; make it anew with this one")
        if n < 1 or self.n_tokens < n:
            raise ValueError(f"{path}: {self.n_tokens} tokens do not fill one block of {n}")
        self.start = len(line)

    def __len__(self) -> int:
        return self.n_tokens // self.n

    @cached_property
    def ids(self) -> UInt[np.ndarray, "blocks n"]:
        """The blocks, left on disk: only what is looked at is read."""
        return np.memmap(self.path, self.dtype, "r", self.start, (len(self), self.n))

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        """Every block once, in random order with a seed, otherwise in the order of the file."""
        order = np.arange(len(self))
        if seed is not None:
            generator_of(seed, 0).shuffle(order)
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            rows = torch.from_numpy(self.ids[chosen].astype(np.int64))
            keep = torch.ones(len(rows), 1, 1, self.n, dtype=torch.bool)
            yield Batch(rows, keep, None, tuple(chosen.tolist()))


def write_blocks(
    texts: Sequence[str | Path],
    path: str | Path,
    tokenizer: Tokenizer,
    end_id: int,
    progress: bool = True,
) -> None:
    """Tokenise text files, one text per line in UTF-8, into one file of ids, each text with its end token.

    Memory use does not grow with the files. Empty lines are skipped; a line longer than the model's
    positions is not truncated, since the blocks divide it.

    Raises:
        FileNotFoundError: a missing text file.
        ValueError: a byte that is not UTF-8 (the message names file and line), or no text at all.
    """
    files = [existing(text) for text in texts]
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    tokens, total = 0, sum(file.stat().st_size for file in files)
    bar = progress_bar(total, "B", progress, unit_scale=True)
    with bar, whole_file(Path(path)) as out:
        out.write(header(dtype, 0, tokenizer))
        for file in files:
            for lines, n_bytes in chunks(file):
                for encoding in tokenizer.backend.encode_batch_fast(lines):
                    ids = np.array(ended(encoding.ids, end_id), dtype)
                    out.write(ids.tobytes())
                    tokens += len(ids)
                bar.update(n_bytes)
        if not tokens:
            raise ValueError(f"there is no text in {', '.join(map(str, files)) or 'no files'}")
        out.seek(0)
        out.write(header(dtype, tokens, tokenizer))


def chunks(file: Path) -> Iterator[tuple[list[str], int]]:
    """The non-empty lines of a file, about `CHUNK` bytes at a time, with the number of bytes."""
    first = 1
    with file.open("rb") as source:
        while lines := source.readlines(CHUNK):
            raw = b"".join(lines)
            stripped = [line.strip() for line in decode(raw, file, first).split("\n")]
            yield [line for line in stripped if line], len(raw)
            first += len(lines)


def header(dtype: np.dtype, tokens: int, tokenizer: Tokenizer) -> bytes:
    """The first line of the file, of fixed length: its type, its size and its tokenizer."""
    about = {"dtype": dtype.str, "tokens": tokens, "tokenizer": fingerprint(tokenizer)}
    return json.dumps(about).ljust(159).encode() + b"\n"


def fingerprint(tokenizer: Tokenizer) -> str:
    """Equal for equal tokenizers."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:32]
