"""The exercises on tokens: right answers however written, slips of students, and the library's own."""

import json
from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

import minitransformer as mt

NAMES = ("best_pair", "merge_pair", "word_pieces")
PAIRS = [
    (name, a, b)
    for name in NAMES
    for a, b in combinations(getattr(mt.check, name).mistakes, 2)
    if not a.change.keys() & b.change.keys()
]


def best_by_a_table(words, counts, pad_id):
    size = int(words.max()) + 1
    first, second = words[:, :-1], words[:, 1:]
    real = (first != pad_id) & (second != pad_id)
    table = torch.zeros(size * size, dtype=counts.dtype)
    table.index_add_(0, (first * size + second)[real], counts[:, None].expand(first.shape)[real])
    best = int(table.argmax())
    return torch.tensor([best // size, best % size, int(table[best])])


def best_by_a_dict(words, counts, pad_id):
    n = {}
    for word, count in zip(words, counts, strict=True):
        for t in range(len(word) - 1):
            pair = int(word[t]), int(word[t + 1])
            if pad_id not in pair:
                n[pair] = n.get(pair, 0) + int(count)
    pair = max(n, key=n.get)
    return torch.tensor([*pair, n[pair]])


def merged_in_a_while_loop(ids, a, b, new, pad_id):
    merged, t = [], 0
    while t < len(ids):
        if t + 1 < len(ids) and ids[t] == a and ids[t + 1] == b:
            merged.append(new)
            t += 2
        else:
            merged.append(int(ids[t]))
            t += 1
    return F.pad(torch.tensor(merged), (0, len(ids) - len(merged)), value=pad_id)


def merged_by_the_last_token(ids, a, b, new, pad_id):
    merged = ids.new_full(ids.shape, pad_id)
    n = 0
    for token in ids:
        if n and merged[n - 1] == a and token == b:
            merged[n - 1] = new
        else:
            merged[n] = token
            n += 1
    return merged


def merged_as_text(ids, a, b, new, pad_id):
    text = "".join(map(chr, ids.tolist())).replace(chr(a) + chr(b), chr(new))
    return torch.tensor([*map(ord, text), *[pad_id] * (len(ids) - len(text))])


def pieces_in_two_loops(word, vocab, pad_id):
    ids, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocab:
                ids.append(vocab[piece])
                start = end
                break
        else:
            ids = [vocab["[UNK]"]]
            break
    return torch.tensor(ids + [pad_id] * (len(word) - len(ids)))


def pieces_by_sorting(word, vocab, pad_id):
    rest, ids, unk = word, [], vocab["[UNK]"]
    longest_first = sorted(vocab, key=len, reverse=True)
    while rest and ids != [unk]:
        marked = rest if rest == word else "##" + rest
        fits = [p for p in longest_first if marked.startswith(p) and p.strip("#")]
        ids = [*ids, vocab[fits[0]]] if fits else [unk]
        rest = marked.removeprefix(fits[0]) if fits else ""
    return F.pad(torch.tensor(ids), (0, len(word) - len(ids)), value=pad_id)


RIGHT = [
    ("best_pair", best_by_a_table), ("best_pair", best_by_a_dict),
    ("merge_pair", merged_in_a_while_loop), ("merge_pair", merged_by_the_last_token),
    ("merge_pair", merged_as_text),
    ("word_pieces", pieces_in_two_loops), ("word_pieces", pieces_by_sorting),
]  # fmt: skip


@pytest.mark.parametrize("seed", [4, 5, 6])
@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_pass_however_written(name, answer, seed):
    result = getattr(mt.check, name)(answer, seed)
    assert result.passed, result


@pytest.mark.parametrize("seed", range(7, 12))
@pytest.mark.parametrize("name", NAMES)
def test_every_draw_tells_every_mistake(name, seed):
    exercise = getattr(mt.check, name)
    for m in exercise.mistakes:
        said = exercise(lambda *a, m=m: exercise.variant(*a, **m.change), seed)
        assert said.mistakes == (m.name,)


@pytest.mark.parametrize(("name", "a", "b"), PAIRS)
def test_two_mistakes_at_once_are_never_accepted(name, a, b):
    exercise = getattr(mt.check, name)
    assert not exercise(lambda *x: exercise.variant(*x, **a.change, **b.change)).passed


def test_slips_of_students_are_named():
    def largest_key(words, counts, pad_id):
        n = {}
        for word, count in zip(words.tolist(), counts.tolist(), strict=True):
            for pair in pairwise(word):
                if pad_id not in pair:
                    n[pair] = n.get(pair, 0) + count
        pair = max(n)
        return torch.tensor([*pair, n[pair]])

    assert "max(n) of a dict compares its keys" in mt.check.best_pair(largest_key).message

    def by_mask(ids, a, b, new, pad_id):
        starts = F.pad((ids[:-1] == a) & (ids[1:] == b), (0, 1))
        gone = F.pad(starts, (1, 0))[:-1]
        merged = torch.where(starts, new, ids)[~gone]
        return F.pad(merged, (0, len(ids) - len(merged)), value=pad_id)

    assert "Found all at once, with a mask" in mt.check.merge_pair(by_mask).message

    def in_the_ids(ids, a, b, new, pad_id):
        for t in range(len(ids) - 1):
            if ids[t] == a and ids[t + 1] == b:
                ids[t], ids[t + 1] = new, pad_id
        return ids

    assert "changes its argument ids" in mt.check.merge_pair(in_the_ids).message

    def not_filled(ids, a, b, new, pad_id):
        merged = merged_in_a_while_loop(ids, a, b, new, pad_id)
        return merged[merged != pad_id]

    assert "The shape is wrong" in mt.check.merge_pair(not_filled).message

    def without_unk(word, vocab, pad_id):
        return torch.tensor([vocab[word]] + [pad_id] * (len(word) - 1))

    crashed = mt.check.word_pieces(without_unk).message
    assert "KeyError" in crashed and "It was called with word '" in crashed


def test_the_library_learns_the_merges_of_these_two_rules():
    """The library settles ties for the smallest ids; here the best count is never shared."""
    words = {"banana": 40, "band": 23, "nab": 9, "ana": 7, "aaab": 5, "dan": 3}
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=11, show_progress=False)
    backend.train_from_iterator([f"{word} " * n for word, n in words.items()], trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    assert len(merges) == 7

    names = sorted({c for word in words for c in word})
    table = torch.full((len(words), 6), -1)
    for row, word in zip(table, words, strict=True):
        row[: len(word)] = torch.tensor([names.index(c) for c in word])
    counts = torch.tensor(list(words.values()))
    for pair in merges:
        a, b, _ = mt.check.best_pair.reference(table, counts, -1).tolist()
        assert (names[a], names[b]) == pair
        names.append(names[a] + names[b])
        rule = mt.check.merge_pair.reference
        table = torch.stack([rule(word, a, b, len(names) - 1, -1) for word in table])


def test_the_library_cuts_words_by_this_rule():
    texts = ["unaffordable films and affordable words", "able bodies read unread words", "qed"]
    tokenizer = mt.data.train_tokenizer(texts, "words", vocab_size=60, bert=True)
    vocab = tokenizer.backend.get_vocab()
    tokenizer.backend.post_processor = None
    cut = {}
    for word in ("unaffordable", "reading", "bodied", "unable", "qed", "zoo", "wordz", "films"):
        ids = mt.check.word_pieces.reference(word, vocab, -1).tolist()
        cut[word] = [i for i in ids if i != -1]
        plain = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
        assert cut[word] == plain.encode(word).ids
    assert cut["zoo"] == cut["wordz"] == [vocab["[UNK]"]] and len(cut["unable"]) > 1
