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
from minitransformer.data import spans
from minitransformer.formulas import by_hand_decoder
from minitransformer.model.attention import causal_mask

# --- Attention ----------------------------------------------------------------------------------


def scores_by_baddbmm(Q, K):
    b, h, q, d = Q.shape
    flat = torch.baddbmm(Q.new_zeros(1), Q.reshape(b * h, q, d), K.reshape(b * h, -1, d).mT,
                         beta=0, alpha=d**-0.5)  # fmt: skip
    return flat.view(b, h, q, -1)


def scores_by_broadcast(Q, K):
    return (Q[..., :, None, :] * K[..., None, :, :]).sum(-1).div(math.sqrt(Q.size(-1)))


def scores_key_by_key(Q, K):
    return torch.stack([(Q * k[:, :, None]).sum(-1) * Q.shape[-1] ** -0.5 for k in K.unbind(2)], -1)


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


def attention_by_einsum(Q, K, V, keep=None):
    scores = torch.einsum("bhqd,bhkd->bhqk", Q, K) * K.size(3) ** -0.5
    if keep is None:
        return torch.einsum("bhqk,bhkv->bhqv", scores.softmax(-1), V)
    weights = scores.masked_fill(keep.logical_not(), float("-inf")).softmax(-1)
    weights = torch.where(keep.any(-1, keepdim=True), weights, 0.0)
    return torch.einsum("bhqk,bhkv->bhqv", weights, V)


def attention_by_loops(Q, K, V, keep=None):
    batch, heads, queries, d_k = Q.shape
    output = []
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                kept = [k for k in range(K.shape[2]) if keep is None or keep[b, h, q, k]]
                if not kept:
                    output.append(0 * Q[b, h, q].sum() + 0 * V[b, h].sum(0))
                    continue
                s = torch.stack([Q[b, h, q] @ K[b, h, k] for k in kept]) / d_k**0.5
                output.append(F.softmax(s, dim=0) @ V[b, h, kept])
    return torch.stack(output).view(batch, heads, queries, V.shape[-1])


def attention_by_torch(Q, K, V, keep=None):
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=keep)


def softmax_by_hand(scores, keep=None):
    keep = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep
    hidden = scores.masked_fill(~keep, -math.inf)
    e = (hidden - hidden.amax(-1, keepdim=True).clamp(min=-1e30)).exp()
    return e / e.sum(-1, keepdim=True).clamp(min=1e-300)


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


def split_by_loop(x, n_heads):
    d_k = x.shape[-1] // n_heads
    return torch.stack([x[:, :, i * d_k : (i + 1) * d_k] for i in range(n_heads)], 1)


def heads_by_einsum(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
    cut = lambda W: W.view(len(W), n_heads, -1)  # noqa: E731
    Q, K, V = (torch.einsum("btm,mhd->bhtd", a, cut(W)) for a, W in ((x, W_Q), (z, W_K), (z, W_V)))
    heads = attention_by_torch(Q, K, V, keep)
    return torch.einsum("bhtd,hdm->btm", heads, W_O.view(n_heads, -1, W_O.shape[1]))


def encoder_block_in_one_loop(x, attention, feed_forward, norm_1, norm_2, norm_position):
    for sublayer, norm in ((attention, norm_1), (feed_forward, norm_2)):
        x = x + sublayer(norm(x)) if norm_position == "pre" else norm(x + sublayer(x))
    return x


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


def causal_by_additive_mask(scores):
    queries, keys = scores.shape[-2:]
    late = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    return (scores + torch.zeros(queries, keys).to(scores).masked_fill(late, -1e9)).softmax(-1)


def causal_by_loops(scores):
    output = torch.zeros_like(scores)
    queries, keys = scores.shape[-2:]
    for i in range(queries):
        seen = i + keys - queries + 1
        output[..., i, :seen] = scores[..., i, :seen].softmax(-1)
    return output


def cross_by_torch(y, z, W_Q, W_K, W_V, keep):
    return F.scaled_dot_product_attention(y @ W_Q, z @ W_K, z @ W_V, attn_mask=keep)


def decoder_block_in_one_loop(
    y, z, attention, cross, ffn, norm_1, norm_cross, norm_2, norm_position
):
    for f, norm in (
        (attention, norm_1),
        (lambda a: cross(a, z), norm_cross),
        (ffn, norm_2),
    ):
        y = y + f(norm(y)) if norm_position == "pre" else norm(y + f(y))
    return y


def shifted_by_slices(target, start_id):
    given = torch.empty_like(target)
    given[:, 0], given[:, 1:] = start_id, target[:, :-1]
    return given


def loss_by_weights(logits, target, keep):
    losses = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    return (losses * keep).sum() / keep.sum()


def loss_by_ignore_index(logits, target, keep):
    return F.cross_entropy(logits.flatten(0, 1), target.masked_fill(~keep, -100).flatten())


def transformer_in_one_line(source, target, source_keep, encoder, decoder):
    causal = causal_mask(target.shape[1])
    return decoder(target, encoder(source, source_keep), causal, source_keep)


def transformer_with_full_masks(source, target, source_keep, encoder, decoder):
    keep = source_keep.expand(-1, -1, source.shape[1], -1)
    causal = causal_mask(target.shape[1]).expand(len(target), 1, -1, -1)
    z = encoder(source, keep=keep)
    return decoder(target, z, keep=causal, memory_keep=source_keep)


def temperature_by_logsumexp(logits, temperature):
    return torch.exp(logits / temperature - (logits / temperature).logsumexp(-1, keepdim=True))


def top_p_by_removal(probabilities, top_p):
    ordered, ids = probabilities.sort(descending=True)
    remove = ordered.cumsum(-1) >= top_p
    remove = F.pad(remove[:, :-1], (1, 0), value=False)
    remove = torch.zeros_like(remove).scatter(1, ids, remove)
    return probabilities.log().masked_fill(remove, float("-inf")).softmax(-1)


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


def softmax_backward_by_einsum(dP, P):
    return P * dP - P * torch.einsum("...k,...k->...", dP, P).unsqueeze(-1)


def layer_norm_backward_step_by_step(dy, x, gamma, beta, eps):
    d = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).sum(-1, keepdim=True) / d + eps
    dx_hat = dy * gamma
    dvariance = (dx_hat * centred).sum(-1, keepdim=True) * -0.5 * variance**-1.5
    dmu = -dx_hat.sum(-1, keepdim=True) / variance.sqrt()
    dx = dx_hat / variance.sqrt() + dvariance * 2 * centred / d + dmu / d
    dgamma = (dy * centred / variance.sqrt()).flatten(0, -2).sum(0)
    return dx, dgamma, dy.flatten(0, -2).sum(0)


def attention_backward_step_by_step(dO, Q, K, V, keep=None):
    scores = torch.einsum("bhqd,bhkd->bhqk", Q, K) / Q.shape[-1] ** 0.5
    if keep is not None:
        scores = torch.where(keep, scores, scores.new_tensor(-math.inf))
    P = scores.softmax(-1)
    if keep is not None:
        P = torch.where(keep.any(-1, keepdim=True), P, 0.0)
    dV = P.transpose(2, 3) @ dO
    dS = softmax_backward_by_einsum(dO @ V.transpose(2, 3), P) / Q.shape[-1] ** 0.5
    return dS @ K, dS.transpose(2, 3) @ Q, dV


def adamw_by_lerp(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    m = m.lerp(g, 1 - beta_1)
    v = v.lerp(g * g, 1 - beta_2)
    step = lr * (1 - beta_2**t) ** 0.5 / (1 - beta_1**t)
    theta = theta * (1 - lr * weight_decay)
    return theta - step * m / (v.sqrt() + eps * (1 - beta_2**t) ** 0.5), m, v


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
    return min((step + 1) / max(warmup, 1), 1 - max(step - warmup, 0) / (steps - warmup))


def schedule_by_interpolation(step, steps, warmup):
    return torch.from_numpy(
        np.interp([step], [-1, warmup - 1, warmup, steps], [0.0, 1.0, 1.0, 0.0])
    )


def buckets_one_by_one(r, n_buckets, max_distance, bidirectional):
    rows = [
        [
            by_hand_decoder.relative_bucket(int(x), n_buckets, max_distance, bidirectional)
            for x in row
        ]
        for row in r
    ]
    return torch.tensor(rows)


def buckets_in_float32(r, n_buckets, max_distance, bidirectional):
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


def home_and_away_in_loops(accuracy):
    n = len(accuracy)
    home = sum(accuracy[i, i] for i in range(n)) / n
    away = [accuracy[i, j] for i in range(n) for j in range(n) if i != j]
    return torch.stack([home, torch.stack(away).mean()])


def feature_gradient_by_autograd(X, y, v, B):
    with torch.enable_grad():
        B = B if B.requires_grad else B.clone().requires_grad_()
        loss = ((X @ B.T @ v - y) ** 2).mean() / 2
        return torch.autograd.grad(loss, B, create_graph=True)[0]


def rates_in_order(n_layers, step, steps):
    return torch.tensor(
        [float(step * n_layers >= (n_layers - 1 - i) * steps) for i in range(n_layers)]
    )


def pool_in_loops(hidden, real):
    return torch.stack([h[r].mean(0) for h, r in zip(hidden, real, strict=True)])


def schedule_as_two_lines(step, steps, warmup):
    return min((step + 1) / max(warmup, 1), (steps - step) / (steps - warmup))


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


def masking_step_by_step(ids, special, u, v, drawn, mask_id):
    seen, chosen = ids.clone(), (u < 0.15) & ~special
    seen[chosen & (v < 0.8)] = mask_id
    replaced = chosen & (v >= 0.8) & (v < 0.9)
    seen[replaced] = drawn[replaced]
    return seen


def masking_by_where(ids, special, u, v, drawn, mask_id):
    chosen = u.masked_fill(special, 1) < 0.15
    seen = torch.where(chosen & (v < 0.9), drawn, ids)
    return seen.masked_fill(chosen & (v < 0.8), mask_id)


def masked_loss_by_transposed_logits(logits, targets, chosen, keep):
    return F.cross_entropy(logits.mT, targets.masked_fill(~chosen, -100))


def masked_loss_by_gathering(logits, targets, chosen, keep):
    log_p = F.log_softmax(logits, -1)
    each = -log_p[torch.arange(len(logits))[:, None], torch.arange(targets.shape[1]), targets]
    return (each * chosen).sum() / chosen.sum()


def spans_of_the_package(ids, noise, sentinels, pad_id):
    source, _ = spans.corrupt_spans(ids.tolist(), noise.tolist(), [*sentinels.tolist(), 999])
    return F.pad(torch.tensor(source), (0, len(ids) - len(source)), value=pad_id)


def spans_by_counting(ids, noise, sentinels, pad_id):
    starts = noise & ~F.pad(noise, (1, 0))[:-1]
    with_sentinels = torch.where(starts, sentinels[starts.cumsum(0) - 1], ids)
    source = with_sentinels[starts | ~noise]
    return torch.cat([source, ids.new_full((len(ids) - len(source),), pad_id)])


# --- Tokens ---------------------------------------------------------------------------------------


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


def leaks_in_two_calls(block, x, t):
    was = block.training
    block.eval()
    other = torch.cat([x[:, :t], 3 * torch.randn_like(x[:, t:])], 1)
    same = torch.allclose(block(x)[:, :t], block(other)[:, :t])
    block.train(was)
    return not same


def leaks_by_gradient(block, x, t):
    was = block.training
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        y = block.eval()(x)[:, :t]
        (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), x)
    block.train(was)
    return gradient[:, t:].abs().max() > 0


RIGHT = {
    "scaled_scores": [
        scores_by_baddbmm, scores_by_broadcast, scores_key_by_key, scores_not_contiguous,
        lambda Q, K: (Q / Q.shape[-1] ** 0.5) @ K.transpose(-1, -2),
    ],
    "softmax": [
        softmax_by_logsumexp, softmax_row_by_row, softmax_in_place_on_a_copy,
        softmax_of_log_probabilities, softmax_with_the_least_number, softmax_by_hand,
    ],
    "attention": [
        attention_flat, attention_online, attention_in_torchs_layout, attention_by_einsum,
        attention_by_loops, attention_by_torch,
    ],
    "split_heads": [
        split_into_a_new_tensor, split_as_strided, split_by_loop,
        lambda x, h: x.unflatten(-1, (h, -1)).movedim(2, 1),
    ],
    "merge_heads": [
        merge_by_sum, lambda heads: torch.einsum("bhtd->bthd", heads).flatten(2),
    ],
    "multi_head_attention": [
        multi_head_without_concatenation, multi_head_by_torch, heads_by_einsum,
    ],
    "layer_norm": [
        layer_norm_by_moments_of_the_centred, layer_norm_token_by_token,
        lambda x, g, b, eps: F.layer_norm(x, g.shape, g, b, eps),
        lambda x, g, b, eps: g * (x - x.mean(2, True)) / (x.var(2, False, keepdim=True) + eps) ** 0.5 + b,
    ],
    "feed_forward": [
        feed_forward_as_a_convolution, feed_forward_in_place,
        lambda x, W, b, U, c: F.linear(F.relu(F.linear(x, W.T, b)), U.T, c),
    ],
    "encoder_block": [encoder_block_as_two_functions, encoder_block_in_one_loop],
    "causal_weights": [
        causal_by_sdpa, causal_by_cumulative_sum, causal_by_additive_mask, causal_by_loops,
    ],
    "cross_attention": [cross_by_loops, cross_by_torch],
    "decoder_block": [decoder_block_by_cases, decoder_block_in_one_loop],
    "shift_right": [shifted_by_index, shifted_by_slices],
    "target_loss": [
        loss_by_logsumexp, loss_by_nll, loss_token_by_token, loss_by_weights, loss_by_ignore_index,
    ],
    "encoder_decoder": [transformer_in_one_line, transformer_with_full_masks],
    "temperature": [temperature_as_a_power, temperature_by_logsumexp],
    "top_p": [top_p_by_counting, top_p_by_removal],
    "softmax_backward": [softmax_backward_by_products, softmax_backward_by_einsum],
    "layer_norm_backward": [
        layer_norm_backward_as_a_projection, layer_norm_backward_step_by_step,
    ],
    "attention_backward": [attention_backward_by_einsum, attention_backward_step_by_step],
    "adamw_step": [adamw_in_place, adamw_by_lerp],
    "relative_bucket": [buckets_by_searching, buckets_one_by_one, buckets_in_float32],
    "split_c_attn": [
        c_attn_column_by_column,
        lambda c: torch.stack(c.split(c.shape[1] // 3, 1)).mT,
        lambda c: c.T.reshape(3, -1, len(c)),
        lambda c: c.unflatten(1, (3, -1)).permute(1, 2, 0),
    ],
    "lora": [
        lora_merged,
        lambda x, W, A, B, alpha: x @ (W + alpha / len(A) * B @ A).T,
        lambda x, W, A, B, alpha: torch.einsum("bti,oi->bto", x, W) + (x @ A.T @ B.T) * (alpha / A.shape[0]),
    ],
    "mean_and_error": [
        spread_by_differences,
        lambda a: torch.stack([a.mean(-1), a.std(-1) / a.shape[-1] ** 0.5], -1),
    ],
    "accuracy_error": [lambda p, n: (p - p**2).sqrt() / np.sqrt(n)],
    "feature_gradient": [
        feature_gradient_by_autograd,
        lambda X, y, v, B: v[:, None] * ((X @ B.T @ v - y)[:, None] * X).mean(0),
    ],
    "in_and_out": [home_and_away_by_mask, home_and_away_in_loops],
    "gradual_rates": [rates_in_order],
    "mean_pool": [
        pool_by_matmul, pool_text_by_text, pool_in_loops,
        lambda h, r: torch.einsum("btd,bt->bd", h, r / r.sum(1, keepdim=True).double()),
        lambda h, r: h.masked_fill(~r[..., None], 0).sum(1) / r.sum(1)[:, None],
    ],
    "warmup_then_linear": [
        schedule_as_a_minimum, schedule_by_interpolation, schedule_as_two_lines,
    ],
    "mask_tokens": [
        masking_by_arithmetic, masking_in_place_on_a_copy, masking_step_by_step, masking_by_where,
    ],
    "masked_loss": [
        masked_loss_by_ignore_index, masked_loss_by_weights, masked_loss_by_transposed_logits,
        masked_loss_by_gathering,
    ],
    "corrupt_spans": [
        spans_by_groups, spans_by_cumulative_sum, spans_of_the_package, spans_by_counting,
    ],
    "best_pair": [best_by_a_table, best_by_a_dict],
    "merge_pair": [merged_in_a_while_loop, merged_by_the_last_token, merged_as_text],
    "word_pieces": [pieces_in_two_loops, pieces_by_sorting],
    "chance_loss": [
        chance_by_cross_entropy, chance_as_a_difference, math.log,
        lambda n: -torch.full((n,), 1 / n, dtype=torch.float64).log().mean(),
    ],
    "leaks": [leaks_by_jacobian, leaks_text_by_text, leaks_in_two_calls, leaks_by_gradient],
}  # fmt: skip


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_right_answers_pass_however_written(seed, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 60.0)  # the machine may be busy, and loops are slow
    assert set(RIGHT) == set(mt.check.exercises())
    failures = []
    for name, answers in RIGHT.items():
        exercise = getattr(mt.check, name)
        for answer in answers:
            result = exercise(answer, seed)
            if not result.passed or ("gradients to" in result.message) != exercise.differentiated:
                failures.append(f"{name}, {answer.__name__}: {result}")
    assert not failures, "\n\n".join(failures)
