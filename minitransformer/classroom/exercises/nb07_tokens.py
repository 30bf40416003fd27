r"""The exercises of the notebook on tokens: how pairs are joined, and how a word is cut into pieces.

The known mistakes are, as in `mistakes.py`, the rule written once with switches.
"""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...proofs.formula import Inputs
from ..engine.diagnosis import Exercise, Mistake

PAD = -1


def filled(ids: list[int], length: int, pad_id: int) -> Tensor:
    """The ids as a tensor of that length, filled up behind them."""
    return torch.tensor((ids + [pad_id] * length)[:length])


# --- The most frequent pair -------------------------------------------------------------------


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
    width = 9 if case == "much padding" else 6  # which the longest fills
    words = np.full((len(texts), width), PAD)
    for row, text in zip(words, texts, strict=True):
        row[: len(text)] = text
    counts = rng.integers(2, 5, len(texts))
    counts[1], counts[-1] = counts[1] + 20, 1
    return {"words": words, "counts": counts, "pad_id": PAD}


def best_pair_reference(words: Tensor, counts: Tensor, pad_id: int) -> Tensor:
    """The sum word for word."""
    n: Counter[tuple[int, int]] = Counter()
    for word, count in zip(words.tolist(), counts.tolist(), strict=True):
        for a, b in pairwise(w for w in word if w != pad_id):
            n[a, b] += count
    (a, b), most = n.most_common(1)[0]
    return torch.tensor([a, b, most])


def best_pair_variant(
    words: Tensor,
    counts: Tensor,
    pad_id: int,
    weight: str = "counts",
    border: str = "words apart",
    padding: str = "left out",
    a_word: str = "each place",
    overlap: str = "counted",
    end: str = "counted",
    order: str = "matters",
    best: str = "most frequent",
    written: str = "a b",
) -> Tensor:
    """The count with a switch for what is counted, and for what is chosen."""
    times = counts.tolist() if weight == "counts" else [1] * len(words)
    texts = [[w for w in word if w != pad_id or padding == "kept"] for word in words.tolist()]
    if border == "joined":
        texts = [[w for text, k in zip(texts, times, strict=True) for _ in range(k) for w in text]]
        times = [1]
    n: Counter[tuple[int, int]] = Counter()
    for text, k in zip(texts, times, strict=True):
        pairs = list(pairwise(text if end == "counted" else text[:-1]))
        if overlap == "left out":
            apart: list[tuple[int, int]] = []
            last: dict[tuple[int, int], int] = {}  # where each pair was counted last
            for t, pair in enumerate(pairs):
                if last.get(pair, -2) < t - 1:
                    apart.append(pair)
                    last[pair] = t
            pairs = apart
        if order == "ignored":
            pairs = [(min(pair), max(pair)) for pair in pairs]
        for pair in dict.fromkeys(pairs) if a_word == "once" else pairs:
            n[pair] += k
    chosen = {
        "most frequent": lambda: n.most_common(1)[0][0],
        "the largest ids": lambda: max(n),
        "the rarest": lambda: min(n, key=lambda pair: n[pair]),
    }[best]()
    return torch.tensor([*(chosen if written == "a b" else chosen[::-1]), n[chosen]])


NEIGHBOURS = "the sum over the places t of a word"
best_pair = Exercise(
    title="the most frequent pair",
    formula="[a, b, n(a, b)] with the largest n(a, b) = Σ_w counts_w · |{t: w_t = a and w_(t+1) = b}|",
    reference=best_pair_reference,
    variant=best_pair_variant,
    draw=draw_words,
    cases=("two different tokens", "a token beside itself", "much padding"),
    axes="place",
    mistakes=(
        Mistake(
            "with every word counted once",
            "the factor counts_w",
            "A word that occurs five times has each of its pairs five times.",
            {"weight": "ignored"},
        ),
        Mistake(
            "with the words joined to one text, so that pairs reach across their borders",
            "w_t and w_(t+1) in the same word w",
            "The last token of a word and the first of the next are no pair: go word by word.",
            {"border": "joined"},
        ),
        Mistake(
            "with the padding counted as a token",
            NEIGHBOURS,
            "pad_id fills the row behind the word's end. Leave out the pairs that have it.",
            {"padding": "kept"},
        ),
        Mistake(
            "with a pair counted once in a word, however often it is there",
            NEIGHBOURS,
            "A set forgets how often. `banana` has `an` twice.",
            {"a_word": "once"},
        ),
        Mistake(
            "with pairs of the same kind that overlap counted as one",
            NEIGHBOURS,
            "`aaa` has the pair (a, a) at two places. str.count() would find one.",
            {"overlap": "left out"},
        ),
        Mistake(
            "without the last pair of each word",
            NEIGHBOURS,
            "A word of T tokens has T - 1 pairs: range(T - 1) is enough for t, since it stops before.",
            {"end": "left out"},
        ),
        Mistake(
            "with (a, b) and (b, a) counted together",
            "w_t = a and w_(t+1) = b",
            "`on` is not `no`: a pair has an order.",
            {"order": "ignored"},
        ),
        Mistake(
            "with the pair of the largest ids chosen, not that of the largest count",
            "the largest n(a, b)",
            "max(n) of a dict compares its keys; max(n, key=n.get) compares the counts.",
            {"best": "the largest ids"},
        ),
        Mistake(
            "with the rarest pair chosen",
            "the largest n(a, b)",
            "Sorting begins with the smallest.",
            {"best": "the rarest"},
        ),
        Mistake(
            "with the pair written the other way round",
            "[a, b, n(a, b)]",
            "a is the one that stands first in the word.",
            {"written": "b a"},
        ),
    ),
    next="Next: the pair becomes one token, everywhere.",
    differentiated=False,
)

# --- One merge --------------------------------------------------------------------------------


def draw_text(rng: np.random.Generator, case: str) -> Inputs:
    """The pair at many places, alone and in runs; the ends of the text touch as a pair would."""
    a, b, *others = rng.permutation(9).tolist()
    c, d, e = others[:3]
    parts = [[a, b, c], [c, b, a, d], [a, a, b, e], [d, a, b, a, b], [a, c], [b, b, d]]
    first, last = [b, c], [d, a]
    if case == "a token beside itself":
        b = a
        parts = [[a] * n + [others[n % 3]] for n in (2, 3, 4, 5)]
        first, last = [a, c], [d, a, a, a]
    parts = [parts[i] for i in rng.permutation(len(parts))]
    if case == "the pair at the end":
        first, last = [a, b], [a, b]
    ids = np.array([token for part in (first, *parts, last) for token in part])
    return {"ids": ids, "a": a, "b": b, "new": 50 + int(rng.integers(9)), "pad_id": PAD}


def merge_pair_reference(ids: Tensor, a: int, b: int, new: int, pad_id: int) -> Tensor:
    """The rule word for word, from left to right."""
    rest, merged = ids.tolist(), []
    while rest:
        found = rest[:2] == [a, b]
        merged.append(new if found else rest[0])
        rest = rest[2 if found else 1 :]
    return filled(merged, len(ids), pad_id)


def merge_pair_variant(
    ids: Tensor,
    a: int,
    b: int,
    new: int,
    pad_id: int,
    match: str = "a b",
    which: str = "all",
    direction: str = "left to right",
    second: str = "goes",
    ends: str = "open",
    last: str = "kept",
    holes: str = "closed",
) -> Tensor:
    """One merge with a switch for each of its parts."""
    tokens = ids.tolist()
    after = tokens[1:] + (tokens[:1] if ends == "wrap" else [])
    wanted = {"a b": [(a, b)], "b a": [(b, a)], "either order": [(a, b), (b, a)]}.get(match)
    found = [
        t
        for t, pair in enumerate(zip(tokens, after, strict=False))
        if (pair[0] == a if wanted is None else pair in wanted)
    ]
    starts: set[int] = set()
    for t in found if direction == "left to right" else reversed(found):
        if second in ("stays", "swallowed") or not {t - 1, t + 1} & starts:
            starts.add(t)
    if which != "all":
        starts = {min(starts)} if which == "the first" else {max(starts)}
    gone = {(t + 1) % len(tokens) for t in starts}
    merged = []
    for t, token in enumerate(
        tokens[: -1 if last == "lost" and len(tokens) - 1 not in gone else None]
    ):
        if t in gone and second != "stays":
            merged += [pad_id] * (holes == "left")
        else:
            merged.append(new if t in starts else token)
    return filled(merged, len(ids), pad_id)


PAIR = "every a with b behind it"
merge_pair = Exercise(
    title="one merge",
    formula="from left to right, every a with b behind it becomes new; filled with pad_id",
    reference=merge_pair_reference,
    variant=merge_pair_variant,
    draw=draw_text,
    cases=("two different tokens", "a token beside itself", "the pair at the end"),
    axes="length",
    mistakes=(
        Mistake(
            "with only the first pair merged",
            "every",
            "A merge is made in the whole text: go on behind the pair.",
            {"which": "the first"},
        ),
        Mistake(
            "with only the last pair merged",
            "every",
            "Does each pair start again from the unmerged text?",
            {"which": "the last"},
        ),
        Mistake(
            "from right to left",
            "from left to right",
            "In `aaa` the first two are joined, then the third is alone.",
            {"direction": "right to left"},
        ),
        Mistake(
            "with b still there behind the new token",
            PAIR,
            "The new token stands for both: after a pair the next place to look at is t + 2.",
            {"second": "stays"},
        ),
        Mistake(
            "with a run of one token merged into a single new one",
            PAIR,
            "In `aaaa` there are two pairs, since a token goes into one new token only. Found all at once, "
            "with a mask, they overlap.",
            {"second": "swallowed"},
        ),
        Mistake(
            "with the order of the pair exchanged",
            PAIR,
            "b a is another pair than a b.",
            {"match": "b a"},
        ),
        Mistake(
            "with a b and b a both merged",
            PAIR,
            "A set of two has no order: compare one place with a, the next with b.",
            {"match": "either order"},
        ),
        Mistake(
            "with every a merged with whatever stands behind it",
            PAIR,
            "Look at the next token too.",
            {"match": "a alone"},
        ),
        Mistake(
            "with the last token compared with the first",
            PAIR,
            "roll(-1) and the index t + 1 modulo the length wrap around: nothing stands behind the last.",
            {"ends": "wrap"},
        ),
        Mistake(
            "without the last token, where it is in no pair",
            "from left to right, to the end",
            "The last token has none behind it, and belongs to the text all the same.",
            {"last": "lost"},
        ),
        Mistake(
            "with a hole where b was",
            "filled with pad_id, behind the end",
            "The text gets shorter: close the holes first, then fill up behind.",
            {"holes": "left"},
        ),
    ),
    next="Next: count again, and merge again. That is all there is to byte-pair encoding.",
    differentiated=False,
)

# --- Word pieces ------------------------------------------------------------------------------

CUTS = {
    "several pieces": "abcdefg",
    "a whole word": "hijk",
    "a dead end": "lmno",
    "no first piece": "zabc",
}
PIECES = """
a ab abc ##ab ##a ##b ##c ##bcd ##d ##de def ##e ##f ##g ##efg fg d e f g ##defz
hijk hij h ##i ##ij ##j ##k ##hijk
l lm ##mn ##o ##m o mn ##l ##lm
""".split()  # noqa: SIM905
"""Written with letters that each case renames. The word of `a dead end` can be cut, but not greedily."""


def draw_word(rng: np.random.Generator, case: str) -> Inputs:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = str.maketrans(letters, "".join(rng.permutation(list(letters))))
    ids = 2 + rng.permutation(len(PIECES))
    vocab = {"[UNK]": 1} | {
        piece.translate(names): int(i) for piece, i in zip(PIECES, ids, strict=True)
    }
    return {"word": CUTS[case].translate(names), "vocab": vocab, "pad_id": 0}


def word_pieces_reference(word: str, vocab: dict[str, int], pad_id: int) -> Tensor:
    """The rule word for word: the longest piece that fits, then on from its end."""
    ids: list[int] = []
    rest = word
    while rest:
        mark = "##" if ids else ""
        fits = [end for end in range(1, len(rest) + 1) if mark + rest[:end] in vocab]
        if not fits:
            return filled([vocab["[UNK]"]], len(word), pad_id)
        ids.append(vocab[mark + rest[: fits[-1]]])
        rest = rest[fits[-1] :]
    return filled(ids, len(word), pad_id)


def word_pieces_variant(
    word: str,
    vocab: dict[str, int],
    pad_id: int,
    match: str = "longest",
    marks: str = "inside",
    dead_end: str = "[UNK]",
    on: str = "from the end",
    direction: str = "left to right",
    shortest: int = 1,
    reach: int = 0,
) -> Tensor:
    """The cut with a switch for each of its parts."""
    unk = vocab["[UNK]"]

    def find(start: int, end: int) -> int | None:
        """The id of word[start:end]."""
        plain, inner = word[start:end], "##" + word[start:end]
        if marks == "either":
            return vocab.get(inner, vocab.get(plain)) if start else vocab.get(plain)
        marked = {"inside": start > 0, "none": False, "all": True}[marks]
        return vocab.get(inner if marked else plain)

    if direction == "right to left":
        ids: list[int] = []
        end = len(word)
        while end:
            start = next((s for s in range(end) if find(s, end) is not None), None)
            if start is None:
                return filled([unk], len(word), pad_id)
            ids, end = [find(start, end) or unk, *ids], start
        return filled(ids, len(word), pad_id)

    def cut(start: int) -> list[int] | None:
        """The pieces from there on; None where there are none."""
        if start == len(word):
            return []
        ends = list(range(start + shortest, len(word) + 1 - reach))
        fits = [
            e for e in (ends if match == "shortest" else ends[::-1]) if find(start, e) is not None
        ]
        for end in fits:
            tail = cut(end if on == "from the end" else start + 1)
            if tail is not None:
                return [find(start, end) or unk, *tail]
            if dead_end != "backtracks":
                return None
        if fits or dead_end in ("[UNK]", "backtracks"):
            return None
        skipped = cut(start + 1) if dead_end == "skips" else []
        return [*([unk] if dead_end != "stops" else []), *(skipped or [])]

    pieces = cut(0)
    return filled([unk] if pieces is None else pieces, len(word), pad_id)


LONGEST = "the longest piece"
WHOLE = "[UNK] for the whole word"
word_pieces = Exercise(
    title="the pieces of a word",
    formula="from the left, the longest piece of the vocabulary that fits, inside the word with ## before "
    "it; where none fits, [UNK] for the whole word; filled with pad_id",
    reference=word_pieces_reference,
    variant=word_pieces_variant,
    draw=draw_word,
    cases=tuple(CUTS),
    axes="length",
    mistakes=(
        Mistake(
            "with the shortest piece that fits",
            LONGEST,
            "Try the whole rest of the word first, then one character less.",
            {"match": "shortest"},
        ),
        Mistake(
            "with pieces inside the word looked up without ##",
            "inside the word with ## before it",
            "`able` as a word and `##able` as an ending are two tokens with two ids.",
            {"marks": "none"},
        ),
        Mistake(
            "with ## before the first piece too",
            "inside the word with ## before it",
            "The first piece begins the word: it has no ##.",
            {"marks": "all"},
        ),
        Mistake(
            "with the form without ## accepted inside the word as well",
            "inside the word with ## before it",
            "Where the ## form is missing, the piece is missing: a shorter one must do.",
            {"marks": "either"},
        ),
        Mistake(
            "with the pieces before a dead end kept, and [UNK] for the rest",
            WHOLE,
            "In BERT's rule a word is known or not: the pieces found so far are thrown away.",
            {"dead_end": "rest"},
        ),
        Mistake(
            "with the pieces before a dead end as the answer",
            WHOLE,
            "Nothing says then that something is missing.",
            {"dead_end": "stops"},
        ),
        Mistake(
            "with [UNK] for one character, and the search going on behind it",
            WHOLE,
            "The unknown is the word, not the character.",
            {"dead_end": "skips"},
        ),
        Mistake(
            "with a second try after a dead end",
            WHOLE,
            "Greedy means that a piece once taken stays, even if a shorter one would have led on.",
            {"dead_end": "backtracks"},
        ),
        Mistake(
            "with the next piece sought one character on",
            "from the left",
            "The next piece begins where the last one ends.",
            {"on": "one further"},
        ),
        Mistake(
            "from the right",
            "from the left",
            "The first piece is cut first, then the rest.",
            {"direction": "right to left"},
        ),
        Mistake(
            "without pieces of a single character",
            LONGEST,
            "word[start : start + 1] is one character: a range that counts down stops before its end.",
            {"shortest": 2},
        ),
        Mistake(
            "without pieces that reach the end of the word",
            LONGEST,
            "word[start:end] stops before end, so end begins with len(word).",
            {"reach": 1},
        ),
    ),
    next="Next: BERT's own vocabulary, and one of your own.",
    differentiated=False,
)
