# %% [markdown]
# # 02 Multi-head attention
#
# One attention gives each token one average. But a word has several things to look for at once: its
# article, its verb, what a pronoun refers to. So a Transformer runs several small attentions side
# by side and mixes their answers:
#
# $$\mathrm{MultiHeadAttention}(x, z) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O,
# \qquad \mathrm{head}_i = \mathrm{Attention}(x W_i^Q,\ z W_i^K,\ z W_i^V)$$
#
# The formula is easy, but one line of its code is the most common mistake in self-written
# Transformers: the split into heads. You will see it, make it, and measure what it does.
#
# It covers `MultiHeadAttention` and `head_i` in section 4 of the article, which are section 3.2.2
# of Vaswani et al. 2017.
#
# *Runs in under half a minute on two cores. Needs `make data` once, for the last section.*

# %%
import torch
from torch import nn

import minitransformer as mt
from minitransformer import plots

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. Where $Q$, $K$ and $V$ come from
#
# A token arrives as a vector of $d_{model}$ numbers. What it asks, what it can be found by and what
# it says are three different things, so three matrices make them: $xW^Q$, $zW^K$, $zW^V$.
# With $z = x$ a sequence attends to itself (*self-attention*); in a decoder $z$ is another sequence
# (*cross-attention*). The three matrices are all that attention has to learn.

# %%
d_model, n_heads, d_k = 20, 5, 4
queries, keys = 7, 11
x, z = torch.randn(queries, d_model), torch.randn(keys, d_model)
W_Q, W_K, W_V, W_O = (torch.randn(d_model, d_model) / d_model**0.5 for _ in range(4))

plots.matrices(
    ("$x$", x, "queries", "$d_{model}$"), "×",
    ("$W_1^Q$", W_Q[:, :d_k], "$d_{model}$", "$d_k$"), "=",
    ("$Q_1$", x @ W_Q[:, :d_k], "queries", "$d_k$"),
)  # fmt: skip

# %% [markdown]
# *Notice* how narrow a head is: it sees all 20 numbers of a token and keeps only 4 of its own making.
#
# ## 2. Many small heads cost what one large one does
#
# With $h$ heads, each gets $d_k = d_{model}/h$ numbers. The $h$ narrow matrices $W_i^Q$ stand side
# by side in one square matrix, so one large product computes all heads at once:
#
# $$x\,[\,W_1^Q\ W_2^Q \cdots W_h^Q\,] = [\,xW_1^Q\ \ xW_2^Q \cdots xW_h^Q\,]$$

# %%
together = x @ W_Q
one_by_one = torch.cat([x @ W_i for W_i in W_Q.chunk(n_heads, dim=1)], dim=1)
assert torch.allclose(together, one_by_one, atol=1e-5)

sizes = {
    h: sum(p.numel() for p in mt.MultiHeadAttention(d_model, h).parameters()) for h in (1, 2, 5)
}
print("parameters by number of heads:", sizes)
assert len(set(sizes.values())) == 1

# %% [markdown]
# More heads add no parameters. They cost width instead: the more heads, the fewer numbers each has
# for comparing queries and keys.
#
# ## 3. The split into heads
#
# After the large product the numbers of all heads lie side by side in the last axis. Attention
# needs the heads on an axis of their own, which it treats like a batch. That takes two steps:
#
# | step | shape | what it does |
# | --- | --- | --- |
# | | (batch, length, $d_{model}$) | |
# | split the last axis | (batch, length, $h$, $d_k$) | names the parts; no number moves |
# | swap two axes | (batch, $h$, length, $d_k$) | heads before positions |
#
# It is tempting to ask for the last shape directly: `x.view(batch, h, length, d_k)`. The shape is
# right, and torch does not complain. Here are 4 tokens, a to d, of 6 numbers each, split into 3
# heads in both ways. Each colour is one token.

# %%
# Entry 100 t + j is number j of token t.
tokens = 100 * torch.arange(4.0)[:, None] + torch.arange(6.0)
right = tokens.view(4, 3, 2).transpose(0, 1)
wrong = tokens.view(3, 4, 2)
assert right.shape == wrong.shape == (3, 4, 2)

axes = plots.figure(3, (7, 1.9), width_ratios=(6, 8, 8))
plots.cells(tokens, "x", axes[0], "tokens", "numbers")
gap = torch.full((4, 1), torch.nan)
for ax, cut, title in zip(axes[1:], (right, wrong), ("split, then swap", "view"), strict=True):
    side_by_side = torch.cat([cut[0], gap, cut[1], gap, cut[2]], dim=1)
    plots.cells(side_by_side, title, ax, "positions", "head 1, head 2, head 3")

# %% [markdown]
# *Notice* the rows. In the middle every row of every head has one colour: position a is token a,
# in all heads. On the right the first head takes the numbers of tokens a and b only, and spreads
# them over four positions. The tokens are mixed before attention has even begun.
#
# The worst of it is that such a model trains. It has enough parameters to make something of the
# mixture, the loss falls, and nobody notices that the causal mask no longer protects anything.
# Measure it: change the last token, and see which positions change with it.


# %%
def heads_then_attention(x, split):
    """Causal self-attention with 5 heads, split one way or the other."""
    Q, K, V = (split(x @ W) for W in (W_Q, W_K, W_V))
    heads, _ = mt.scaled_dot_product_attention(Q, K, V, mt.causal_mask(x.shape[1]))
    return heads.transpose(1, 2).flatten(2)


def cut_right(y):
    return y.unflatten(-1, (n_heads, d_k)).transpose(1, 2)


def cut_wrong(y):
    return y.view(len(y), n_heads, -1, d_k)


before = torch.randn(1, 7, d_model)
after = before.clone()
after[:, 6] = torch.randn(d_model)  # the last of seven tokens
for name, split in (("right", cut_right), ("wrong", cut_wrong)):
    moved = heads_then_attention(after, split) - heads_then_attention(before, split)
    moved = [t for t in range(7) if moved[0, t].abs().max() > 1e-5]
    print(f"{name}: positions that changed with the last token: {moved}")
    assert (moved == [6]) == (name == "right")

# %% [markdown]
# ### Exercise 1: split into heads
#
# Turn `x`, of shape (batch, length, d_model), into (batch, heads, length, d_k).


# %%
def my_split_heads(x, n_heads):
    """x: (batch, length, n_heads * d_k). Returns: (batch, n_heads, length, d_k)."""
    # BEGIN SOLUTION
    batch, length, d_model = x.shape
    return x.view(batch, length, n_heads, d_model // n_heads).transpose(1, 2)
    # END SOLUTION


mt.check.split_heads(my_split_heads)

# %% [markdown]
# ### Exercise 2: merge the heads
#
# $\mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)$ puts the heads of one token side by
# side again: turn `heads`, of shape (batch, heads, length, d_k), into (batch, length, d_model).
# After a transpose the numbers no longer lie in memory in reading order, so `view` raises an error;
# `reshape` and `flatten` copy where they must.


# %%
def my_merge_heads(heads):
    """heads: (batch, n_heads, length, d_k). Returns: (batch, length, n_heads * d_k)."""
    # BEGIN SOLUTION
    return heads.transpose(1, 2).flatten(2)
    # END SOLUTION


mt.check.merge_heads(my_merge_heads)

# %% [markdown]
# ## 4. What $W^O$ is for
#
# After the concatenation head 1 owns the first $d_k$ columns, head 2 the next. Cut $W^O$ into
# bands of $d_k$ *rows* and the formula becomes a sum:
#
# $$\mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O = \sum_{i=1}^h \mathrm{head}_i\,W_i^O$$
#
# Every head writes its own contribution, $d_{model}$ numbers wide, and the contributions add up.
# This is how to read a trained model, and how to switch a head off: leave out its term.

# %%
Q, K, V = (cut_right((a @ W)[None]) for a, W in ((x, W_Q), (z, W_K), (z, W_V)))
heads, weights = mt.scaled_dot_product_attention(Q, K, V)
print("heads  ", tuple(heads.shape), "= (batch, heads, queries, d_k)")
print("weights", tuple(weights.shape), "= (batch, heads, queries, keys)")

concat = heads.transpose(1, 2).flatten(2) @ W_O
as_a_sum = sum(heads[:, i] @ W_O[i * d_k : (i + 1) * d_k] for i in range(n_heads))
assert torch.allclose(concat, as_a_sum, atol=1e-5)

# %% [markdown]
# ### Exercise 3: multi-head attention
#
# All of it, without biases. `x` is (batch, queries, d_model), `z` is (batch, keys, d_model), each
# of the four matrices is (d_model, d_model), and `keep` is a mask of shape (batch, 1, queries,
# keys) or None; return (batch, queries, d_model). `mt.scaled_dot_product_attention(Q, K, V, keep)`
# returns the output and the weights.


# %%
def my_multi_head_attention(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
    """Concat(head_1, ..., head_h) W_O, without biases and without a residual.

    x: (batch, queries, d_model), which asks; z: (batch, keys, d_model), which answers;
    W_Q, W_K, W_V, W_O: (d_model, d_model), multiplied from the right; keep: boolean,
    (batch, 1, queries, keys), True = may attend, or None.
    Returns: (batch, queries, d_model).
    """
    # BEGIN SOLUTION
    Q = my_split_heads(x @ W_Q, n_heads)
    K = my_split_heads(z @ W_K, n_heads)
    V = my_split_heads(z @ W_V, n_heads)
    heads, _ = mt.scaled_dot_product_attention(Q, K, V, keep)
    return my_merge_heads(heads) @ W_O
    # END SOLUTION


mt.check.multi_head_attention(my_multi_head_attention)

# %% [markdown]
# Now an answer with two mistakes at once. Which two?


# %%
def in_a_hurry(x, z, W_Q, W_K, W_V, W_O, n_heads, keep=None):
    Q, K, V = x @ W_Q, z @ W_K, z @ W_V
    Q, K, V = (y.view(len(y), n_heads, -1, y.shape[-1] // n_heads) for y in (Q, K, V))
    heads, _ = mt.scaled_dot_product_attention(Q, K, V, keep)
    return heads.reshape(x.shape) @ W_O


mt.check.multi_head_attention(in_a_hurry)

# %% [markdown]
# ## 5. The formula, our code, the proof

# %%
mt.ledger.show("multi_head_attention")

# %% [markdown]
# ## 6. `nn.MultiheadAttention`, and its opposite mask
#
# torch's module computes the same, with three differences: it keeps $W^Q$, $W^K$, $W^V$ in
# one tall matrix, stores each transposed (as `nn.Linear` does), and its boolean mask means the
# *opposite*: **True = blocked**. `F.scaled_dot_product_attention` in the same library means True =
# may attend. A mask handed from one to the other raises no error.

# %%
ours = mt.MultiHeadAttention(d_model, n_heads)
torchs = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
with torch.no_grad():
    torchs.in_proj_weight.copy_(torch.cat([ours.W_Q.weight, ours.W_K.weight, ours.W_V.weight]))
    torchs.in_proj_bias.copy_(torch.cat([ours.W_Q.bias, ours.W_K.bias, ours.W_V.bias]))
    torchs.out_proj.load_state_dict(ours.W_O.state_dict())

x = torch.randn(3, 7, d_model)
keep = mt.causal_mask(7)
want = ours(x, keep=keep)
same, _ = torchs(x, x, x, attn_mask=~keep)
assert torch.allclose(want, same, atol=1e-5)

# The same mask, not inverted: the first token now sees all the others but not itself.
_, weights = torchs(x, x, x, attn_mask=keep)
print(
    "weights of token 0 when the mask is handed over as it is:",
    weights[0, 0].detach().round(decimals=2),
)
assert weights[0, 0, 0] == 0

# %% [markdown]
# *Notice* that the first weight is exactly 0: a "causal" model that sees nothing but the future. (The
# last row, in which everything is blocked, is NaN there.)
#
# ## 7. Four heads of a real model
#
# all-MiniLM-L6-v2 has 6 layers with 12 heads of 32 numbers each, 72 heads in all. These four
# have each found a job. Layers and heads are counted from 1.

# %%
encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
ids = tokenizer.encode("The cat sat on the mat because it was tired.")
tokens = tokenizer.tokens(ids)
maps = torch.stack(mt.attention_maps(encoder, torch.tensor([ids])))[:, 0]  # (layers, heads, q, k)

jobs = {"token before": (1, 3), "token after": (2, 9), "its noun": (4, 2), "[CLS]": (3, 8)}
chosen = torch.stack([maps[layer - 1, head - 1] for layer, head in jobs.values()])
plots.heads(chosen, tokens, [f"{layer}.{head}: {job}" for job, (layer, head) in jobs.items()])

before, after, noun, cls = chosen
assert before.diagonal(-1).min() > 0.9  # every token but the first looks at its predecessor
assert after.diagonal(1).mean() > 0.4
assert noun[tokens.index("it")].argmax() == tokens.index("cat")
assert cls[:, 0].mean() > 0.7

# %% [markdown]
# *Notice* the sharp line just below the diagonal of the first picture: this head reads the token
# before, always with a weight above 0.9. The last one looks at `[CLS]` whatever the token. Weights
# must sum to one even when there is nothing to look for; trained models learn a place to put them
# (Clark et al. 2019 found it in BERT).
#
# Are jobs like these the rule? Count: how many of the 72 heads have, for most tokens, their
# largest weight on the token before, the token after, themselves, or `[CLS]`?

# %%
n = len(tokens)
position = torch.arange(n)
top = maps[:, :, 1:-1].argmax(-1)  # where each inner token's largest weight is
counts = {
    "the token before": (top == position[1:-1] - 1).float().mean(-1),
    "the token after": (top == position[1:-1] + 1).float().mean(-1),
    "itself": (top == position[1:-1]).float().mean(-1),
    "[CLS]": (top == 0).float().mean(-1),
}
for job, share in counts.items():
    print(f"{job:17} {int((share > 0.5).sum()):3} of 72 heads")
assert (counts["[CLS]"] > 0.5).sum() > 20

# %% [markdown]
# *Notice* how few have such a plain job, and how many look at `[CLS]` most of the time. The weights
# alone do not say whether those are idle: what a head adds also depends on the value it finds
# there. Michel et al. (2019) asked the model instead, by removing heads: many can go at little
# cost.
#
# ## What to read next
#
# - **Notebook 03, the encoder block**: what surrounds the attention, and why deep stacks need it.
# - Vaswani et al. 2017, section 3.2.2; Clark et al. 2019, "What does BERT look at?"; Michel et al.
#   2019, "Are sixteen heads really better than one?".
# - In the package: `minitransformer/model/attention.py`.
