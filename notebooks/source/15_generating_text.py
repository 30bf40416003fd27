# %% [markdown]
# # 15 Generating text
#
# A language model has one skill: it says how likely each token is to come next. Everything that it
# writes follows from asking it again and again. This notebook trains a small GPT on real English,
# lets it write, and shows that *how* the next token is chosen matters as much as the model: greedy
# choice repeats itself, free choice rambles, and temperature, top-k and top-p lie in between.
#
# Then the model moves house: it is fine-tuned from film reviews and newspaper comments to tweets. It
# learns to tweet, and it forgets how to review. The perplexity on both says
# how much, and we try what can be done about it.
#
# It covers generation in section 6 of the article, and section 2.3, transfer from a source to a
# target, for a language model. Sources: Radford et al. 2018 and 2019; Holtzman et al. 2020.
#
# *Runs in one to four minutes on two cores: it trains a model from nothing. Needs `make data` once.*

# %%
import copy

import torch

import minitransformer as mt
from minitransformer import plots
from minitransformer.data import EncodedTexts
from minitransformer.inference.generation import next_token_probabilities

# %% [markdown]
# ## 1. Text into blocks
#
# The *source* domain: film reviews and newspaper comments, a sentence or two each. The *target*
# domain: tweets. A tenth of each is put aside, to choose with and to judge by.


# %%
def parts(*domains):
    """Texts of the domains for training, validation and test."""
    splits = [mt.data.load(d, threshold=0.0).split((0.9, 0.05, 0.05)) for d in domains]
    return [[text for part in same for text in part.texts] for same in zip(*splits, strict=True)]


reviews, tweets = parts("movies", "editorials"), parts("tweets")
for name, (train, valid, test) in (("reviews and comments", reviews), ("tweets", tweets)):
    print(
        f"{name}: {len(train)} texts to learn from, {len(valid)} and {len(test)} put aside, such as"
    )
    print(f"    {train[1]}\n    {train[5]}")

# %% [markdown]
# The vocabulary is learned from the reviews, by byte-pair encoding: start with 256 bytes, join the
# two neighbours that occur together most often, and repeat until there are 1,000 tokens. A space
# belongs to the word after it, which is written `Ġ`.

# %%
tokenizer = mt.data.train_tokenizer(reviews[0], "bytes", vocab_size=1000)
END = tokenizer.id_of("[END]")
for text in ("The film is a disappointment.", "@anna omg this is sooo cool :)"):
    print(tokenizer.tokens(tokenizer.encode(text)))

# %% [markdown]
# *Notice* that the tweet is cut into smaller pieces. Bytes can write anything, but text unlike
# what the vocabulary was learned from takes more tokens.
#
# The texts differ in length. Padding would waste work, so they are laid end to end, an end token after
# each, and the ribbon is cut into blocks of 64: no padding at all, and nothing lost but the last few
# tokens.

# %%
BLOCK = 64


def blocks(texts):
    return mt.data.pack(mt.data.encode(texts, tokenizer), BLOCK, END)


old_train, old_valid, old_test = map(blocks, reviews)
new_train, new_valid, new_test = map(blocks, tweets)
print(f"reviews: {len(old_train)} blocks of {BLOCK}; tweets: {len(new_train)}")
print("one of them:", tokenizer.backend.decode(old_train.ids[7], skip_special_tokens=False))

# %% [markdown]
# ## 2. Perplexity, and what there is to beat
#
# A model that gives every real next token the probability $p_n$ has the perplexity
#
# $$\mathrm{PPL} = \exp\Big(-\frac1N \sum_n \log p_n\Big),$$
#
# as if it had to guess, each time, among this many equally likely tokens. Blind guessing has 1,000.
# Counting does better: how often is each token (unigram), and how often after the one before it
# (bigram, mixed with the unigram, since most pairs are never seen)?


# %%
def pairs_in(data):
    ids = torch.tensor(data.ids)
    return ids[:, :-1].flatten(), ids[:, 1:].flatten()


V = tokenizer.vocab_size
first, second = pairs_in(old_train)
counts = torch.zeros(V, V).index_put_((first, second), torch.ones(len(first)), accumulate=True)
unigram = (counts.sum(0) + 1) / (counts.sum() + V)
seen = counts.sum(1, keepdim=True)
bigram = counts / seen.clamp(min=1)
mixed = torch.where(seen > 0, 0.6 * bigram + 0.4 * unigram, unigram)

first, second = pairs_in(old_test)
guess = {
    "blind": float(V),
    "unigram": (-unigram[second].log().mean()).exp().item(),
    "bigram": (-mixed[first, second].log().mean()).exp().item(),
}
for name, perplexity in guess.items():
    print(f"{name:8} {perplexity:7.1f}")

# %% [markdown]
# ## 3. A small GPT
#
# GPT-2's architecture, three blocks of width 128 instead of twelve of 768: decoder blocks without an
# encoder. Each position predicts the token after it (`causal_lm_loss` does the shift, once), so a
# block of 64 tokens is 63 lessons at a time.

# %%
config = mt.TransformerConfig.gpt2(
    vocab_size=V, d_model=128, n_heads=4, n_layers=3, d_ff=512, max_len=128, pad_id=0,
    start_id=END, eos_id=END, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
torch.manual_seed(0)
model = mt.CausalLM(mt.Decoder(config))
print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million weights")
print(f"before training: perplexity {mt.perplexity(model, old_test):.0f}")

history = mt.pretrain(
    model,
    old_train,
    old_valid,
    steps=1000,
    batch_size=16,
    lr=3e-3,
    weight_decay=0.1,
    progress=False,
)
history.plot(plots.figure(size=(6, 3.2)))
source = model
guess["GPT"] = mt.perplexity(model, old_test)
print(f"after it: {guess['GPT']:.1f}, where bigrams have {guess['bigram']:.1f}")
assert guess["GPT"] < 0.85 * guess["bigram"] < guess["unigram"]

# %% [markdown]
# *Notice* that the curve has not reached its floor: this model has read 1.5 million characters not even twice,
# GPT-2 forty thousand million. It has learned phrases, which words go together, and most of their
# spelling; do not ask it for sense.
#
# ## 4. Greedy: always the likeliest
#
# Let it write a hundred tokens, each time the likeliest: an end token is written like any
# other, and then the next text begins.


# %%
PROMPTS = ["The film", "The president", "It is", "This", "A story", "He", "What", "There"]
NEVER = tokenizer.id_of("[UNK]")  # occurs nowhere, so nothing ends the text


def ribbons(model, n=100, **options):
    """A long text to each prompt."""
    return [
        mt.generate(model, torch.tensor([tokenizer.encode(p)]), n, eos_id=NEVER, **options)[
            0
        ].tolist()
        for p in PROMPTS
    ]


greedy, drawn = ribbons(model), ribbons(model, temperature=1.0)
for row in greedy[:3]:
    print(tokenizer.decode(row), "\n")

# %% [markdown]
# *Notice* how it circles. The likeliest word is the commonplace one, and once a phrase stands there
# twice, a third time is likelier still. To put a number on it: how many runs of four tokens
# occurred before in the same text? For comparison: real text, and sampled tokens, which come next.


# %%
def repeated(rows):
    """The share of runs of four tokens that occurred before in their row."""
    runs = [list(zip(*(row[i:] for i in range(4)), strict=False)) for row in rows]
    return sum(len(r) - len(set(r)) for r in runs) / sum(map(len, runs))


real = [sum((old_test.ids[i], old_test.ids[i + 1]), ())[:100] for i in range(0, 100, 2)]
again = {"people": repeated(real), "greedy": repeated(greedy), "drawn": repeated(drawn)}
for name, share in again.items():
    print(f"{name:7} {share:.1%} of the runs are repetitions")
assert again["greedy"] > 0.15 and again["greedy"] > 5 * max(again["people"], again["drawn"])

# %% [markdown]
# ## 5. Temperature
#
# So draw the next token instead, with the probability that the model gives it. A temperature $T$
# sharpens or flattens the distribution first:
#
# $$p_v = \frac{e^{s_v / T}}{\sum_w e^{s_w / T}}$$
#
# $T \to 0$ is greedy, $T = 1$ is the model as it is, $T \to \infty$ blind guessing.
#
# ### Exercise 1: softmax with a temperature


# %%
def my_temperature(logits, temperature):
    """logits: (batch, vocab); temperature: a positive number. Returns: probabilities, (batch, vocab)."""
    # BEGIN SOLUTION
    return (logits / temperature).softmax(-1)
    # END SOLUTION


mt.check.temperature(my_temperature)

# %% [markdown]
# One prompt, one set of logits, three temperatures:

# %%
prompt = "The film is a"
with torch.no_grad():
    logits = source(torch.tensor([tokenizer.encode(prompt)]))[:, -1]
likeliest = logits[0].topk(10).indices
axes = plots.figure(3, (6, 3.2), sharey=True)
for ax, T in zip(axes, (0.5, 1.0, 2.0), strict=True):
    p = next_token_probabilities(logits, T)[0]
    ax.barh(range(10), p[likeliest], color="C0")
    ax.barh(10, 1 - p[likeliest].sum(), color="lightgray")
    ax.set(xlim=(0, 1), xlabel="probability")
    ax.set_title(f"T = {T}", fontsize=10)
tokens = [t.replace("Ġ", " ").strip() for t in tokenizer.tokens(likeliest)]
axes[0].set_yticks(range(11), [*tokens, f"the other {V - 10:,}"], fontsize=8)
axes[0].invert_yaxis()
axes[0].set_ylabel(f"{prompt} ...")
heads = [float(next_token_probabilities(logits, T)[0, likeliest].sum()) for T in (0.5, 1.0, 2.0)]
print("the ten likeliest have together:", ", ".join(f"{h:.0%}" for h in heads))
assert heads[0] > heads[1] > heads[2]

# %% [markdown]
# *Notice* the gray bar. At $T = 1$ each of the other tokens is unlikely, but all of them together are not.
# Of fifty sampled tokens, several come from that tail, and a single wrong one derails a sentence.
#
# ## 6. Top-k and top-p: cut off the tail
#
# Top-k draws from the $k$ likeliest tokens only. But where any of a hundred words could follow, 20 are
# too few, and where only one fits, 20 are too many. Top-p, the *nucleus*, takes the fewest likeliest
# tokens whose probabilities sum to at least $p$: its size follows the model's doubt.
#
# ### Exercise 2: the nucleus


# %%
def my_top_p(probabilities, top_p):
    """Zero outside the nucleus; inside, the proportions stay, and the sum is 1.

    probabilities: (batch, vocab); top_p: a number above 0 and up to 1.
    Returns: (batch, vocab). A hint: sort, cumsum, and scatter for the way back.
    """
    # BEGIN SOLUTION
    ordered, ids = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # what the likelier ones have together
    kept = ordered * (before < top_p)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, ids, kept)
    # END SOLUTION


mt.check.top_p(my_top_p)

# %% [markdown]
# The package's `next_token_probabilities` does both, and top-k; `mt.generate` draws from it. How large is
# the nucleus?

# %%
for prompt in ("The film is a", "One of the", "It does not make any"):
    with torch.no_grad():
        logits = source(torch.tensor([tokenizer.encode(prompt)]))[:, -1]
    p = next_token_probabilities(logits, temperature=1.0, top_p=0.9)
    best = tokenizer.tokens(p[0].topk(3).indices)
    print(f"{prompt + ' ...':32} nucleus of {int((p > 0).sum()):4} tokens, first", *best)

# %% [markdown]
# ## 7. Six ways to write
#
# The same model and the same prompt, with nothing changed but the choice of the next token:


# %%
def write(model, prompt, n=40, texts=1, **options):
    """What the model writes after the prompt, up to an end token."""
    ids = torch.tensor([tokenizer.encode(prompt)] * texts)
    return [
        tokenizer.decode(row[: row.index(END)] if END in row else row)
        for row in mt.generate(model, ids, n, **options).tolist()
    ]


ways = {
    "greedy": {},
    "T = 0.5": {"temperature": 0.5},
    "T = 1": {"temperature": 1.0},
    "T = 1.5": {"temperature": 1.5},
    "T = 1, top-k 20": {"temperature": 1.0, "top_k": 20},
    "T = 1, top-p 0.8": {"temperature": 1.0, "top_p": 0.8},
}
for name, options in ways.items():
    texts = 1 if name == "greedy" else 2
    print(name, *write(source, "The film is", texts=texts, seed=1, **options), sep="\n    ")

# %% [markdown]
# *Notice* the two ends: greedy says little, $T = 1.5$ says nothing. What lies between is a matter of
# taste; there is no right value, only a trade-off between repetition and nonsense.
#
# ## 8. Moving to another domain
#
# Now fine-tune on tweets: the same objective, the same code, 150 batches of other text. And look back:
# what has become of the reviews? The same three numbers each time, of four copies of one model:
#
# - **tweets only**: the plain way;
# - **lower rate**: the same with a tenth of the learning rate;
# - **replay**: one block in five is an old one. (So it sees fewer tweets.)


# %%
def both(model):
    """Perplexity on unseen reviews and on unseen tweets."""
    return mt.perplexity(model, old_test), mt.perplexity(model, new_test)


mixed_train = EncodedTexts(new_train.ids + old_train.ids[: len(new_train) // 4], None, 0)
recipes = {
    "tweets only": (new_train, 1e-3),
    "lower rate": (new_train, 1e-4),
    "replay": (mixed_train, 1e-3),
}
models, table = {"before": source}, {"before": both(source)}
for name, (data, lr) in recipes.items():
    models[name] = copy.deepcopy(source)
    mt.pretrain(
        models[name],
        data,
        new_valid,
        steps=150,
        batch_size=16,
        lr=lr,
        weight_decay=0.1,
        progress=False,
    )
    table[name] = both(models[name])

print("perplexity     reviews   tweets   reviews, times before")
for name, (old, new) in table.items():
    print(f"{name:12} {old:9.1f} {new:8.1f} {old / table['before'][0]:12.2f}")

# %%
ax = plots.figure(size=(5, 3.2))
for name, (old, new) in table.items():
    ax.plot(new, old, "o", color="C1" if name == "before" else "C0")
    ax.annotate(name, (new, old), xytext=(6, 4), textcoords="offset points", fontsize=9)
ax.set(xscale="log", xlabel="perplexity on tweets", ylabel="perplexity on reviews")
ax.minorticks_off()
ax.set_xticks([30, 50, 100, 200, 300], ["30", "50", "100", "200", "300"])
ax.margins(0.25)

before, plain, slow, replay = table.values()
assert plain[1] < 0.7 * before[1]  # it has learned to tweet,
assert plain[0] > 1.05 * before[0]  # and has forgotten,
assert replay[0] < 0.98 * plain[0]  # less so with replay,
assert replay[1] < 1.25 * plain[1]  # which costs little.
assert slow[0] < plain[0] and slow[1] > plain[1]  # A lower rate trades one for the other.
lost = (replay[0] - before[0]) / (plain[0] - before[0])
print(f"with replay {lost:.0%} of what the plain way forgets is forgotten")
assert lost < 0.8

# %% [markdown]
# *Notice* the price of the plain way: for a model that knows tweets, reviews have become strange again,
# although nothing in a tweet says that reviews have changed. Replay keeps a good part of
# the old at hardly any cost in the new. The lower rate also forgets less, but look to the right: it has
# learned less too. It is a smaller step on the same path, not another path. All three forget
# something.
#
# What it writes has moved along:

# %%
for name in ("before", "tweets only"):
    print(name)
    for text in write(models[name], "I love", 30, texts=3, temperature=1.0, top_p=0.8, seed=2):
        print("   ", text)

# %% [markdown]
# ## What to read next
#
# - **Notebook 05, the whole Transformer**, where a decoder writes what an encoder has read; **notebook
#   10** for fine-tuning to a task instead of a domain.
# - Holtzman et al. 2020, "The curious case of neural text degeneration", on why the likeliest text is
#   a bad one; McCloskey and Cohen 1989, on forgetting, long before Transformers.
# - In the package: `minitransformer/inference/generation.py`, and `minitransformer/training/pretrain.py`.
