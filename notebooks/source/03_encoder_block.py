# %% [markdown]
# # 03 The encoder block
#
# Attention lets tokens exchange what they know. Stack it naively and nothing can be trained: after
# a dozen layers neither signal nor gradient is left. Two plain ideas repair that, a sum and a
# normalisation, and the article has both in one line:
#
# $$\mathrm{Encoder}(x) = \mathrm{LayerNorm}(x + \mathrm{MultiHeadAttention}(x))$$
#
# The block of Vaswani et al. 2017 adds a second half, a small network at every position. Here you
# build LayerNorm, the feed-forward network and the block, measure what each is for, and compare
# the two orders in which they are put together: post-LN (the paper, BERT) and pre-LN (GPT-2).
#
# It covers `Encoder(x)` in section 4 of the article; sections 3.1 and 3.3 of Vaswani et al. 2017.
#
# *Runs in under half a minute on two cores. Needs `make data` once, for the last section.*

# %%
import torch
import torch.nn.functional as F
from torch import nn

import minitransformer as mt
from minitransformer import plots

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. LayerNorm: every token back to one scale
#
# Take the $d$ numbers of one token. Subtract their mean, divide by their standard deviation. Then
# let the model undo it where it wants, with a gain $\gamma$ and a shift $\beta$ for each of the $d$
# places:
#
# $$\mathrm{LayerNorm}(x)_j = \gamma_j \frac{x_j - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta_j,
# \qquad \mu = \frac1d \sum_j x_j, \qquad \sigma^2 = \frac1d \sum_j (x_j - \mu)^2$$
#
# $\epsilon$ is there for a token whose numbers are all equal, whose variance is 0.

# %%
length, d_model = 7, 20
x = torch.randn(length, d_model) * torch.tensor([0.2, 1, 3, 1, 0.5, 1, 1])[:, None]
x[3] += 4  # one token is large, one small, one far from zero
y = F.layer_norm(x, (d_model,))
plots.matrices(
    ("$x$", x, "tokens", "$d_{model}$"),
    "→",
    ("LayerNorm$(x)$", y, "tokens", "$d_{model}$"),
)
assert y.mean(-1).abs().max() < 1e-5
assert (y.var(-1, correction=0) - 1).abs().max() < 1e-3

# %% [markdown]
# *Notice* that the rows are treated one by one. The pale first token and the loud third one come out
# alike, and the fourth, which lay far from zero, is brought back to it. No token knows about the
# others: that is what distinguishes *layer* from *batch* normalisation.
#
# ### Two ways to be slightly wrong
#
# torch's `.std()` divides by $d-1$ unless told not to, and many hand-written versions put
# $\epsilon$ outside the root. Neither shows in training. Both will spoil your day when you load
# somebody else's weights. How far off they are depends on the width:

# %%
for d in (4, 20, 64, 768):
    row = torch.randn(1, d, dtype=torch.float64)
    right = (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt()
    wrong = (row - row.mean()) / (row.std() + 1e-5)
    off = float((wrong / right - 1).abs().max())
    print(f"d = {d:3}: off by {off:.2%}")
    assert abs(off - (1 - ((d - 1) / d) ** 0.5)) < 1e-4

# %% [markdown]
# *Notice* that at BERT's width of 768 the error is less than a thousandth, far below what a glance
# at the output, or a test with a loose tolerance, would find. So the check below is strict.
#
# ### Exercise 1: LayerNorm
#
# Normalise over the last axis. `x` is (batch, length, d_model), `gamma` and `beta` are (d_model),
# `eps` is a number; return the shape of `x`.


# %%
def my_layer_norm(x, gamma, beta, eps):
    """γ ⊙ (x - μ) / √(σ² + ε) + β over the last axis.

    x: (batch, length, d_model); gamma, beta: (d_model,); eps: a number.
    Returns: (batch, length, d_model).
    """
    # BEGIN SOLUTION
    mu = x.mean(-1, keepdim=True)
    variance = ((x - mu) ** 2).mean(-1, keepdim=True)
    return gamma * (x - mu) / torch.sqrt(variance + eps) + beta
    # END SOLUTION


mt.check.layer_norm(my_layer_norm)

# %% [markdown]
# Here are both slight errors at once, as they appeared for years in a well-known tutorial:


# %%
def tutorial_layer_norm(x, gamma, beta, eps):
    mean = x.mean(-1, keepdim=True)
    std = x.std(-1, keepdim=True)
    return gamma * (x - mean) / (std + eps) + beta


mt.check.layer_norm(tutorial_layer_norm)

# %% [markdown]
# ## 2. The residual: why $x\,+$
#
# A block does not replace $x$, it adds to it. For the gradient that makes all the difference. If
# $y = f(x)$, the gradient is multiplied by $f'$ at every layer, and a product of many small
# factors is nothing. If $y = x + f(x)$, the factor is $1 + f'$: there is always a path along which
# nothing is lost.
#
# But a sum also grows, layer by layer. So compare three stacks of fresh layers: without the sum,
# with it, and with a norm after it. How large is the gradient that reaches the *input*?


# %%
def make_blocks(depth, norm_position, d_model=64):
    """Fresh blocks, with the usual Xavier weights."""
    config = mt.TransformerConfig(
        d_model=d_model, n_heads=4, d_ff=4 * d_model, norm_position=norm_position, dropout=0.0
    )
    blocks = nn.ModuleList(mt.EncoderBlock(config) for _ in range(depth))
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return blocks


def input_gradient(depth, step):
    """Size of the gradient at the input of a stack, relative to that at its output."""
    x = torch.randn(8, 16, 64, requires_grad=True)
    h = x
    for block in make_blocks(depth, "post"):
        for sublayer in (block.attention, block.feed_forward):
            h = step(h, sublayer)
    at_output = torch.randn_like(h)
    (h * at_output).sum().backward()
    return float(x.grad.norm() / at_output.norm())


steps = {
    "f(x)": lambda x, f: f(x),
    "x + f(x)": lambda x, f: x + f(x),
    "LayerNorm(x + f(x))": lambda x, f: F.layer_norm(x + f(x), (64,)),
}
depths = [2, 4, 8, 16, 24]
reached = {name: [input_gradient(n, step) for n in depths] for name, step in steps.items()}

ax = plots.figure(size=(6, 3.5))
for (name, values), style in zip(reached.items(), ("s--", "^:", "o-"), strict=True):
    ax.semilogy(depths, values, style, label=name)
ax.set(xlabel="blocks", xticks=depths, title="gradient that reaches the input")
ax.legend()

replaced, added, normed = reached.values()
assert replaced[-1] < 1e-4, "without the sum it vanishes"
assert added[-1] > 1e4, "with the sum alone it explodes"
assert all(0.01 < g < 100 for g in normed), "with sum and norm it stays"

# %% [markdown]
# *Notice* the scale on the left. Without the sum every block costs a constant factor. With the sum
# alone nothing is lost, but the stream grows, the scores of the next attention grow with its square,
# and the gradient gets out of hand in the other direction. Sum *and* norm: the line is nearly
# flat. That is the article's formula, and the reason it has both.
#
# ## 3. The feed-forward network
#
# Attention only averages values; its one nonlinearity is the softmax. The second half of a block
# works on every position by itself, with one nonlinearity in the middle:
#
# $$\mathrm{FFN}(x) = \max(0,\ xW_1 + b_1)\,W_2 + b_2$$
#
# The inner width $d_{ff}$ is four times $d_{model}$ in the paper, in BERT and in GPT-2.

# %%
block = mt.EncoderBlock(mt.TransformerConfig())  # the paper's sizes: 512 wide, 2048 inside
sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in block.named_children()}
whole = sum(sizes.values())
for name, size in sizes.items():
    print(f"{name:13} {size:9,} parameters, {size / whole:4.0%}")
assert 0.64 < sizes["feed_forward"] / whole < 0.68

# %% [markdown]
# *Notice* that this network is two thirds of a block, though attention gets all the fame.
#
# ### Exercise 2: the feed-forward network
#
# `x` is (batch, length, d_model), `W_1` is (d_model, d_ff), `b_1` is (d_ff), `W_2` is
# (d_ff, d_model) and `b_2` is (d_model); return the shape of `x`.


# %%
def my_feed_forward(x, W_1, b_1, W_2, b_2):
    """max(0, xW_1 + b_1) W_2 + b_2; max(0, ...) is called ReLU.

    x: (batch, length, d_model); W_1: (d_model, d_ff); b_1: (d_ff,); W_2: (d_ff, d_model);
    b_2: (d_model,).
    Returns: (batch, length, d_model).
    """
    # BEGIN SOLUTION
    return torch.relu(x @ W_1 + b_1) @ W_2 + b_2
    # END SOLUTION


mt.check.feed_forward(my_feed_forward)

# %% [markdown]
# ## 4. The block, in two orders
#
# **post-LN**, the paper and BERT: add, then norm.
#
# $$a = \mathrm{LN}_1(x + \mathrm{MHA}(x)), \qquad y = \mathrm{LN}_2(a + \mathrm{FFN}(a))$$
#
# **pre-LN**, GPT-2 and most that came after: normalise the sublayer's input, and leave the sum
# alone.
#
# $$a = x + \mathrm{MHA}(\mathrm{LN}_1(x)), \qquad y = a + \mathrm{FFN}(\mathrm{LN}_2(a))$$
#
# The article's `Encoder(x)` is the first half of the first. The two orders are so easily confused
# that a well-known tutorial explains one and implements the other.
#
# ### Exercise 3: both blocks
#
# The parts are given as functions: call `attention(x)`, `feed_forward(x)`, `norm_1(x)`,
# `norm_2(x)`. `norm_position` is `"post"` or `"pre"`. `x` is (batch, length, d_model); return the
# same shape.


# %%
def my_encoder_block(x, attention, feed_forward, norm_1, norm_2, norm_position):
    """One block, with the norms where norm_position says.

    x: (batch, length, d_model); attention, feed_forward, norm_1, norm_2: functions of one tensor
    (batch, length, d_model) that return the same shape; norm_position: "post" or "pre".
    Returns: (batch, length, d_model).
    """
    # BEGIN SOLUTION
    if norm_position == "post":
        a = norm_1(x + attention(x))
        return norm_2(a + feed_forward(a))
    a = x + attention(norm_1(x))
    return a + feed_forward(norm_2(a))
    # END SOLUTION


mt.check.encoder_block(my_encoder_block)

# %% [markdown]
# And here is one with a single wrong letter in each formula. Its output has the right shape and a
# sensible size:


# %%
def one_letter(x, attention, feed_forward, norm_1, norm_2, norm_position):
    if norm_position == "post":
        a = norm_1(x + attention(x))
        return norm_2(x + feed_forward(a))
    a = x + attention(norm_1(x))
    return x + feed_forward(norm_2(a))


mt.check.encoder_block(one_letter)

# %% [markdown]
# ## 5. What the order changes, by depth
#
# Two measurements on fresh stacks: how large the stream is after the last block, and how large the
# gradient of the last block's $W_1$ is. (A pre-LN stack ends with one more norm, otherwise its output
# would grow with its depth.)


# %%
def measure(depth, norm_position):
    """Standard deviation of the stream after the last block, gradient norm of its W_1."""
    blocks = make_blocks(depth, norm_position)
    h = torch.randn(8, 16, 64)
    for block in blocks:
        h = block(h)
    size = float(h.detach().std())
    output = F.layer_norm(h, (64,)) if norm_position == "pre" else h
    (output * torch.randn_like(output)).sum().backward()
    return size, float(blocks[-1].feed_forward.W_1.weight.grad.norm())


depths = [2, 6, 12, 24, 48]
repeats = 3  # the mean over a few fresh stacks
results = {
    position: torch.tensor([[measure(n, position) for n in depths] for _ in range(repeats)]).mean(0)
    for position in ("post", "pre")
}
left, right = plots.figure(2, (6, 3))
for position, style in (("post", "s--"), ("pre", "o-")):
    size, gradient = results[position].T
    left.plot(depths, size, style, label=f"{position}-LN")
    right.plot(depths, gradient / gradient[0], style, label=f"{position}-LN")
left.set(xlabel="blocks", ylim=(0, None), title="size of the stream")
right.set(xlabel="blocks", ylim=(0, None), title="gradient, last block")
left.legend()

(post_size, post_gradient), (pre_size, pre_gradient) = results["post"].T, results["pre"].T
assert (post_size - 1).abs().max() < 0.05, "post-LN: the norm has the last word"
assert pre_size[-1] > 3 * pre_size[0], "pre-LN: the stream grows"
assert pre_gradient[-1] < pre_gradient[0] / 3, "and each late block matters less"
assert post_gradient[-1] > post_gradient[0] / 2

# %% [markdown]
# *Notice* on the left that pre-LN's stream grows, roughly like the root of the depth (each block adds
# something of about the same variance), while post-LN's is always 1. On the right, gradients are
# shown relative to 2 blocks: in a deep pre-LN stack a late block's gradient is a fraction of
# that in a shallow one, since the little that it adds goes into a large stream; in post-LN it stays
# as large as ever. Xiong et al. (2020) derive both, and conclude that this is why post-LN needs a
# learning rate that warms up, and pre-LN gets by without.
#
# ## 6. The formulas, our code, the proof
#
# First the article's line as it stands, then the two full blocks.

# %%
mt.ledger.show("encoder_sublayer")

# %%
mt.ledger.show("post_ln_block")

# %%
mt.ledger.show("pre_ln_block")

# %% [markdown]
# ## 7. torch has it too
#
# `nn.TransformerEncoderLayer` is the same block. Copy the weights, compare both orders. (Its masks mean
# True = blocked, as in notebook 02.)

# %%
for position in ("post", "pre"):
    config = mt.TransformerConfig(
        d_model=20, n_heads=5, d_ff=44, norm_position=position, activation="gelu", dropout=0.0
    )
    ours = mt.EncoderBlock(config)
    torchs = nn.TransformerEncoderLayer(
        20, 5, 44, 0.0, "gelu", batch_first=True, norm_first=position == "pre"
    )
    attention = ours.attention
    maps = (attention.W_Q, attention.W_K, attention.W_V)
    with torch.no_grad():
        for norm in (ours.norm_1, ours.norm_2):  # fresh norms would hide a missing gain or shift
            norm.weight.normal_()
            norm.bias.normal_()
        torchs.self_attn.in_proj_weight.copy_(torch.cat([W.weight for W in maps]))
        torchs.self_attn.in_proj_bias.copy_(torch.cat([W.bias for W in maps]))
    for theirs, mine in (
        (torchs.self_attn.out_proj, attention.W_O),
        (torchs.linear1, ours.feed_forward.W_1),
        (torchs.linear2, ours.feed_forward.W_2),
        (torchs.norm1, ours.norm_1),
        (torchs.norm2, ours.norm_2),
    ):
        theirs.load_state_dict(mine.state_dict())
    x = torch.randn(3, 7, 20)
    keep = mt.causal_mask(7)
    assert torch.allclose(ours(x, keep), torchs(x, src_mask=~keep), atol=1e-5)
    print(f"{position}-LN: the same")

# %% [markdown]
# ## 8. The blocks of a real model
#
# all-MiniLM-L6-v2 has six post-LN blocks. Here we run them by hand, formula by formula, and note
# how much each sublayer adds: $\|\mathrm{MHA}(x)\| / \|x\|$ and $\|\mathrm{FFN}(a)\| / \|a\|$,
# averaged over the tokens.

# %%
encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
encoder.eval()
ids = torch.tensor([tokenizer.encode("The cat sat on the mat because it was tired.")])
tokens = tokenizer.tokens(ids[0].tolist())


def share(update, stream):
    return float((update.norm(dim=-1) / stream.norm(dim=-1)).mean())


added = {"attention": [], "feed-forward": []}
with torch.no_grad():
    x = encoder.embeddings(ids)
    for block in encoder.blocks:
        update = block.attention(x)
        added["attention"].append(share(update, x))
        a = block.norm_1(x + update)
        update = block.feed_forward(a)
        added["feed-forward"].append(share(update, a))
        x = block.norm_2(a + update)
    assert torch.allclose(x, encoder(ids), atol=1e-5)  # by hand or by the model, the same

ax = plots.figure(size=(6, 3))
for (name, values), style in zip(added.items(), ("o-", "s--"), strict=True):
    ax.plot(range(1, 7), values, style, label=name)
ax.set(xlabel="block", ylim=(0, None), title="size of what is added, relative to the stream")
ax.legend()

pairs = zip(added["attention"], added["feed-forward"], strict=True)
assert all(0.1 < by_attention < by_network < 1.5 for by_attention, by_network in pairs)

# %% [markdown]
# *Notice* that in every block the network adds more than the attention, and that neither overwrites
# the stream: most of what is added is smaller than what is there.
#
# So a token ought to keep something of itself all the way up. Compare each token's vector at the
# bottom with those at the top: with its own, and with those of the other tokens.

# %%
with torch.no_grad():
    bottom, top = encoder.embeddings(ids)[0], encoder(ids)[0]
cosines = F.cosine_similarity(bottom[:, None], top[None], dim=-1)  # (bottom, top)
n = len(tokens)
own, others = cosines.diagonal(), cosines[~torch.eye(n, dtype=torch.bool)].view(n, n - 1).mean(-1)
for token, o, rest in zip(tokens, own, others, strict=True):
    print(f"{token:8} with itself {o:.2f}, with the others {rest:.2f}")
assert own.min() > 0.15 > others.max()

# %% [markdown]
# *Notice* that after six blocks every token still resembles what it was, and none of the others:
# its own cosine is above 0.15, the others below. Yet none is near 1. What came in between is the
# attention's exchange; these are its weights in the first and in the last block, averaged over the
# 12 heads.

# %%
first, *_, last = (layer[0].mean(0) for layer in mt.attention_maps(encoder, ids))
left, right = plots.figure(2, (7, 3.6))
plots.attention(first, tokens, title="block 1", top=0.5, ax=left)
plots.attention(last, tokens, title="block 6", top=0.5, ax=right)
right.set(ylabel="")
beside = [float(w.diagonal(-1).mean() + w.diagonal(1).mean()) for w in (first, last)]
print(f"weight on the two neighbours: block 1 {beside[0]:.2f}, block 6 {beside[1]:.2f}")
assert beside[0] > 1.4 * beside[1]

looked_at = last.mean(0)[1:-1].topk(3).indices + 1  # besides [CLS] and [SEP]
assert {tokens[i] for i in looked_at} == {"cat", "mat", "tired"}

# %% [markdown]
# *Notice* the line below the diagonal on the left: the first block looks at the neighbours of a
# word. In the last block there are columns instead: nearly all rows look at the words that carry
# the sentence, "cat", "mat" and "tired". (And at `[CLS]`; notebook 02 says why.)
#
# ## What to read next
#
# - **Notebook 06, gradients by hand**: what flows back through a block, derived on paper.
# - Xiong et al. 2020, "On layer normalization in the Transformer architecture"; Ba, Kiros and Hinton
#   2016, "Layer normalization".
# - In the package: `minitransformer/model/block.py`, which follows the formulas.
