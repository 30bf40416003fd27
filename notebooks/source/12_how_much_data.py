# %% [markdown]
# # 12 How much data
#
# Pretraining is said to save labels. How many? From sixteen labelled reviews to all eight thousand,
# this notebook compares strategies with each other and with counting words, and ends in a table to
# choose by: so many labels, so many seconds, so much memory.
#
# It covers the article's sections 8.1 (generalisation) and 8.2 (sample efficiency).
#
# *Runs in about two minutes on two cores. Needs `make data` once.*

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import minitransformer as mt

RESULTS = mt.data.data_folder() / "results"

# %% [markdown]
# ## The experiment
#
# For each strategy and each number of labels: three seeds, each with other reviews, another head and
# another order. The same number of steps for every strategy: a hundred, or two epochs where that is
# more. The learning rate is chosen on validation for each strategy and size (above 1,024 labels the
# one chosen there is kept), and the validation set has no more texts than the training set: whoever
# has sixteen labels does not have a thousand to tune on.
#
# ```
# python -m minitransformer experiment --labels 16 64 256 1024 8058 --out data/results/movies.jsonl \
#     --methods full lp-ft last-layers:2 head-only tf-idf
# ```
#
# It writes a line for each training and goes on where it was when it is stopped. The file is in
# `data/results/`.

# %%
METHODS = ["full", "lp-ft", "last-layers:2", "head-only", "tf-idf"]
LABELS = [16, 64, 256, 1024, 8058]
results = mt.results.read(RESULTS / "movies.jsonl")
cells = mt.results.chosen(results)
print(mt.results.table([r for r in results if r.trial.method in METHODS]))

# %% [markdown]
# ## A part of it, again
#
# A file of results is a claim. Here is a part of it recomputed: 64 labels, first seed.

# %%
reviews = mt.data.load("movies")
encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
lab = mt.experiments.Lab(
    encoder, tokenizer, {"movies": reviews}, mt.data.load("editorials").texts
)  # fmt: skip
for method in METHODS:
    claimed = cells["movies", method, 64][0]
    found = lab.run(claimed.trial)
    print(
        f"{method:>14}: {found.accuracy['movies']:.3f} here, {claimed.accuracy['movies']:.3f} in the file"
    )
    assert abs(found.accuracy["movies"] - claimed.accuracy["movies"]) < 0.05

# %% [markdown]
# ## Accuracy by number of labels


# %%
def statistics(method: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over seeds, for every number of labels."""
    pairs = [
        mt.results.mean_and_sd([r.accuracy["movies"] for r in cells["movies", method, n]])
        for n in LABELS
    ]
    return np.array(pairs).T


_, ax = plt.subplots(figsize=(6, 4), dpi=100, layout="constrained")
for i, method in enumerate(METHODS):
    mean, sd = statistics(method)
    style = dict(color="0.4", linestyle="--") if method == "tf-idf" else dict(color=f"C{i}")
    ax.plot(LABELS, mean, "o-" if method != "tf-idf" else "s", label=method, ms=4, **style)
    ax.fill_between(LABELS, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)
ax.set(xscale="log", xlabel="labelled reviews", ylabel="test accuracy, mean ± sd of three seeds")
ax.set_xticks(LABELS, [f"{n:,}" for n in LABELS])
ax.axhline(0.5, color="0.8", linewidth=1)
ax.legend(frameon=False, fontsize=9)
ax.minorticks_off()

# %% [markdown]
# ## How many more labels does counting words need?
#
# Read the figure sideways. Full fine-tuning on $n$ labels reaches some accuracy; how many labels
# does TF-IDF need for the same?

# %%
counting, _ = statistics("tf-idf")
for method in ("full", "last-layers:2", "head-only"):
    mean, _ = statistics(method)
    print(f"\n{method}")
    for n, accuracy in zip(LABELS, mean, strict=True):
        if accuracy > counting.max():
            said = f"more than the {LABELS[-1]:,} there are"
        elif accuracy < counting.min():
            said = f"fewer than {LABELS[0]}"
        else:
            needs = np.exp(np.interp(accuracy, np.maximum.accumulate(counting), np.log(LABELS)))
            said = f"about {needs:,.0f}: {needs / n:.1f} times as many"
        print(f"  {n:>5} labels, {accuracy:.3f}: TF-IDF needs {said}")

# %% [markdown]
# ### Exercise: how sure is an accuracy?
#
# An accuracy $p$ on $n$ test reviews is a share, and a share has a standard error,
# $\sqrt{p (1 - p) / n}$. Write it for a tensor of accuracies.


# %%
def accuracy_error(p, n):
    # BEGIN SOLUTION
    return (p * (1 - p) / n).sqrt()
    # END SOLUTION


mt.check.accuracy_error(accuracy_error)

# %% [markdown]
# ### Exercise: how sure is a mean over seeds?
#
# Another training would have come out differently. For a tensor of accuracies (methods, seeds)
# return (methods, 2): the mean of each row and its standard error, the standard deviation (over
# $n - 1$) divided by $\sqrt n$.


# %%
def mean_and_error(accuracies):
    # BEGIN SOLUTION
    n = accuracies.shape[1]
    return torch.stack([accuracies.mean(1), accuracies.std(1) / n**0.5], 1)
    # END SOLUTION


mt.check.mean_and_error(mean_and_error)

# %% [markdown]
# With few labels it is the choice of the labels that makes the difference between seeds:

# %%
for n in LABELS:
    table = torch.tensor([[r.accuracy["movies"] for r in cells["movies", m, n]] for m in METHODS])
    error = mean_and_error(table)[:, 1].mean()
    test_error = accuracy_error(table.mean(), len(lab.tests["movies"]))
    print(f"{n:>5} labels: standard error over seeds {error:.3f}, of the test set {test_error:.3f}")

# %% [markdown]
# ## Runs that fail
#
# A run that says the same to every review has learned nothing. How often did it happen, over all
# rates that were tried?

# %%
for method in METHODS[:-1]:
    runs = [r for r in results if r.trial.method == method]
    print(f"{method:>14}: {sum(r.collapsed for r in runs)} of {len(runs)} runs collapsed")

# %% [markdown]
# ## Which strategy? A table to choose by
#
# For so many labels, so much time and so much memory above the model itself: the strategy with the
# best mean accuracy among those that fit. Every cell comes from the results above; the seconds are
# those of this machine's runs.

# %%
print(
    f"{'labels':>7}  {'seconds':>7}  "
    + "  ".join(f"{f'under {m} MiB':>24}" for m in (300, 1000, 4000))
)
for n in LABELS:
    for limit in (5, 30, 1000):
        row = []
        for mib in (300, 1000, 4000):
            fits = {}
            for method in METHODS:
                runs = cells["movies", method, n]
                seconds = np.median([r.seconds for r in runs])
                memory = np.median([r.memory_mib for r in runs])
                if seconds <= limit and memory <= mib:
                    fits[method] = np.mean([r.accuracy["movies"] for r in runs])
            best = max(fits, key=fits.get, default=None)
            row.append(f"{best} {fits[best]:.3f}" if best else "-")
        print(f"{n:>7,}  {limit:>7}  " + "  ".join(f"{cell:>24}" for cell in row))
