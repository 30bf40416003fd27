"""Masks by counting: each claim holds for ours, and each known wrong way of masking breaks one.

A claim is a function over an implementation, which takes texts, a tokenizer and a seed and gives
batches. The mutants are found in well-known repositories; mistakes 43 to 45 of the classroom.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import minitransformer as mt
from minitransformer.data import Batch, EncodedTexts, MaskedBatch, MaskedTexts, Tokenizer

# The special tokens are not the first ones, so that "id < 5" is no way to tell them.
WORDS = [f"w{i}" for i in range(24)] + [f"##p{i}" for i in range(8)]
VOCAB = [*WORDS[:3], "[UNK]", "[CLS]", *WORDS[3:9], "[PAD]", "[SEP]", *WORDS[9:], "[MASK]"]
TOKENIZER = Tokenizer.from_vocab("\n".join(VOCAB))
ID = {token: i for i, token in enumerate(VOCAB)}
SPECIAL = {ID[t] for t in ("[UNK]", "[CLS]", "[PAD]", "[SEP]", "[MASK]")}
ORDINARY = sorted(set(range(len(VOCAB))) - SPECIAL)

Implementation = Callable[[EncodedTexts, Tokenizer, int | None], Iterator[MaskedBatch]]


def texts(n: int = 2000, seed: int = 0) -> EncodedTexts:
    """About 12 ordinary tokens each, and unknown ones; no two texts are the same."""
    rng = np.random.default_rng(seed)
    may = [*ORDINARY, ID["[UNK]"]]
    return EncodedTexts(
        tuple(
            (ID["[CLS]"], ID["w0"], *(int(i) for i in rng.choice(may, rng.integers(3, 22))), ID["[SEP]"])
            for _ in range(n)
        ), None, ID["[PAD]"],
    )  # fmt: skip


TEXTS = texts()


def ours(data: EncodedTexts, tokenizer: Tokenizer, seed: int | None) -> Iterator[MaskedBatch]:
    return MaskedTexts(data, tokenizer).batches(16, seed)


def whole_words(data: EncodedTexts, tokenizer: Tokenizer, seed: int | None):
    return MaskedTexts(data, tokenizer, whole_words=True).batches(16, seed)


def at_chosen(run: Implementation, seed: int = 1):
    """Over all texts: what is seen at the chosen places, and what is asked for."""
    batches = list(run(TEXTS, TOKENIZER, seed))
    seen = torch.cat([b.ids[b.chosen] for b in batches])
    return seen.numpy(), torch.cat([b.targets[b.chosen] for b in batches]).numpy()


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    """Larger than the degrees of freedom + 5 standard deviations about never by chance."""
    expected = counts.sum() * shares
    return float(((counts - expected) ** 2 / expected).sum())


def by_text(run: Implementation, seed: int | None) -> dict[int, tuple]:
    """For each text what is seen of it."""
    found = {}
    for batch in run(TEXTS, TOKENIZER, seed):
        for row, i in enumerate(batch.indices):
            found[i] = tuple(batch.ids[row][batch.keep[row, 0, 0]].tolist())
    return found


# --- The claims ---------------------------------------------------------------------------------


def fifteen_percent_of_the_ordinary_tokens_are_chosen(run: Implementation) -> None:
    n = sum(i in ORDINARY for ids in TEXTS.ids for i in ids)
    assert n > 20_000
    chosen = sum(b.n_targets for b in run(TEXTS, TOKENIZER, 1))
    assert abs(chosen / n - 0.15) < 4 * (0.15 * 0.85 / n) ** 0.5


def of_the_chosen_80_10_10_are_masked_random_and_left(run: Implementation) -> None:
    seen, asked = at_chosen(run)
    masked, same = seen == ID["[MASK]"], seen == asked
    # a random token is the right one once in len(ORDINARY) times
    by_chance = 0.1 / len(ORDINARY)
    counts = np.array([masked.sum(), (~masked & ~same).sum(), same.sum()])
    assert chi_square(counts, np.array([0.8, 0.1 - by_chance, 0.1 + by_chance])) < 2 + 5 * 2


def special_tokens_are_never_chosen(run: Implementation) -> None:
    _, asked = at_chosen(run)
    assert not SPECIAL & set(asked.tolist())
    for batch in run(TEXTS, TOKENIZER, 1):
        for i in SPECIAL:
            assert not batch.chosen[batch.targets == i].any()


def what_is_not_chosen_is_left_alone(run: Implementation) -> None:
    for batch in run(TEXTS, TOKENIZER, 1):
        assert torch.equal(batch.ids[~batch.chosen], batch.targets[~batch.chosen])


def the_answers_are_the_text_itself(run: Implementation) -> None:
    for batch in run(TEXTS, TOKENIZER, 1):
        for row, i in enumerate(batch.indices):
            assert tuple(batch.targets[row][batch.keep[row, 0, 0]].tolist()) == TEXTS.ids[i]


def random_tokens_are_uniform_over_the_ordinary_ones(run: Implementation) -> None:
    drawn = np.zeros(len(VOCAB))
    for seed in range(4):
        seen, asked = at_chosen(run, seed)
        other = (seen != ID["[MASK]"]) & (seen != asked)
        np.add.at(drawn, seen[other], 1)
    assert drawn.sum() > 500 and not drawn[list(SPECIAL)].any()
    # an answer is never drawn for itself, which is as likely for all but w0, which each text has
    counts = np.delete(drawn, [*SPECIAL, ID["w0"]])
    assert chi_square(counts, np.full(len(counts), 1 / len(counts))) < len(counts) + 5 * (
        2 * len(counts)
    ) ** 0.5  # fmt: skip


def the_seed_decides(run: Implementation) -> None:
    first, again, other = (by_text(run, seed) for seed in (1, 1, 2))
    assert first == again
    differ = np.mean([first[i] != other[i] for i in first])
    assert differ > 0.7  # a text of 12 tokens has no chosen one in a seventh of the cases


def validation_is_the_same_every_time(run: Implementation) -> None:
    assert by_text(run, None) == by_text(run, None) != by_text(run, 0)


def equal_texts_of_a_batch_get_masks_of_their_own(run: Implementation) -> None:
    same = EncodedTexts(((ID["w3"], ID["w5"]) * 12,) * 64, None, ID["[PAD]"])
    assert len({tuple(row) for b in run(same, TOKENIZER, 1) for row in b.ids.tolist()}) > 50
    first, second, *_ = run(same, TOKENIZER, 1)
    assert not torch.equal(first.ids, second.ids)


class Given(EncodedTexts):
    """Texts whose first batch can be exchanged."""

    def batches(self, batch_size, seed=None):
        width = 3 if self.labels else 30
        yield mt.data.pad([[ID["w1"]] * width] * batch_size, ID["[PAD]"])
        yield from EncodedTexts(self.ids, None, self.pad_id).batches(batch_size, seed)


def a_batch_does_not_depend_on_those_before(run: Implementation) -> None:
    one, other = (Given(TEXTS.ids[:64], labels, ID["[PAD]"]) for labels in (None, (1,) * 64))
    for a, b in list(zip(run(one, TOKENIZER, 1), run(other, TOKENIZER, 1), strict=True))[1:]:
        assert torch.equal(a.ids, b.ids)


def words_are_hidden_whole(run: Implementation) -> None:
    together = 0
    for batch in run(TEXTS, TOKENIZER, 1):
        for row, ids in zip(batch.chosen.tolist(), batch.targets.tolist(), strict=True):
            for t in range(1, len(ids)):
                if VOCAB[ids[t]].startswith("##") and ids[t - 1] in ORDINARY:
                    assert row[t] == row[t - 1]
                    together += row[t]
    assert together > 100


CLAIMS = [
    fifteen_percent_of_the_ordinary_tokens_are_chosen,
    of_the_chosen_80_10_10_are_masked_random_and_left,
    special_tokens_are_never_chosen,
    what_is_not_chosen_is_left_alone,
    the_answers_are_the_text_itself,
    random_tokens_are_uniform_over_the_ordinary_ones,
    the_seed_decides,
    validation_is_the_same_every_time,
    equal_texts_of_a_batch_get_masks_of_their_own,
    a_batch_does_not_depend_on_those_before,
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.__name__)
def test_ours(claim):
    claim(ours)


@pytest.mark.parametrize("claim", [*CLAIMS[1:], words_are_hidden_whole], ids=lambda c: c.__name__)
def test_ours_with_whole_words(claim):
    claim(whole_words)


# --- The wrong ways -----------------------------------------------------------------------------


class Wrong(MaskedTexts):
    """Ours with parts to replace; the length of the loop over tokens does not matter here."""

    def mask(self, batch: Batch, rng: np.random.Generator) -> MaskedBatch:
        ids, real = batch.ids.numpy(), batch.keep[:, 0, 0].numpy()
        chosen, seen = self.corrupt(ids, real & self.ordinary[ids], real, rng)
        return MaskedBatch(
            torch.from_numpy(seen), batch.keep, torch.from_numpy(chosen), batch.ids, batch.indices
        )

    def corrupt(self, ids, may, real, rng):
        """The right way once more, as a base: one number decides all."""
        u, drawn = rng.random(ids.shape), rng.choice(self.replacements, ids.shape)
        chosen = may & (u < 0.15)
        seen = np.where(chosen & (u < 0.15 * 0.8), ID["[MASK]"], ids)
        return chosen, np.where(chosen & (u >= 0.15 * 0.8) & (u < 0.15 * 0.9), drawn, seen)


class NestedProbability(Wrong):
    """BERT-pytorch's first version: `if prob < 0.15: if prob < 0.8: mask`, with the same number."""

    def corrupt(self, ids, may, real, rng):
        chosen = may & (rng.random(ids.shape) < 0.15)
        return chosen, np.where(chosen, ID["[MASK]"], ids)


class ElifNeverReached(Wrong):
    """`if p < 0.9: mask ... elif p < 0.8: random`, from the larger bound to the smaller."""

    def corrupt(self, ids, may, real, rng):
        chosen, u = may & (rng.random(ids.shape) < 0.15), rng.random(ids.shape)
        return chosen, np.where(chosen & (u < 0.9), ID["[MASK]"], ids)


class SharesOfAllTokens(Wrong):
    """80 % of all tokens become [MASK], not of the chosen."""

    def corrupt(self, ids, may, real, rng):
        chosen, u = may & (rng.random(ids.shape) < 0.15), rng.random(ids.shape)
        return chosen, np.where(may & (u < 0.8), ID["[MASK]"], ids)


class AsksEverywhere(Wrong):
    """Labels at the tokens that are not hidden too (BERT-pytorch, issue 29)."""

    def corrupt(self, ids, may, real, rng):
        return may, super().corrupt(ids, may, real, rng)[1]


class AsksOnlyAtMask(Wrong):
    """A loss where the model sees [MASK] only, so that it may ignore all other places."""

    def corrupt(self, ids, may, real, rng):
        chosen, seen = super().corrupt(ids, may, real, rng)
        return chosen & (seen == ID["[MASK]"]), seen


class ChoosesSpecial(Wrong):
    """[CLS], [SEP] and [UNK] are chosen like words (nlp-tutorial, issue 22)."""

    def corrupt(self, ids, may, real, rng):
        return super().corrupt(ids, real, real, rng)


class ChoosesPadding(Wrong):
    """The padding is chosen too."""

    def corrupt(self, ids, may, real, rng):
        return super().corrupt(ids, may | ~real, real, rng)


class DrawsSpecial(Wrong):
    """Random tokens from the whole vocabulary."""

    @property
    def replacements(self):
        return np.arange(len(VOCAB))


class DrawsFromTheFirst(Wrong):
    """Random tokens from the first half only, as a forgotten constant makes them."""

    @property
    def replacements(self):
        return np.array(ORDINARY[: len(ORDINARY) // 2])


class AnswersAfterMasking(Wrong):
    """`labels = ids` without a copy, then masked in place."""

    def mask(self, batch, rng):
        right = super().mask(batch, rng)
        return dataclasses.replace(right, targets=right.ids)


class Static(Wrong):
    """Masked once, when the data is made: the same masks in all epochs."""

    def batches(self, batch_size, seed=None):
        frozen = {}
        for batch in super().batches(1, 0):
            frozen[batch.indices[0]] = batch
        for plain in self.texts.batches(batch_size, seed):
            rows = [frozen[i] for i in plain.indices]
            ids, chosen = plain.ids.clone(), torch.zeros_like(plain.ids, dtype=torch.bool)
            for r, b in enumerate(rows):
                ids[r, : b.ids.shape[1]], chosen[r, : b.ids.shape[1]] = b.ids[0], b.chosen[0]
            yield MaskedBatch(ids, plain.keep, chosen, plain.ids, plain.indices)


class Unseeded(Wrong):
    """The generator of the machine: no epoch can be repeated, no validation compared."""

    def mask(self, batch, rng):
        return super().mask(batch, np.random.default_rng())


class OneMaskForAll(Wrong):
    """The random numbers of a row serve the whole batch."""

    def corrupt(self, ids, may, real, rng):
        u = np.broadcast_to(rng.random(ids.shape[1]), ids.shape)
        chosen = may & (u < 0.15)
        seen = np.where(chosen & (u < 0.12), ID["[MASK]"], ids)
        drawn = rng.choice(self.replacements, ids.shape)
        return chosen, np.where(chosen & (u >= 0.12) & (u < 0.135), drawn, seen)


class RunsThrough(Wrong):
    """One generator for the epoch: whoever goes on in the middle gets other masks."""

    def batches(self, batch_size, seed=None):
        rng = np.random.default_rng(seed or 99)
        return (self.mask(b, rng) for b in self.texts.batches(batch_size, seed))


MUTANTS = [
    (NestedProbability, of_the_chosen_80_10_10_are_masked_random_and_left),
    (ElifNeverReached, of_the_chosen_80_10_10_are_masked_random_and_left),
    (SharesOfAllTokens, what_is_not_chosen_is_left_alone),
    (AsksEverywhere, fifteen_percent_of_the_ordinary_tokens_are_chosen),
    (AsksEverywhere, of_the_chosen_80_10_10_are_masked_random_and_left),
    (AsksOnlyAtMask, of_the_chosen_80_10_10_are_masked_random_and_left),
    (AsksOnlyAtMask, what_is_not_chosen_is_left_alone),
    (ChoosesSpecial, special_tokens_are_never_chosen),
    (ChoosesPadding, special_tokens_are_never_chosen),
    (DrawsSpecial, random_tokens_are_uniform_over_the_ordinary_ones),
    (DrawsFromTheFirst, random_tokens_are_uniform_over_the_ordinary_ones),
    (AnswersAfterMasking, the_answers_are_the_text_itself),
    (Static, the_seed_decides),
    (Unseeded, the_seed_decides),
    (Unseeded, validation_is_the_same_every_time),
    (OneMaskForAll, equal_texts_of_a_batch_get_masks_of_their_own),
    (RunsThrough, a_batch_does_not_depend_on_those_before),
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.__name__)
def test_the_base_of_the_mutants_is_right(claim):
    """So that each fails for its own reason."""
    claim(lambda data, tokenizer, seed: Wrong(data, tokenizer).batches(16, seed))


@pytest.mark.parametrize(("mutant", "claim"), MUTANTS, ids=lambda x: x.__name__)
def test_a_wrong_way_breaks_its_claim(mutant, claim):
    with pytest.raises(AssertionError):
        claim(lambda data, tokenizer, seed: mutant(data, tokenizer).batches(16, seed))


def test_pieces_chosen_on_their_own_are_no_whole_words():
    with pytest.raises(AssertionError):
        words_are_hidden_whole(ours)


# --- Small texts, and bad requests --------------------------------------------------------------


def test_every_batch_asks_for_something():
    """With one or two ordinary tokens a batch, most would have none by chance."""
    short = EncodedTexts(((ID["[CLS]"], ID["w3"], ID["[SEP]"]),) * 300, None, ID["[PAD]"])
    asked = [b.n_targets for b in MaskedTexts(short, TOKENIZER).batches(1, 0)]
    assert asked == [1] * 300
    asked = [b.n_targets for b in MaskedTexts(short, TOKENIZER).batches(2, 0)]
    assert set(asked) == {1, 2}
    word = EncodedTexts(((ID["w3"], ID["##p1"], ID["##p2"]),) * 50, None, ID["[PAD]"])
    whole = MaskedTexts(word, TOKENIZER, whole_words=True)
    assert all(b.n_targets == 3 for b in whole.batches(1, 0))


def test_every_share_up_to_all():
    for share in (0.3, 1.0):
        data = MaskedTexts(TEXTS, TOKENIZER, share)
        n = sum(i in ORDINARY for ids in TEXTS.ids for i in ids)
        assert sum(b.n_targets for b in data.batches(32)) / n == pytest.approx(share, abs=0.015)


def test_negative_seeds_and_the_order_of_the_texts():
    data = MaskedTexts(TEXTS, TOKENIZER)
    for seed in (-3, 5, None):
        for a, b in zip(data.batches(16, seed), TEXTS.batches(16, seed), strict=True):
            assert a.indices == b.indices and len(a) == len(b) and torch.equal(a.keep, b.keep)
    assert len(data) == len(TEXTS)


def test_bad_requests():
    with pytest.raises(ValueError, match="share=0"):
        MaskedTexts(TEXTS, TOKENIZER, 0.0)
    with pytest.raises(ValueError, match="bert=True"):
        MaskedTexts(TEXTS, mt.data.train_tokenizer(["abc"], "characters"))
    letters = mt.data.train_tokenizer(["abc"], "characters", bert=True)
    with pytest.raises(ValueError, match="no word pieces"):
        MaskedTexts(EncodedTexts(((5, 6),), None, 0), letters, whole_words=True)
    with pytest.raises(ValueError, match=r"text 1 \(counted from 0\) has no token but special"):
        MaskedTexts(EncodedTexts(((5, 6), (2, 1, 3)), None, 0), letters)


def test_a_tokenizer_of_ones_own_for_a_bert():
    for kind, size in (("characters", 0), ("bytes", 300)):
        tokenizer = mt.data.train_tokenizer(["abc de"], kind, size, bert=True)
        assert list(tokenizer.special.items()) == [
            ("[PAD]", 0), ("[UNK]", 1), ("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4),
        ]  # fmt: skip
        ids = tokenizer.encode("bad")
        assert (ids[0], ids[-1]) == (2, 3) and min(ids[1:-1]) > 4
        assert tokenizer.decode(ids) == "bad"
        again = Tokenizer.from_json(tokenizer.to_json())
        assert again.encode("bad") == ids and again.special == tokenizer.special
