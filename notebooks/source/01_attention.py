# %% [markdown]
# # 01 Attention
#
# One formula carries the whole Transformer:
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right) V$$
#
# This notebook builds it from left to right: the scores, the root under them, the softmax, the
# mask, the average. Each step is a few lines of code and an experiment, and three of them are
# yours to write; a check then tells you *which* mistake you made, if you made one. At the end the
# same formula reads a real sentence with the weights of a real model.
#
# It covers `Attention` in section 4 of the article, which is equation 1 of Vaswani et al. 2017,
# "Attention is all you need".
#
# *Runs in under half a minute on two cores. Needs `make data` once, for the last section.*

# %%
import math

import torch
import torch.nn.functional as F

import minitransformer as mt
from minitransformer import plots

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. A dictionary that is never sure
#
# A Python dictionary compares your question with its keys, finds the one that is equal, and hands
# you that key's value. Attention does the same with vectors, and softly. Every key is compared
# with the query, every one fits a little, and the answer is an average of all values in which the
# best fitting keys count most.
#
# Three names follow from the picture, and the paper uses them:
#
# | symbol | what it is | shape |
# | --- | --- | --- |
# | $Q$ | the questions, one row per query | (queries, $d_k$) |
# | $K$ | what each item can be found by, one row per key | (keys, $d_k$) |
# | $V$ | what each item has to say, one row per value | (keys, $d_v$) |

# %%
queries, keys, d_k, d_v = 7, 11, 4, 13  # all different, so that no axis is mistaken for another
Q, K, V = torch.randn(queries, d_k), torch.randn(keys, d_k), torch.randn(keys, d_v)

# %% [markdown]
# ## 2. The scores: $QK^\top$
#
# How well does key $j$ fit query $i$? By their dot product, $\sum_l Q_{il} K_{jl}$: large when
# the two vectors point the same way, negative when they point apart. All pairs at once are one
# matrix product.

# %%
scores = Q @ K.T
plots.matrices(
    ("$Q$", Q, "queries", "$d_k$"), "×",
    ("$K^\\top$", K.T, "$d_k$", "keys"), "=",
    ("$QK^\\top$", scores, "queries", "keys"),
)  # fmt: skip
assert scores.shape == (queries, keys)
assert torch.allclose(scores[2, 5], sum(Q[2, m] * K[5, m] for m in range(d_k)))

# %% [markdown]
# *Notice* what disappears: $d_k$ is summed away. What remains has a row for every query and a
# column for every key, and so it stays until the end. Red is positive, blue negative.
#
# ## 3. Why the root: $\sqrt{d_k}$
#
# Suppose the numbers in $Q$ and $K$ are independent with mean 0 and variance 1. One product
# $Q_{il}K_{jl}$ then has mean 0 and variance 1 too. A score adds up $d_k$ of them, and variances of
# independent numbers add:
#
# $$\mathrm{Var}\left(\sum_{l=1}^{d_k} Q_{il} K_{jl}\right) = d_k, \qquad\text{so the typical score
# is } \sqrt{d_k}.$$
#
# Wide heads would have large scores for no other reason than being wide. Dividing by $\sqrt{d_k}$
# brings the variance back to 1, whatever the width. Do not take it on trust; measure it. The second
# picture shows why anyone cares: what a softmax makes of 16 such scores.

# %%
widths = [1, 4, 16, 64, 256, 1024]
spread, largest = {"raw": [], "scaled": []}, {"raw": [], "scaled": []}
for width in widths:
    q, k = torch.randn(400, 1, width), torch.randn(400, 16, width)
    raw = (q @ k.mT).squeeze(1)  # 400 queries with 16 keys each
    for name, s in (("raw", raw), ("scaled", raw / math.sqrt(width))):
        spread[name].append(float(s.std()))
        largest[name].append(float(s.softmax(-1).amax(-1).mean()))

left, right = plots.figure(2, (6, 3))
for name, style in (("raw", "o-"), ("scaled", "s--")):
    label = "$QK^\\top$" if name == "raw" else "$QK^\\top/\\sqrt{d_k}$"
    left.loglog(widths, spread[name], style, label=label)
    right.semilogx(widths, largest[name], style, label=label)
left.set(xlabel="$d_k$", title="standard deviation of the scores")
right.set(xlabel="$d_k$", title="largest of 16 weights", ylim=(0, 1))
left.legend()

for width, raw, scaled in zip(widths, spread["raw"], spread["scaled"], strict=True):
    assert 0.9 < raw / math.sqrt(width) < 1.1, "the raw scores grow like the root of d_k"
    assert 0.9 < scaled < 1.1, "the scaled ones do not grow"
assert largest["raw"][-1] > 0.9 and largest["scaled"][-1] < 0.4

# %% [markdown]
# *Notice* the slope on the left: 32 times the width gives about 6 times the spread, a square root.
# On the right, without the root, a wide head puts almost all of its weight on one key before it has
# learnt anything at all. And it can hardly learn: the derivative of a weight $w$ with respect to
# its own score is $w(1-w)$, which vanishes at both ends.

# %%
q, k = torch.randn(400, 1, 1024), torch.randn(400, 16, 1024)
for name, scale in (("without the root", 1.0), ("with it", math.sqrt(1024))):
    w = ((q @ k.mT) / scale).softmax(-1)
    slope = float((w * (1 - w)).sum(-1).mean())
    print(f"sum of the derivatives w(1-w) at d_k = 1024, {name}: {slope:.2f}")
    assert (slope < 0.1) if scale == 1.0 else (slope > 0.7)

# %% [markdown]
# ### Exercise 1: the scores
#
# Write $QK^\top/\sqrt{d_k}$. Your function is called with batches of several heads, `Q` of shape
# (batch, heads, queries, d_k) and `K` of shape (batch, heads, keys, d_k), and returns the scores,
# of shape (batch, heads, queries, keys). In torch, `K.mT` swaps the last two axes and leaves the
# others alone.


# %%
def my_scaled_scores(Q, K):
    """QKᵀ/√d_k.

    Q: (batch, heads, queries, d_k); K: (batch, heads, keys, d_k).
    Returns: (batch, heads, queries, keys).
    """
    # BEGIN SOLUTION
    return Q @ K.mT / math.sqrt(Q.shape[-1])
    # END SOLUTION


mt.check.scaled_scores(my_scaled_scores)

# %% [markdown]
# ## 4. From scores to weights: softmax
#
# An average needs weights that are positive and sum to one. The exponential makes every score
# positive, and a division makes each row sum to one:
#
# $$\mathrm{softmax}(s)_j = \frac{e^{s_j}}{\sum_m e^{s_m}}$$
#
# Adding a constant to all scores changes nothing, since $e^{s+c} = e^s e^c$ and the factor $e^c$
# cancels. That helps numerically: subtract the largest score of the row, and no exponential is ever
# above 1.

# %%
s = torch.tensor([1.0, 2.0, 3.0])
print("softmax(1, 2, 3)         ", s.softmax(-1))
print("softmax(1001, 1002, 1003)", (s + 1000).softmax(-1))

naive = torch.exp(s + 1000) / torch.exp(s + 1000).sum()
print("the formula, literally   ", naive, " exp(1000) is", float(torch.exp(s + 1000)[0]))

assert torch.equal(s.softmax(-1), (s + 1000).softmax(-1))
assert naive.isnan().all()

# %% [markdown]
# ## 5. Masks: what must stay hidden
#
# Two kinds of key must stay hidden: *padding*, which only fills up short sentences, and in a
# decoder the *future*, which is what it learns to predict. Here a mask is called `keep`. It is
# boolean, and **True means: may attend**.
#
# The mask must act *before* the softmax: a hidden score becomes $-\infty$, and $e^{-\infty} = 0$.
# Zeroing weights afterwards would leave rows that no longer sum to one.

# %%
tokens = ["the", "cat", "sat", "on", "the", "mat"]
n = len(tokens)
scores = torch.randn(n, n)
causal = mt.causal_mask(n)
weights = scores.masked_fill(~causal, -math.inf).softmax(-1)

left, right = plots.figure(2, (6, 3))
plots.attention(scores.softmax(-1), tokens, title="no mask", ax=left)
plots.attention(weights, tokens, title="causal mask", ax=right)
right.set(ylabel="")

assert (weights[~causal] == 0).all()
assert torch.allclose(weights.sum(-1), torch.ones(n))

# %% [markdown]
# *Notice* the upper triangle on the right: empty. The first token can only look at itself, so its
# weight is 1; each later row shares its weight among one key more.
#
# ### A query with nothing to look at
#
# If every key of a row is hidden, each exponential is 0 and the softmax is $0/0$. One such row,
# perhaps that of a padded query nobody looks at, is enough to spoil a training step: NaN times 0 is
# NaN, and the gradient of every *value* is a sum over all queries, that one included.

# %%
hidden = torch.tensor([[True, True], [False, False]])  # the second query may see nothing
values = torch.randn(2, 3, requires_grad=True)
w = torch.zeros(2, 2).masked_fill(~hidden, -math.inf).softmax(-1)
print(w)
output = w @ values
output[0].sum().backward()  # the loss uses the good row only
print("gradient of the values:", values.grad, sep="\n")
assert values.grad.isnan().all()

# %% [markdown]
# The rule in this package, which torch's own fused kernel also follows: such a row gives zeros, and
# finite gradients. One way is to give a row without any key harmless scores and to zero its weights
# afterwards.
#
# ### Exercise 2: softmax with a mask
#
# Write the softmax over the last axis of `scores`, of shape (..., queries, keys), keeping only the
# keys where the boolean `keep` of the same shape is True (`None`: all of them). Return the weights,
# of that shape too. Scores may be in the tens of thousands, and a row may have nothing to keep. You
# may call `torch.softmax`.


# %%
def my_softmax(scores, keep=None):
    """The weights, which sum to 1 over the kept keys; zeros for a query that has none.

    scores: (batch, queries, keys); keep: a boolean mask of the same shape, True = may attend, or
    None, and then everything is kept. Any score may be as large as 30,000, hidden ones too.
    Returns: (batch, queries, keys).
    """
    # BEGIN SOLUTION
    if keep is None:
        return torch.softmax(scores, -1)
    some = keep.any(-1, keepdim=True)  # has this query any key at all?
    weights = torch.softmax(scores.masked_fill(~keep & some, -math.inf), -1)
    return weights * some
    # END SOLUTION


mt.check.softmax(my_softmax)

# %% [markdown]
# ## 6. The average: times $V$
#
# Row $i$ of the weights times $V$ is $\sum_j w_{ij} V_j$: an average of all values, weighted by how
# well their keys fit query $i$. Nothing else happens. There is no parameter in the whole formula;
# what a Transformer learns is how to make $Q$, $K$ and $V$ (notebook 02).

# %%
weights = (Q @ K.T / math.sqrt(d_k)).softmax(-1)
output = weights @ V
plots.matrices(
    ("weights", weights, "queries", "keys"), "×",
    ("$V$", V, "keys", "$d_v$"), "=",
    ("output", output, "queries", "$d_v$"),
)  # fmt: skip
assert (output <= V.amax(0) + 1e-6).all() and (output >= V.amin(0) - 1e-6).all()

# %% [markdown]
# *Notice* that the weights are all of one colour: none is negative. An average never leaves the
# range of what it averages, column by column; the last line of the cell asserts it. (Each matrix has
# its own colour scale.)
#
# ### Exercise 3: attention
#
# Put the three parts together: `Q` is (..., queries, d_k), `K` is (..., keys, d_k), `V` is (...,
# keys, d_v), `keep` is (..., queries, keys) or None, and the output is (..., queries, d_v). You may
# use your own functions from above.


# %%
def my_attention(Q, K, V, keep=None):
    """softmax(QKᵀ/√d_k) V, over the kept keys.

    Q: (batch, heads, queries, d_k); K: (batch, heads, keys, d_k); V: (batch, heads, keys, d_v);
    keep: boolean, (batch, heads, queries, keys), True = may attend, or None.
    Returns: (batch, heads, queries, d_v); zeros for a query that may attend to nothing.
    """
    # BEGIN SOLUTION
    return my_softmax(my_scaled_scores(Q, K), keep) @ V
    # END SOLUTION


mt.check.attention(my_attention)

# %% [markdown]
# ## 7. Break it on purpose
#
# A check that only says "wrong" teaches little. Here are three answers that look reasonable.
# Before you read what the check says, find the mistake yourself.


# %%
def first_try(Q, K, V, keep=None):
    scores = Q @ K.mT / Q.shape[-1]
    if keep is not None:
        scores = scores.masked_fill(~keep, -math.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ V


mt.check.attention(first_try)


# %%
def second_try(Q, K, V, keep=None):
    weights = (Q @ K.mT / math.sqrt(Q.shape[-1])).softmax(-1)
    if keep is not None:
        weights = weights * keep
    return weights @ V


mt.check.attention(second_try)


# %%
def third_try(Q, K, V, keep=None):
    scores = Q @ K.mT / math.sqrt(Q.shape[-1])
    if keep is not None:
        scores = scores.masked_fill(~keep, -1e9)
    return scores.softmax(-1) @ V


mt.check.attention(third_try)

# %% [markdown]
# The third one is found in many textbooks and libraries, and works almost every day of the year.
#
# ## 8. The formula, our code, the proof
#
# This is how the package itself writes it. The numbers beside it were measured just now: against
# the same formula in plain loops over indices, against torch's own function, in two precisions,
# and the same for the gradients.

# %%
mt.ledger.show("attention")

# %% [markdown]
# ## 9. torch has it too
#
# `F.scaled_dot_product_attention` is this formula in one fused kernel, with the same convention for
# a boolean mask: True = may attend. (The module `nn.MultiheadAttention` has the opposite one; more in
# notebook 02.)

# %%
Q, K, V = torch.randn(3, 5, 7, 4), torch.randn(3, 5, 11, 4), torch.randn(3, 5, 11, 13)
keep = torch.rand(3, 5, 7, 11) < 0.6
keep[:, :, 2] = False  # a query without keys

ours, weights = mt.scaled_dot_product_attention(Q, K, V, keep)
torchs = F.scaled_dot_product_attention(Q, K, V, attn_mask=keep)

assert torch.allclose(ours, torchs, atol=1e-5)
assert (ours[:, :, 2] == 0).all() and (torchs[:, :, 2] == 0).all()
print("the same, and zeros for the query without keys")

# %% [markdown]
# ## 10. A real sentence
#
# all-MiniLM-L6-v2 is a small model like BERT that turns sentences into vectors. Its weights are
# loaded into this package's code, and what follows is the matrix $\mathrm{softmax}(QK^\top/\sqrt{d_k})$
# of one of its heads, the second of layer 4, for one sentence. Who is tired: the cat or the mat?

# %%
encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")


def look(text, layer, head):
    """The tokens of a text, and one head's weights; layers and heads are counted from 1."""
    ids = tokenizer.encode(text)
    maps = mt.attention_maps(encoder, torch.tensor([ids]))  # each (batch, heads, queries, keys)
    return tokenizer.tokens(ids), maps[layer - 1][0, head - 1]


tokens, weights = look("The cat sat on the mat because it was tired.", layer=4, head=2)
plots.attention(weights, tokens, title="all-MiniLM-L6-v2, layer 4, head 2")

the, cat, on, mat, it = (tokens.index(word) for word in ("the", "cat", "on", "mat", "it"))
assert weights[it].argmax() == cat and weights[it, cat] > 3 * weights[it, mat]
assert weights[the].argmax() == cat and weights[on].argmax() == mat

# %% [markdown]
# *Notice* the row "it": the largest weight lies on "cat", although "mat" is nearer. And not only
# there: "the" looks at its "cat", "on" at its "mat". Nobody told the model what a pronoun or a
# preposition is. (The dark first column is a habit of trained models: a row must sum to one even
# when there is nothing to look for, and `[CLS]` is where such weight goes.)
#
# ### How not to fool yourself
#
# A picture that fits the story proves little; change one word, and see whether the picture changes
# with the story. First the cat's sentence with another reason, then a second pair built in the same
# way.

# %%
for text, first, second in (
    ("The cat sat on the mat because it was tired.", "cat", "mat"),
    ("The cat sat on the mat because it was soft.", "cat", "mat"),
    ("The trophy did not fit in the suitcase because it was too big.", "trophy", "suitcase"),
    ("The trophy did not fit in the suitcase because it was too small.", "trophy", "suitcase"),
):
    tokens, w = look(text, layer=4, head=2)
    one, other = (float(w[tokens.index("it"), tokens.index(word)]) for word in (first, second))
    print(f"{one:.2f} {first:7} {other:.2f} {second:9} {text}")
    if "tired" in text or "trophy" in text:
        assert one > other
    if "soft" in text:
        assert one < other

tokens, w = look("The cat sat on the mat because it was tired.", layer=6, head=12)
print(
    f"\nlayer 6, head 12: {w[:, tokens.index('cat')].mean():.2f} on 'cat', averaged over all rows"
)
assert (w.argmax(-1) == tokens.index("cat")).sum() > len(tokens) - 3

# %% [markdown]
# *Notice* three things. With "soft" the head leaves the cat, as it should. With "small" it ought
# to leave the trophy, and it does not: this head follows something that often goes with the right
# noun, not the meaning. And in the last line another head puts most of the weight of "it" on "cat",
# but also that of nearly every other row; looking only at the row "it" would deceive you.
#
# ## What to read next
#
# - **Notebook 02, multi-head attention**: where $Q$, $K$ and $V$ come from, and why several small
#   attentions are better than one large one.
# - Vaswani et al. 2017, section 3.2.1; footnote 4 there is the argument of section 3 above.
# - In the package: `minitransformer/formulas/by_hand.py`, the same formula index by index.
