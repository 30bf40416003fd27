"""The exercises on checkpoints: right answers however written, and wrong ones that are not in the list."""

import math

import pytest
import torch

import minitransformer as mt
from minitransformer.formulas import by_hand_decoder, ops


def one_by_one(r, n_buckets, max_distance, bidirectional):
    rows = [
        [
            by_hand_decoder.relative_bucket(int(x), n_buckets, max_distance, bidirectional)
            for x in row
        ]
        for row in r
    ]
    return torch.tensor(rows)


def in_float32(r, n_buckets, max_distance, bidirectional):
    bucket = torch.zeros_like(r)
    if bidirectional:
        n_buckets //= 2
        bucket += (r > 0) * n_buckets
        r = r.abs()
    else:
        r = -torch.min(r, torch.zeros_like(r))
    exact = n_buckets // 2
    far = torch.log(r.float() / exact) / math.log(max_distance / exact) * (n_buckets - exact)
    far = (exact + far.nan_to_num(neginf=0).long()).clamp(max=n_buckets - 1)
    return bucket + torch.where(r < exact, r, far)


@pytest.mark.parametrize("answer", [one_by_one, in_float32])
def test_right_buckets_pass(answer):
    for seed in range(5):
        result = mt.check.relative_bucket(answer, seed)
        assert result.passed, result


def test_the_reference_is_the_formula_of_the_package():
    for both in (True, False):
        r = torch.arange(30) - torch.arange(30).unsqueeze(1)
        ours = mt.check.relative_bucket.reference(r, 32, 128, both)
        assert torch.equal(ours, ops.relative_buckets(30, 30, 32, 128, both))


@pytest.mark.parametrize(
    "answer",
    [
        lambda c: torch.stack(c.split(c.shape[1] // 3, 1)).mT,
        lambda c: c.T.reshape(3, -1, len(c)),
        lambda c: c.unflatten(1, (3, -1)).permute(1, 2, 0),
    ],
)
def test_right_splits_pass(answer):
    result = mt.check.split_c_attn(answer)
    assert result.passed, result


def test_what_is_not_turned_or_cut_along_the_wrong_axis_is_told_by_its_axes():
    said = mt.check.split_c_attn(lambda c: torch.stack(c.chunk(3, 1))).message
    assert "By their sizes your axes are (which, d_in, d_out)" in said
    said = mt.check.split_c_attn(lambda c: torch.stack(c.chunk(3, 0))).message
    assert "wanted (which=3, d_out=20, d_in=12), got (3, 4, 60)" in said
    assert "returns 3 things" in mt.check.split_c_attn(lambda c: c.T.chunk(3)).message


def test_too_few_near_buckets_break_a_property():
    said = mt.check.relative_bucket(
        lambda r, n, far, both: (r.abs().float() + 1).log2().long()
    ).message
    assert "[0, -1, -2, -3] get the buckets [0, 1, 1, 2]" in said
