# %% [markdown]
# # 08 Pretraining objectives
#
# Fine-tuning starts from a model that has read. What did it read *for*? Nobody labelled its texts: the
# question and the answer were both cut out of the text itself. There are three usual ways to cut, and
# each belongs to one of the three families:
#
# | objective | family | the question |
# | --- | --- | --- |
# | causal language modelling | decoder (GPT) | which token comes next? |
# | masked language modelling | encoder (BERT) | which token stood here? |
# | span corruption | encoder-decoder (T5) | what fills these holes? |
#
# This notebook shows all three on one sentence: what the model sees, what it is asked, and at which
# places there is a loss. Well-known projects got each of them wrong at some time, in ways that train
# without an error, so there are three exercises that know those ways. Then a small BERT is pretrained for
# real, on Chinese reviews, and fine-tuned with few labels, beside a model that has read nothing. That
# takes ten minutes to half an hour, so it was done before; its first steps are repeated here.
#
# It covers section 2.1 of the article, how its pretrained models came to be, and part of 8.2, how many
# labels this saves. Sources: Radford et al. 2018; Devlin et al. 2019, section 3.1; Raffel et al. 2020,
# section 3.
#
# *Runs in one to three minutes on two cores. Needs `make data` once.*

# %%
import torch

import minitransformer as mt
from minitransformer import plots
from minitransformer.data import CorruptedSpans, EncodedTexts, MaskedTexts
from minitransformer.training.objectives import causal_lm_loss, masked_lm_loss, seq2seq_loss

SENTENCE = "The film virtually chokes on its own self consciousness."


def picture(title, **rows):
    """Tokens as cells, a row of them a line of the figure; blue where there is a loss."""
    length = max(len(tokens) for tokens in rows.values())
    ax = plots.figure(1, (6, 0.45 + 0.72 * len(rows)))
    for y, (name, tokens) in enumerate(rows.items()):
        for x, token in enumerate(tokens):
            if token is None:
                continue
            colour = "#bbdefb" if name.startswith("is_asked") else "#eeeeee"
            special = token.startswith(("[", "<"))
            box = {"facecolor": colour, "edgecolor": "white", "linewidth": 1.5}
            ax.add_patch(plots.plt.Rectangle((x, -y), 1, 0.94, **box))
            ax.text(
                x + 0.5, 0.47 - y, token, rotation=90 if len(token) > 3 else 0, ha="center",
                va="center", fontsize=6.5 if len(token) < 11 else 5.5, color="C3" if special else "black",
            )  # fmt: skip
        ax.text(
            -0.2,
            0.47 - y,
            name.replace("_", " ").rstrip("123"),
            ha="right",
            va="center",
            fontsize=8,
        )
    ax.set(xlim=(-2.6, length), ylim=(1 - len(rows), 1), title=title)
    ax.title.set_fontsize(9)
    ax.axis("off")


# %% [markdown]
# ## 1. The next token
#
# The oldest question: given all tokens so far, which comes next? The loss of a text is the mean of
#
# $$L = -\frac1{T-1} \sum_{t=1}^{T-1} \log p(x_{t+1} \mid x_1, \dots, x_t).$$
#
# Every token but the first is an answer, so a text of $T$ tokens is $T - 1$ lessons at once. For this and
# for the third objective a small vocabulary is learned from the film reviews, with sentinels that are
# needed later.

# %%
reviews = mt.data.load("movies").split(seed=0)[0].texts[:2000]
SENTINEL_TOKENS = [f"<{letter}>" for letter in "XYZABCDEFGHI"]
small = mt.data.train_tokenizer(reviews, vocab_size=2000, extra=SENTINEL_TOKENS)
END, START = small.id_of("[END]"), small.id_of("[START]")


def words(ids):
    return [token.replace("Ġ", "_") for token in small.tokens(ids)]


ids = [*small.encode(SENTENCE), END]
picture(
    "causal: seen up to here, what is next?",
    sees=words(ids[:-1]),
    is_asked=words(ids[1:]),
)

# %% [markdown]
# (`_` is the space before a word; red are the special tokens, blue is where there is a loss.)
#
# The lower row is the upper one, moved by one place. That shift must happen exactly once. Without it the
# model is asked for the token that it is looking at, and the loss falls to zero in a few steps; made
# twice, by the data and again by the loss, it is asked for the token after the next.

# %%
torch.manual_seed(0)
config = mt.TransformerConfig.gpt2(
    vocab_size=small.vocab_size, d_model=64, n_heads=4, n_layers=2, d_ff=256, max_len=64,
    start_id=START, eos_id=END, pad_id=0,
)  # fmt: skip
gpt = mt.CausalLM(mt.Decoder(config)).eval()
batch = mt.data.pad([ids], small.pad_id)
loss = causal_lm_loss(gpt, batch).item()
uniform = torch.tensor(float(small.vocab_size)).log().item()
print(
    f"{batch.n_targets} lessons; an untrained model: {loss:.2f} nats, blind guessing {uniform:.2f}"
)
assert batch.n_targets == len(ids) - 1 and abs(loss - uniform) < 1

# %% [markdown]
# ## 2. The hidden token
#
# A decoder reads from left to right. To classify a sentence it is better to look both ways, but a model
# that sees both sides of a place usually sees the place itself, and there is nothing left to
# predict. BERT's answer is to hide it. A token is *chosen* with probability 0.15, and of the chosen ones
#
# - 80 % become `[MASK]`,
# - 10 % become another token, drawn at random,
# - 10 % stay as they are.
#
# With $M$ the chosen places and $\tilde x$ the text after this change,
#
# $$L = -\frac1{|M|} \sum_{t \in M} \log p(x_t \mid \tilde x).$$
#
# Why not always `[MASK]`? It never occurs later, in fine-tuning. Since any token may be a wrong one, the
# model has to keep a good idea of *every* place, not only of those marked. `[CLS]`, `[SEP]` and padding
# are never chosen.
#
# The tokenizer is BERT's own here. The same sentence in three epochs:

# %%
_, bert_words = mt.load_pretrained("all-MiniLM-L6-v2")
sentence = mt.data.encode([SENTENCE], bert_words)
masked = MaskedTexts(sentence, bert_words)


def asked(batch):
    answers = bert_words.tokens(batch.targets[0])
    return [a if c else None for a, c in zip(answers, batch.chosen[0], strict=True)]


rows = {}
for epoch, seed in enumerate((2, 85, 118), 1):
    (batch,) = masked.batches(1, seed=seed)
    rows |= {
        f"epoch_{epoch}:_sees": bert_words.tokens(batch.ids[0]),
        f"is_asked{epoch}": asked(batch),
    }
picture("masked: what stood at the blue places? (three epochs)", **rows)

# %% [markdown]
# Each epoch hides different tokens, so a text that is read ten times asks ten different questions. In the
# first one "on" was replaced, by "margins"; in the others one of the tokens asked for is there to be
# read. Nobody can tell from the ids where the loss is: the batch has to say.
#
# ### Exercise 1: mask the tokens
#
# You are given two random numbers for each token: `u` decides whether it is chosen, `v` what happens
# to it. `drawn` has a random token for each place. (BERT-pytorch, read by thousands, asked both questions of
# the same number for a while. What happens then?)


# %%
def my_mask_tokens(ids, special, u, v, drawn, mask_id):
    """What the model sees: (batch, length), integer ids.

    ids: (batch, length), integers; special: boolean, True at [CLS], [SEP] and padding; u, v: random
    numbers from 0 to 1; drawn: random ids, all of the same shape; mask_id: the id of [MASK].

    Chosen: not special, and u < 0.15. Of these [MASK] where v < 0.8, the drawn token where
    0.8 <= v < 0.9, and otherwise the token itself.
    """
    # BEGIN SOLUTION
    chosen = ~special & (u < 0.15)
    seen = torch.where(chosen & (v < 0.8), mask_id, ids)
    return torch.where(chosen & (v >= 0.8) & (v < 0.9), drawn, seen)
    # END SOLUTION


mt.check.mask_tokens(my_mask_tokens)

# %% [markdown]
# The same for many texts: 2,000 reviews, counted. Of 15 % chosen, a tenth has been replaced by a token drawn from
# the vocabulary, special tokens excepted.

# %%
data = MaskedTexts(mt.data.encode(reviews, bert_words), bert_words)
counts = dict.fromkeys(("may be chosen", "chosen", "masked", "replaced", "left"), 0)
for batch in data.batches(64, seed=0):
    seen, answer = batch.ids[batch.chosen], batch.targets[batch.chosen]
    hidden = seen == bert_words.id_of("[MASK]")
    ordinary = torch.from_numpy(data.ordinary)[batch.targets] & batch.keep[:, 0, 0]
    counts["may be chosen"] += int(ordinary.sum())
    counts["chosen"] += batch.n_targets
    counts["masked"] += int(hidden.sum())
    counts["left"] += int((seen == answer).sum())
    counts["replaced"] += int((~hidden & (seen != answer)).sum())
share = counts["chosen"] / counts["may be chosen"]
print(f"{counts['may be chosen']:,} tokens, of which {share:.1%} are chosen; of these")
for name in ("masked", "replaced", "left"):
    print(f"    {name:9} {counts[name] / counts['chosen']:.1%}")
assert abs(share - 0.15) < 0.01 and abs(counts["masked"] / counts["chosen"] - 0.8) < 0.02

# %% [markdown]
# ### Exercise 2: the loss at the chosen places
#
# `chosen` says where a token is asked for, `keep` which tokens are real (a chosen one always is).


# %%
def my_masked_loss(logits, targets, chosen, keep):
    """The mean loss over the chosen places, as a tensor that holds one number, of shape ().

    logits: (batch, length, vocab); targets: (batch, length), the original ids; chosen, keep:
    boolean, (batch, length), True where a token was chosen, and where it is real.
    """
    # BEGIN SOLUTION
    log_p = logits[chosen].log_softmax(-1)
    return -log_p.gather(-1, targets[chosen][:, None]).mean()
    # END SOLUTION


mt.check.masked_loss(my_masked_loss)

# %% [markdown]
# Indexing `logits[chosen]` saves work too. The head compares each place with every token of the
# vocabulary, in a small model the largest product of all, and six of seven places need none of it.
# `masked_lm_loss` does it one step earlier: it gathers the hidden states, so that those logits are never
# computed (measured in `tests/benchmarks/pretraining.py`).

# %%
torch.manual_seed(0)
bert = mt.MaskedLM(
    mt.Encoder(
        mt.TransformerConfig.bert(
            vocab_size=bert_words.vocab_size, d_model=64, n_heads=4, n_layers=2, d_ff=256,
            pooler=False,
        )
    )
).eval()  # fmt: skip
batch = next(iter(data.batches(8, seed=0)))
every = bert(batch.ids, batch.keep)
wanted = torch.nn.functional.cross_entropy(every[batch.chosen], batch.targets[batch.chosen])
print(f"logits at all places: {every[..., 0].numel()}, needed: {batch.n_targets}")
assert torch.allclose(masked_lm_loss(bert, batch), wanted, atol=1e-5)

# %% [markdown]
# ## 3. The missing span
#
# T5 hides spans, not tokens, and lets a decoder write them. Each span leaves one *sentinel* in the source,
# and nothing says how long the span was. In the target the same sentinel announces the span, one more
# sentinel says that no other follows, and the end token ends it. 15 % of the tokens are cut out, in
# spans of three on average. The loss is that of any sequence-to-sequence model,
#
# $$L = -\frac1N \sum_{t=1}^{N} \log p(y_t \mid y_1, \dots, y_{t-1}, \tilde x),$$
#
# with $\tilde x$ the source and $y$ the target. Here 30 % in spans of two, as the sentence is short:

# %%
SENTINELS = [small.id_of(token) for token in SENTINEL_TOKENS]
text = EncodedTexts((tuple(small.encode(SENTENCE)),), None, small.pad_id)
spans = CorruptedSpans(text, SENTINELS, END, share=0.3, mean_span=2)
(pair,) = spans.batches(1, seed=3)
source, target = pair.source[0].tolist(), pair.target[0].tolist()
picture(
    "spans: what fills the holes?",
    encoder_sees=words(source),
    decoder_sees=words([START, *target[:-1]]),
    is_asked=words(target),
)

# %% [markdown]
# Source and target together are the text, each token in one of the two. So the decoder writes a few
# tokens, not the whole text again. Section 4 counts what that saves.
#
# ### Exercise 3: cut the spans out
#
# The source only. `noise` is True at the tokens that go.


# %%
def my_corrupt_spans(ids, noise, sentinels, pad_id):
    """The source: each span of noise is replaced by one sentinel, the first by sentinels[0].

    ids: (length,), integers; noise: boolean, (length,), True at the tokens to be cut out;
    sentinels: a tensor of ids, more than are needed; pad_id: an integer.
    Returns: (length,), the source and then pad_id, as a tensor or a list. Loops are fine.
    """
    # BEGIN SOLUTION
    source, used = [], 0
    for t in range(len(ids)):
        if not noise[t]:
            source.append(int(ids[t]))
        elif t == 0 or not noise[t - 1]:
            source.append(int(sentinels[used]))
            used += 1
    return torch.tensor(source + [pad_id] * (len(ids) - len(source)))
    # END SOLUTION


mt.check.corrupt_spans(my_corrupt_spans)

# %% [markdown]
# ## 4. What each may look at
#
# The question decides the mask. A model that is asked for the next token must not see it: the mask is
# causal. One that is asked for hidden tokens may see all places, since the answer is not there. T5 has
# both: its encoder sees all of the source, its decoder all of the source and what it has written.


# %%
def seen_by_decoder(queries, keys):
    """All of the source, and the target up to here."""
    return torch.cat([torch.ones(queries, keys).bool(), mt.causal_mask(queries)], 1)


n, read, written = 7, 5, 4
masks = {
    "causal": mt.causal_mask(n),
    "masked": torch.ones(n, n).bool(),
    "spans: the decoder": seen_by_decoder(written, read),
}
for ax, (title, keep) in zip(plots.figure(3, (6, 2.3)), masks.items(), strict=True):
    queries, keys = ([str(i + 1) for i in range(k)] for k in keep.shape)
    if title.startswith("spans"):
        keys = [f"s{i + 1}" for i in range(read)] + queries
    plots.attention(keep.double(), queries, keys, title=title, ax=ax)

# %% [markdown]
# Is that true? Change a token, and see which hidden states move. In the decoder none before it may; in
# the encoder all do.

# %%
for name, hidden_of in (("decoder", gpt.decoder), ("encoder", bert.encoder)):
    before = torch.arange(10, 17)[None]
    after = before.clone()
    after[0, 4] = 99
    with torch.no_grad():
        moved = (hidden_of(before) - hidden_of(after)).abs().amax(-1)[0] > 1e-6
    print(
        f"{name}: token 5 changed, moved are {[i + 1 for i in moved.nonzero().flatten().tolist()]}"
    )
    assert moved.all() if name == "encoder" else moved.tolist() == [False] * 4 + [True] * 3

# %% [markdown]
# And what does it cost? The three on the same 2,000 reviews: how many places the model processes, and how
# many of them are lessons. (The tokenizers differ, so compare within a line.)

# %%
torch.manual_seed(0)
t5 = mt.Seq2SeqLM(mt.EncoderDecoder(config)).eval()
encoded = mt.data.encode(reviews, small)
cut = CorruptedSpans(encoded, SENTINELS, END)
lines = []
for name, model, texts, loss_of, size in (
    ("causal", gpt, encoded, causal_lm_loss, lambda b: int(b.keep.sum())),
    ("masked", bert, data, masked_lm_loss, lambda b: int(b.keep.sum())),
    ("spans", t5, cut, seq2seq_loss, lambda b: int(b.source_keep.sum() + b.target_keep.sum())),
):
    batches = list(texts.batches(64, seed=0))
    places, lessons = sum(map(size, batches)), sum(b.n_targets for b in batches)
    with torch.no_grad():
        first = loss_of(model, batches[0]).item()
    lines.append((name, lessons / places))
    print(f"{name:7} {places:7,} places, {lessons:7,} lessons: {lessons / places:.0%}; "
          f"loss of the untrained model {first:.1f}")  # fmt: skip
assert lines[0][1] > 0.9 and 0.1 < lines[1][1] < 0.16 < lines[2][1] < 0.5

# %% [markdown]
# A causal model has a lesson at nearly every place, a masked one at every seventh or eighth: that is the
# price of looking both ways. It is a fair one. Devlin et al. 2019 (appendix C.1) trained the same model
# for both questions: the masked one learns a little more slowly, and after fine-tuning it is ahead almost
# at once.

# %% [markdown]
# ## 5. Does it pay?
#
# English readers find a BERT ready-made. For most languages there was none for a long time, and for most
# companies' own texts there is none today. Here is the question at the size of a laptop, in Chinese, where
# we have no model at all. 17,300 reviews of hotels, computers and books are labelled; suppose that only a
# few hundred of them were. The others are still text. `mt.data.corpus` gives the training reviews without
# their labels, and no text that is used for validation or for the test.
#
# Chinese has no spaces, so here every character is a token.

# %%
import json
import math

import numpy as np

LENGTH = 64
texts, unseen = mt.data.corpus("chinese_reviews")
letters = mt.data.train_tokenizer(texts, "characters", bert=True, min_count=5, max_length=10_000)
SEP = letters.id_of("[SEP]")


def blocks(texts):
    """All texts, one behind the other, in full blocks; 30 % of the characters are asked for."""
    return MaskedTexts(
        mt.data.pack(mt.data.encode(texts, letters), LENGTH, SEP), letters, share=0.3
    )


train_blocks, valid_blocks = blocks(texts), blocks(unseen)
print(
    f"{len(texts):,} texts, {sum(map(len, texts)) / 1e6:.2f} million characters; the vocabulary has ",
    end="",
)
print(f"{letters.vocab_size:,} tokens; {len(train_blocks):,} blocks of {LENGTH}")
print(texts[0][:60])

# %% [markdown]
# The model has four blocks of width 128. Three of its settings are not BERT's, since it has minutes and not
# days. Norms stand *before* the sublayers, which allows a high rate at once (notebook 03). 30 % of the
# characters are asked for: more lessons per step, each a little harder (Wettig et al. 2023 find 40 % better
# than 15 % also for large models). And there is no dropout: nothing is read often enough to be
# learned by heart.

# %%
config = mt.TransformerConfig.bert(
    vocab_size=letters.vocab_size, d_model=128, n_heads=4, n_layers=4, d_ff=512, max_len=LENGTH,
    norm_position="pre", init_std=0.05, pooler=False, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
torch.manual_seed(0)
chinese_bert = mt.MaskedLM(mt.Encoder(config))
short = mt.pretrain(
    chinese_bert, train_blocks, valid_blocks, steps=150, lr=3e-3, batch_size=64, progress=False
)
loss = short.best["valid_loss"]
print(f"after 150 steps: perplexity {np.exp(loss):.0f} of {letters.vocab_size:,}")

# %% [markdown]
# The real training has 2,000 steps. They, and everything else that is read from a file below, were made
# by `python data/results/chinese.py`, in ten to thirty minutes; the file is `chinese.jsonl` beside it.

# %%
with open(mt.data.data_folder() / "results" / "chinese.jsonl", encoding="utf-8") as file:
    made = [json.loads(line) for line in file]
curve = [line for line in made if "step" in line]
last = curve[-1]
print(f"perplexity {np.exp(last['loss']):.0f}, right at {last['right']:.0%} of the places")

left, right = plots.figure(2, (6, 2.6))
at = [v["step"] for v in curve]
left.plot(at, [v["loss"] for v in curve], "o-")
left.plot(150, loss, "s", color="C3", label="here")
left.set(title="validation loss", xlabel="step", ylim=(3, None))
left.legend(frameon=False)
right.plot(at, [100 * v["right"] for v in curve], "o-", color="C1")
right.set(title="right, % of the places asked for", xlabel="step", ylim=(0, None))
assert last["loss"] + 1 < loss < math.log(letters.vocab_size) - 1

# %% [markdown]
# For a while the loss stands nearly still: the model knows how frequent each character is, and no more.
# That is as far as we got here. Then it discovers that the neighbours tell, and the loss falls faster
# than before. Many short trainings of masked models end before that moment, and seem to show that
# nothing can be learned.
#
# What does it know after 2,000 steps? A few holes, and its first three guesses:

# %%
for line in made:
    if "hole" in line:
        guesses = ", ".join(f"{token} {share:.0%}" for token, share in line["guesses"])
        print(f"{line['hole']:22} {guesses}")

# %% [markdown]
# ### With it and without it
#
# Now the labels: 100, 300, 1,000 or 3,000 of them. The same encoder is fine-tuned, once from the
# pretrained weights and once from new ones, for the same number of steps, each with three seeds (other
# reviews, another head, another order). For comparison, counting: TF-IDF over characters and their pairs and
# triples.

# %%
LABELS, SEEDS, WAYS = [100, 300, 1000, 3000], range(3), ("new", "pretrained", "TF-IDF")
found = {(m["way"], m["labels"], m["seed"]): m["accuracy"] for m in made if "way" in m}
accuracy = {way: [[found[way, n, seed] for seed in SEEDS] for n in LABELS] for way in WAYS}

print("test accuracy, mean ± standard deviation of three seeds")
print(f"{'labels':>8}", *(f"{name:>15}" for name in accuracy))
for i, n in enumerate(LABELS):
    cells = (f"{np.mean(a[i]):.3f} ± {np.std(a[i], ddof=1):.3f}" for a in accuracy.values())
    print(f"{n:8,}", *(f"{cell:>15}" for cell in cells))

# %% [markdown]
# Here is one of these again: a new model, 100 labels, the first seed.

# %%
train, valid, test = mt.data.load("chinese_reviews").split(seed=0)
few = train.sample(100, 0)
torch.manual_seed(0)
encoder = mt.Encoder(config.with_(dropout=0.1, attention_dropout=0.1))
model = mt.SequenceClassifier(encoder, 2, pooling="mean")
parts = [mt.data.encode(p, letters, LENGTH) for p in (few, valid.sample(100), test.sample(1000))]
mt.finetune(model, *parts[:2], steps=100, validate_every=50, lr=2e-3, progress=False)
again = mt.evaluate(model, parts[2]).accuracy
print(f"{again:.3f} here, {found['new', 100, 0]:.3f} in the file")
assert abs(again - found["new", 100, 0]) < 0.1

# %%
ax = plots.figure(size=(5, 3.4))
mean = {name: np.mean(a, 1) for name, a in accuracy.items()}
for name, colour in zip(accuracy, ("C0", "C1", "black"), strict=True):
    spread = np.std(accuracy[name], 1, ddof=1)
    ax.plot(LABELS, mean[name], "o-", color=colour, label=name)
    ax.fill_between(LABELS, mean[name] - spread, mean[name] + spread, color=colour, alpha=0.15)
ax.set(xscale="log", xlabel="labels", ylabel="test accuracy")
ax.set_xticks(LABELS, [f"{n:,}" for n in LABELS])
ax.legend(frameon=False)
ax.minorticks_off()

# %% [markdown]
# In labels: how many would the new model need to be as good? Between the measured sizes we interpolate
# on a logarithmic scale.

# %%
gain = mean["pretrained"] - mean["new"]
for n, with_it, more in zip(LABELS, mean["pretrained"], gain, strict=True):
    if with_it > mean["new"].max():
        needed = f"more than {LABELS[-1]:,}"
    else:
        rising = np.maximum.accumulate(mean["new"])
        needed = f"{np.exp(np.interp(with_it, rising, np.log(LABELS))):,.0f}"
    print(f"{n:5,} labels: {100 * more:+.1f} points; the new model would need {needed} labels")
assert gain.mean() > 0.005 and mean["TF-IDF"][-1] > mean["pretrained"][-1]

# %% [markdown]
# **It pays, and it is not enough.** Some minutes of reading are worth two to four points with up to a
# thousand labels, and at three thousand no more than the seeds differ by. In labels that is more than one
# would guess: what the pretrained model does with a thousand, the new one hardly reaches with three times as
# many in the same hundred steps. That is the article's promise, at the size of a laptop. But counting
# characters beats both at every size. A million characters in a few minutes teach which character fits;
# what makes a review a good one is spread over whole sentences, and BERT read three billion words before
# it knew. Notebook 10 fine-tunes a model that has read much more, and there counting loses.
#
# What it took to see the gain at all:
#
# - *enough steps*: before the bend in the curve there is nothing to transfer;
# - *the right texts*: the corpus is of the same kind as the task. With the newspaper added,
#   `mt.data.corpus("chinese_reviews", "newspaper")` in the first cell of this section, there is nearly three
#   times the text, and the same number of steps is worth 1.7, 2.9, 0.1 and 0.0 points. Two thirds of the reading are
#   then about something else, and the vocabulary grows by a thousand characters;
# - *lengths that fit*: a model that was never shown a 65th position reads garbage there.
#
# A longer pretraining can be stopped and resumed, on the command line `python -m minitransformer pretrain
# --objective masked --data chinese_reviews --tokenizer characters --out my-bert`, then with `--resume`. With
# `--objective causal` it makes a GPT, with `--objective spans` a T5.
#
# ## What to read next
#
# - **Notebook 09, one model, three families**: the three families in one piece of code; **notebook 10**, what
#   a model is worth that has really read.
# - Devlin et al. 2019, appendix C; Raffel et al. 2020, section 3, where objectives are compared at length;
#   Wettig et al. 2023, "Should you mask 15 % in masked language modeling?"
# - In the package: `minitransformer/data/masking.py`, `minitransformer/data/spans.py` and
#   `minitransformer/training/objectives.py`.
