"""The exercises themselves: complete, clear, and about what the package and its libraries really do."""

import json

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

import minitransformer as mt

EXERCISES = mt.check.exercises()


def test_there_are_thirty_nine_and_one_quiz_by_name():
    assert len(EXERCISES) == 39 and sum(len(e.mistakes) for e in EXERCISES.values()) == 509
    assert all(getattr(mt.check, name) is exercise for name, exercise in EXERCISES.items())
    assert {*EXERCISES, "diagnoses"} == set(dir(mt.check))


def test_names_are_unique_and_complete():
    for name, exercise in EXERCISES.items():
        names = [m.name for m in exercise.mistakes]
        assert len(set(names)) == len(names), name
        for m in exercise.mistakes:
            assert m.term and m.edits and m.hint.endswith((".", "?", ".)")), (name, m.name)


def test_every_mistake_is_held_against_the_package():
    for name, exercise in EXERCISES.items():
        assert bool(exercise.rows) != bool(exercise.package), name


def test_the_stub_gets_a_friendly_answer():
    def stub(*args):
        raise NotImplementedError

    for exercise in EXERCISES.values():
        result = exercise(stub)
        assert not result.passed
        assert result.message == f"Still to be written. The formula: {exercise.formula}"


def test_inputs_can_tell_axes_apart():
    exact = (torch.float64, torch.int64)  # or zeros and ones, which every type holds exactly
    for name, exercise in EXERCISES.items():
        right = [exercise.correct(*inputs.values()) for inputs in exercise.inputs().values()]
        assert all(a.dtype in exact or ((a == 0) | (a == 1)).all() for a in right), name
        assert any(len(set(a.shape)) == a.dim() for a in right), name


def test_every_draw_of_tokens_tells_every_mistake():
    for name in ("best_pair", "merge_pair", "word_pieces"):
        exercise = EXERCISES[name]
        for seed in range(7, 12):
            for mistake in exercise.mistakes:
                result = exercise(exercise.patched(mistake), seed)
                assert result.mistakes == (mistake.name,), (name, seed, mistake.name, result)


def test_the_library_learns_the_merges_of_these_two_rules():
    """The library breaks ties in favour of the smallest ids; here the best count is never shared."""
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
        a, b, _ = mt.check.best_pair.right(table, counts, -1).tolist()
        assert (names[a], names[b]) == pair
        names.append(names[a] + names[b])
        rule = mt.check.merge_pair.right
        table = torch.stack([rule(word, a, b, len(names) - 1, -1) for word in table])


def test_the_library_cuts_words_by_this_rule():
    texts = ["unaffordable films and affordable words", "able bodies read unread words", "qed"]
    tokenizer = mt.data.train_tokenizer(texts, "words", vocab_size=60, bert=True)
    vocab = tokenizer.backend.get_vocab()
    tokenizer.backend.post_processor = None
    cut = {}
    for word in ("unaffordable", "reading", "bodied", "unable", "qed", "zoo", "wordz", "films"):
        ids = mt.check.word_pieces.right(word, vocab, -1).tolist()
        cut[word] = [i for i in ids if i != -1]
        plain = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
        assert cut[word] == plain.encode(word).ids
    assert cut["zoo"] == cut["wordz"] == [vocab["[UNK]"]] and len(cut["unable"]) > 1
