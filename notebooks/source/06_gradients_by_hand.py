# %% [markdown]
# # 06 Gradients by hand
#
# `loss.backward()` is half of every training run, and usually the half nobody has looked into. Here
# you do: you derive the derivatives of softmax, LayerNorm and attention, write them down as code,
# and write the optimiser too. At the end a small Transformer is trained on real reviews twice, once
# with autograd and `torch.optim.AdamW`, once in NumPy with nothing but these formulas, and the two
# are compared after 200 steps.
#
# It covers the formulas of section 4 of the article, backward, and steps 3 and 4 of its section 3.2:
# cross-entropy, AdamW, training. The notebooks before this one build the same formulas forward.
#
# *Runs in half a minute to two minutes on two cores. Needs `make data` once, for section 7.*

# %%
import math

import numpy as np
import torch

import minitransformer as mt
from minitransformer import plots
from minitransformer.formulas import block_gradients, gradients
from minitransformer.formulas.numpy_transformer import AdamW, NumpyClassifier

torch.set_default_dtype(torch.float64)  # so that "equal" can mean twelve digits
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. A notation and two rules
#
# The loss $L$ is one number. For any array $Y$ on the way to it, $dY$ is short for $\partial L /
# \partial Y$: an array **of the shape of $Y$**, which says for each entry how much $L$ rises when
# that entry does. The backward pass starts from the last $dY$ and asks, formula by formula: given
# the gradient of the output, what is the gradient of each input?
#
# **Rule 1, the product.** Let $Y = AB$, that is $Y_{ij} = \sum_l A_{il} B_{lj}$. The entry $A_{il}$
# acts on all of row $i$ of $Y$, on $Y_{ij}$ with the factor $B_{lj}$. So
#
# $$dA_{il} = \sum_j dY_{ij} B_{lj}, \qquad\text{in matrices}\qquad dA = dY\,B^\top, \qquad dB = A^\top dY.$$
#
# You need not remember where the transposes go. The shapes decide: only one product gives an array
# shaped like $A$.
#
# **Rule 2, the sum.** What is used in several places gets a gradient from each, and they are added.
# A bias is used at every position: $db = \sum_t dy_t$. In self-attention $x$ is used three times,
# and around a residual twice.
#
# How do you know that a derivation is right? Ask the definition. Move one entry by a small $h$, up
# and down, and see how much the loss moves:

# %%
rows, inner, columns = 7, 4, 11
A, B = torch.randn(rows, inner), torch.randn(inner, columns)
dY = torch.randn(rows, columns)  # a loss to differentiate: L = the sum of Y * dY


def slope(loss, X, at, h=1e-5):
    """(L(X + h) - L(X - h)) / 2h at one entry of X: no derivation needed."""
    up, down = X.clone(), X.clone()
    up[at] += h
    down[at] -= h
    return float(loss(up) - loss(down)) / (2 * h)


dA, dB = dY @ B.T, A.T @ dY
assert abs(dA[2, 3] - slope(lambda A: (A @ B * dY).sum(), A, (2, 3))) < 1e-8
assert abs(dB[1, 5] - slope(lambda B: (A @ B * dY).sum(), B, (1, 5))) < 1e-8
plots.matrices(
    ("$dY$", dY, "rows", "columns"), "×",
    ("$B^\\top$", B.T, "columns", "inner"), "=",
    ("$dA$", dA, "rows", "inner"),
)  # fmt: skip

# %% [markdown]
# ## 2. Softmax
#
# $P_j = e^{s_j} / \sum_m e^{s_m}$. A score $s_m$ acts on *every* weight of its row, since it stands
# in their common denominator. By the quotient rule
#
# $$\frac{\partial P_j}{\partial s_m}
# = \frac{[j=m]\,e^{s_j}}{\sum e^s} - \frac{e^{s_j} e^{s_m}}{(\sum e^s)^2}
# = P_j\,([j=m] - P_m).$$
#
# The bracket $[j=m]$ is 1 where $j = m$ and 0 otherwise. Now put it into the chain rule, a sum over
# all $j$:
#
# $$dS_m = \sum_j dP_j \frac{\partial P_j}{\partial s_m}
# = \sum_j dP_j P_j [j=m] - P_m \sum_j dP_j P_j
# = P_m \Big( dP_m - \sum_j dP_j P_j \Big).$$
#
# Look at what it says. The sum is the mean of $dP$, each entry counted with its weight. A score
# gets a positive gradient if its key's $dP$ is *above that mean*, and the heavier its weight, the
# larger. The matrix of all $\partial P_j / \partial s_m$ of one row, as a picture:

# %%
scores = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
P = scores.softmax(-1)
jacobian = torch.diag(P) - torch.outer(P, P)  # P_j ([j = m] - P_m)

left, right = plots.figure(2, (6, 3))
left.bar(range(5), P)
left.set(title="$P$", xlabel="key $j$")
top = float(jacobian.abs().max())
right.imshow(jacobian, cmap=plots.NUMBERS, vmin=-top, vmax=top)
for (j, m), entry in np.ndenumerate(jacobian.numpy()):
    right.text(m, j, f"{entry:.2f}", ha="center", va="center", fontsize=8)
right.set(title="$\\partial P_j / \\partial s_m$", xlabel="score $m$", ylabel="weight $j$")

assert jacobian.sum(0).abs().max() < 1e-15 and jacobian.sum(1).abs().max() < 1e-15
assert abs(jacobian[1, 0] - slope(lambda s: s.softmax(-1)[1], scores, 0)) < 1e-8

# %% [markdown]
# *Notice* that each row and each column sums to 0. Columns: what one weight gains, the others lose.
# Rows: adding the same number to all scores changes nothing. Only the diagonal is positive. If you
# forget the $-\sum$, you keep the first term of the diagonal and lose everything outside it.
#
# Nobody builds this matrix; for 512 keys it would have 512 × 512 entries *for every query*. The
# last form above needs one sum per row.
#
# ### Exercise 1: softmax backward
#
# `dP` and `P`, the weights of the forward pass, are (batch, queries, keys); return `dS`, of that
# shape.


# %%
def my_softmax_backward(dP, P):
    """dS, the gradient of the scores.

    dP: (batch, queries, keys), the gradient of the weights; P: the weights of the forward pass, of
    the same shape, with zeros at hidden keys.
    Returns: (batch, queries, keys).
    """
    # BEGIN SOLUTION
    return P * (dP - (dP * P).sum(-1, keepdim=True))
    # END SOLUTION


mt.check.softmax_backward(my_softmax_backward)

# %% [markdown]
# It is worth seeing the check say no. Many derive the diagonal only, as for a sigmoid:

# %%
mt.check.softmax_backward(lambda dP, P: dP * P * (1 - P))

# %% [markdown]
# ### With cross-entropy it gets shorter still
#
# The loss of one example is $L = -\log p_y$ with $p = \mathrm{softmax}(\ell)$. Here $dP$ is
# $-1/p_y$ at $y$ and 0 elsewhere, and $\sum_j dp_j p_j = -1$. So $d\ell_m = p_m (dp_m + 1)$:
#
# $$d\ell = p - q, \qquad q \text{ the one-hot of the right answer.}$$
#
# The prediction minus the right answer. It is 0 only when the two are equal, and no entry is ever
# larger than 1.

# %%
logits, y = torch.randn(4), torch.tensor(2)
by_hand = logits.softmax(-1) - torch.eye(4)[y]
for m in range(4):
    off = by_hand[m] - slope(lambda a: torch.nn.functional.cross_entropy(a, y), logits, m)
    assert abs(off) < 1e-8
print("dlogits:", by_hand.numpy().round(2), " sum:", abs(round(float(by_hand.sum()), 12)))

# %% [markdown]
# ## 3. LayerNorm
#
# Write $s = \sqrt{\sigma^2 + \epsilon}$ and $\hat x = (x - \mu)/s$, so that $y = \gamma \odot \hat
# x + \beta$. The easy part first, with rule 2 over all positions $t$:
#
# $$d\gamma = \sum_t dy_t \odot \hat x_t, \qquad d\beta = \sum_t dy_t, \qquad d\hat x = dy \odot \gamma.$$
#
# Then $x_i$ acts on $\hat x_j$ in three ways: directly, through $\mu$, and through $s$. With
# $\partial \mu / \partial x_i = 1/d$ and $\partial s / \partial x_i = \hat x_i / d$ (differentiate
# $s^2 = \frac1d \sum (x_j - \mu)^2 + \epsilon$)
#
# $$\frac{\partial \hat x_j}{\partial x_i} = \frac1s \Big( [i=j] - \frac1d - \frac{\hat x_j \hat x_i}{d} \Big).$$
#
# The chain rule sums this over $j$, and each sum over $j$ with $1/d$ in front is a mean:
#
# $$dx = \frac1s \Big( d\hat x - \mathrm{mean}(d\hat x) - \hat x \,\mathrm{mean}(d\hat x \odot \hat x) \Big).$$
#
# Both means have a meaning. LayerNorm does not notice when all of $x$ is moved by a constant, so no
# gradient may point that way: the first mean takes it out. Nor does it notice (for small
# $\epsilon$) when $x$ is stretched: the second mean takes that out.

# %%
d = 20
x, gamma, dy = torch.randn(d), torch.randn(d), torch.randn(d)
x_hat = (x - x.mean()) / x.std(correction=0)
dx_hat = dy * gamma
steps = {
    "dx̂ / s": dx_hat,
    "- mean(dx̂)": dx_hat - dx_hat.mean(),
    "- x̂ mean(dx̂ x̂)": dx_hat - dx_hat.mean() - x_hat * (dx_hat * x_hat).mean(),
}
print("                    along moving    along stretching")
for name, dx in steps.items():
    moving, stretching = float(dx.sum()) / d**0.5, float(dx @ x_hat) / d**0.5
    print(f"{name:20}{abs(round(moving, 9)):12.3f}{abs(round(stretching, 9)):20.3f}")
assert abs(dx.sum()) < 1e-12 and abs(dx @ x_hat) < 1e-12

# %% [markdown]
# ### Exercise 2: LayerNorm backward
#
# Return all three gradients. `dy` and `x` are (batch, length, d_model), `gamma` and `beta` are
# (d_model); remember which of the results are summed over the positions. The variance divides by
# $d$.


# %%
def my_layer_norm_backward(dy, x, gamma, beta, eps):
    """The gradients of x, gamma and beta.

    dy, x: (batch, length, d_model); gamma, beta: (d_model,); eps: a number.
    Returns: dx (batch, length, d_model), dgamma (d_model,) and dbeta (d_model,).
    """
    # BEGIN SOLUTION
    s = torch.sqrt(x.var(-1, correction=0, keepdim=True) + eps)
    x_hat = (x - x.mean(-1, keepdim=True)) / s
    dx_hat = dy * gamma
    along_mean = dx_hat.mean(-1, keepdim=True)
    along_x = x_hat * (dx_hat * x_hat).mean(-1, keepdim=True)
    return (dx_hat - along_mean - along_x) / s, (dy * x_hat).sum((0, 1)), dy.sum((0, 1))
    # END SOLUTION


mt.check.layer_norm_backward(my_layer_norm_backward)

# %% [markdown]
# ## 4. Attention
#
# The forward pass has three steps. Backward they come in the opposite order, and each follows a
# rule that you already have:
#
# | forward | backward | by | shape |
# | --- | --- | --- | --- |
# | $O = PV$ | $dV = P^\top dO$ | rule 1 | (keys, $d_v$) |
# | | $dP = dO\,V^\top$ | rule 1 | (queries, keys) |
# | $P = \mathrm{softmax}(S)$ | $dS = P \odot (dP - \mathrm{rowsum}(dP \odot P))$ | exercise 1 | (queries, keys) |
# | $S = QK^\top / \sqrt{d_k}$ | $dQ = dS\,K / \sqrt{d_k}$ | rule 1 | (queries, $d_k$) |
# | | $dK = dS^\top Q / \sqrt{d_k}$ | rule 1 | (keys, $d_k$) |
#
# Read $dV = P^\top dO$ in words: a value collects the gradients of all outputs, each with the
# weight it had in that output. What was a weighted mean forward is a weighted sum backward.

# %%
queries, keys, d_k, d_v = 7, 11, 4, 13
Q, K, V = torch.randn(queries, d_k), torch.randn(keys, d_k), torch.randn(keys, d_v)
keep = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
keep[:, 3] = False  # a key that nobody may see
dO = torch.randn(queries, d_v)

P = mt.scaled_dot_product_attention(Q, K, V, keep)[1]
dV = P.T @ dO
dP = dO @ V.T
dS = P * (dP - (dP * P).sum(-1, keepdim=True))
dQ, dK = dS @ K / math.sqrt(d_k), dS.T @ Q / math.sqrt(d_k)

axes = plots.figure(3, (6, 2.4))
for ax, (name, a) in zip(axes, {"$P$": P, "$dP$": dP, "$dS$": dS}.items(), strict=True):
    top = float(a.abs().max())
    ax.imshow(a, cmap=plots.NUMBERS, vmin=-top, vmax=top)
    ax.set(title=name, xlabel="key", xticks=[], yticks=[])
axes[0].set(ylabel="query")

assert not dS[~keep].any() and not dK[3].any() and not dV[3].any()
assert dP[~keep].all()
loss = lambda Q: (mt.scaled_dot_product_attention(Q, K, V, keep)[0] * dO).sum()  # noqa: E731
assert abs(dQ[4, 1] - slope(loss, Q, (4, 1))) < 1e-8

# %% [markdown]
# *Notice* the mask. $dP$ knows nothing of it: every entry is some number. But $P$ is exactly 0 at a
# hidden key, so $dS$ is too, and a key that nobody may see (the fourth column) gets no gradient at
# all. The mask needs no formula of its own on the way back, *as long as the same $P$ is used*. The
# same holds for a query that may attend to nothing: its row of $P$ is 0, and so is everything it
# sends back.
#
# ### Exercise 3: attention backward
#
# Now with leading axes (batch, heads), and the mask: `dO` is (..., queries, d_v), `Q` (...,
# queries, d_k), `K` (..., keys, d_k), `V` (..., keys, d_v) and `keep` (..., queries, keys). Return
# `dQ`, `dK` and `dV`. `.mT` swaps the last two axes. First compute $P$ again: scores, `-inf` where
# `keep` is False, softmax, and 0 for a row in which nothing is kept. `keep` may be None.


# %%
def my_attention_backward(dO, Q, K, V, keep):
    """The gradients of Q, K and V.

    dO: (batch, heads, queries, d_v); Q: (batch, heads, queries, d_k); K: (batch, heads, keys, d_k);
    V: (batch, heads, keys, d_v); keep: boolean, (batch, heads, queries, keys), or None.
    Returns: dQ, dK and dV, with the shapes of Q, K and V.
    """
    # BEGIN SOLUTION
    root = math.sqrt(Q.shape[-1])
    _, P = mt.scaled_dot_product_attention(Q, K, V, keep)
    dV = P.mT @ dO
    dP = dO @ V.mT
    dS = P * (dP - (dP * P).sum(-1, keepdim=True))
    return dS @ K / root, dS.mT @ Q / root, dV
    # END SOLUTION


mt.check.attention_backward(my_attention_backward)


# %% [markdown]
# And here is an answer with one transpose missing, `dS @ Q` instead of `dS.mT @ Q`. In
# self-attention, with as many queries as keys, it runs without complaint:


# %%
def one_letter(dO, Q, K, V, keep):
    root = math.sqrt(Q.shape[-1])
    _, P = mt.scaled_dot_product_attention(Q, K, V, keep)
    dP = dO @ V.mT
    dS = P * (dP - (dP * P).sum(-1, keepdim=True))
    return dS @ K / root, dS @ Q / root, P.mT @ dO


mt.check.attention_backward(one_letter)

# %% [markdown]
# ## 5. The way through a deep stack
#
# Multi-head attention, the feed-forward network and whole blocks need nothing new: the rules above,
# in reverse order. They are in `formulas/block_gradients.py`, in NumPy; the ledger compares each
# with autograd. So let us put them to use. A residual $y = x + f(x)$ has
#
# $$dx = dy + f'(dy),$$
#
# where $f'(dy)$ is short for "$f$ backward". The first term is the whole point: it passes through
# no weights.
#
# An experiment: twelve fresh pre-LN blocks, 16 tokens. The gradient enters at the top at *one*
# token, and we look at how much of it arrives at each token and each depth, with the residuals and
# without.

# %%
D, D_FF, N_HEADS, DEPTH, TOKENS, EPS = 64, 256, 4, 12, 16, 1e-5


def fresh_block(rng):
    """Xavier weights, biases 0, norms 1 and 0."""
    w = {f"b_{i}": np.zeros(D) for i in "QKVO2"} | {"b_1": np.zeros(D_FF)}
    for name, (n, m) in {f"W_{i}": (D, D) for i in "QKVO"}.items():
        w[name] = rng.uniform(-1, 1, (n, m)) * math.sqrt(6 / (n + m))
    for name, (n, m) in {"W_1": (D, D_FF), "W_2": (D_FF, D)}.items():
        w[name] = rng.uniform(-1, 1, (n, m)) * math.sqrt(6 / (n + m))
    norms = {"gamma_1": np.ones(D), "gamma_2": np.ones(D)}
    return w | norms | {"beta_1": np.zeros(D), "beta_2": np.zeros(D)}


def sublayers(w):
    """Forward and backward of MHA(LN(x)) and of FFN(LN(x))."""
    attention, ffn, norm_1, norm_2 = block_gradients.parts(w)

    def mha(n):
        return block_gradients.multi_head_attention(n, n, N_HEADS, **attention)

    def mha_backward(dy, n):
        g = block_gradients.multi_head_attention_backward(dy, n, n, N_HEADS, **attention)
        return g["x"] + g["z"]

    def network(n):
        return block_gradients.feed_forward(n, **ffn, activation="relu")

    def network_backward(dy, n):
        return block_gradients.feed_forward_backward(dy, n, **ffn, activation="relu")["x"]

    yield mha, mha_backward, norm_1
    yield network, network_backward, norm_2


def flow(residual, rng):
    """|dx| of every token below the top and below each block, (depth + 1, tokens)."""
    x, tape = rng.standard_normal((TOKENS, D)), []
    for _ in range(DEPTH):
        for f, f_backward, norm in sublayers(fresh_block(rng)):
            n = gradients.layer_norm(x, *norm, EPS)
            tape.append((x, n, f_backward, norm))
            x = x + f(n) if residual else f(n)
    dx = np.zeros_like(x)
    dx[8] = rng.standard_normal(D)
    sizes = [np.linalg.norm(dx, axis=1)]
    for i, (x, n, f_backward, norm) in enumerate(reversed(tape)):
        through = gradients.layer_norm_backward(f_backward(dx, n), x, *norm, EPS)[0]
        dx = dx + through if residual else through
        if i % 2:
            sizes.append(np.linalg.norm(dx, axis=1))
    return np.array(sizes) / sizes[0].max()


without, with_residual = (flow(r, np.random.default_rng(0)) for r in (False, True))

axes = plots.figure(2, (6, 3.4), sharey=True)
for ax, sizes, title in zip(
    axes, (without, with_residual), ("without: f(LN(x))", "with: x + f(LN(x))"), strict=True
):
    log = np.log10(np.maximum(sizes[::-1], 1e-9))
    image = ax.imshow(log, vmin=-2, vmax=0.5, cmap="magma", origin="lower", aspect="auto")
    ax.set(xlabel="token", yticks=range(0, DEPTH + 1, 2), xticks=[0, 8, 15])
    ax.set_title(title, fontsize=10)
axes[0].set(ylabel="after block (0 = input)")
axes[0].figure.colorbar(image, ax=axes, label="$\\log_{10}$ size of the gradient")


def own_against_others(sizes):
    """How much more arrives at the token where the gradient entered, below each block."""
    return sizes[1:, 8] / np.delete(sizes[1:], 8, axis=1).mean(1)


assert all(own_against_others(with_residual) > 2)
assert all(own_against_others(without) < 2)

# %% [markdown]
# *Notice* the column. With residuals the gradient comes straight down to the token it was meant
# for, at every depth, and on the way it collects what attention spreads to the others. Without them
# *one* block is enough to lose the address: fresh attention averages over all tokens nearly alike,
# and nothing tells the tokens apart any more. What is left at the input is a gradient that is the
# same for all.
#
# ### pre-LN against post-LN
#
# In pre-LN $dy$ reaches $x$ untouched, whatever is added to it. In post-LN the norm stands
# *on* the stream, so even the residual's share passes through two norms per block, and each divides
# by $s$:
#
# $$\text{pre: } da = dy + \mathrm{LN}_2'(\mathrm{FFN}'(dy)) \qquad
# \text{post: } dr_2 = \mathrm{LN}_2'(dy), \quad da = dr_2 + \mathrm{FFN}'(dr_2)$$
#
# With $x$ and $f(x)$ of about the same size, $s \approx \sqrt2$. So in a fresh post-LN stack a norm
# can cost a factor of $1/\sqrt2$, and what the sublayer adds makes up for it only in part. Measure
# the size of the gradient of the stream, and of the weights $W_1$, block by block:


# %%
def by_depth(norm_position, rng, depth=18):
    """Sizes of dx at the input of each block, and of each block's dW_1, from the first block up."""
    blocks = [fresh_block(rng) for _ in range(depth)]
    switches = dict(n_heads=N_HEADS, eps=EPS, norm_position=norm_position, activation="relu")
    stream = [rng.standard_normal((TOKENS, D))]
    for w in blocks:
        stream.append(block_gradients.encoder_block(stream[-1], **switches, **w))
    dx = rng.standard_normal((TOKENS, D))
    if norm_position == "pre":  # a pre-LN stack ends with one more norm
        dx = gradients.layer_norm_backward(dx, stream[-1], np.ones(D), np.zeros(D), EPS)[0]
    sizes = []
    for x, w in zip(reversed(stream[:-1]), reversed(blocks), strict=True):
        g = block_gradients.encoder_block_backward(dx, x, **switches, **w)
        dx = g["x"]
        common = math.sqrt(TOKENS) * np.linalg.norm(dx.mean(0))  # the part common to all tokens
        sizes.append((np.linalg.norm(dx), np.linalg.norm(g["W_1"]), common))
    return np.array(sizes[::-1]).T


repeats = 5
sizes = {
    position: np.mean(
        [by_depth(position, np.random.default_rng(i)) for i in range(repeats)], axis=0
    )
    for position in ("post", "pre")
}
left, right = plots.figure(2, (6, 3.2))
for (position, (of_stream, of_weights, common)), color in zip(
    sizes.items(), ("tab:blue", "tab:orange"), strict=True
):
    number, top = range(1, len(of_stream) + 1), of_stream[-1]
    apart = np.sqrt(of_stream**2 - common**2)
    left.semilogy(number, of_stream / top, "o-", color=color, markersize=4)
    left.semilogy(number, apart / top, ":", color=color)
    right.semilogy(
        number, of_weights / of_weights[-1], "o-", color=color, markersize=4, label=f"{position}-LN"
    )
left.set(xlabel="block", xticks=[1, 6, 12, 18])
right.set(xlabel="block", xticks=[1, 6, 12, 18])
left.set_title("gradient of its input\n(dotted: what differs between tokens)", fontsize=9)
right.set_title("gradient of its $W_1$", fontsize=9)
right.legend()

post, pre = sizes["post"], sizes["pre"]
assert post[0].min() < 0.4 * post[0, -1], "post-LN: the stream's gradient shrinks on the way down"
assert post[1, 0] < 0.6 * post[1, -1], "and the first block's weights get the least"
assert pre[0].min() == pre[0, -1], "pre-LN: nothing is lost, what the sublayers send is added"
assert pre[1, 0] > 2 * pre[1, -1], "and the first block's weights get the most"
assert (post[2] / post[0]).max() > 0.9 > 0.7 > (pre[2] / pre[0]).max()

# %% [markdown]
# *Notice* three things.
#
# - In pre-LN (orange) the gradient never gets smaller on its way down (from right to left). In
#   post-LN it loses more than half by the middle of the stack.
# - Why does it rise again at the lowest blocks? The dotted line is the part of the gradient that
#   differs from token to token: it keeps shrinking until the middle, where more than nine tenths
#   of the gradient is the same for all tokens. Attention averages, so it hands a common gradient
#   down; the norms wear away what is special.
# - For the weights the order is reversed: in post-LN the *last* block gets the largest gradient, in
#   pre-LN the first.
#
# This is why post-LN models need a learning rate that warms up: at the start the upper blocks have
# large gradients and the lower ones little to go by (Xiong et al. 2020).
#
# ## 6. AdamW
#
# The gradient says where to go, the optimiser how far. AdamW keeps a running mean $m$ of the
# gradient and $v$ of its square, and divides one by the root of the other:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2, \qquad
# \theta \leftarrow \theta - \eta\lambda\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}.$$
#
# Why the hats? $m$ and $v$ start at 0. Unroll $m$ after $t$ steps of the same gradient $g$:
#
# $$m_t = (1-\beta_1)\,(1 + \beta_1 + \dots + \beta_1^{t-1})\,g = (1 - \beta_1^t)\,g.$$
#
# It is too small by just the factor $1 - \beta_1^t$, and $v$ by $1 - \beta_2^t$. Divide them out,
# $\hat m = m / (1-\beta_1^t)$ and $\hat v = v / (1-\beta_2^t)$, and the first step has the size
# $\eta$, like every other. Without both corrections the first steps are too *large*, because
# $\sqrt v$ lags further behind than $m$:

# %%
t = np.arange(1, 3001)
m, v = 1 - 0.9**t, 1 - 0.999**t  # after t steps of the gradient 1
ax = plots.figure(size=(6, 3))
ax.semilogx(t, m / np.sqrt(v), label="neither corrected")
ax.semilogx(t, 1 / np.sqrt(v), "--", label="only $m$")
ax.semilogx(t, m, ":", label="only $v$")
ax.axhline(1, color="black", linewidth=0.8, label="both")
ax.set(xlabel="step $t$", ylabel="step / η", ylim=(0, 12))
ax.legend()

too_large = m / np.sqrt(v)
print(f"neither: {too_large[0]:.2f} times η at t = 1, most at t = {t[too_large.argmax()]}")
assert 3 < too_large[0] < 3.3 and 6 < too_large.max() < 7
assert 30 < 1 / np.sqrt(v[0]) < 33  # only m corrected: the first step is 31 times too large

# %% [markdown]
# *Notice* that the step is over six times too large around the twelfth step, just when a pretrained
# model should be moved with care, and that correcting only $m$ is far worse than correcting
# nothing.
#
# ### Exercise 4: one step of AdamW
#
# $t$ counts from 1. `theta`, `g`, `m` and `v` have one shape, the other arguments are numbers. Return
# the new θ, and the $m$ and $v$ for the next step.


# %%
def my_adamw_step(theta, g, m, v, t, lr, beta_1, beta_2, eps, weight_decay):
    """One step: the new theta, m and v; the arguments stay as they are.

    theta, g, m, v: tensors of one shape, the weights, their gradient, its average and that of its
    square; t: the number of this step, 1 for the first; the others: numbers.
    """
    # BEGIN SOLUTION
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g**2
    m_hat = m / (1 - beta_1**t)
    v_hat = v / (1 - beta_2**t)
    theta = theta - lr * weight_decay * theta - lr * m_hat / (torch.sqrt(v_hat) + eps)
    return theta, m, v
    # END SOLUTION


mt.check.adamw_step(my_adamw_step)

# %% [markdown]
# ## 7. A Transformer that trains without autograd
#
# Now all of it together. `NumpyClassifier` is embeddings, positions, two post-LN blocks, mean
# pooling and a linear map, forward and backward; `AdamW` is the step above. There is no torch in
# it. (`formulas/numpy_transformer.py`, to be read in one sitting.) Beside it runs our own
# `SequenceClassifier`, with autograd and `torch.optim.AdamW`. Both start from the same weights and
# see the same batches of real movie reviews.
#
# The reviews are short, up to 24 word pieces; the pieces that occur are renumbered, so that the
# embedding stays small.

# %%
train, _, _ = mt.data.load("movies").split(seed=0)
_, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
LONGEST, REVIEWS = 24, 600
pieces = [tokenizer.encode(text)[1:-1] for text in train.texts[:3000]]  # without [CLS] and [SEP]
short = [i for i, p in enumerate(pieces) if len(p) <= LONGEST][:REVIEWS]
number = {piece: n for n, piece in enumerate(sorted({a for i in short for a in pieces[i]}), 1)}
ids = np.zeros((len(short), LONGEST), dtype=np.int64)  # 0 is padding
for row, i in enumerate(short):
    ids[row, : len(pieces[i])] = [number[a] for a in pieces[i]]
labels = np.array([train.labels[i] for i in short])
print(f"{len(ids)} reviews, {len(number)} different word pieces")
assert len(ids) == REVIEWS and 0.4 < labels.mean() < 0.6


# %%
def fresh_pair():
    """The same classifier twice: in torch, and in NumPy with a copy of its weights."""
    torch.manual_seed(0)
    config = mt.TransformerConfig(
        vocab_size=len(number) + 1, d_model=20, n_heads=5, n_layers=2, d_ff=44, max_len=LONGEST,
        dropout=0.0, ops="formula",
    )  # fmt: skip
    torchs = mt.SequenceClassifier(mt.Encoder(config), n_classes=2, pooling="mean")
    weights = {name: a.detach().numpy() for name, a in torchs.state_dict().items()}
    return torchs, NumpyClassifier(weights, config.n_heads)


def train_both(steps, lr=1e-3, eps=1e-8, batch=16):
    """Train the two side by side; the losses of both, and how far apart each weight ends up."""
    torchs, numpys = fresh_pair()
    adam_torch = torch.optim.AdamW(torchs.parameters(), lr=lr, eps=eps, weight_decay=0.01)
    adam_numpy = AdamW(numpys.parameters, lr=lr, eps=eps, weight_decay=0.01)
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        chosen = rng.choice(len(ids), batch, replace=False)
        x, y = ids[chosen], labels[chosen]

        loss = torch.nn.functional.cross_entropy(torchs(torch.from_numpy(x)), torch.from_numpy(y))
        adam_torch.zero_grad()
        loss.backward()
        adam_torch.step()

        loss_numpy, grads = numpys.loss_and_gradients(x, y)
        adam_numpy.step(grads)
        losses.append((loss.item(), loss_numpy))
    apart = {
        name: float(abs(p.detach().numpy() - numpys.parameters[name]).max())
        for name, p in torchs.named_parameters()
    }
    return *np.array(losses).T, apart


by_torch, by_numpy, apart = train_both(200)

above, below = plots.figure(2, (6, 3.2))
above.plot(by_torch, color="tab:orange", linewidth=4, alpha=0.5, label="autograd, torch's AdamW")
above.plot(by_numpy, color="tab:blue", linewidth=1, label="by hand, NumPy")
above.set(xlabel="step", title="loss")
above.legend(fontsize=8, loc="upper right")
below.semilogy(np.maximum(abs(by_torch - by_numpy), 1e-17), ".", markersize=3)
below.axhline(1e-9, color="black", linewidth=0.8)
below.set(xlabel="step", title="difference of the two", ylim=(1e-18, 1e-7))

assert by_numpy[-20:].mean() < by_numpy[:20].mean() / 3, "it learns"
assert abs(by_torch - by_numpy).max() < 1e-9
assert max(apart.values()) < 1e-8

# %% [markdown]
# *Notice* the scale on the right: far below the line at $10^{-9}$. After 200 steps, each of
# which starts from the result of the one before, two programs that share no line of backward code
# have the same loss, and all weights agree to $10^{-8}$.
#
# (The loss on 600 reviews says nothing about others; the notebooks on fine-tuning are about that.)
#
# ### Which weights differ most, and why
#
# Not all are equally close. Sort them:

# %%
furthest = sorted(apart, key=apart.get, reverse=True)
for name in furthest[:4]:
    print(f"{name:42} below 1e{math.ceil(math.log10(apart[name]))}")
key_biases = [name for name in apart if name.endswith("W_K.bias")]
assert set(furthest[:2]) == set(key_biases)
assert all(apart[name] > 3 * apart[furthest[2]] for name in key_biases)

# %% [markdown]
# The two biases of the keys lead, far ahead of all others. This is no accident: **their gradient is
# zero**. A constant $b$ added to every key adds $q_i \cdot b$ to every score of query $i$, to all
# of them the same, and softmax does not see it. What the computer gets instead of that zero is
# rounding error, about $10^{-17}$, and rounding differs from program to program.
#
# Now think of AdamW: it divides by $\sqrt{\hat v}$, and so makes steps of size $\eta$ out of *any*
# gradient, even one that is nothing but rounding. What prevents this is $\epsilon = 10^{-8}$ in the
# denominator, a billion times larger than that noise. Take it away:

# %%
by_torch_0, by_numpy_0, apart_0 = train_both(60, eps=1e-30)
others = max(error for name, error in apart_0.items() if name not in key_biases)
print(f"key biases are apart by {min(apart_0[name] for name in key_biases):.0e} and more")
assert all(apart_0[name] > 1e-3 for name in key_biases)
assert others < 1e-8
assert abs(by_torch_0 - by_numpy_0).max() < 1e-9

# %% [markdown]
# *Notice* that the key biases now wander off, in each program in a direction of its own, driven by
# rounding alone, while all other weights and the loss still agree: the biases have no effect.
# $\epsilon$ is not only there to prevent division by zero; it also says which gradients are too
# small to be believed. And a difference between two programs is not always a mistake in one of
# them: first ask whether the quantity means anything.
#
# (Many later models have no biases in these maps, T5 among them, and lose nothing.)
#
# ## 8. The formulas, our code, the proof
#
# The ledger compares the derivative of every formula with autograd's. Its last column, "by-hand
# grad", is what this notebook was about. Errors up to $10^{-9}$ are allowed.

# %%
report = mt.verify(["softmax", "layer_norm", "attention", "multi_head_attention", "post_ln_block"])
for id, errors in report.rows.items():
    print(f"{id:22} by-hand grad below 1e{math.ceil(math.log10(errors['by-hand grad']))}")
assert report.ok
assert all(errors["by-hand grad"] < 1e-12 for errors in report.rows.values())

# %% [markdown]
# ## What to read next
#
# - `formulas/gradients.py` and `formulas/block_gradients.py`, each docstring a derivation; then
#   `formulas/numpy_transformer.py`.
# - Notebook 10, fine-tuning BERT: a real model trained with the same two steps, cross-entropy and
#   AdamW.
# - Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors":
#   where it comes from.
# - Xiong et al. 2020, "On layer normalization in the Transformer architecture": pre-LN, post-LN and
#   warm-up.
# - Loshchilov and Hutter 2019, "Decoupled weight decay regularization": the W of AdamW.
