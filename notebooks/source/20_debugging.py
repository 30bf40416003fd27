# %% [markdown]
# # 20 Debugging
#
# Code that crashes tells you where. A Transformer with a mistake in it usually does not crash: it
# trains a little worse, or not at all, or suspiciously well, and says nothing. This notebook is a
# clinic. Nine small models lie in it, patients A to I, each with **one** mistake. You will not read
# their code. You will measure symptoms, as one does with a model of ten thousand lines, and name the
# nine mistakes.
#
# It covers what the article's step 4, training (section 3.2), leaves out: what to do when it does not
# work. Each mistake has been made in public by somebody; Karpathy's "recipe" (at the end) is the
# classic on how to find them.
#
# *Runs in half a minute to two minutes on two cores. Needs `make data` once.*

# %%
import math

import torch

import minitransformer as mt
from minitransformer import plots
from minitransformer.classroom.clinic import charts as clinic
from minitransformer.classroom.clinic import instruments

# %% [markdown]
# ## 1. The guide
#
# | what you see | what it may be |
# | --- | --- |
# | the first loss is not $\ln n$ ($n$ answers to choose from) | weights that start too large; targets that are not what you think |
# | the loss falls to 0, even on random tokens | the answer is visible: a mask that is off, targets that were not shifted |
# | it predicts the token that it has just read | targets that were not shifted: nothing leaks then, the question is wrong |
# | an earlier output moves with a later token | the causal mask, or heads that were split or merged across positions |
# | an output hardly moves with its own token | a residual is missing |
# | a text alone and in a batch get different answers | padding is attended to, or pooled; positions got mixed up |
# | two equal calls give different answers | dropout is on, `model.eval()` was forgotten |
# | no gradient in some layer | frozen, detached, or not in the graph at all |
# | a second, equal step has twice the gradient | `zero_grad` was forgotten |
# | one batch cannot be learned by heart | no residuals, no gradient, a learning rate far off; a loss that cannot reach 0, such as $\ln(1 + (n-1)/e)$ when the softmax is taken twice |
# | one batch is fine, new texts are not | labels that belong to other texts; too little data; a model that is too large |
# | one answer to everything | a learning rate that is too high; labels without any meaning |
# | NaN at the first step | a row of the mask with nothing to attend to, or $0 \cdot \infty$ |
#
# Several causes for one symptom, and several symptoms for one cause: a single measurement rarely
# decides. Begin with those that cost nothing.
#
# ## 2. Two healthy models
#
# To recognise what is ill, you have to know what is healthy. Here are two tiny models, both on real
# texts: the **writer** is a GPT that predicts the characters of film reviews; the **reader** is an
# encoder that tells tweets from newspaper comments. Every patient is one of these two with one
# thing changed.

# %%
for name in ("writer", "reader"):
    patient = clinic.patient(name)
    weights = sum(p.numel() for p in patient.model.parameters())
    print(
        f"{name}: {weights:,} weights, {patient.n_answers} answers to choose from, "
        f"{len(patient.train):,} texts of at most {max(map(len, patient.train.ids))} tokens"
    )

# %% [markdown]
# ### The first loss
#
# Before its first step a model knows nothing, so it should give each of the $n$ answers about the same
# probability. What is the cross-entropy then?
#
# ### Exercise 1: the loss of knowing nothing
#
# One line: `n` is a whole number; return the loss, a number.


# %%
def my_chance_loss(n):
    """The cross-entropy, in nats (natural logarithms), of a model that gives n answers the same
    probability. n: an integer. Returns: a number."""
    # BEGIN SOLUTION
    return math.log(n)
    # END SOLUTION


mt.check.chance_loss(my_chance_loss)

# %%
healthy = {name: clinic.chart(name) for name in ("writer", "reader")}
for name, chart in healthy.items():
    print(
        f"{name}: first loss {chart.start:.2f}, ln {chart.n_answers} = {math.log(chart.n_answers):.2f}"
    )
    assert abs(chart.start - math.log(chart.n_answers)) < 0.1

# %% [markdown]
# ### Does it look ahead?
#
# A language model must not. To find out, change the input from some position $t$ on and watch the
# outputs *before* $t$: none may move. It takes five lines and is easy to get wrong; a leak test that
# never fires is worse than none. Your function gets a block (a module: `block(x)` has the shape of
# `x`), an input of shape (batch, length, d_model), and $t$; it returns True or False. The check
# tries it on eight blocks whose answer is known.
#
# ### Exercise 2: a leak test


# %%
def my_leak_test(block, x, t):
    """True if an output before position t depends on the input at t or later, otherwise False.

    block: a module, from (batch, length, d_model) to the same shape, perhaps with dropout switched
    on; leave it in the mode, training or evaluation, in which it came. x: (batch, length, d_model);
    t: an integer from 1 to length - 1.
    """
    # BEGIN SOLUTION
    other = x.clone()
    other[:, t:] = torch.randn_like(other[:, t:])
    training = block.training
    block.eval()
    with torch.no_grad():
        moved = (block(other) - block(x))[:, :t].abs().max()
    block.train(training)
    return moved > 1e-9
    # END SOLUTION


mt.check.leaks(my_leak_test)

# %% [markdown]
# Here is the package's own test, on a block whose mask is known to be right and on one that has
# none:

# %%
torch.manual_seed(0)
config = mt.TransformerConfig(vocab_size=10, d_model=20, n_heads=5, d_ff=44, norm_position="pre")
x = torch.randn(3, 7, 20, dtype=torch.float64)
for block in (mt.DecoderBlock(config).double(), mt.EncoderBlock(config).double()):
    print(f"{type(block).__name__}: moves by {instruments.leak(block, x, 4):.0e}")
assert (
    instruments.leak(mt.DecoderBlock(config).double(), x, 4) == 0.0 < instruments.leak(block, x, 4)
)

# %% [markdown]
# The same question can be asked for every pair of positions at once: replace token $j$, and see how
# far output $i$ moves. That is the **influence map**, the first picture. The second is the
# **attention map** of the first block: what the model *means* to look at. Here the two agree.

# %%
ax, right = plots.figure(2, (6, 2.9))
writer = clinic.patient("writer")
ids = torch.tensor(writer.valid.ids[:1])[:, :12]


def draw_influence(chart, ax):
    first = chart.influence[:12, :12]
    relative = first / first.max(1, keepdim=True).values
    ax.imshow(relative.clamp(min=1e-4).log10(), cmap=plots.WEIGHTS, vmin=-4, vmax=0)
    ax.set_title(chart.patient, fontsize=10)


draw_influence(healthy["writer"], ax)
ax.set(title="influence", xlabel="token j changed", ylabel="output i moves", xticks=range(0, 12, 2))
right.imshow(mt.attention_maps(writer.model.decoder, ids)[0][0, 0], cmap=plots.WEIGHTS, vmin=0)
_ = right.set(title="attention", xlabel="key", ylabel="query", xticks=range(0, 12, 2))
assert healthy["writer"].future == 0.0

# %% [markdown]
# *Notice* the strong diagonal on the left: at the start a token moves its own output, through the
# residuals, many times as far as any other. (Colours are logarithmic: white is less than a
# ten-thousandth of the row's largest entry.) Attention alone, on the right, is still a plain mean over
# the past.
#
# ### Alone, twice, and backwards
#
# Three more instruments, each a few lines of `minitransformer/classroom/clinic/instruments.py`. A
# text must get the same answer alone as in a padded batch; two equal calls must agree; the gradient
# must arrive in every layer, and be fresh at every step.

# %%
for name, chart in healthy.items():
    print(f"{name}: alone against batch {chart.alone:.0e}, twice {chart.twice:.0e}")
    print("   gradients", {layer: round(g, 2) for layer, g in chart.gradients.items()})
    print(f"   a second, equal step has {chart.piled:.2f} times the gradient of the first")
    assert chart.alone < 1e-5 and chart.twice == 0.0 and abs(chart.piled - 1) < 1e-3

# %% [markdown]
# ### Too easy, and too hard
#
# Two training runs that should end in a known way. **One batch**, again and again: a healthy model
# learns it by heart, so the loss goes to 0; if not, nothing larger will work either. And **random
# tokens**, of eight kinds and new at every step: there is nothing to learn, so no honest model gets
# below $\ln 8$.

# %%
for name, chart in healthy.items():
    print(f"{name}: one batch, from {chart.one_batch[0]:.2f} to {chart.end:.3f}")
    assert chart.end < 0.1 * chart.chance
print(f"writer on random tokens: {healthy['writer'].random:.2f}, ln 8 = {math.log(8):.2f}")
print(f"reader on new texts: {healthy['reader'].accuracy:.2f} right")
assert abs(healthy["writer"].random - math.log(8)) < 0.05

# %% [markdown]
# ## 3. The ward
#
# Now all of it for the nine patients. (`clinic.chart(letter)` measures; `clinic.patient(letter)` gives
# you the patient: its `model`, `predict(batch)`, `loss(batch)`, `step(batch)`, to measure what you like.
# The mistakes are in `minitransformer/classroom/clinic/patients.py`. Do not look.)

# %%
charts = {name: clinic.chart(name) for name in ("writer", "reader", *clinic.PATIENTS)}
ROWS = {
    "first loss": lambda c: f"{c.start:.2f}",
    "... knowing nothing": lambda c: f"{c.chance:.2f}",
    "two equal calls": lambda c: f"{c.twice:.0e}",
    "alone or in a batch": lambda c: f"{c.alone:.0e}",
    "smallest gradient": lambda c: f"{min(c.gradients.values()):.0e}",
    "second gradient, times": lambda c: f"{c.piled:.1f}",
    "moved by the future": lambda c: f"{c.future:.0e}",
    "own token, times others": lambda c: f"{c.own:.1f}",
    "one batch ends at": lambda c: f"{c.end:.2f}",
    "random tokens end at": lambda c: f"{c.random:.2f}",
    "repeats what it read": lambda c: f"{c.copies:.0%}",
    "right on new texts": lambda c: f"{c.accuracy:.2f}",
    "... the larger class": lambda c: f"{c.majority:.2f}",
}
ONLY = {"reader": {"moved by the future", "own token, times others", "random tokens end at",
                   "repeats what it read"},
        "writer": {"right on new texts", "... the larger class"}}  # fmt: skip
for kind in ("writer", "reader"):
    chosen = [c for c in charts.values() if c.kind == kind]
    print(
        f"\n{kind + 's':24}" + "".join(f"{c.patient.replace(kind, 'healthy'):>9}" for c in chosen)
    )
    for row, said in ROWS.items():
        if row not in ONLY[kind]:
            print(f"{row:24}" + "".join(f"{said(c):>9}" for c in chosen))

# %%
writers = [name for name in clinic.PATIENTS if charts[name].kind == "writer"]
readers = [name for name in clinic.PATIENTS if charts[name].kind == "reader"]
left, right = plots.figure(2, (6, 3))
for ax, names, kind in ((left, writers, "writer"), (right, readers, "reader")):
    ax.plot(charts[kind].one_batch, color="0.6", linewidth=4, label="healthy")
    for name in names:
        ax.plot(charts[name].one_batch, linewidth=1.2, label=name)
    ax.set(title=f"{kind}s, one batch", xlabel="step", ylim=(0, 1.3 * charts[kind].chance))
    ax.legend(frameon=False, fontsize=8, ncols=2)
_ = left.set(ylabel="loss (nats)")

# %% [markdown]
# Who moves whom, among the writers, and what they look at (first block, first head):

# %%
axes = plots.figure(len(writers), (6, 1.9), sharey=True)
for ax, name in zip(axes, writers, strict=True):
    draw_influence(charts[name], ax)
axes[0].set(xlabel="token j changed", ylabel="output i moves")
axes = plots.figure(len(writers), (6, 1.9), sharey=True)
for ax, name in zip(axes, writers, strict=True):
    decoder = clinic.patient(name).model.decoder
    ax.imshow(mt.attention_maps(decoder, ids)[0][0, 0], cmap=plots.WEIGHTS, vmin=0, vmax=0.4)
    ax.set_title(name, fontsize=10)
_ = axes[0].set(xlabel="key", ylabel="query")

# %% [markdown]
# And the readers, on a text of 12 tokens that was padded to 20:

# %%
text = next(i for i in clinic.patient("reader").valid.ids if len(i) >= 12)[:12]
batch = mt.data.pad([text, range(4, 24)], pad_id=0)
axes = plots.figure(len(readers), (6, 1.8), sharey=True)
for ax, name in zip(axes, readers, strict=True):
    encoder = clinic.patient(name).model.encoder
    maps = mt.attention_maps(encoder, batch.ids, batch.keep)
    ax.imshow(maps[0][0, 0, :12], cmap=plots.WEIGHTS, vmin=0, vmax=0.15)
    ax.axvline(11.5, color="C3", linewidth=1)
    ax.set_title(name, fontsize=10)
_ = axes[0].set(xlabel="key", ylabel="query")

# %% [markdown]
# The gradient of the first loss, layer by layer (a gradient of 0 does not show):

# %%
axes = plots.figure(2, (6, 2.4), sharey=True)
for ax, names in zip(axes, (writers, readers), strict=True):
    layers = list(charts[names[0]].gradients)
    for i, name in enumerate(names):
        at = [j + 0.15 * (i - 2) for j in range(len(layers))]
        ax.plot(at, list(charts[name].gradients.values()), "o", markersize=4, label=name)
    ax.set(yscale="log", ylim=(1e-2, 40))
    ax.set_xticks(range(len(layers)), layers, fontsize=8)
    ax.legend(frameon=False, fontsize=7, ncols=3)
_ = axes[0].set(ylabel="norm of the gradient")

# %% [markdown]
# Every patient can be told apart from every other, and the healthy ones have no symptom at all:

# %%
signs = {name: chart.signs for name, chart in charts.items()}
assert not signs["writer"] and not signs["reader"]
assert len({(charts[p].kind, signs[p]) for p in clinic.PATIENTS}) == len(clinic.PATIENTS)
assert all(signs[p] for p in clinic.PATIENTS)
assert all(charts[p].end < 0.9 * charts[p].one_batch[0] for p in clinic.PATIENTS)
assert sum(charts[p].random < 0.8 * math.log(8) for p in writers) == 2

# %% [markdown]
# ### Exercise 3: nine names
#
# There are twelve mistakes to choose from; three of them belong to nobody here. Your function takes
# no argument and returns a dictionary, from the letters of the patients to names of mistakes.
#
# | name | what was done |
# | --- | --- |
# | `"body is frozen"` | no gradients below the head |
# | `"dropout stays on"` | evaluation in training mode |
# | `"gradients pile up"` | `zero_grad` forgotten |
# | `"heads merged wrongly"` | a reshape without a transpose |
# | `"labels of other texts"` | labels shifted against the texts |
# | `"no residuals"` | $\mathrm{MHA}(x)$ instead of $x + \mathrm{MHA}(x)$ |
# | `"no shift"` | the target at $t$ is the token at $t$ |
# | `"padding is heard"` | no padding mask in attention |
# | `"rate too high"` | a learning rate that is far too high |
# | `"sees one ahead"` | the causal mask is off by one |
# | `"softmax twice"` | cross-entropy of probabilities |
# | `"starts too large"` | embeddings drawn from $N(0, 1)$ |
#
# You need not name all at once: leave out a letter, or give it `None`. The check answers a wrong
# name with the measurement that contradicts it. Begin with the sure ones: which measurement has a
# single cause?


# %%
def my_diagnoses():
    """Returns: a dictionary from letters to names, such as {"A": "no shift"}."""
    # BEGIN SOLUTION
    return {
        "A": "padding is heard",
        "B": "no shift",
        "C": "body is frozen",
        "D": "starts too large",
        "E": "labels of other texts",
        "F": "sees one ahead",
        "G": "dropout stays on",
        "H": "no residuals",
        "I": "softmax twice",
    }
    # END SOLUTION


mt.check.diagnoses(my_diagnoses)

# %% [markdown]
# ## 4. What the ward teaches
#
# - **A falling loss proves little.** It fell for all nine. Two of the writers got *better* than
#   possible, and the reader that learned in vain learned its batch as well as the healthy one did.
# - **Cheap instruments first.** The first loss, two equal calls, one text alone: they take seconds,
#   need no training, and name almost half of the patients.
# - **In this order.** A model that differs from call to call also differs between a text alone and
#   in a batch; ask the second question only when the first is settled.
# - **A symptom is what the instrument says, not what the textbook promises.** A missing residual is
#   said to make gradients vanish on their way down. Look at the gradients again: with norms inside each
#   block none vanishes here, one is even larger than it should be. What gives it away is that
#   outputs hardly depend on their own token any more.
# - **When all instruments read normal, look at the data.** Print ten texts beside their labels. It
#   is the most boring way to find a mistake, and the one that finds the most.
#
# ## What to read next
#
# - `minitransformer/classroom/clinic/instruments.py`, for your own models. Then `patients.py`
#   beside it: each mistake is a few lines.
# - Andrej Karpathy, "A Recipe for Training Neural Networks" (2019), on building up from what is known
#   to work; notebook 03 on why blocks have residuals and norms, notebook 04 on the causal mask.
# - Xiong et al. 2020, "On layer normalization in the Transformer architecture": gradients by layer,
#   measured and derived.
