"""Source and target of span corruption hold the text once, with as many spans as the paper asks for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitransformer.data import CorruptedSpans, EncodedTexts
from minitransformer.data.spans import corrupt_spans, random_parts, random_spans

END, SENTINELS = 1, tuple(range(900, 960))


def texts(n: int = 500, longest: int = 60) -> EncodedTexts:
    rng = np.random.default_rng(0)
    return EncodedTexts(
        tuple(tuple(rng.integers(2, 800, rng.integers(2, longest)).tolist()) for _ in range(n)),
        None, 0,
    )  # fmt: skip


def spans_of(target: list[int]) -> dict[int, list[int]]:
    """What the target gives for each sentinel; the last has nothing behind it but the end."""
    assert target[-1] == END
    found: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in SENTINELS:
            assert token not in found
            found[token] = []
        else:
            found[[*found][-1]].append(token)
    return found


def put_back(source: list[int], target: list[int]) -> list[int]:
    """The text again."""
    spans = spans_of(target)
    return [t for token in source for t in spans.get(token, [token])]


def rows(data: CorruptedSpans, batch_size: int = 16, seed: int | None = 1):
    """(place, source, target) of every text, without padding."""
    for batch in data.batches(batch_size, seed):
        for row, i in enumerate(batch.indices):
            source = batch.source[row][batch.source_keep[row, 0, 0]].tolist()
            yield i, source, batch.target[row][batch.target_keep[row, 0, 0]].tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(2, 800), min_size=2, max_size=70), min_size=1, max_size=9),
    st.floats(0.05, 0.9), st.floats(1, 8), st.integers(0, 99), st.booleans(),
)  # fmt: skip
def test_source_and_target_give_the_text_again(ids, share, mean_span, seed, ended):
    ids = tuple((*text, END) if ended else tuple(text) for text in ids)
    data = CorruptedSpans(EncodedTexts(ids, None, 0), SENTINELS, END, share, mean_span)
    seen = []
    for i, source, target in rows(data, 4, seed):
        assert tuple(put_back(source, target)) == ids[i]
        used = [token for token in source if token in SENTINELS]
        spans = spans_of(target)
        # the same sentinels in the same order, the first of the list, and one more to close
        assert [*spans] == [*SENTINELS[: len(used) + 1]] and used == [*SENTINELS[: len(used)]]
        assert spans.popitem()[1] == [] and all(spans.values())
        assert not any(a in SENTINELS and b in SENTINELS for a, b in pairwise(source))
        length = len(ids[i]) - ended
        n = min(max(round(length * share), 1), length - 1)
        assert sum(map(len, spans.values())) == n
        assert len(spans) == min(max(round(n / mean_span), 1), n, length - n)
        seen.append(i)
    assert sorted(seen) == list(range(len(ids)))


def test_fifteen_percent_in_spans_of_three_on_average():
    """On long texts, where rounding does not show; 20,000 tokens and more."""
    data = CorruptedSpans(EncodedTexts(texts(100, 3).ids[:1] + ((5,) * 400,) * 60, None, 0),
                          SENTINELS, END)  # fmt: skip
    lengths = [
        len(s) for i, _, target in rows(data) if i for s in [*spans_of(target).values()][:-1]
    ]
    assert sum(lengths) / (400 * 60) == 0.15
    assert np.mean(lengths) == 3.0 and len(lengths) == 1200
    assert min(lengths) == 1 and max(lengths) > 8, "the lengths are random"


def test_every_way_of_cutting_is_equally_likely():
    """7 in 3 parts: 15 ways, 400 of each in 6,000 (chi-square with 14 degrees of freedom)."""
    rng, counts = np.random.default_rng(0), {}
    for _ in range(6000):
        parts = tuple(random_parts(7, 3, rng).tolist())
        assert sum(parts) == 7 and min(parts) >= 1
        counts[parts] = counts.get(parts, 0) + 1
    assert len(counts) == 15
    assert sum((c - 400) ** 2 / 400 for c in counts.values()) < 14 + 5 * 28**0.5


def test_every_place_of_the_spans_is_equally_likely():
    """3 of 8 tokens in 2 spans: 30 ways, the ends of the text included; chi-square."""
    rng, counts = np.random.default_rng(0), {}
    for _ in range(6000):
        noise = tuple(random_spans(8, 3, 2, rng).tolist())
        assert len(noise) == 8 and sum(noise) == 3
        assert sum(b and not a for a, b in pairwise((False, *noise))) == 2
        counts[noise] = counts.get(noise, 0) + 1
    assert len(counts) == 30 and any(n[0] and not n[-1] for n in counts)
    assert sum((c - 200) ** 2 / 200 for c in counts.values()) < 29 + 5 * 58**0.5


def test_a_short_text_loses_any_part_of_it_not_only_its_end():
    rng = np.random.default_rng(0)
    share = np.mean([random_spans(10, 2, 1, rng) for _ in range(2000)], axis=0)
    assert (share > 0.08).all() and (share < 0.3).all()


def test_the_spans_follow_from_the_seed_and_the_batch():
    data = CorruptedSpans(texts(), SENTINELS, END)
    first, again, other = ({i: (s, t) for i, s, t in rows(data, seed=k)} for k in (1, 1, 2))
    assert first == again
    assert np.mean([first[i] != other[i] for i in first]) > 0.8
    assert list(rows(data, seed=None)) == list(rows(data, seed=None))
    shorter = EncodedTexts((*texts().ids[:32],), None, 0)
    alone = list(CorruptedSpans(shorter, SENTINELS, END).batches(16))
    longer = EncodedTexts((*texts().ids[:32], (7,) * 70), None, 0)
    more = list(CorruptedSpans(longer, SENTINELS, END).batches(16))
    assert all((a.source == b.source).all() for a, b in zip(alone, more, strict=False))


def test_one_sentinel_a_span_not_one_a_token():
    """The two usual slips, and that the test above would see them."""
    ids, noise = [5, 6, 7, 8, 9], [False, True, True, False, True]
    source, target = corrupt_spans(ids, noise, SENTINELS)
    assert source == [5, 900, 8, 901] and target == [900, 6, 7, 901, 9, 902]
    same = ([5, 900, 8, 900], [900, 6, 7, 900, 9, 900, END])
    with pytest.raises(AssertionError):
        put_back(*same)
    assert put_back([5, 900, 901, 8, 902], [900, 6, 901, 7, 902, 9, 903, END]) == ids
    with pytest.raises(IndexError):
        corrupt_spans(ids, noise, SENTINELS[:2])


def test_bad_requests():
    long = EncodedTexts(((5, 6), (5,) * 200), None, 0)
    with pytest.raises(
        ValueError, match=r"text 1 .* has 200 tokens and makes 10 spans, which takes 11"
    ):
        CorruptedSpans(long, SENTINELS[:10], END)
    assert len(CorruptedSpans(long, SENTINELS[:11], END)) == 2
    with pytest.raises(ValueError, match=r"text 0 .* one token"):
        CorruptedSpans(EncodedTexts(((5, END),), None, 0), SENTINELS, END)
    with pytest.raises(ValueError, match=r"text 0 .* has a sentinel in it: \{901\}"):
        CorruptedSpans(EncodedTexts(((5, 901),), None, 0), SENTINELS, END)
    with pytest.raises(ValueError, match="given twice"):
        CorruptedSpans(long, (7, 7), END)
    with pytest.raises(ValueError, match=r"share=1\.0 must be between 0 and 1"):
        CorruptedSpans(long, SENTINELS, END, 1.0)
