"""Right answers in many hands: whatever a student writes with, what is right is accepted.

Each computes its formula in another way than the package: loops, einsum, torch's fused kernels,
products of batches, logarithms, autograd, another layout of the heads, views and copies of its own.
"""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import minitransformer as mt
from minitransformer.classroom.engine import limits

# --- Attention ----------------------------------------------------------------------------------


def scores_by_baddbmm(Q, K):
    b, h, q, d = Q.shape
    flat = torch.baddbmm(Q.new_zeros(1), Q.reshape(b * h, q, d), K.reshape(b * h, -1, d).mT,
                         beta=0, alpha=d**-0.5)  # fmt: skip
    return flat.view(b, h, q, -1)


def scores_by_broadcast(Q, K):
    return (Q[..., :, None, :] * K[..., None, :, :]).sum(-1).div(math.sqrt(Q.size(-1)))


def scores_key_by_key(Q, K):
    return torch.stack([(Q * k[:, :, None]).sum(-1) / 2 for k in K.unbind(2)], -1)


def scores_not_contiguous(Q, K):
    return (K @ Q.transpose(-1, -2)).transpose(-1, -2) / Q.shape[-1] ** 0.5


def softmax_by_logsumexp(scores, keep=None):
    if keep is None:
        return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))
    keep = keep.expand_as(scores)
    empty = ~keep.any(-1, keepdim=True)
    hidden = scores.masked_fill(~keep, -math.inf).masked_fill(empty, 0.0)
    return torch.exp(hidden - hidden.logsumexp(-1, keepdim=True)).masked_fill(empty, 0.0)


def softmax_row_by_row(scores, keep=None):
    weights = torch.zeros_like(scores)
    for b, row in enumerate(scores):
        for i, s in enumerate(row):
            kept = torch.arange(len(s)) if keep is None else keep[b, i].nonzero()[:, 0]
            if len(kept):
                weights[b, i, kept] = F.softmax(s[kept], dim=0)
    return weights


def softmax_in_place_on_a_copy(scores, keep=None):
    own = scores.clone()
    if keep is None:
        return own.softmax(dim=-1)
    own[~keep.expand_as(own)] = -math.inf
    own[~keep.any(-1).expand(own.shape[:-1])] = 0.0
    return torch.softmax(own, dim=2) * keep.any(-1, keepdim=True)


def softmax_of_log_probabilities(scores, keep=None):
    if keep is None:
        return F.log_softmax(scores, -1).exp()
    safe = torch.where(keep.any(-1, keepdim=True), keep, True)
    return F.log_softmax(scores.where(safe, -math.inf), -1).exp() * keep


def softmax_with_the_least_number(scores, keep=None):
    """The least float in place of -inf: such a row averages its hidden keys, so it is zeroed."""
    if keep is None:
        keep = torch.ones(scores.shape[-1], dtype=torch.bool)
    least = torch.finfo(scores.dtype).min
    return torch.where(keep, scores, least).softmax(-1).masked_fill(~keep, 0)


def attention_flat(Q, K, V, keep=None):
    b, h, q, _ = Q.shape
    flat = [a.flatten(0, 1) for a in (Q, K, V)]
    weights = softmax_by_logsumexp(
        torch.bmm(flat[0], flat[1].mT) / math.sqrt(Q.shape[-1]),
        None if keep is None else keep.expand(b, h, q, -1).flatten(0, 1),
    )
    return torch.bmm(weights, flat[2]).unflatten(0, (b, h))


def attention_online(Q, K, V, keep=None):
    """One key after another with a running maximum, as fused kernels do it."""
    top = Q.new_full((*Q.shape[:-1], 1), -1e300)
    total, output = torch.zeros_like(top), Q.new_zeros(*Q.shape[:-1], V.shape[-1])
    for j in range(K.shape[2]):
        s = (Q * K[:, :, j, None]).sum(-1, keepdim=True) / Q.shape[-1] ** 0.5
        if keep is not None:
            s = s.masked_fill(~keep[..., j, None], -1e300)
        new = torch.maximum(top, s.detach())
        e = (s - new).exp()
        if keep is not None:
            e = e.masked_fill(~keep[..., j, None], 0.0)
        old = (top - new).exp()
        total, output, top = total * old + e, output * old + e * V[:, :, j, None], new
    return output / total.masked_fill(total == 0, 1.0)


def attention_in_torchs_layout(Q, K, V, keep=None):
    """(batch, length, heads, d): only the axes are exchanged, twice."""
    Q, K, V = (a.transpose(1, 2).contiguous() for a in (Q, K, V))
    scores = torch.einsum("bqhd,bkhd->bhqk", Q, K) / math.sqrt(Q.shape[-1])
    output = torch.einsum("bhqk,bkhd->bqhd", softmax_row_by_row_of_heads(scores, keep), V)
    return output.transpose(1, 2)


def softmax_row_by_row_of_heads(scores, keep):
    heads = [
        softmax_by_logsumexp(scores[:, h], None if keep is None else keep[:, h])
        for h in range(scores.shape[1])
    ]
    return torch.stack(heads, 1)


# --- Heads and blocks ---------------------------------------------------------------------------


def split_into_a_new_tensor(x, n_heads):
    batch, length, d_model = x.shape
    heads = x.new_empty(batch, n_heads, length, d_model // n_heads)
    for h, part in enumerate(x.split(d_model // n_heads, dim=-1)):
        heads[:, h] = part
    return heads


def split_as_strided(x, n_heads):
    batch, length, d_model = x.shape
    d_k = d_model // n_heads
    return x.as_strided(
        (batch, n_heads, length, d_k), (length * d_model, d_k, d_model, 1), x.storage_offset()
    )


def merge_by_sum(heads):
    """Each head to its own columns, then all added."""
    h, d_k = heads.shape[1], heads.shape[3]
    return sum(F.pad(heads[:, i], (i * d_k, (h - 1 - i) * d_k)) for i in range(h))


def multi_head_without_concatenation(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
    """Concat(...) W_O is the sum of every head times its rows of W_O."""
    columns = [W.chunk(n_heads, 1) for W in (W_Q, W_K, W_V)]
    mask = None if keep is None else keep.squeeze(1)
    return sum(
        F.scaled_dot_product_attention(x @ Q, z @ K, z @ V, mask) @ O
        for Q, K, V, O in zip(*columns, W_O.chunk(n_heads, 0), strict=True)  # noqa: E741
    )


def multi_head_by_torch(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
    """torch's own function, which gives NaN for a query without keys: that row is made zero."""
    blocked = None
    if keep is not None:
        blocked = ~keep & keep.any(-1, keepdim=True)
        blocked = blocked.expand(-1, n_heads, -1, -1).flatten(0, 1)
    output, _ = F.multi_head_attention_forward(
        x.transpose(0, 1), z.transpose(0, 1), z.transpose(0, 1), x.shape[-1], n_heads,
        torch.cat([W_Q.T, W_K.T, W_V.T]), None, None, None, False, 0.0, W_O.T, None,
        attn_mask=blocked, need_weights=False,
    )  # fmt: skip
    output = output.transpose(0, 1)
    return output if keep is None else output * keep.any(-1)[:, 0, :, None]


def layer_norm_by_moments_of_the_centred(x, gamma, beta, eps):
    centred = x - torch.einsum("btd->bt", x)[..., None] / x.shape[-1]
    s = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) ** 2 / x.shape[-1]
    return torch.addcmul(beta, gamma.expand_as(x), centred * torch.rsqrt(s + eps))


def layer_norm_token_by_token(x, gamma, beta, eps):
    tokens = []
    for token in x.reshape(-1, x.shape[-1]):
        variance, mean = torch.var_mean(token, unbiased=False)
        tokens.append((token - mean) / (variance + eps).sqrt() * gamma + beta)
    return torch.stack(tokens).view_as(x)


def feed_forward_as_a_convolution(x, W_1, b_1, W_2, b_2):
    hidden = F.conv1d(x.mT, W_1.T[..., None], b_1).clamp(min=0)
    return F.conv1d(hidden, W_2.T[..., None], b_2).mT


def feed_forward_in_place(x, W_1, b_1, W_2, b_2):
    hidden = torch.matmul(x, W_1)
    hidden += b_1
    return hidden.relu_().matmul(W_2).add_(b_2)


def encoder_block_as_two_functions(x, attention, ffn, norm_1, norm_2, norm_position):
    post = lambda x, f, norm: norm(f(x) + x)  # noqa: E731
    pre = lambda x, f, norm: torch.add(f(norm(x)), x)  # noqa: E731
    layer = {"post": post, "pre": pre}[norm_position]
    return layer(layer(x, attention, norm_1), ffn, norm_2)


# --- The decoder, the loss, sampling --------------------------------------------------------------


def causal_by_sdpa(scores):
    """Keys that are unit vectors make any scores; values that are unit vectors give the weights."""
    keys = scores.shape[-1]
    one = torch.eye(keys, dtype=scores.dtype).expand(*scores.shape[:2], keys, keys)
    late = torch.arange(keys) > torch.arange(keys - scores.shape[-2], keys)[:, None]
    bias = torch.zeros(late.shape, dtype=scores.dtype).masked_fill(late, -math.inf)
    return F.scaled_dot_product_attention(scores, one, one, attn_mask=bias, scale=1.0)


def causal_by_cumulative_sum(scores):
    """The denominators are sums over the keys seen so far; a common factor keeps them finite."""
    queries, keys = scores.shape[-2:]
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    top = scores.where(seen, -math.inf).amax(-1, keepdim=True)
    e = (scores - top).clamp(max=0).exp() * seen
    return e / e.cumsum(-1)[..., -1:]


def cross_by_loops(y, z, W_Q, W_K, W_V, keep):
    output = []
    for b in range(len(y)):
        source = z[b][keep[b, 0]]  # what is hidden is not there at all
        scores = (y[b] @ W_Q) @ (source @ W_K).T / W_K.shape[1] ** 0.5
        output.append(scores.softmax(1) @ (source @ W_V))
    return torch.stack(output)


def decoder_block_by_cases(y, z, attention, cross, ffn, norm_1, norm_cross, norm_2, norm_position):
    if norm_position == "pre":
        y = attention(norm_1(y)) + y
        y = cross(norm_cross(y), z) + y
        return ffn(norm_2(y)) + y
    y = norm_1(attention(y) + y)
    y = norm_cross(cross(y, z) + y)
    return norm_2(ffn(y) + y)


def shifted_by_index(target, start_id):
    given = target.roll(1, dims=1)
    given[:, 0] = start_id
    return given


def loss_by_logsumexp(logits, target, keep):
    chosen = torch.einsum("btv,btv->bt", logits, F.one_hot(target, logits.shape[-1]).to(logits))
    return ((logits.logsumexp(-1) - chosen) * keep).sum() / keep.sum()


def loss_by_nll(logits, target, keep):
    log_p = F.log_softmax(logits, -1)[keep]
    return F.nll_loss(log_p, target[keep])


def loss_token_by_token(logits, target, keep):
    losses = [F.cross_entropy(logits[b, t], target[b, t]) for b, t in keep.nonzero().tolist()]
    return torch.stack(losses).mean()


def temperature_as_a_power(logits, temperature):
    p = logits.softmax(-1).log() / temperature
    return F.softmax(p, -1)


def top_p_by_counting(probabilities, top_p):
    """A token is in if the likelier ones do not suffice: no sorting at all."""
    likelier = probabilities[:, None, :] > probabilities[:, :, None]
    before = (likelier * probabilities[:, None, :]).sum(-1)
    q = probabilities * (before < top_p)
    return q / q.sum(-1, keepdim=True)


# --- Gradients and the optimiser ------------------------------------------------------------------


def softmax_backward_by_products(dP, P):
    return dP * P - P * (dP[..., None, :] @ P[..., None]).squeeze(-1)


def layer_norm_backward_as_a_projection(dy, x, gamma, beta, eps):
    """Take out of dy γ its part along 1 and, all but ε's share of it, along the centred x."""
    d, centred = x.shape[-1], x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True) + eps
    g = dy * gamma
    along = (g * centred).sum(-1, keepdim=True) / (d * variance)
    dx = (g - g.mean(-1, keepdim=True) - centred * along) * variance.rsqrt()
    return [dx, torch.einsum("btd,btd->d", dy, centred * variance.rsqrt()), dy.sum([0, 1])]


def attention_backward_by_einsum(dO, Q, K, V, keep=None):
    root = math.sqrt(Q.shape[-1])
    P = attention_weights(Q, K, keep)
    dP = torch.einsum("bhqv,bhkv->bhqk", dO, V)
    O = P @ V  # noqa: E741
    dS = P * (dP - (dO * O).sum(-1, keepdim=True))  # the row sum is that of dO ⊙ O as well
    return (
        torch.einsum("bhqk,bhkd->bhqd", dS, K) / root,
        torch.einsum("bhqk,bhqd->bhkd", dS, Q) / root,
        torch.einsum("bhqk,bhqv->bhkv", P, dO),
    )


def attention_weights(Q, K, keep):
    one = torch.eye(K.shape[2], dtype=K.dtype).expand(*K.shape[:3], -1)
    return F.scaled_dot_product_attention(Q, K, one, attn_mask=keep)


def adamw_in_place(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    theta, m, v = theta.clone(), m.clone(), v.clone()
    m.mul_(beta_1).add_(g, alpha=1 - beta_1)
    v.mul_(beta_2).addcmul_(g, g, value=1 - beta_2)
    theta.mul_(1 - lr * weight_decay)
    spread = (v / (1 - beta_2**t)).sqrt().add_(eps)
    return theta.addcdiv_(m, spread, value=-lr / (1 - beta_1**t)), m, v


# --- Checkpoints, fine-tuning ---------------------------------------------------------------------


def buckets_by_searching(r, n_buckets, max_distance, bidirectional):
    """Where each bucket begins, and a search among these."""
    n = n_buckets // 2 if bidirectional else n_buckets
    half = n // 2
    ends = [half * (max_distance / half) ** (k / (n - half)) for k in range(n - half)]
    begins = torch.tensor([*range(1, half), *(math.ceil(e - 1e-9) for e in ends)])
    away = r.abs() if bidirectional else (-r).clamp(min=0)
    return torch.bucketize(away, begins, right=True) + n * (r > 0) * bidirectional


def c_attn_column_by_column(c_attn):
    wide = c_attn.shape[1]
    rows = torch.stack(list(c_attn.unbind(1)))
    return torch.stack([rows[i : i + wide // 3] for i in range(0, wide, wide // 3)])


def lora_merged(x, W, A, B, alpha):
    return F.linear(x, torch.addmm(W, B, A, alpha=alpha / A.shape[0]))


def spread_by_differences(accuracies):
    """The variance is half the mean square of all differences."""
    n = accuracies.shape[1]
    differences = accuracies[:, :, None] - accuracies[:, None, :]
    variance = differences.square().sum((1, 2)) / (2 * n * (n - 1))
    return torch.stack([accuracies.sum(1) / n, (variance / n).sqrt()], dim=1)


def home_and_away_by_mask(accuracy):
    own = torch.eye(len(accuracy), dtype=torch.bool)
    return torch.stack([accuracy[own].mean(), accuracy[~own].mean()])


def pool_by_matmul(hidden, real):
    """A text's vector is a product with weights that sum to one."""
    weights = real.double() / real.sum(1, keepdim=True)
    return (weights[:, None, :] @ hidden).squeeze(1)


def pool_text_by_text(hidden, real):
    return torch.stack([torch.mean(h[r], 0) for h, r in zip(hidden, real, strict=True)])


def schedule_as_a_minimum(step, steps, warmup):
    """The lower of two lines, which cross between the last step of the warm-up and the next."""
    return min((step + 1) / warmup, 1 - max(step - warmup, 0) / (steps - warmup))


def schedule_by_interpolation(step, steps, warmup):
    return torch.from_numpy(
        np.interp([step], [-1, warmup - 1, warmup, steps], [0.0, 1.0, 1.0, 0.0])
    )


# --- Pretraining objectives -----------------------------------------------------------------------


def masking_by_arithmetic(ids, special, u, v, drawn, mask_id):
    """What a token becomes, as one of three, picked by the place of v among the bounds."""
    chosen = (u < 0.15).logical_and(special.logical_not())
    what = torch.bucketize(v, torch.tensor([0.8, 0.9], dtype=v.dtype), right=True)
    ways = torch.stack([torch.full_like(ids, mask_id), drawn, ids])
    return ways.gather(0, what[None])[0] * chosen + ids * ~chosen


def masking_in_place_on_a_copy(ids, special, u, v, drawn, mask_id):
    """First all chosen ones drawn, then most of them masked, then the last ones put back."""
    seen, chosen = ids.clone(), ~(special | (u >= 0.15))
    seen[chosen] = drawn[chosen]
    seen[chosen & (v < 0.8)] = mask_id
    seen[chosen & (v >= 0.9)] = ids[chosen & (v >= 0.9)]
    return seen


def masked_loss_by_ignore_index(logits, targets, chosen, keep):
    asked = targets.masked_fill(~chosen, -100)
    return F.cross_entropy(logits.mT, asked)


def masked_loss_by_weights(logits, targets, chosen, keep):
    share = chosen.to(logits) / chosen.sum()
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    asked = F.one_hot(targets, logits.shape[-1]) * share[..., None]
    return -(asked * log_p).sum()


def spans_by_groups(ids, noise, sentinels, pad_id):
    """Runs of equal noise, each run of text kept and each run of noise replaced."""
    source, number = [], 0
    pairs = zip(ids.tolist(), noise.tolist(), strict=True)
    for cut, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        source += [int(sentinels[number])] if cut else [token for token, _ in run]
        number += cut
    return torch.tensor(source + [pad_id] * (len(ids) - len(source)))


def spans_by_cumulative_sum(ids, noise, sentinels, pad_id):
    """As T5's own code: sentinels at the starts of spans, the rest of each span left out."""
    starts = noise & ~F.pad(noise[:-1], (1, 0), value=False)
    number = (starts.cumsum(0) - 1).clamp(min=0)
    source = torch.where(starts, sentinels[number], ids)[starts | ~noise]
    return F.pad(source, (0, len(ids) - len(source)), value=pad_id)


# --- Debugging ------------------------------------------------------------------------------------


def chance_by_cross_entropy(n):
    return F.cross_entropy(torch.zeros(1, n, dtype=torch.float64), torch.tensor([n - 1]))


def chance_as_a_difference(n):
    return -(math.log(1) - math.log(n))


def leaks_by_jacobian(block, x, t):
    was = block.training
    block.eval()
    J = torch.autograd.functional.jacobian(lambda a: block(a)[:, :t].sum(-1), x)
    block.train(was)
    return bool(J[..., t:, :].any())


def leaks_text_by_text(block, x, t):
    """Each text continued as another one goes on, and compared over what both have."""
    was = block.training
    block.eval()
    with torch.no_grad():
        other = torch.cat([x[:, :t], x.flip(0)[:, t:].sin() * 7], dim=1)
        same = all(torch.allclose(a[:t], b[:t], rtol=0, atol=1e-10)
                   for a, b in zip(block(x), block(other), strict=True))  # fmt: skip
    block.train(was)
    return 0 if same else 1


RIGHT = {
    "scaled_scores": [
        scores_by_baddbmm, scores_by_broadcast, scores_key_by_key, scores_not_contiguous,
    ],
    "softmax": [
        softmax_by_logsumexp, softmax_row_by_row, softmax_in_place_on_a_copy,
        softmax_of_log_probabilities, softmax_with_the_least_number,
    ],
    "attention": [attention_flat, attention_online, attention_in_torchs_layout],
    "split_heads": [split_into_a_new_tensor, split_as_strided],
    "merge_heads": [merge_by_sum],
    "multi_head_attention": [multi_head_without_concatenation, multi_head_by_torch],
    "layer_norm": [layer_norm_by_moments_of_the_centred, layer_norm_token_by_token],
    "feed_forward": [feed_forward_as_a_convolution, feed_forward_in_place],
    "encoder_block": [encoder_block_as_two_functions],
    "causal_weights": [causal_by_sdpa, causal_by_cumulative_sum],
    "cross_attention": [cross_by_loops],
    "decoder_block": [decoder_block_by_cases],
    "shift_right": [shifted_by_index],
    "target_loss": [loss_by_logsumexp, loss_by_nll, loss_token_by_token],
    "temperature": [temperature_as_a_power],
    "top_p": [top_p_by_counting],
    "softmax_backward": [softmax_backward_by_products],
    "layer_norm_backward": [layer_norm_backward_as_a_projection],
    "attention_backward": [attention_backward_by_einsum],
    "adamw_step": [adamw_in_place],
    "relative_bucket": [buckets_by_searching],
    "split_c_attn": [c_attn_column_by_column],
    "lora": [lora_merged],
    "mean_and_error": [spread_by_differences],
    "in_and_out": [home_and_away_by_mask],
    "mean_pool": [pool_by_matmul, pool_text_by_text],
    "warmup_then_linear": [schedule_as_a_minimum, schedule_by_interpolation],
    "mask_tokens": [masking_by_arithmetic, masking_in_place_on_a_copy],
    "masked_loss": [masked_loss_by_ignore_index, masked_loss_by_weights],
    "corrupt_spans": [spans_by_groups, spans_by_cumulative_sum],
    "chance_loss": [chance_by_cross_entropy, chance_as_a_difference],
    "leaks": [leaks_by_jacobian, leaks_text_by_text],
}  # fmt: skip
ANSWERS = [(name, answer) for name, answers in RIGHT.items() for answer in answers]


@pytest.mark.parametrize(("name", "answer"), ANSWERS, ids=[a.__name__ for _, a in ANSWERS])
@pytest.mark.parametrize("seed", [4, 5, 6])
def test_a_right_answer_passes(name, answer, seed, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 60.0)  # the machine may be busy, and loops are slow
    result = getattr(mt.check, name)(answer, seed)
    assert result.passed, result
