# %% [markdown]
# # 07 Text into tokens
#
# A Transformer reads numbers: row 2143 of a table, row 7 of it. Which pieces of a text get a row? Its
# characters, its words, something in between? Everything else here learns from data; so does this, only
# before training begins, and nothing later can repair it. This notebook
#
# 1. compares the four usual answers on reviews that no vocabulary was learned from,
# 2. learns byte pairs by hand, and finds the same ones as the `tokenizers` library,
# 3. cuts words into pieces as BERT does, again as the library does,
# 4. compares BERT's own vocabulary with one learned from film reviews,
# 5. shows what each makes of a Chinese sentence.
#
# It covers the first step of section 5 of the article, to tokenise, and what section 2.1's pretrained
# models were given to read. Sources: Sennrich, Haddow and Birch 2016, section 3.2 (byte pairs); Radford
# et al. 2019, section 2.2 (over bytes); Devlin et al. 2019, section 3 (word pieces).
#
# *Runs in half a minute to a minute on two cores. Needs `make data` once.*

# %%
import json
import re
from collections import Counter
from itertools import pairwise

import torch
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

import minitransformer as mt
from minitransformer import plots
from minitransformer.classroom.exercises.nb07_tokens import word_pieces_by_rule

train, _, test = mt.data.load("movies").split(seed=0)
_, bert = mt.load_pretrained("all-MiniLM-L6-v2")


def words_of(text):
    """Lower case, words and marks apart: as BERT does it before it cuts."""
    plain = bert.backend.normalizer.normalize_str(text)
    return [word for word, _ in bert.backend.pre_tokenizer.pre_tokenize_str(plain)]


seen = Counter(word for text in train.texts for word in words_of(text))
held_out = Counter(word for text in test.texts for word in words_of(text))
print(
    f"{seen.total():,} words of {len(train.texts):,} reviews to learn from, {len(seen):,} different"
)
print(
    f"{held_out.total():,} words of {len(test.texts):,} held-out reviews, {len(held_out):,} different"
)

# %% [markdown]
# ## 1. Four answers
#
# - **characters**: every character that occurs is a token.
# - **whole words**: the most frequent words are tokens, every other one is `[UNK]`, unknown.
# - **byte pairs** (GPT-2): begin with the 256 bytes, and repeatedly join the two neighbours that occur
#   together most often.
# - **word pieces** (BERT): the longest pieces of words that the vocabulary has; `##` says that a piece
#   continues a word.

# %%
SENTENCE = "An unpretentious, overlong melodrama."
learned = {
    "characters": mt.data.train_tokenizer(train.texts, "characters"),
    "byte pairs": mt.data.train_tokenizer(train.texts, "bytes", 2000),
    "word pieces": mt.data.train_tokenizer(train.texts, "words", 2000, bert=False),
}
frequent = {word for word, _ in seen.most_common(2000)}
cut = {name: t.tokens(t.encode(SENTENCE)) for name, t in learned.items()}
cut["whole words"] = [word if word in frequent else "[UNK]" for word in words_of(SENTENCE)]
for name, tokens in cut.items():
    print(f"{name:12}{len(tokens):3} tokens  {'|'.join(tokens).replace('Ġ', '_')}")
assert "[UNK]" in cut["whole words"] and "[UNK]" not in cut["word pieces"]

# %% [markdown]
# (`_` is the space before a word, which byte pairs keep. The vocabularies have 2,000 tokens each; there
# are fewer characters.)
#
# Long texts cost: attention compares each token with every other one, so twice the tokens is four times
# the work there. A large vocabulary costs too: each token has a row of $d_{model}$ weights, and a rare one
# is hardly ever trained. And an unknown word is lost. Here are these three costs side by side, on reviews
# that no vocabulary was learned from:

# %%
SIZES = (500, 1000, 2000, 4000, 8000)


def lengths(tokenizer):
    """Tokens a word on the held-out reviews, and the share of the tokens that are unknown."""
    ids = [i for text in tokenizer.encode_all(test.texts) for i in text]
    return len(ids) / held_out.total(), ids.count(tokenizer.id_of("[UNK]")) / len(ids)


def trained(kind, size):
    return lengths(mt.data.train_tokenizer(train.texts, kind, size, bert=False))


curves = {
    "byte pairs": [(size, *trained("bytes", size)) for size in SIZES],
    "word pieces": [(size, *trained("words", size)) for size in SIZES],
    "characters": [(learned["characters"].vocab_size, *lengths(learned["characters"]))],
    "whole words": [],
}
for size in SIZES:
    known = sum(held_out[word] for word, _ in seen.most_common(size))
    curves["whole words"].append((size, 1.0, 1 - known / held_out.total()))

left, right = plots.figure(2, (6, 3))
for name, points in curves.items():
    size, tokens, unknown = zip(*points, strict=True)
    left.plot(size, tokens, "o-", label=name, markersize=4)
    right.plot(size, [100 * u for u in unknown], "o-", label=name, markersize=4)
left.set(xscale="log", xlabel="size of the vocabulary", ylabel="tokens a word", ylim=(0, None))
right.set(xscale="log", xlabel="size of the vocabulary", ylabel="unknown, % of the tokens")
left.legend(fontsize=8, loc="upper right")
right.text(700, 1, "the other three", fontsize=8)
for ax in (left, right):
    ax.set_xticks([100, 500, 2000, 8000], ["100", "500", "2,000", "8,000"])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)

for name, points in curves.items():
    size, tokens, unknown = points[-1]
    print(
        f"{name:12}{size:6,} in the vocabulary, {tokens:.2f} tokens a word, {unknown:6.2%} unknown"
    )
pairs, pieces, (characters,), whole = curves.values()
assert all(a[1] > b[1] for curve in (pairs, pieces) for a, b in pairwise(curve))  # more, so shorter
assert characters[1] > 4.5 and all(p[1] < 3 for p in (*pairs, *pieces))
assert whole[-1][2] > 0.05 and all(p[2] < 0.001 for p in (*pairs, *pieces, characters))

# %% [markdown]
# *Notice* that whole words are never good enough: even with 8,000 of them one word in fourteen of a new
# review is unknown, and these are the telling ones, since the frequent words are "the" and "of".
# Characters cover everything and need about five tokens per word. Pieces have both advantages: nothing (or
# next to nothing) is unknown, and a few thousand of them come near one token per word.
#
# ## 2. Byte pairs
#
# How are the pieces found? By counting. Begin with the characters (or the bytes) of each word. Then, as
# often as you like:
#
# 1. count how often each pair of neighbours occurs in the words; a word that occurs five times counts five times:
# $$n(a, b) = \sum_w c_w \cdot \big|\{t : w_t = a,\ w_{t+1} = b\}\big|$$
# 2. make the most frequent pair one token, everywhere.
#
# The list of the merges, in order, is the vocabulary. Two exercises, one for each step. The words are rows
# of ids, padded with `pad_id` at the end.
#
# ### Exercise 1: the most frequent pair


# %%
def my_best_pair(words, counts, pad_id):
    """The three numbers a, b and n(a, b) of the pair with the largest n, as a tensor or a list.

    words: (n_words, length), integer ids, each row one word and then pad_id; counts: (n_words,),
    how often each word occurs. Pairs lie within a word, and padding is no token. Loops are fine.
    """
    # BEGIN SOLUTION
    n = Counter()
    for word, count in zip(words.tolist(), counts.tolist(), strict=True):
        for a, b in pairwise(word):
            if pad_id not in (a, b):
                n[a, b] += count
    (a, b), most = n.most_common(1)[0]
    return torch.tensor([a, b, most])
    # END SOLUTION


mt.check.best_pair(my_best_pair)

# %% [markdown]
# ### Exercise 2: one merge
#
# From left to right. In `aaa` the first two become one, and the third is left as it is.


# %%
def my_merge_pair(ids, a, b, new, pad_id):
    """Every a that is followed by b becomes new, from left to right.

    ids: (length,), integers; a, b, new, pad_id: integers.
    Returns: (length,), what is left and then pad_id, as a tensor or a list. Loops are fine.
    """
    # BEGIN SOLUTION
    merged, t = [], 0
    while t < len(ids):
        pair = t + 1 < len(ids) and ids[t] == a and ids[t + 1] == b
        merged.append(new if pair else int(ids[t]))
        t += 2 if pair else 1
    return torch.tensor(merged + [pad_id] * (len(ids) - len(merged)))
    # END SOLUTION


mt.check.merge_pair(my_merge_pair)

# %% [markdown]
# Sennrich et al. print all of it on half a page, their algorithm 1, with words as strings in which a
# space separates the tokens. Here it is, on their own example. (They also put a mark at the end of each
# word, left out here.)


# %%
def merge(word, a, b):
    """The word with every token a that has b behind it joined to it."""
    return re.sub(rf"(?<!\S){re.escape(a)} {re.escape(b)}(?!\S)", lambda _: a + b, word)


def learn_merges(counts, n_merges):
    """Algorithm 1: the merges in order, from words and how often each occurs."""
    words = {word: " ".join(word) for word in counts}
    number = {c: i for i, c in enumerate(sorted({c for word in counts for c in word}))}
    merges = []
    for _ in range(n_merges):
        n = Counter()
        for word, count in counts.items():
            for pair in pairwise(words[word].split()):
                n[pair] += count
        # Of equally frequent pairs the library takes the one with the smallest ids.
        a, b = min(n, key=lambda p: (-n[p], number[p[0]], number[p[1]]))
        words = {word: merge(tokens, a, b) for word, tokens in words.items()}
        number.setdefault(a + b, len(number))
        merges.append((a, b))
    return merges


few = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
merges = learn_merges(few, 5)
word = " ".join("lowest")
print("lowest, which was never seen:")
for a, b in merges:
    word = merge(word, a, b)
    print(f"    {a} + {b}".ljust(16), word)
assert word == "low est"

# %% [markdown]
# "lowest" is not among the four words, and yet it has a good spelling: `low` and `est`, two tokens that
# have both been seen. That is the point of the method.
#
# Is this what the library does, in Rust and with much cleverer bookkeeping? On 200 reviews, 150 merges:

# %%
some = Counter(word for text in train.texts[:200] for word in words_of(text))
by_hand = learn_merges(some, 150)

library = Library(models.BPE())
library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
size = len({c for word in some for c in word}) + 150
library.train_from_iterator(
    [" ".join(some.elements())], trainers.BpeTrainer(vocab_size=size, show_progress=False)
)
its = [tuple(pair) for pair in json.loads(library.to_str())["model"]["merges"]]
print("the first:", ", ".join(a + b for a, b in by_hand[:20]))
print("the last: ", ", ".join(a + b for a, b in by_hand[-14:]))
print(f"equal to the library's: {sum(a == b for a, b in zip(by_hand, its, strict=True))} of 150")
assert by_hand == its

# %% [markdown]
# First come pairs of letters that English has everywhere, then endings and small words, then whole words
# of this trade. GPT-2 does the same with bytes instead of characters, so that no character can be
# unknown, and with 50,000 merges.
#
# ## 3. Word pieces
#
# BERT's vocabulary is a plain list of pieces, without merges. A word is cut from the left, greedily: the
# longest piece that begins it, then the longest that continues it, and so on. Pieces that continue a word
# are written with `##`, and are different tokens from the same letters at its beginning. If none fits at
# some place, the *whole word* becomes `[UNK]`.
#
# (How Google chose the pieces was never published; `train_tokenizer` chooses them by frequency, as above.)
#
# ### Exercise 3: cut a word
#
# `vocab` gives the id of each piece; `vocab["[UNK]"]` is that of the unknown word.


# %%
def my_word_pieces(word, vocab, pad_id):
    """The ids of the word's pieces.

    word: a string; vocab: a dictionary from pieces to ids, with "[UNK]"; pad_id: an integer.
    Returns: (len(word),), the ids and then pad_id, as a tensor or a list.
    """
    # BEGIN SOLUTION
    ids, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        for end in range(len(word), start, -1):
            if mark + word[start:end] in vocab:
                ids.append(vocab[mark + word[start:end]])
                start = end
                break
        else:
            ids, start = [vocab["[UNK]"]], len(word)
    return torch.tensor(ids + [pad_id] * (len(word) - len(ids)))
    # END SOLUTION


mt.check.word_pieces(my_word_pieces)

# %% [markdown]
# The check compared your answer with the rule, word for word. Is it the library's rule too? On every word of the
# held-out reviews, with BERT's own 30,522 pieces:

# %%
vocab = bert.backend.get_vocab()
equal = 0
for word in held_out:
    ids = word_pieces_by_rule(word, vocab, pad_id=-1).tolist()
    equal += [i for i in ids if i >= 0] == bert.encode(word)[1:-1]  # without [CLS] and [SEP]
print(f"{equal:,} of {len(held_out):,} words are cut alike")
assert equal == len(held_out)

# %% [markdown]
# The greedy rule is fast, and does not know what a word is made of. It may hit the parts of a word, as in the
# first of these; or a long piece fits by accident, and the rest has to make do:


# %%
def cut_by(tokenizer, word):
    return tokenizer.tokens(tokenizer.encode(word))[1:-1]


for word in ("predictability", "unfunny", "unpretentious", "overwrought"):
    print(f"{word:16}", " ".join(cut_by(bert, word)))

# %% [markdown]
# ## 4. BERT's vocabulary, or one of your own?
#
# BERT's pieces were learned from books and Wikipedia. Here are 8,000 learned from our eight thousand
# reviews:

# %%
ours = mt.data.train_tokenizer(train.texts, "words", 8000)
split = {}
print(f"{'':8}{'pieces':>8}{'tokens a word':>16}{'words that are cut':>20}")
for name, tokenizer in (("BERT's", bert), ("ours", ours)):
    n = {word: len(cut_by(tokenizer, word)) for word in held_out}
    split[name] = {word for word in n if n[word] > 1}
    tokens = sum(n[word] * held_out[word] for word in n) / held_out.total()
    share = sum(held_out[word] for word in split[name]) / held_out.total()
    print(f"{name:8}{tokenizer.vocab_size:8,}{tokens:16.2f}{share:20.1%}")
for mine, other in (("ours", "BERT's"), ("BERT's", "ours")):
    best = [w for w, _ in held_out.most_common() if w in split[other] - split[mine]]
    print(f"\nwhole in {mine}, cut by {other}:\n   ", ", ".join(best[:12]))
assert len(split["BERT's"]) < len(split["ours"])
assert "watchable" in split["BERT's"] - split["ours"]

# %% [markdown]
# Ours has a quarter of the rows, and needs hardly more tokens. It knows the trade: "quirky", "dreary" and
# "cliche" are whole, and they are the words that a classifier of reviews wants to see. BERT's knows the
# world.
#
# Which one to take? In *fine-tuning* there is no choice: the rows of the table were trained with their pieces,
# and another vocabulary would give each row another meaning. In *pretraining* there is, and a vocabulary of
# the domain makes a small model smaller. In MiniLM the table of pieces is half of all weights:

# %%
encoder, _ = mt.load_pretrained("all-MiniLM-L6-v2")
total = sum(p.numel() for p in encoder.parameters())
for name, tokenizer in (("BERT's", bert), ("ours", ours)):
    table = tokenizer.vocab_size * encoder.config.d_model
    print(f"{name:8}{table:12,} weights in the table; with all other weights {total:12,}")
    total += (ours.vocab_size - bert.vocab_size) * encoder.config.d_model

# %% [markdown]
# ## 5. A Chinese sentence
#
# Chinese has no spaces between its words, and thousands of characters. "The hotel is good, but the service
# is poor":

# %%
CHINESE = "酒店不错，但服务很差。"
reviews, _, unseen = mt.data.load("chinese_reviews").split(seed=0)
readers = {
    "BERT's English pieces": bert,
    "byte pairs of English reviews": learned["byte pairs"],
    "byte pairs of Chinese reviews": mt.data.train_tokenizer(reviews.texts[:2000], "bytes", 4000),
    "characters of Chinese reviews": mt.data.train_tokenizer(
        reviews.texts, "characters", min_count=2
    ),
}
print(f"{len(CHINESE)} characters\n")
n = {}
for name, tokenizer in readers.items():
    special = set(tokenizer.special.values()) - {tokenizer.special.get("[UNK]")}
    ids = [i for i in tokenizer.encode(CHINESE) if i not in special]
    n[name] = len(ids)
    print(f"{name} ({tokenizer.vocab_size:,}): {len(ids)} tokens")
    print("   ", " ".join(tokenizer.tokens(ids)))
    if name == "byte pairs of Chinese reviews":
        print("    which is", " ".join(tokenizer.decode([i]) for i in ids))
english, bytes_alone, joined, each = n.values()
assert bytes_alone == 3 * len(CHINESE) and each == len(CHINESE) and joined < each

# %% [markdown]
# - **BERT's English pieces** have a few Chinese characters, and keep each apart. The others are `[UNK]`, and
#   with them what the sentence says. Nothing fails; a model fine-tuned on this learns from commas.
# - **Byte pairs** lose nothing. But a Chinese character is three bytes in UTF-8, and English has taught it
#   no pair of them: three tokens per character. (Each byte is shown as some letter.)
# - **Byte pairs learned from Chinese** have joined the bytes to characters and these to words, without
#   being told what a word is.
# - **Characters** are one token each. Chinese BERT does just that.
#
# How many characters are enough? On held-out reviews, with those that occur at least twice:

# %%
characters = readers["characters of Chinese reviews"]
known = characters.backend.get_vocab()
text = "".join(unseen.texts)
lost = sum(c not in known for c in text) / len(text)
print(f"{characters.vocab_size:,} tokens, learned from {len(reviews.texts):,} reviews")
print(f"unknown: {lost:.2%} of {len(text):,} held-out characters")
chinese = [c for c in text if "\u4e00" <= c <= "\u9fff"]
in_bert = sum(c in vocab for c in chinese) / len(chinese)
print(f"BERT's English pieces know {in_bert:.0%} of the Chinese ones")
assert lost < 0.005 and in_bert < 0.5

# %% [markdown]
# ## What to read next
#
# - **Notebook 08, pretraining objectives**: what a model is asked about its tokens. It hides some, and your
#   vocabulary decides what a hidden token can be.
# - **Notebook 15** writes with byte pairs; **notebook 10** fine-tunes with BERT's pieces.
# - Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword units".
# - In the package: `minitransformer/data/vocabulary.py`, and `minitransformer/data/tokenizers.py`.
