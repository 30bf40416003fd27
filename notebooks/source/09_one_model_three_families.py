# %% [markdown]
# # 09 One model, three families
#
# BERT reads, GPT-2 writes, T5 reads and then writes. Three papers, and in most libraries three
# files, of a thousand lines each, that share nothing. This notebook loads all three into the same
# small code and finds the same numbers as Hugging Face's `transformers`, to the last digits.
#
# All that separates them is a table of switches: where the norm stands, which activation is used,
# how positions come in. You will turn these switches one at a time and see what each is worth. Some
# wreck the model. Others, and these are the dangerous ones, nobody would ever notice.
#
# It covers section 2.1 of the article, on pretrained Transformers: BERT (Devlin et al. 2019), GPT
# (Radford et al. 2019) and T5 (Raffel et al. 2020).
#
# *Runs in half a minute to a minute on two cores. Needs `make data` once, for the real weights.*

# %%
import json
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

import minitransformer as mt
from minitransformer import plots
from minitransformer.pretrained.checkpoints import find_files

work = tempfile.TemporaryDirectory()
folders = Path(work.name)
VOCAB = 41

# %% [markdown]
# ## 1. Four checkpoints that nobody has to download
#
# Whether code loads GPT-2 correctly can be tested without GPT-2. A tiny model of the same *kind*
# with random weights has every part of the large one, and every mistake shows in it. Better still,
# in a trained model biases and gains are often close to 0 and 1, which hides a forgotten one; here
# they are random, and large.
#
# `transformers` makes the models and writes the folders. All sizes differ, so that no two axes can
# be mistaken for each other, and 3 heads of 5 numbers do not even add up to T5's `d_model` of 12.

# %%
t5 = dict(
    vocab_size=VOCAB, d_model=12, num_heads=3, d_kv=5, d_ff=20, num_layers=2, num_decoder_layers=3,
    decoder_start_token_id=0,
)  # fmt: skip
theirs = {
    "BERT": BertForMaskedLM(BertConfig(
        vocab_size=VOCAB, hidden_size=12, num_attention_heads=3, num_hidden_layers=2,
        intermediate_size=20, max_position_embeddings=17,
    )),
    "GPT-2": GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCAB, n_embd=12, n_head=3, n_layer=2, n_inner=20, n_positions=17,
        bos_token_id=1, eos_token_id=1,
    )),
    "T5 v1.0": T5ForConditionalGeneration(T5Config(**t5)),
    "T5 v1.1": T5ForConditionalGeneration(
        T5Config(**t5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
}  # fmt: skip

words = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(VOCAB - 2))]
toy_tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
toy_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

torch.manual_seed(0)
head = torch.empty(VOCAB, 12)  # v1.1 has an output map of its own, not the embeddings
theirs["T5 v1.1"].lm_head.weight = torch.nn.Parameter(head)
for name, hf in theirs.items():
    for key, p in hf.named_parameters():
        gain = key.endswith("weight") and ("norm" in key.lower() or "ln_" in key)
        p.data = torch.randn(p.shape) * 0.3 + gain
    hf.eval().save_pretrained(folders / name)
    toy_tokenizer.save(str(folders / name / "tokenizer.json"))

# %% [markdown]
# ## 2. Load them
#
# One function for all, and it is not told which family it gets: `config.json` says so. Then both
# sides read the same padded batch, in float64, and what counts is the largest difference between
# their logits.

# %%
ids = torch.randint(2, VOCAB, (3, 11))
lengths = torch.tensor([11, 8, 5])
real = torch.arange(11) < lengths.unsqueeze(1)
ids = ids.where(real, 0)
target = torch.randint(2, VOCAB, (3, 7))


def their_logits(hf, ids, real):
    extra = {"decoder_input_ids": target} if hf.config.is_encoder_decoder else {}
    return hf(input_ids=ids, attention_mask=real.long(), **extra).logits


def our_logits(model, ids, real):
    keep = real[:, None, None, :]
    return model(ids, target, keep) if isinstance(model, mt.Seq2SeqLM) else model(ids, keep)


def difference(a, b, real):
    """The largest one, over real tokens; T5's logits are the target's, which is not padded."""
    return float((a - b)[real if a.shape[:2] == real.shape else ...].abs().max())


ours = {}
for name, hf in theirs.items():
    ours[name], _ = mt.load_pretrained(folders / name)
    with torch.no_grad():
        logits = our_logits(ours[name].double(), ids, real)
        error = difference(their_logits(hf.double(), ids, real), logits, real)
    kind, size = type(ours[name]).__name__, float(logits.abs().max())
    print(f"{name:8} {kind:11} logits up to {size:4.1f}, largest difference {error:.0e}")
    assert error < (1e-5 if "T5" in name else 1e-9)

# %% [markdown]
# *Notice* the two kinds of zero. BERT and GPT-2 agree to the rounding of float64. T5 is millions
# of times worse, and still right: the norm of `transformers`' T5 computes its variance in float32
# whatever the rest of the model is in, which leaves seven digits. A tolerance has to be
# *explained*, otherwise it hides something: with that one line of theirs in float64, T5 agrees to
# 1e-9 too (`tests/pretrained/test_t5.py` does that).
#
# ## 3. And a real one
#
# all-MiniLM-L6-v2 is a BERT of six layers and 22 million weights. The same function, the same
# comparison, real sentences:

# %%
(folders / "MiniLM").mkdir()
for file, content in find_files("all-MiniLM-L6-v2")[0].items():
    (folders / "MiniLM" / file).write_bytes(content)
minilm, tokenizer = mt.load_pretrained(folders / "MiniLM")
minilm = minilm.double()

sentences = [
    "The ferry leaves at seven.",
    "At seven the boat goes, and it does not wait for anyone who is late, not even for the mayor.",
    "Add the flour slowly, then stir until no lumps are left.",
]
batch = tokenizer.batch(sentences)
hf = AutoModel.from_pretrained(folders / "MiniLM").double().eval()
with torch.no_grad():
    hidden = minilm(batch.ids, batch.keep)
    error = difference(
        hf(batch.ids, attention_mask=batch.keep[:, 0, 0].long()).last_hidden_state,
        hidden,
        batch.keep[:, 0, 0],
    )
print(
    f"{hidden.shape[-1]} numbers a token, up to {hidden.abs().max():.1f}; largest difference {error:.0e}"
)
assert error < 1e-9

# %% [markdown]
# ## 4. What is left: switches
#
# If one model is all of them, then what *is* the difference between BERT and T5? This:

# %%
table = mt.compare_switches(*ours.values(), names=tuple(ours))
table

# %% [markdown]
# Read it as history. The 2017 Transformer puts the norm on the stream ("post"), and BERT still does.
# GPT-2 moves it into the branch ("pre"), and most have followed; Xiong et al. 2020 say why. T5
# drops whatever seemed to do no work: the mean in the norm, all the biases, the root of $d_k$ in
# the scores (it draws smaller first weights instead), and positions as a part of the input. Its
# v1.1 has a gate in the feed-forward network, and no longer uses the embeddings as the output map.
#
# Everything else, the attention, the residuals, the two halves of a block, is the same in all four,
# and it is the code of notebooks 01 to 05:

# %%
every = mt.compare_switches(*ours.values(), names=tuple(ours), only_different=False)
print("the same in all four:", *sorted(set(every.rows) - set(table.different)))

# %% [markdown]
# ## 5. How GPT-2 stores a matrix
#
# Two things must happen on the way in, and both go wrong silently. The first: GPT-2's code multiplies
# $xW$ and stores $W$ as (in, out); `nn.Linear` multiplies $xW^\top$ and stores (out, in). So four
# matrices of each block have to be transposed, `c_attn`, `c_proj`, `c_fc` and again `c_proj`, and
# the embeddings must *not* be. Here is one of them, as it is in the file and as it is in our model:

# %%
file = safetensors.torch.load_file(folders / "GPT-2" / "model.safetensors")
stored = file["transformer.h.0.mlp.c_fc.weight"]
block = ours["GPT-2"].decoder.blocks[0]
loaded = block.feed_forward.W_1.weight.detach().float()
plots.matrices(
    ("c_fc in the file", stored, "in", "out"), "→", ("$W_1$ here", loaded, "out", "in")
)  # fmt: skip
assert torch.equal(stored.T, loaded)

# %% [markdown]
# *Notice* that this one could not be forgotten: 12 x 20 does not fit where 20 x 12 belongs. But
# the map after the attention, `attn.c_proj`, is *square*. It fits both ways.

# %%
with torch.no_grad():
    right = our_logits(ours["GPT-2"], ids, real)
    W_O = block.attention.W_O
    W_O.weight.copy_(W_O.weight.T.clone())
    wrong = our_logits(ours["GPT-2"], ids, real)
    W_O.weight.copy_(W_O.weight.T.clone())  # and back again
print(
    f"one square matrix not turned: no error message, and logits off by {difference(right, wrong, real):.1f}"
)
assert difference(right, wrong, real) > 0.1

# %% [markdown]
# The second: $W^Q$, $W^K$ and $W^V$ are one matrix, `c_attn`, so that one large product does the
# work of three.
#
# ### Exercise 1: split `c_attn`
#
# You get `c_attn` as GPT-2 stores it: (d_in, 3 d_out), the queries' columns first, then the keys',
# then the values'. Return the three matrices as `nn.Linear` wants them, stacked in that order: (3,
# d_out, d_in). (In GPT-2 `d_out` equals `d_in`. The check uses two different numbers, so that the
# shape can help you.)


# %%
def my_split(c_attn):
    """c_attn: (d_in, 3 d_out). Returns: one tensor (3, d_out, d_in), W_Q, W_K, W_V, each (out, in)."""
    # BEGIN SOLUTION
    return torch.stack([W.T for W in c_attn.chunk(3, dim=1)])
    # END SOLUTION


mt.check.split_c_attn(my_split)

# %% [markdown]
# A shape that fits proves nothing. This answer has the right shape, and is as good as random:

# %%
mt.check.split_c_attn(lambda c_attn: c_attn.reshape(3, -1, len(c_attn)))

# %% [markdown]
# ## 6. How T5 knows where a word stands
#
# BERT and GPT-2 add a vector for position 0, 1, 2 ... to the input, and have one for each of 512 or
# 1,024 positions and no more. T5 adds nothing to the input. Its scores get a number that depends on
# the *distance* from query to key:
#
# $$\mathrm{softmax}\left(QK^\top + B\right)V, \qquad B_{hij} = E_{b(j-i),\,h}$$
#
# The table $E$ has a number for each head, but not for each distance: $b$ sorts distances into 32
# buckets. Near ones are told apart exactly; the farther away, the coarser the buckets; beyond 128
# all are alike. The encoder looks both ways and splits the buckets between past and future; the
# decoder uses them all for the past.

# %%
encoder = ours["T5 v1.0"].encoder_decoder.encoder.relative_positions
decoder = ours["T5 v1.0"].encoder_decoder.decoder.relative_positions
with torch.no_grad():
    bias = {"encoder": encoder(48, 48)[0, 0], "decoder": decoder(48, 48)[0, 0]}

axes = plots.figure(2, (6, 3.2))
for ax, (side, B) in zip(axes, bias.items(), strict=True):
    shown = B if side == "encoder" else B.masked_fill(~mt.causal_mask(48), torch.nan)
    ax.imshow(shown, cmap=plots.NUMBERS, vmin=-0.7, vmax=0.7)
    ax.set(title=f"{side}: $B$ of one head", xlabel="key $j$")
axes[0].set(ylabel="query $i$")
assert torch.equal(bias["encoder"][:-1, :-1], bias["encoder"][1:, 1:])  # only j - i counts

# %% [markdown]
# *Notice* the stripes: along a diagonal the distance $j - i$ is the same, and so is the number. Near
# the main diagonal they are one entry wide, farther out they widen. The upper triangle of the decoder
# stays white: the future is hidden. (The numbers are random here; in a trained T5 they are learned.)
#
# ### Exercise 2: the buckets
#
# `r`, of shape (queries, keys), holds the distances $j - i$, whole numbers, negative for keys
# before the query; return the bucket of each, in the same shape. Of the $n$ buckets of one
# direction the first half hold one distance each; the others grow with the logarithm up to
# $r_{max}$, which is `max_distance`:
#
# $$b(r) = |r| \ \text{ if } |r| < \tfrac n2, \ \text{ otherwise } \
# \min\left(n - 1,\ \tfrac n2 + \left\lfloor \frac{\log(2|r|/n)}{\log(2\,r_{max}/n)}
# \cdot \tfrac n2 \right\rfloor\right)$$
#
# If `bidirectional`, $n$ is half of `n_buckets`, and keys after the query ($r > 0$) go $n$ buckets
# higher. Otherwise $n$ is all of them, and keys after the query go to bucket 0.


# %%
def my_buckets(r, n_buckets, max_distance, bidirectional):
    """The bucket of each distance, as integers: (queries, keys).

    r: (queries, keys), integers, key minus query; n_buckets, max_distance: integers;
    bidirectional: True in an encoder; False in a decoder, where all keys after the query, r > 0, go
    to bucket 0.
    """
    # BEGIN SOLUTION
    n = n_buckets // 2 if bidirectional else n_buckets
    first = n * (r > 0) if bidirectional else 0
    away = r.abs() if bidirectional else (-r).clamp(min=0)
    half = n // 2
    far = torch.log(away.clamp(min=1) / half) / torch.log(torch.tensor(max_distance / half)) * half
    far = (half + far.floor().long()).clamp(max=n - 1)
    return first + torch.where(away < half, away, far)
    # END SOLUTION


mt.check.relative_bucket(my_buckets)

# %% [markdown]
# ## 7. Turn one switch
#
# Now break things on purpose: the same weights, one switch turned, and the largest error of the
# logits. Before you run the cell, guess. Which of these is the worst? Which one hardly matters? Is
# there one that does not matter at all? Then add some of your own to the lists.


# %%
def flip(model, **switch):
    """The same weights with one switch turned; those that do not fit keep their initial values."""
    config = (model.encoder if isinstance(model, mt.MaskedLM) else model).config.with_(**switch)
    torch.manual_seed(0)
    if isinstance(model, mt.MaskedLM):
        other = mt.MaskedLM(mt.Encoder(config))
    elif isinstance(model, mt.CausalLM):
        other = mt.CausalLM(mt.Decoder(config))
    elif isinstance(model, mt.Seq2SeqLM):
        other = mt.Seq2SeqLM(mt.EncoderDecoder(config))
    else:
        other = mt.Encoder(config)
    other = other.double().eval()
    there = other.state_dict()
    weights = {
        k: t for k, t in model.state_dict().items() if k in there and t.shape == there[k].shape
    }
    other.load_state_dict(weights, strict=False)
    return other


MASK = "no padding mask"
switches = {
    "BERT": [
        {"norm_eps": 1e-5}, {"activation": "gelu_tanh"}, {"activation": "relu"},
        {"scale_attention": False}, {"norm": "rms"}, {"norm_position": "pre"}, {"n_segments": 0},
        {"bias": False}, MASK,
    ],
    "GPT-2": [
        {"norm_eps": 1e-12}, {"activation": "gelu"}, {"activation": "relu"},
        {"scale_attention": False}, {"norm": "rms"}, {"norm_position": "post"},
        {"positions": "none"}, {"bias": False}, MASK,
    ],
    "T5 v1.0": [
        {"norm_eps": 1e-5}, {"activation": "gelu_tanh"}, {"max_distance": 64},
        {"scale_attention": True}, {"norm": "layer"}, {"norm_position": "post"},
        {"positions": "none"}, {"scale_logits": False}, MASK,
    ],
    "T5 v1.1": [
        {"norm_eps": 1e-5}, {"activation": "gelu"}, {"max_distance": 64},
        {"scale_attention": True}, {"norm": "layer"}, {"gated": False},
        {"positions": "none"}, {"scale_logits": True}, MASK,
    ],
}  # fmt: skip


def label(switch):
    return switch if switch == MASK else ", ".join(f"{k}={v}" for k, v in switch.items())


errors = {}
with torch.no_grad():
    for name, model in ours.items():
        right, errors[name] = our_logits(model, ids, real), {}
        for switch in switches[name]:
            if switch == MASK:
                wrong = our_logits(model, ids, torch.ones_like(real))
            else:
                wrong = our_logits(flip(model, **switch), ids, real)
            errors[name][label(switch)] = difference(right, wrong, real)


def bars(ax, errors, title):
    """One bar per switch, on a logarithmic scale; an error of zero has no bar, and says so."""
    for i, error in enumerate(errors.values()):
        ax.barh(i, max(error, 1e-8), color="tab:red" if error > 0.1 else "tab:blue")
        ax.text(2e-8, i, "exactly 0" if error == 0 else "", va="center", fontsize=7)
    ax.set_yticks(range(len(errors)), errors, fontsize=7)
    ax.set(xscale="log", xlim=(1e-8, 1e3), xticks=[1e-8, 1e-5, 1e-2, 1e1])
    ax.tick_params(axis="x", labelsize=7)
    ax.invert_yaxis()
    ax.set_title(title, fontsize=9)


for pair in (("BERT", "GPT-2"), ("T5 v1.0", "T5 v1.1")):
    for ax, name in zip(plots.figure(2, (6, 2.6)), pair, strict=True):
        bars(ax, errors[name], f"{name}: error of the logits")

# %% [markdown]
# *Notice* three things.
#
# - **Red is easy.** A forgotten root, a norm in the wrong place: the error is as large as the
#   logits themselves. Any comparison at all will find it.
# - **Blue is not.** A wrong $\epsilon$, or the other GELU, gives errors from the third to the fifth
#   digit. A test that accepts 1e-2, and such tests exist, would call most of them equal.
# - **"Exactly 0" is a trap.** GPT-2 without its padding mask is *right*: all padding is on the
#   right, and causality hides whatever comes later. And T5 with another `max_distance` is right on
#   texts this short. The mistakes are there; these inputs cannot reveal them.
#
# So pad on the left, as one does for generation, and the first of them shows:

# %%
left = real.flip(1)
with torch.no_grad():
    masked = our_logits(ours["GPT-2"], ids.flip(1), left)
    unmasked = our_logits(ours["GPT-2"], ids.flip(1), torch.ones_like(left))
print(f"GPT-2 without its mask, padded on the right: {errors['GPT-2'][MASK]:.0e}")
print(f"                        padded on the left:  {difference(masked, unmasked, left):.1f}")
assert errors["GPT-2"][MASK] == 0 and difference(masked, unmasked, left) > 0.1
assert errors["T5 v1.0"]["max_distance=64"] == 0
assert 1e-9 < errors["BERT"]["norm_eps=1e-05"] < 1e-2 < errors["BERT"]["scale_attention=False"]

# %% [markdown]
# ## 8. The same with real weights
#
# Do these errors matter outside a toy? MiniLM's purpose is one vector per sentence, the mean over
# its tokens. First rank these for yourself: the exact GELU or the tanh one, $\epsilon$, the root in
# the scores, the padding mask, the vector of segment 0 that BERT adds to *every* token, 6 wider
# heads instead of 12.


# %%
def embed(model, keep=None):
    """Hidden states, and the mean over real tokens: one vector per sentence."""
    hidden = model(batch.ids, batch.keep if keep is None else keep)
    weight = batch.keep[:, 0, 0, :, None].double()
    return hidden, (hidden * weight).sum(1) / weight.sum(1)


rows, cosines = {}, {}
real_tokens = batch.keep[:, 0, 0]
with torch.no_grad():
    hidden, right = embed(minilm)
    for switch in (
        {"norm_eps": 1e-5}, {"activation": "gelu_tanh"}, MASK, {"scale_attention": False},
        {"n_heads": 6}, {"activation": "relu"}, {"n_segments": 0}, {"norm_position": "pre"},
    ):  # fmt: skip
        if switch == MASK:
            h, wrong = embed(minilm, torch.ones_like(batch.keep))
        else:
            h, wrong = embed(flip(minilm, **switch))
        rows[label(switch)] = difference(hidden, h, real_tokens)
        cosines[label(switch)] = float(torch.cosine_similarity(right, wrong).min())

left, right_ax = plots.figure(2, (6, 2.6))
bars(left, rows, "MiniLM: error of the last layer")
left.set(xlim=(1e-5, 1e3), xticks=[1e-4, 1e-2, 1, 1e2])
right_ax.barh(range(len(cosines)), list(cosines.values()), color="tab:gray")
right_ax.set_yticks(range(len(cosines)), [f"{c:.5f}" for c in cosines.values()], fontsize=7)
right_ax.invert_yaxis()
right_ax.tick_params(axis="x", labelsize=7)
right_ax.set_title("cosine to the right sentence vector", fontsize=9)

assert cosines["activation=gelu_tanh"] > 0.9999 and cosines["norm_eps=1e-05"] > 0.9999
assert rows["activation=gelu_tanh"] > 1e-4 and cosines["n_segments=0"] < 0.9

# %% [markdown]
# *Notice* the two at the top: the cosine is 1.00000. No search, no classifier, no accuracy on any
# task will ever tell you that the activation is wrong. It is a real mistake (well-known programs
# have it), and a comparison of numbers is the only way to see it. At the other end stands a vector
# that looks like nothing: without segment 0, added alike to all tokens, the model falls apart.
#
# That is why every family here is tested number by number against the original, and why every
# switch is also tested *turned*: a test has to fail when the model is wrong.
#
# ## 9. Weights that do not fit are rejected
#
# A loader that skips what it does not know would have loaded all of the above. This one accounts
# for every weight. First T5's weights lie beside GPT-2's `config.json`; then a layer is missing.

# %%
weights, config = folders / "GPT-2" / "model.safetensors", folders / "GPT-2" / "config.json"
kept = weights.read_bytes()
for story in ("T5's weights", "a layer too many in the config"):
    if story == "T5's weights":
        weights.write_bytes((folders / "T5 v1.0" / "model.safetensors").read_bytes())
    else:
        weights.write_bytes(kept)
        config.write_text(json.dumps(json.loads(config.read_text()) | {"n_layer": 3}))
    try:
        mt.load_pretrained(folders / "GPT-2")
    except ValueError as error:
        said = str(error).split(": ", 1)[1].splitlines()  # without the folder's name
        print(f"{story}:", *said[:4], "...", sep="\n", end="\n\n")

# %% [markdown]
# ## 10. And back again
#
# What can be read can be written: `save_pretrained` transposes the matrices back, joins the three
# into one, and writes tied weights once. `transformers` opens the folder and computes the same
# numbers.

# %%
for name, model in ours.items():
    folder = mt.save_pretrained(
        model.float(), mt.load_pretrained(folders / "BERT")[1], folders / f"{name} again"
    )
    again = type(theirs[name]).from_pretrained(folder).double().eval()
    with torch.no_grad():
        error = difference(
            their_logits(again, ids, real), our_logits(model.double(), ids, real), real
        )
    print(f"{name:8} saved here, opened by transformers: largest difference {error:.0e}")
    assert error < (1e-5 if "T5" in name else 1e-9)
work.cleanup()

# %% [markdown]
# ## What to read next
#
# - **Notebook 10, fine-tuning BERT**: now that the weights are in the right places, put them to
#   work.
# - In the package: `minitransformer/pretrained/gpt2.py` and `t5.py`, under 200 lines each, with all
#   that is special about a family; `minitransformer/model/config.py`, the switches.
# - Raffel et al. 2020, section 3.2, compare architectures the other way: they train each from
#   scratch.
