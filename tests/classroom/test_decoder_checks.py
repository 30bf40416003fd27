"""The checks on the decoder take right answers however written, and name what students write."""

import torch
import torch.nn.functional as F

import minitransformer as mt


def by_additive_mask(scores):
    queries, keys = scores.shape[-2:]
    late = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    return (scores + torch.zeros(queries, keys).to(scores).masked_fill(late, -1e9)).softmax(-1)


def by_loops(scores):
    output = torch.zeros_like(scores)
    queries, keys = scores.shape[-2:]
    for i in range(queries):
        seen = i + keys - queries + 1
        output[..., i, :seen] = scores[..., i, :seen].softmax(-1)
    return output


def cross_by_torch(y, z, W_Q, W_K, W_V, keep):
    return F.scaled_dot_product_attention(y @ W_Q, z @ W_K, z @ W_V, attn_mask=keep)


def block_in_one_loop(y, z, attention, cross, ffn, norm_1, norm_cross, norm_2, norm_position):
    for f, norm in (
        (attention, norm_1),
        (lambda a: cross(a, z), norm_cross),
        (ffn, norm_2),
    ):
        y = y + f(norm(y)) if norm_position == "pre" else norm(y + f(y))
    return y


def test_right_answers_pass_however_written():
    for name, answers in {
        "causal_weights": [by_additive_mask, by_loops],
        "cross_attention": [cross_by_torch],
        "decoder_block": [block_in_one_loop],
    }.items():
        for answer in answers:
            for seed in (4, 5, 6):
                result = getattr(mt.check, name)(answer, seed)
                assert result.passed, result


def test_what_students_write_is_named():
    def square_mask(scores):
        T = scores.shape[-2]
        mask = torch.tril(torch.ones(T, T))
        return scores.masked_fill(mask == 0, float("-inf")).softmax(-1)

    def hides_itself(scores):
        queries, keys = scores.shape[-2:]
        keep = torch.ones(queries, keys).tril(keys - queries - 1)
        return scores.masked_fill(keep == 0, float("-inf")).softmax(-1)

    def after(scores):
        queries, keys = scores.shape[-2:]
        return scores.softmax(-1) * torch.ones(queries, keys).tril(keys - queries)

    def self_attention(y, z, W_Q, W_K, W_V, keep):
        return cross_by_torch(y, y, W_Q, W_K, W_V, keep)

    said = mt.check.causal_weights(square_mask).message
    assert "case: a cache" in said and "scores (3, 5, 2, 11)" in said
    assert "NaN" in mt.check.causal_weights(hides_itself).message
    assert "diagonal hidden" in mt.check.causal_weights(hides_itself).message
    assert "mask applied after the softmax" in mt.check.causal_weights(after).message
    result = mt.check.cross_attention(self_attention)
    assert "which is self-attention" in result.message
