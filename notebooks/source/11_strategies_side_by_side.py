# %% [markdown]
# # 11 Strategies side by side
#
# A pretrained model has millions of weights. Which of them should a new task move, and when? The
# article's section 3.1 names three answers, *full*, *partial* and *frozen* fine-tuning, and section
# 3.2 a fourth, *gradual unfreezing*. Later papers added more. Here all of them train on the same
# thousand reviews, with the same number of steps, and are compared in what matters: accuracy,
# seconds, memory, and how much the model forgets.
#
# *Runs in one to three minutes on two cores. Needs `make data` once.*

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import minitransformer as mt
from minitransformer.training.lora import LoRALinear
from minitransformer.training.strategies import GradualUnfreezing, HeadOnly, LastLayers, LoRA

RESULTS = mt.data.data_folder() / "results"

# %% [markdown]
# ## A strategy is a learning rate for every layer
#
# A model is a list of layers from bottom to top: embeddings, blocks, head. A strategy says how fast
# each of them learns, at every step anew; zero means frozen. `mt.plan` prints what it will do before
# anything is trained.

# %%
encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
torch.manual_seed(0)
model = mt.SequenceClassifier(encoder, n_classes=2, pooling="mean")
for strategy in (HeadOnly(), LastLayers(2), GradualUnfreezing(every=None), LoRA(rank=8)):
    print(mt.plan(model, strategy), end="\n\n")

# %% [markdown]
# *Notice* the sizes. Half of the model is its table of word pieces. The head has 770 numbers. LoRA
# trains a third of a percent of the weights, yet reaches into every block. And a frozen layer has
# its dropout off: its features are fixed, and noise on them would help nobody.
#
# The others: `LayerwiseDecay` lets lower layers learn more slowly, `LinearProbeThenFull` trains the
# head alone first, `BiasOnly` moves nothing but biases. All eight are in
# `minitransformer/training/strategies.py`, a few lines each.
#
# ### Exercise: gradual unfreezing
#
# Write the rule that thaws one layer after the other, from the top, evenly over the run: of
# $L$ layers, $1 + \lfloor L \cdot \text{step} / \text{steps} \rfloor$ learn (and never more than
# $L$). Return a tensor with one rate per layer, 0 or 1, the embeddings first and the head last.


# %%
def gradual_rates(n_layers: int, step: int, steps: int) -> torch.Tensor:
    """One number per layer, 0 or 1, layer 0 (the bottom) first: (n_layers,), whole or not.

    step: from 0 to steps - 1. The number of layers that learn is 1 + ⌊L step/steps⌋, which says the
    same as: layer l learns once step/steps ≥ (L - 1 - l)/L.
    """
    # BEGIN SOLUTION
    thawed = min(1 + n_layers * step // steps, n_layers)
    rates = torch.zeros(n_layers)
    rates[n_layers - thawed :] = 1.0
    return rates
    # END SOLUTION


mt.check.gradual_rates(gradual_rates)

# %% [markdown]
# ### Exercise: LoRA
#
# A change of low rank is added to a frozen map (Hu et al. 2021): $y = xW^\top + \frac{\alpha}{r}\,x
# A^\top B^\top$ with $A$ of shape $(r, d_{in})$ and $B$ of shape $(d_{out}, r)$.


# %%
def low_rank(x, W, A, B, alpha):
    """x Wᵀ + (α/r) x Aᵀ Bᵀ.

    x: (batch, length, d_in); W: (d_out, d_in); A: (r, d_in); B: (d_out, r); alpha: a number.
    Returns: (batch, length, d_out).
    """
    # BEGIN SOLUTION
    r = len(A)
    return x @ W.T + alpha / r * (x @ A.T @ B.T)
    # END SOLUTION


mt.check.lora(low_rank)

# %% [markdown]
# Since the two maps add, they can be merged: after training LoRA costs nothing.

# %%
layer = LoRALinear(torch.nn.Linear(384, 384), rank=8, alpha=16)
torch.nn.init.normal_(layer.B, std=0.3)
x = torch.randn(50, 384)
with torch.no_grad():
    beside, merged = layer(x), layer.merged()(x)
print(f"beside and merged differ by {(beside - merged).abs().max():.0e}")
assert (beside - merged).abs().max() < 1e-5

# %% [markdown]
# ## Frozen layers need to be computed once
#
# A frozen layer gives the same output for the same text in every epoch. So its output can be kept: the
# first epoch computes it, the others start above it. The result is the same, to rounding. Watch five
# epochs of the head alone on 320 reviews, and count the texts that go through the encoder:

# %%
reviews = mt.data.load("movies")
train, valid, test = reviews.split(seed=0)
few, some = (mt.data.encode(part, tokenizer) for part in (train.sample(320), valid.sample(100)))
losses, computed = {}, {}
for name, mib in (("computed every epoch", 0), ("computed once", 1024)):
    encoder, _ = mt.load_pretrained("all-MiniLM-L6-v2")
    torch.manual_seed(0)
    model = mt.SequenceClassifier(encoder, n_classes=2, pooling="mean")
    seen = []
    model.encoder.embeddings.register_forward_hook(lambda m, x, y, seen=seen: seen.append(len(y)))
    history = mt.finetune(model, few, some, HeadOnly(), epochs=5, cache_mib=mib, progress=False)
    losses[name], computed[name] = history.validations[-1]["valid_loss"], sum(seen)
    print(f"{name:>20}: {computed[name]:5,} texts, validation loss {losses[name]:.6f}")
difference = abs(losses["computed once"] - losses["computed every epoch"])
assert difference < 2e-3 and computed["computed every epoch"] == 5 * computed["computed once"]

# %% [markdown]
# Five epochs for the price of one: `tests/benchmarks/strategies.py` measures the seconds, against
# recomputing and against Hugging Face's Trainer. Gradual unfreezing gains too, as long as the lower
# layers are frozen, and so does a head that is trained before the rest.
#
# ## All of them, on the same reviews
#
# 1,024 reviews, 100 steps of 32, the same head to start from. The learning rate of each was chosen
# on validation reviews: a comparison at one common rate would be a comparison of rates. Those choices and
# three seeds of each are in `data/results/movies.jsonl`, made by
#
# ```
# python -m minitransformer experiment --labels 1024 --lr-factors 1 3 --out data/results/movies.jsonl \
#     --methods full last-layers:2 head-only layerwise-decay lp-ft gradual:even bias-only lora:8 tf-idf
# ```

# %%
METHODS = ["full", "layerwise-decay", "gradual:even", "lp-ft", "lora:8", "bias-only",
           "last-layers:2", "head-only"]  # fmt: skip
cells = mt.results.chosen(mt.results.read(RESULTS / "movies.jsonl"))
thousand = {m: cells["movies", m, 1024] for m in [*METHODS, "tf-idf"]}
mean, sd = {}, {}
print(f"{'':>16}  {'rate':>7}  {'test accuracy':>13}  {'parameters that learn':>21}")
for method, runs in thousand.items():
    mean[method], sd[method] = mt.results.mean_and_sd([r.accuracy["movies"] for r in runs])
    rate = f"{runs[0].trial.lr:.1e}" if runs[0].trial.lr else "-"
    print(f"{method:>16}  {rate:>7}  {mean[method]:.3f} ± {sd[method]:.3f}  {runs[0].trained:>21,}")
assert mean["full"] > mean["head-only"] + 0.02 and mean["head-only"] > mean["tf-idf"]

# %% [markdown]
# The test part has 1,006 reviews, so the standard error of one accuracy is 0.012: differences of a
# point are not a result. A claim in a file is best repeated. Here is one of them again:

# %%
lab = mt.experiments.Lab(
    mt.load_pretrained("all-MiniLM-L6-v2")[0], tokenizer, {"movies": reviews},
    mt.data.load("editorials").texts,
)  # fmt: skip
claimed = thousand["head-only"][0]
found = lab.run(claimed.trial)
print(f"{found.accuracy['movies']:.3f} here, {claimed.accuracy['movies']:.3f} in the file")
assert abs(found.accuracy["movies"] - claimed.accuracy["movies"]) < 0.04

# %% [markdown]
# Seconds and memory depend on the machine, so they are measured here: each strategy for 30 steps on
# 256 reviews. We keep the models, to look inside them.

# %%
live = {}
for method in METHODS:
    trial = replace(thousand[method][0].trial, labels=256, steps=30)
    before = lab.new_model(trial)
    model, history, mib = lab.train(trial, validate_every=10)
    live[method] = dict(
        model=model, history=history, mib=mib, moved=mt.forgetting.moved(before, model)
    )

# %% [markdown]
# ## Accuracy against its price

# %%
_, axes = plt.subplots(1, 3, figsize=(10, 3.8), dpi=90, layout="constrained", sharey=True)
for i, method in enumerate(METHODS):
    runs = thousand[method]
    prices = (live[method]["history"].seconds, live[method]["mib"], runs[0].trained)
    for ax, price in zip(axes, prices, strict=True):
        ax.errorbar(
            price, mean[method], sd[method], fmt="o", color=f"C{i}", capsize=2, label=method
        )
for ax, label in zip(
    axes, ("seconds for 30 steps, here", "MiB above the model, here", "parameters that learn"),
    strict=True,
):  # fmt: skip
    ax.axhline(mean["tf-idf"], color="0.6", linestyle=":")
    ax.set(xlabel=label)
axes[0].set(ylabel="test accuracy with 1,024 labels", xlim=(0, None))
axes[0].text(0.2, mean["tf-idf"], "TF-IDF", va="bottom", color="0.5", fontsize=8)
axes[1].set(xlim=(0, None))
axes[2].set(xscale="log")
_ = axes[0].legend(frameon=False, fontsize=7, loc="lower right")

# %% [markdown]
# The dotted line counts words and needs no network at all. Strategies that may move more weights
# reach more, and cost more: time goes into passing gradients down, memory into keeping what the
# backward pass needs. LoRA and the biases have few parameters to train but must still send gradients
# through the whole model, so they save memory and hardly any time.
#
# ## How they learn

# %%
_, axes = plt.subplots(1, 2, figsize=(9, 3.8), dpi=90, layout="constrained")
for i, method in enumerate(METHODS):
    history = live[method]["history"]
    loss = np.convolve([s["loss"] for s in history.steps], np.ones(9) / 9, mode="valid")
    axes[0].plot(np.arange(len(loss)) + 4, loss, color=f"C{i}", label=method)
    at = [v["step"] for v in history.validations]
    axes[1].plot(at, [v["valid_accuracy"] for v in history.validations], "o-", color=f"C{i}", ms=3)
axes[0].set(xlabel="step", ylabel="training loss, smoothed", ylim=(0, 0.75))
axes[1].set(xlabel="step", ylabel="validation accuracy")
_ = axes[0].legend(frameon=False, fontsize=8)

# %% [markdown]
# ## What moves, and what is forgotten
#
# How far did each layer go, as a share of its own size?

# %%
names = list(live["full"]["moved"])
moved = np.array([[live[m]["moved"][n] for n in names[:-1]] for m in METHODS])
_, ax = plt.subplots(figsize=(6, 3.6), dpi=100, layout="constrained")
image = ax.imshow(np.log10(np.maximum(moved, 1e-6)), cmap="viridis", vmin=-4, vmax=-0.5)
ax.set(xticks=range(len(names) - 1), yticks=range(len(METHODS)))
ax.set_xticklabels(names[:-1], rotation=30, ha="right")
ax.set_yticklabels(METHODS)
for i in range(len(METHODS)):
    for j in range(len(names) - 1):
        text = f"{moved[i, j]:.1%}" if moved[i, j] else "-"
        ax.text(j, i, text, ha="center", va="center", color="w", fontsize=7)
_ = ax.set_title("‖W - W₀‖ / ‖W₀‖; the head is new and not shown", fontsize=9)
assert not moved[METHODS.index("head-only")].any()

# %% [markdown]
# Even full fine-tuning stays close to where it started: the model is bent, not rebuilt.
#
# And what did it know before? This encoder was pretrained to tell which texts belong together. So we
# cut editorials in two and ask which of 20 second halves belongs to a first half; guessing gives
# 5 %. No editorial was trained on.

# %%
before_training = lab.pairs_before
_, ax = plt.subplots(figsize=(6, 3.2), dpi=100, layout="constrained")
for i, method in enumerate(METHODS):
    pairs = [r.pairs for r in thousand[method]]
    ax.plot(pairs, [i] * len(pairs), "o", color=f"C{i}", alpha=0.6)
ax.axvline(before_training, color="k", linewidth=1)
ax.text(before_training, -0.7, "before", ha="center", fontsize=8)
ax.axvline(0.05, color="0.6", linestyle=":")
ax.set(xlabel="right among 20 halves, after fine-tuning; one point per seed", xlim=(0, None))
ax.set(yticks=range(len(METHODS)), yticklabels=METHODS)
ax.invert_yaxis()
forgot = {
    m: before_training - np.mean([r.pairs for r in cells["movies", m, 1024]]) for m in METHODS
}
assert abs(forgot["head-only"]) < 1e-6
assert forgot["full"] > 0.04 and forgot["last-layers:2"] > 0.04 > forgot["lp-ft"]

# %% [markdown]
# The head alone forgets nothing, because it changes nothing. Full fine-tuning pays with a third of the
# old skill, and so does training the last two blocks, a sixth of the weights: it is not
# the number of weights that counts. LoRA and the biases forget less (as Biderman et al. 2024 report for
# LoRA), and the head first, then everything, forgets nothing either: when its turn comes the head is
# right already and asks for little change. The accuracy on the new task shows none of this.
#
# ### The shape of a change
#
# LoRA's change of a matrix has rank 8 by construction. How many directions does full fine-tuning
# use, when nobody limits it? The singular values of $W - W_0$ answer.

# %%
old = lab.encoder.blocks[4].attention.W_Q.weight.detach()
_, ax = plt.subplots(figsize=(6, 3.4), dpi=100, layout="constrained")
needed = {}
for method, colour in (("full", "C0"), ("lora:8", "C4")):
    new = live[method]["model"].encoder.blocks[4].attention.W_Q.weight.detach()
    values = torch.linalg.svdvals((new - old).double())
    needed[method] = int((values.square().cumsum(0) / values.square().sum() < 0.9).sum()) + 1
    ax.semilogy(
        values / values[0],
        color=colour,
        label=f"{method}: 90 % of it in the first {needed[method]}",
    )
ax.set(xlabel="direction", ylabel="singular value of the change, relative", ylim=(1e-4, 1.5))
ax.legend(frameon=False, fontsize=9)
assert needed["lora:8"] <= 8 < needed["full"]

# %% [markdown]
# ## The article's questions
#
# - *Full, partial or frozen?* Read it off the figures above: what a strategy may move decides what
#   it can learn, and what it can forget.
# - *Does gradual unfreezing help?* It is cheaper, since the frozen part is computed once, and it
#   moves the lower layers less.
# - *When is the frozen encoder enough?* When seconds or memory count most. Notebook 12 asks this for
#   sixteen labels and for eight thousand.
#
# ## What to read next
#
# - `minitransformer/training/strategies.py` and `lora.py`; `frozen_cache.py` for the frozen layers.
# - Howard and Ruder 2018 (gradual unfreezing), Kumar et al. 2022 (LP-FT), Hu et al. 2021 (LoRA),
#   Ben Zaken et al. 2022 (biases), Biderman et al. 2024 (LoRA learns less and forgets less).
