# %% [markdown]
# # 04 The decoder block
#
# An encoder reads: every word may look at every other one. A decoder writes, from left to right,
# and cannot look at what it has not written yet. In a translation it also has somebody to listen
# to. The article puts the listening into one line, with $y$ the decoder's own stream and $z$ the
# encoder's output for the source:
#
# $$\mathrm{Decoder}(y, z) = \mathrm{LayerNorm}(y + \mathrm{MultiHeadAttention}(y, z)), \qquad
# \mathrm{head}_i = \mathrm{Attention}(y W_i^Q,\ z W_i^K,\ z W_i^V)$$
#
# The block of Vaswani et al. 2017 has three parts: self-attention that cannot see the future, the
# attention to $z$, and the feed-forward network. You build the mask, the attention to the source and
# the block, prove that no token sees the future, and make writing fast with a cache.
#
# It covers `Decoder(y, z)` in section 4 of the article; sections 3.1 and 3.2.3 of Vaswani et al. 2017.
#
# *Runs in under half a minute on two cores. Needs no data.*

# %%
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import minitransformer as mt
from minitransformer import plots

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. Why a mask
#
# Learning to write means guessing the next word, at every position of a text:
#
# | the decoder has read | and guesses |
# | --- | --- |
# | the | cat |
# | the cat | sat |
# | the cat sat | on |
#
# All these rows come from one text, so one pass over it could give all guesses at once. There is
# just one danger: while the decoder guesses the word after "cat", the word "sat" stands right
# beside it in the input. So the attention of each word ends at the word itself:
#
# $$\mathrm{keep}_{ij} = (j \le i)$$

# %%
words = ["the", "cat", "sat", "on", "the", "mat"]
n = len(words)
scores = torch.randn(n, n)
keep = mt.causal_mask(n)
left, right = plots.figure(2, (7, 3.6))
plots.attention(scores.softmax(-1), words, title="an encoder's weights", ax=left)
plots.attention(scores.masked_fill(~keep, -torch.inf).softmax(-1), words, title="causal", ax=right)
_ = right.set(ylabel="")

# %% [markdown]
# *Notice* on the right that nothing is left above the diagonal, and that the first word has nobody
# to look at but itself: its weight there is 1.
#
# ### Before the softmax, and with minus infinity
#
# One might instead compute all weights and then set those of the future to 0, or hide the scores
# with a small number, such as 0. What is wrong with each shows in the sums of the rows, in the
# weight of the future, and in how far the weights move when the future's scores change:


# %%
def zeroed_afterwards(scores):
    return scores.softmax(-1) * keep


def hidden_by_zero(scores):
    return scores.masked_fill(~keep, 0.0).softmax(-1)


def hidden_by_infinity(scores):
    return scores.masked_fill(~keep, -torch.inf).softmax(-1)


future = torch.ones(n, n).triu(1)
found = {}
for f in (zeroed_afterwards, hidden_by_zero, hidden_by_infinity):
    weights = f(scores)
    moved = float((f(scores + 5 * future) - weights).abs().max())
    leaked = float((weights * future).max())
    row = float(weights[0].sum())
    found[f.__name__] = (moved, leaked, row)
    print(
        f"{f.__name__:19} row 0 sums to {row:.2f}, the future gets {leaked:.2f}, moves {moved:.2f}"
    )

after, zero, infinity = found.values()
assert after[0] > 0.1 and after[2] < 0.9, "the sum of the softmax has seen the future"
assert zero[1] > 0.05, "e to the 0 is 1"
assert infinity[:2] == (0.0, 0.0) and abs(infinity[2] - 1) < 1e-6

# %% [markdown]
# *Notice* the first line: no hidden word has any weight, and yet the future moves the weights. The
# softmax divided by a sum that includes the future. $e^{-\infty} = 0$ is the one value that takes
# it out of numerator *and* denominator.
#
# ### Exercise 1: causal weights
#
# Later in this notebook the decoder will be given its text in pieces: a few new words, while the
# keys of all earlier ones are still there. Then there are fewer queries than keys, and the queries
# are the *last* positions. So write a mask that covers both cases:
#
# $$\mathrm{keep}_{ij} = (j \le i + (\text{keys} - \text{queries}))$$
#
# `scores` is (batch, heads, queries, keys); return the weights, in the same shape.


# %%
def my_causal_weights(scores):
    """The softmax over the keys that are not later than the query.

    scores: (batch, heads, queries, keys), where the queries are the last positions of the keys;
    any score may be as large as 30,000, a hidden one too.
    Returns: the weights, of the same shape.
    """
    # BEGIN SOLUTION
    queries, keys = scores.shape[-2:]
    keep = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return scores.masked_fill(~keep, -torch.inf).softmax(-1)
    # END SOLUTION


mt.check.causal_weights(my_causal_weights)

# %% [markdown]
# `torch.tril` and `torch.triu` are easily confused, and in torch itself one mask means *may look* and
# another *must not*. Here is one from a popular course. It trains wonderfully: the loss falls to
# nothing, since the answer is in plain sight.


# %%
def upper_half(scores):
    keep = torch.ones(scores.shape[-2:]).triu().bool()
    return scores.masked_fill(~keep, -torch.inf).softmax(-1)


mt.check.causal_weights(upper_half)

# %% [markdown]
# ## 2. Is it causal? Perturb one token and see
#
# A whole decoder has many places where the future might slip in: a mask that is forgotten in one mode, a
# norm over the wrong axis. So do not look at the mask. Change token 3, and see which outputs move.
# We do it twice, in training mode and in evaluation mode, because one well-known book masks its
# decoder in training only.

# %%
config = mt.TransformerConfig.gpt2(
    vocab_size=50, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_len=1024, init_std=0.2,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
model = mt.CausalLM(mt.Decoder(config))
ids = torch.randint(0, 50, (1, 7))
changed = ids.clone()
changed[0, 3] = (ids[0, 3] + 1) % 50

moved = {}
with torch.no_grad():
    for mode in (True, False):
        model.train(mode)
        difference = (model(changed) - model(ids)).abs().amax(-1)[0]
        moved["training" if mode else "evaluation"] = difference

ax = plots.figure(size=(6, 2.6))
for shift, (mode, difference) in zip((-0.2, 0.2), moved.items(), strict=True):
    ax.bar(torch.arange(7) + shift, difference, 0.38, label=mode)
ax.set(xlabel="position", title="how far the logits move when token 3 changes")
ax.legend()

for difference in moved.values():
    assert difference[:3].max() == 0.0 and difference[3:].min() > 0.01

# %% [markdown]
# *Notice* that positions 0 to 2 do not move at all, not by a rounding error, and that everything from
# 3 on does.
#
# ## 3. Cross-attention: the decoder asks, the encoder answers
#
# In the second attention the queries come from the decoder's stream $y$, the keys and values from
# the encoder's output $z$. It has two lengths, one weight for each pair of a target word and a
# source word, and no causal mask: the source has been there all along. The only thing to hide is
# padding.

# %%
source, target = ["die", "Katze", "saß", "auf", "der", "Matte", "[PAD]"], words
d_model, d_k = 20, 4
y, z = torch.randn(len(target), d_model), torch.randn(len(source), d_model)
W_Q, W_K, W_V = (torch.randn(d_model, d_k) / d_model**0.5 for _ in range(3))
real = torch.tensor([word != "[PAD]" for word in source])
output, weights = mt.scaled_dot_product_attention(2 * y @ W_Q, z @ W_K, z @ W_V, real)
plots.attention(
    weights, target, source, title="cross-attention, untrained", ax=plots.figure(size=(6, 3.6))
)
assert output.shape == (len(target), d_k) and weights[:, -1].max() == 0

# %% [markdown]
# *Notice* that the picture is no longer square, that every row reaches all the way to the right, and
# that the column of the padding is empty. (The weights are random; notebook 05 shows trained ones.)
#
# ### Exercise 2: cross-attention
#
# One head, without $W^O$. `y` is (batch, queries, d_model), `z` is (batch, keys, d_model), each
# matrix is (d_model, d_k), and `keep` is (batch, 1, keys), False where the source is padding;
# return (batch, queries, d_k).


# %%
def my_cross_attention(y, z, W_Q, W_K, W_V, keep):
    """softmax((y W_Q)(z W_K)ᵀ/√d_k) (z W_V), over the kept positions of z.

    y: (batch, queries, d_model); z: (batch, keys, d_model); W_Q, W_K, W_V: (d_model, d_k);
    keep: boolean, (batch, 1, keys), True = a real token. Every text has at least one.
    Returns: (batch, queries, d_k).
    """
    # BEGIN SOLUTION
    Q, K, V = y @ W_Q, z @ W_K, z @ W_V
    scores = Q @ K.mT / K.shape[-1] ** 0.5
    return scores.masked_fill(~keep, -torch.inf).softmax(-1) @ V
    # END SOLUTION


mt.check.cross_attention(my_cross_attention)

# %% [markdown]
# With a single letter wrong, $y W^V$ instead of $z W^V$, the decoder picks the right places of the
# source and then reads its *own* text there. As long as both are of equal length, nothing crashes:


# %%
def own_values(y, z, W_Q, W_K, W_V, keep):
    scores = (y @ W_Q) @ (z @ W_K).mT / W_K.shape[-1] ** 0.5
    return scores.masked_fill(~keep, -torch.inf).softmax(-1) @ (y @ W_V)


mt.check.cross_attention(own_values)

# %% [markdown]
# ## 4. The block
#
# Three sublayers, each with a residual and a norm. **post-LN**, the paper:
#
# $$a = \mathrm{LN}_1(y + \mathrm{MHA}(y)), \quad c = \mathrm{LN}_c(a + \mathrm{MHA}_c(a, z)), \quad
# y' = \mathrm{LN}_2(c + \mathrm{FFN}(c))$$
#
# **pre-LN**, T5:
#
# $$a = y + \mathrm{MHA}(\mathrm{LN}_1(y)), \quad c = a + \mathrm{MHA}_c(\mathrm{LN}_c(a), z), \quad
# y' = c + \mathrm{FFN}(\mathrm{LN}_2(c))$$
#
# The article's `Decoder(y, z)` is the middle of the first. GPT-2 leaves the middle out: there
# is no encoder to listen to.
#
# ### Exercise 3: both blocks
#
# The parts are given as functions: `attention(y)`, which is causal already, `cross_attention(y, z)`,
# `feed_forward(y)`, and three norms. `norm_position` is `"post"` or `"pre"`. `y` is (batch, length,
# d_model), `z` is (batch, keys, d_model); return the shape of `y`.


# %%
def my_decoder_block(
    y, z, attention, cross_attention, feed_forward, norm_1, norm_cross, norm_2, norm_position
):
    """One block of three sublayers, with the norms where norm_position says.

    y: (batch, length, d_model), the decoder's stream; z: (batch, keys, d_model), the encoder's
    output; attention, feed_forward, norm_1, norm_cross, norm_2: functions of one tensor;
    cross_attention(a, z): a asks, z answers; norm_position: "post" or "pre".
    Returns: (batch, length, d_model).
    """
    # BEGIN SOLUTION
    if norm_position == "post":
        a = norm_1(y + attention(y))
        c = norm_cross(a + cross_attention(a, z))
        return norm_2(c + feed_forward(c))
    a = y + attention(norm_1(y))
    c = a + cross_attention(norm_cross(a), z)
    return c + feed_forward(norm_2(c))
    # END SOLUTION


mt.check.decoder_block(my_decoder_block)

# %% [markdown]
# And here is one that adds $z$ where it should add $a$. Its output has the right shape and every
# property one would think of: it is causal, it is normalised, and it depends on the source.


# %%
def adds_the_source(
    y, z, attention, cross_attention, feed_forward, norm_1, norm_cross, norm_2, norm_position
):
    if norm_position == "post":
        a = norm_1(y + attention(y))
        c = norm_cross(z + cross_attention(a, z))
        return norm_2(c + feed_forward(c))
    a = y + attention(norm_1(y))
    c = z + cross_attention(norm_cross(a), z)
    return c + feed_forward(norm_2(c))


mt.check.decoder_block(adds_the_source)

# %% [markdown]
# ## 5. The formulas, our code, the proof
#
# First the article's line as it stands, then the two full blocks.

# %%
mt.ledger.show("decoder_sublayer")

# %%
mt.ledger.show("post_ln_decoder_block")

# %%
mt.ledger.show("pre_ln_decoder_block")

# %% [markdown]
# ## 6. torch has it too
#
# `nn.TransformerDecoderLayer` is the same block. Copy the weights, compare both orders. Its masks mean
# True = blocked, and it has to be told that it must not see the future.

# %%
for position in ("post", "pre"):
    config = mt.TransformerConfig(
        d_model=20, n_heads=5, d_ff=44, norm_position=position, activation="gelu", dropout=0.0
    )
    ours = mt.DecoderBlock(config, cross=True)
    torchs = nn.TransformerDecoderLayer(
        20, 5, 44, 0.0, "gelu", batch_first=True, norm_first=position == "pre"
    )
    norms = (ours.norm_1, ours.norm_cross, ours.norm_2)
    with torch.no_grad():
        for norm in norms:  # fresh norms would hide a missing gain or shift
            norm.weight.normal_()
            norm.bias.normal_()
        for theirs, mine in (
            (torchs.self_attn, ours.attention),
            (torchs.multihead_attn, ours.cross_attention),
        ):
            maps = (mine.W_Q, mine.W_K, mine.W_V)
            theirs.in_proj_weight.copy_(torch.cat([W.weight for W in maps]))
            theirs.in_proj_bias.copy_(torch.cat([W.bias for W in maps]))
            theirs.out_proj.load_state_dict(mine.W_O.state_dict())
    for theirs, mine in (
        (torchs.linear1, ours.feed_forward.W_1),
        (torchs.linear2, ours.feed_forward.W_2),
        *zip((torchs.norm1, torchs.norm2, torchs.norm3), norms, strict=True),
    ):
        theirs.load_state_dict(mine.state_dict())
    y, z = torch.randn(3, 7, 20), torch.randn(3, 11, 20)
    real = torch.arange(11) < torch.tensor([11, 9, 4])[:, None]  # (batch, keys)
    expected = torchs(y, z, tgt_mask=~mt.causal_mask(7), memory_key_padding_mask=~real)
    assert torch.allclose(ours(y, None, z, real[:, None, None]), expected, atol=1e-5)
    print(f"{position}-LN: the same")

# %% [markdown]
# ## 7. The cache: read every word once
#
# A decoder writes word by word, and its input grows by one each time. Reading all of it again for
# every word would be a waste: because the mask is causal, nothing that was computed for the earlier
# words can change. The new word needs only their keys and values. So keep those, one row per layer
# and word, and give the decoder the new word alone: one query, and all keys. That is the mask of
# exercise 1 with fewer queries than keys.

# %%
model.eval()
ids = torch.randint(0, 50, (1, 12))
cache = mt.KeyValueCache()
with torch.no_grad():
    whole = model(ids)
    pieces = [model(piece, cache=cache) for piece in ids.split([5, 1, 1, 3, 2], dim=1)]
assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
print(f"in five pieces or at once: the same; the cache holds {cache.length} words")

# %% [markdown]
# So `mt.generate` writes the same text with the cache as without, with less work. Without a cache,
# word $t$ costs a pass over $t$ words. Count the multiplications:

# %%
model = mt.CausalLM(
    mt.Decoder(
        mt.TransformerConfig.gpt2(
            vocab_size=50, d_model=64, n_heads=4, n_layers=3, d_ff=256, max_len=400, eos_id=None
        )
    )
)
model.requires_grad_(False)  # only for the counter's sake
prompt = torch.randint(0, 50, (1, 4))
lengths = range(25, 201, 25)


def write(use_cache, count=False):
    """The words, and for some of them the millions of multiplications that each took."""
    text, work = [], []
    stream = mt.stream(model, prompt, 196, use_cache=use_cache)
    for length in range(5, 201):
        if count and length in lengths:
            with FlopCounterMode(display=False) as counter:
                text.append(int(next(stream)))
            work.append(counter.get_total_flops() / 2e6)
        else:
            text.append(int(next(stream)))
    return text, work


(again, costs_again), (cached, costs_cached) = write(False, True), write(True, True)
assert again == cached, "the same words"
ax = plots.figure(size=(6, 3))
ax.semilogy(lengths, costs_again, "s--", label="all words again")
ax.semilogy(lengths, costs_cached, "o-", label="with a cache")
ax.set(xlabel="words so far", title="million multiplications for one more word")
ax.legend()
assert costs_again[-1] > 100 * costs_cached[-1]

# %% [markdown]
# *Notice* the scale on the left. With the cache, one more word costs about the same however long
# the text is; the slight growth is the attention to more keys. Without it, the last word costs more
# than a hundred times as much.
#
# Time does not shrink by a hundred: one word alone leaves a processor half idle, and calling the
# functions takes time as well. But it shrinks.

# %%
seconds = {True: [], False: []}
for _ in range(2):
    for use_cache, taken in seconds.items():
        start = time.perf_counter()
        write(use_cache)
        taken.append(time.perf_counter() - start)
faster = min(seconds[False]) / min(seconds[True])
assert faster > 1.2
print("200 words: faster with a cache")

# %% [markdown]
# *Notice* that this is a small model and a short text; for 256 words after 768 it is some twenty
# times (`tests/benchmarks/generation.py`). The price is memory: two rows of `d_model` numbers for every
# layer and word.
#
# ## What to read next
#
# - **Notebook 05, the whole Transformer**: encoder and decoder together, trained.
# - **Notebook 15, generating text**: what to do with the logits of the next word.
# - Vaswani et al. 2017, section 3; Radford et al. 2019 for the decoder alone.
# - In the package: `minitransformer/model/block.py` and `minitransformer/model/kv_cache.py`.
