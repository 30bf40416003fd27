r"""The exercises of the notebook on tokens: how pairs are merged, and how a word is cut into pieces."""

from collections import Counter
from itertools import pairwise
from string import ascii_lowercase

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from ...proofs.formula import Inputs
from ..engine.diagnosis import Exercise
from ..engine.patches import known
from .shared import filled

PAD = -1


def draw_words(rng: np.random.Generator, case: str) -> Inputs:
    """Few tokens, so that pairs repeat, and one pair that is clearly ahead."""
    a, b, c, e = rng.permutation(5)[:4].tolist()
    d = 5
    if case == "a token beside itself":
        b = a
    texts = [
        [b, c, a], [a, b, d, a, b], [e, b, a], [c, a, a, b], [b, b], [d, c, a, a], [a, a, a, e, a, b],
        [e, c],
    ]  # fmt: skip
    width = 9 if case == "much padding" else 6  # the longest has six tokens
    words = np.full((len(texts), width), PAD)
    for row, text in zip(words, texts, strict=True):
        row[: len(text)] = text
    counts = rng.integers(2, 5, len(texts))
    counts[1], counts[-1] = counts[1] + 20, 1
    return {"words": words, "counts": counts, "pad_id": PAD}


def most_frequent_pair(words: Tensor, counts: Tensor, pad_id: int) -> Tensor:
    """The sum, term by term."""
    texts = [[token for token in word if token != pad_id] for word in words.tolist()]
    n: Counter[tuple[int, int]] = Counter()
    for text, times in zip(texts, counts.tolist(), strict=True):
        for pair in pairwise(text):
            n[pair] += times
    a, b = max(n, key=n.get)  # type: ignore[arg-type]
    return torch.tensor([a, b, n[a, b]])


def pair_by_table(words: Tensor, counts: Tensor, pad_id: int) -> Tensor:
    """By a table of all pairs; the tests hold both against what the library learns."""
    n, (a, b) = int(words.max()) + 1, (words[:, :-1], words[:, 1:])
    both, times = (a != pad_id) & (b != pad_id), counts[:, None].expand_as(a)
    table = torch.zeros(n * n, dtype=counts.dtype).index_add(0, (a * n + b)[both], times[both])
    most = table.argmax()
    return torch.stack([most // n, most % n, table[most]])


best_pair = Exercise(
    title="the most frequent pair",
    formula="[a, b, n(a, b)] with the largest n(a, b) = Σ_w counts_w · |{t: w_t = a and w_(t+1) = b}|",
    right=most_frequent_pair, differentiated=False, numbers=True, package=pair_by_table,
    draw=draw_words, cases=("two different tokens", "a token beside itself", "much padding"), axes="place",
    mistakes=known(
        "the factor counts_w",
        ("with every word counted once", "A word that occurs five times contains each of its pairs five times.", "counts.tolist()", "[1] * len(counts)"),
        "w_t and w_(t+1) in the same word w",
        ("with the words joined to one text, so that pairs reach across their borders", "The last token of a word and the first of the next are not a pair: go word by word.",
         "zip(texts, counts.tolist(), strict=True)", "[(sum((k * text for text, k in zip(texts, counts.tolist())), []), 1)]"),
        "the sum over the places t of a word",
        ("with the padding counted as a token", "pad_id fills the row after the word's end. Leave out the pairs that contain it.", " if token != pad_id", ""),
        ("with a pair counted once in a word, however often it is there", "`banana` has `an` twice.", "in pairwise(text)", "in dict.fromkeys(pairwise(text))"),
        ("with pairs of the same kind that overlap counted as one", "`aaa` has the pair (a, a) at two places. str.count() would find one.",
         "for pair in", "last = None\n        for pair in",
         "n[pair] += times", "last = None if pair == last else pair\n            n[pair] += times * (pair == last)"),
        ("without the last pair of each word", "T tokens have T - 1 pairs, and range(T - 1) stops before T - 1.", "pairwise(text)", "pairwise(text[:-1])"),
        "w_t = a and w_(t+1) = b",
        ("with (a, b) and (b, a) counted together", "`on` is not `no`: a pair has an order.", "n[pair] +=", "n[min(pair), max(pair)] +="),
        "the largest n(a, b)",
        ("with the pair of the largest ids chosen, not that of the largest count", "max(n) of a dict compares its keys.", "max(n, key=n.get)", "max(n)"),
        ("with the rarest pair chosen", "Sorting begins with the smallest.", "max(n, key=n.get)", "min(n, key=n.get)"),
        "[a, b, n(a, b)]",
        ("with the pair written the other way round", "a is the token that comes first in the word.", "torch.tensor([a, b,", "torch.tensor([b, a,"),
        ("with the count first", "First the pair, then its count.", "torch.tensor([a, b, n[a, b]])", "torch.tensor([n[a, b], a, b])"),
        "w_t and w_(t+1)",
        ("with the two most frequent tokens, whether they stand side by side or not", "Count pairs of neighbours, not tokens.",
         "pairwise(text)", "text", "a, b = max(n, key=n.get)", "(a, most), (b, _) = n.most_common(2)", "n[a, b]])", "most])"),
    ),
    next="Next: the pair becomes one token, everywhere.",
)  # fmt: skip


def draw_text(rng: np.random.Generator, case: str) -> Inputs:
    """The pair at many places, alone and in runs; the last and the first token would make a pair.

    Written as text the ids would mislead: c ends with the digit of a, d begins with that of b.
    """
    b = int(rng.integers(1, 3))
    a, e = (int(i) for i in rng.permutation([3, 4, 5, 6, 7, 8, 9])[:2])
    c, d = 10 + a, 10 * b + int(rng.integers(3))
    parts = [[a, b, c], [c, b, a, d], [a, a, b, e], [d, a, b, a, b], [a, c], [b, b, d], [c, b, e]]
    first, last = [b, c], [d, a]
    if case == "a token beside itself":
        b = a
        parts = [[a] * n + [(c, d, e)[n % 3]] for n in (2, 3, 4, 5)]
        first, last = [a, c], [d, a, a, a]
    parts = [parts[i] for i in rng.permutation(len(parts))]
    if case == "the pair at the end":
        first, last = [a, b], [a, b]
    ids = np.array([token for part in (first, *parts, last) for token in part])
    return {"ids": ids, "a": a, "b": b, "new": 50 + int(rng.integers(9)), "pad_id": PAD}


def merged_pairs(ids: Tensor, a: int, b: int, new: int, pad_id: int) -> Tensor:
    """From left to right: after a pair the search continues behind it."""
    tokens, t = ids.tolist(), 0
    merged: list[int] = []
    while t < len(tokens):
        found = tokens[t : t + 2] == [a, b]
        merged.append(new if found else tokens[t])
        t += 2 if found else 1
    return filled(merged, len(ids), pad_id)


def merged_by_the_library(ids: Tensor, a: int, b: int, new: int, pad_id: int) -> Tensor:
    """Byte-pair encoding with letters for tokens and a single merge."""
    A, B = ascii_lowercase[a], ascii_lowercase[b]
    vocab = {letter: i for i, letter in enumerate(ascii_lowercase)} | {A + B: new}
    text = "".join(ascii_lowercase[i] for i in ids.tolist())
    return filled(Tokenizer(models.BPE(vocab, [(A, B)])).encode(text).ids, len(ids), pad_id)


FOUND, APPENDED = "tokens[t : t + 2] == [a, b]", "merged.append(new if found else tokens[t])"
merge_pair = Exercise(
    title="one merge",
    formula="from left to right, every a followed by b becomes new; padded with pad_id",
    right=merged_pairs, differentiated=False, numbers=True, package=merged_by_the_library,
    draw=draw_text, cases=("two different tokens", "a token beside itself", "the pair at the end"), axes="length",
    mistakes=known(
        "every",
        ("with only the first pair merged", "A merge is made in the whole text: continue after the pair.", FOUND, f"{FOUND} and new not in merged"),
        ("with only the last pair merged", "Does each pair start again from the unmerged text?",
         APPENDED, "merged = [*tokens[:t], new] if found else [*merged, tokens[t]]"),
        "from left to right",
        ("from right to left", "In `aaa` the first two are merged, and the third is left alone.",
         "ids.tolist()", "ids.tolist()[::-1]", "[a, b]", "[b, a]", "filled(merged", "filled(merged[::-1]"),
        ("without the last token, where it is in no pair", "It belongs to the text all the same.", "while t < len(tokens)", "while t < len(tokens) - 1"),
        "every a followed by b",
        ("with b still there behind the new token", "The new token stands for both: after a pair, look at t + 2 next.", "t += 2 if found else 1", "t += 1"),
        ("with a run of one token merged into a single new one", "`aaaa` holds two pairs, since a token goes into only one new token. Found all at once, with a mask, they overlap.",
         "t += 2 if found else 1", f"while found and {FOUND}: t += 1\n        t += 1"),
        ("with the order of the pair exchanged", "b a is a different pair from a b.", "[a, b]", "[b, a]"),
        ("with a b and b a both merged", "A set of two has no order: compare one place with a, the next with b.", "== [a, b]", "in ([a, b], [b, a])"),
        ("with every a merged with whatever stands behind it", "Look at the next token too.", FOUND, "tokens[t : t + 1] == [a] and t + 1 < len(tokens)"),
        ("with the last token compared with the first", "roll(-1) and the index t + 1 modulo the length wrap around: nothing follows the last token.",
         FOUND, "(tokens + tokens[:1])[t : t + 2] == [a, b]", "filled(merged", "filled(merged[tokens[-1:] + tokens[:1] == [a, b] :]"),
        ("with the pair at the very end left alone", "The last pair starts at T - 2: range(T - 1) reaches it, range(T - 2) does not.", FOUND, f"{FOUND} and t + 2 < len(tokens)"),
        ("with a token used in two pairs", "`aaa` holds one pair and a single token: a token that was merged is gone.",
         "t += 2 if found else 1", "t += 2 if found and tokens[t + 1 : t + 3] != [a, b] else 1"),
        "padded with pad_id, after the end", ("padded with 0", "pad_id is an argument.", "len(ids), pad_id)", "len(ids), 0)"),
        ("with a hole where b was", "Close the holes first, then pad at the end.", APPENDED, "merged += [new, pad_id] if found else [tokens[t]]"),
    ),
    next="Next: count again, and merge again. That is all there is to byte-pair encoding.",
)  # fmt: skip


CUTS = {"several pieces": "abcdefg", "a whole word": "hijk", "a dead end": "lmno", "no first piece": "zabc"}  # fmt: skip
PIECES = """
a ab abc ##ab ##a ##b ##c ##bcd ##d ##de def ##e ##f ##g ##efg fg d e f g ##defz
hijk hij h ##i ##ij ##j ##k ##hijk
l lm ##mn ##o ##m o mn ##l ##lm
""".split()  # noqa: SIM905
"""Each case renames the letters. The word of `a dead end` can be cut, but not greedily."""


def draw_word(rng: np.random.Generator, case: str) -> Inputs:
    """A word and a vocabulary, with other letters and other ids each time."""
    names = str.maketrans(ascii_lowercase, "".join(rng.permutation(list(ascii_lowercase))))
    ids = 2 + rng.permutation(len(PIECES))
    vocab = {"[UNK]": 1} | {
        piece.translate(names): int(i) for piece, i in zip(PIECES, ids, strict=True)
    }
    return {"word": CUTS[case].translate(names), "vocab": vocab, "pad_id": PAD}


def word_pieces_by_rule(word: str, vocab: dict[str, int], pad_id: int) -> Tensor:
    """From the left the longest piece that fits, then the next from its end."""

    def piece(start: int, end: int) -> str:
        return ("##" if start else "") + word[start:end]

    ids: list[int] = []
    start = 0
    while start < len(word):
        ends = [end for end in range(start + 1, len(word) + 1) if piece(start, end) in vocab]
        if not ends:
            return filled([vocab["[UNK]"]], len(word), pad_id)
        ids.append(vocab[piece(start, max(ends))])
        start = max(ends)
    return filled(ids, len(word), pad_id)


def cut_by_the_library(word: str, vocab: dict[str, int], pad_id: int) -> Tensor:
    """The library's own WordPiece."""
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    return filled(backend.encode(word).ids, len(word), pad_id)


MARK, DEAD_END = '("##" if start else "")', 'return filled([vocab["[UNK]"]], len(word), pad_id)'
word_pieces = Exercise(
    title="the pieces of a word",
    formula="from the left, the longest piece of the vocabulary that fits, inside the word with ## before it; where none fits, [UNK] for the whole word; padded with pad_id",
    right=word_pieces_by_rule, differentiated=False, numbers=True, package=cut_by_the_library,
    draw=draw_word, cases=tuple(CUTS), axes="length",
    mistakes=known(
        "the longest piece",
        ("with the shortest piece that fits", "Try the whole rest of the word first, then one character fewer.", "max(ends)", "min(ends)"),
        ("without pieces of a single character", "A range that counts down to start + 1 stops before it.", "range(start + 1,", "range(start + 2,"),
        ("without pieces that reach the end of the word", "word[start:end] stops before end, so end begins with len(word).", "len(word) + 1)", "len(word))"),
        "inside the word with ## before it",
        ("with pieces inside the word looked up without ##", "`able` as a word and `##able` as an ending are two tokens with two ids.", MARK, '""'),
        ("with ## before the first piece too", "The first piece begins the word: it has no ##.", MARK, '"##"'),
        ("with the form without ## accepted inside the word as well", "If the form with ## is missing, the piece is missing: take a shorter one.",
         "start = 0", 'start, vocab = 0, {"##" + piece: i for piece, i in vocab.items()} | vocab'),
        "[UNK] for the whole word",
        ("with the pieces before a dead end kept, and [UNK] for the rest", "In BERT's rule a word is known or unknown as a whole: the pieces found so far are thrown away.",
         DEAD_END, 'return filled([*ids, vocab["[UNK]"]], len(word), pad_id)'),
        ("with the pieces before a dead end as the answer", "Then nothing shows that something is missing.", DEAD_END, "return filled(ids, len(word), pad_id)"),
        ("with [UNK] for one character, and the search going on behind it", "The whole word is unknown, not one character.",
         DEAD_END, 'ids.append(vocab["[UNK]"]); start += 1; continue'),
        ("with a second try after a dead end", "Greedy means that a piece once taken stays, even if a shorter one would have led to the end.",
         "if not ends:", "if ids and not ends:\n            ids, start, vocab = [], 0, {piece: i for piece, i in vocab.items() if i != ids[-1]}; continue\n        if not ends:"),
        "padded with pad_id", ("padded with 0", "pad_id is an argument.", "len(word), pad_id)", "len(word), 0)"),
        "from the left",
        ("with the next piece sought one character on", "The next piece begins where the last one ends.", "start = max(ends)", "start += 1"),
        ("from the right", "The first piece is cut off first, then the rest.",
         "start = 0", "end = len(word)", "while start < len(word)", "while end", "end in range(start + 1, len(word) + 1)", "start in range(end)",
         "[end for", "[start for", "append(vocab[piece(start, max(ends))])", "insert(0, vocab[piece(min(ends), end)])", "start = max(ends)", "end = min(ends)"),
    ),
    next="Next: BERT's own vocabulary, and one of your own.",
)  # fmt: skip
