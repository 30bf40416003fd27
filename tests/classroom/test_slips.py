"""Slips as students write them: each is named, or at least located."""

from itertools import pairwise

import torch
import torch.nn.functional as F

import minitransformer as mt

# --- Notebooks 04 and 05 ------------------------------------------------------------------------


def square_mask(scores):
    T = scores.shape[-2]
    mask = torch.tril(torch.ones(T, T))
    return scores.masked_fill(mask == 0, float("-inf")).softmax(-1)


def hides_itself(scores):
    queries, keys = scores.shape[-2:]
    keep = torch.ones(queries, keys).tril(keys - queries - 1)
    return scores.masked_fill(keep == 0, float("-inf")).softmax(-1)


def masks_afterwards(scores):
    queries, keys = scores.shape[-2:]
    return scores.softmax(-1) * torch.ones(queries, keys).tril(keys - queries)


def looks_at_itself(y, z, W_Q, W_K, W_V, keep):
    return F.scaled_dot_product_attention(y @ W_Q, y @ W_K, y @ W_V, attn_mask=keep)


def one_is_wrong(target, start_id):
    given = F.pad(target[:, :-1], (1, 0), value=start_id)
    given[:, 2:3] = 9
    return given


def mean_over_padding(logits, target, keep):
    return (F.cross_entropy(logits.transpose(1, 2), target, reduction="none") * keep).mean()


# --- Notebooks 06 to 09 -------------------------------------------------------------------------


def attention_backward(dO, Q, K, V, keep=None, slip=None):
    P = (Q @ K.mT / Q.shape[-1] ** 0.5).softmax(-1)
    dV = (P if slip == "dV" else P.mT) @ dO
    dP = dO @ V.mT
    dS = P * (dP - (dP * P).sum(-1, keepdim=True)) / Q.shape[-1] ** 0.5
    return dS @ K, (dS if slip == "dK" else dS.mT) @ Q, dV


def t_from_zero(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    m, v = m.lerp(g, 1 - beta_1), v.lerp(g * g, 1 - beta_2)
    m_hat, v_hat = (
        m / (1 - beta_1 ** (t - 1)),
        v / (1 - beta_2 ** (t - 1)),
    )  # 1 - beta**0: Python raises
    return theta * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps), m, v


def largest_key(words, counts, pad_id):
    n = {}
    for word, count in zip(words.tolist(), counts.tolist(), strict=True):
        for pair in pairwise(word):
            if pad_id not in pair:
                n[pair] = n.get(pair, 0) + count
    pair = max(n)
    return torch.tensor([*pair, n[pair]])


def merged_by_mask(ids, a, b, new, pad_id):
    starts = F.pad((ids[:-1] == a) & (ids[1:] == b), (0, 1))
    gone = F.pad(starts, (1, 0))[:-1]
    merged = torch.where(starts, new, ids)[~gone]
    return F.pad(merged, (0, len(ids) - len(merged)), value=pad_id)


def merged_in_the_ids(ids, a, b, new, pad_id):
    for t in range(len(ids) - 1):
        if ids[t] == a and ids[t + 1] == b:
            ids[t], ids[t + 1] = new, pad_id
    return ids


def not_filled(ids, a, b, new, pad_id):
    merged = merged_by_mask(ids, a, b, new, pad_id)
    return merged[merged != pad_id]


def without_unk(word, vocab, pad_id):
    return torch.tensor([vocab[word]] + [pad_id] * (len(word) - 1))


def one_number(ids, special, u, v, drawn, mask_id):
    chosen = ~special & (u < 0.15)
    return torch.where(chosen & (u < 0.8), mask_id, torch.where(chosen & (u < 0.9), drawn, ids))


def masked_in_the_ids(ids, special, u, v, drawn, mask_id):
    ids[(u < 0.15) & ~special & (v < 0.8)] = mask_id
    return ids


def wraps(ids, noise, sentinels, pad_id):
    starts = noise & ~noise.roll(1)
    source = torch.where(starts, sentinels[starts.cumsum(0) - 1], ids)[starts | ~noise]
    return F.pad(source, (0, len(ids) - len(source)), value=pad_id)


SLIPS = [
    ("causal_weights", square_mask, ["case: a cache", "scores (3, 5, 2, 11)"]),
    ("causal_weights", hides_itself, ["NaN", "diagonal hidden"]),
    ("causal_weights", masks_afterwards, ["mask applied after the softmax"]),
    ("cross_attention", looks_at_itself, ["which is self-attention"]),
    ("shift_right", lambda target, start_id: target.roll(1, -1), ["no start token"]),
    ("shift_right", lambda target, start_id: F.pad(target, (1, 0), value=start_id),
     ["The shape is wrong", "(3, 8)"]),
    ("shift_right", one_is_wrong, ["Along length only [2] are wrong"]),
    ("target_loss", mean_over_padding, ["divided by the number of positions"]),
    ("lora", lambda x, W, A, B, alpha: (x @ W.T + alpha / len(A) * x @ A.T @ B.T) * 1.1,
     ["1.1 times the right one"]),
    ("target_loss", lambda logits, target, keep: F.cross_entropy(logits[keep], target[keep]) * 1.1,
     ["It gives ", "the formula gives"]),
    ("encoder_decoder", lambda x, y, keep, encoder, decoder: decoder(y, encoder(x, keep), None, keep),
     ["Changing the target at 6 changed your output", "without a causal mask in the decoder"]),
    ("temperature", lambda logits, temperature: (logits * temperature).softmax(-1),
     ["multiplied by the temperature"]),
    ("attention_backward", lambda *a: attention_backward(*a, slip="dV"),
     ["It does not run", "with P for Pᵀ in dV"]),
    ("attention_backward", lambda *a: attention_backward(*a, slip="dK"),
     ["It does not run", "with dS for dSᵀ in dK"]),
    ("attention_backward", lambda *a: attention_backward(*a)[:2], ["Return 3 tensors"]),
    ("attention_backward", lambda *a: attention_backward(*a)[0], ["returns one thing"]),
    ("attention_backward", lambda *a: (*attention_backward(*a)[:2], 1.0), ["torch tensor"]),
    ("attention_backward", lambda *a: [g.mT if i == 1 else g for i, g in enumerate(attention_backward(*a))],
     ["shape of dK is wrong"]),
    ("adamw_step", t_from_zero, ["with t counted from 0"]),
    ("best_pair", largest_key, ["max(n) of a dict compares its keys"]),
    ("merge_pair", merged_by_mask, ["Found all at once, with a mask"]),
    ("merge_pair", merged_in_the_ids, ["changes its argument ids"]),
    ("merge_pair", not_filled, ["The shape is wrong"]),
    ("word_pieces", without_unk, ["KeyError", "It was called with word '"]),
    ("mask_tokens", one_number, ["number of its own, v"]),
    ("mask_tokens", masked_in_the_ids, ["changes its argument ids"]),
    ("masked_loss", lambda logits, targets, chosen, keep: F.cross_entropy(logits.mT, targets * chosen, ignore_index=0),
     ["with token 0 never counted"]),
    ("corrupt_spans", wraps, ["with the first token compared"]),
    ("corrupt_spans", lambda ids, noise, s, p: ids[~noise], ["The shape is wrong"]),
    ("relative_bucket", lambda r, n, far, both: (r.abs().float() + 1).log2().long(),
     ["[0, -1, -2, -3] get the buckets [0, 1, 1, 2]"]),
    ("split_c_attn", lambda c: torch.stack(c.chunk(3, 1)),
     ["Judging by their sizes, your axes are (which, d_in, d_out)"]),
    ("split_c_attn", lambda c: torch.stack(c.chunk(3, 0)),
     ["wanted (which=3, d_out=20, d_in=12), got (3, 4, 60)"]),
    ("split_c_attn", lambda c: c.T.chunk(3), ["returns 3 things"]),
]  # fmt: skip


def test_what_students_write_is_named():
    failures = []
    for name, slip, wanted in SLIPS:
        result = getattr(mt.check, name)(slip)
        if result.passed or not all(text in result.message for text in wanted):
            failures.append(f"{name}, {slip.__name__}, wanted {wanted}: {result}")
    assert not failures, "\n\n".join(failures)


def test_an_unknown_slip_in_one_of_several_outputs_says_which_are_right():
    right = mt.check.attention_backward.right

    def answer(*inputs):
        dQ, dK, dV = right(*inputs)
        return dQ, dK + 0.3 * dK.roll(1, -1), dV

    assert "Wrong: dK. Right: dQ, dV." in mt.check.attention_backward(answer).message
