# %% [markdown]
# # 05 The whole Transformer
#
# "Tuesday the 3rd of March 2026", "Dienstag, den 3. März 2026", "martes, 3 de marzo de 2026": people
# write one day in a hundred ways, and a database wants `2026-03-03`. Rules for this are tedious. So
# an encoder reads the words, a decoder writes the digits, and nobody tells either what a month is.
#
# This is the machine of Vaswani et al. 2017, figure 1, put together from the parts of the earlier
# notebooks: compared with `nn.Transformer`, trained in minutes, tested on days it has never
# seen, and looked into. You write what holds it together: what the decoder reads, the three masks,
# and the loss.
#
# It covers `Encoder(x)` and `Decoder(y, z)` of section 4 of the article at work together, and
# sequence-to-sequence generation in its section 6; sections 3 and 5 of Vaswani et al. 2017.
#
# *Runs in one to four minutes on two cores: it trains a model from scratch,
# twice. Needs no data: the dates come from Babel.*

# %%
import math
import random
from datetime import date, timedelta

import torch
from babel.dates import format_date
from torch import nn

import minitransformer as mt
from minitransformer import plots
from minitransformer.training.objectives import seq2seq_loss, shift_right

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. The task
#
# Babel knows how dates are written in the world's languages. Here are five of them, in the
# formats that people use; `d` is the day, `MMMM` the month's name, `MMM` its short form, `EEEE` the
# weekday. English also likes its ordinals.


# %%
FORMATS = {
    "English": ("en", ["EEEE, d MMMM y", "EEEE 'the' ORD 'of' MMMM y", "MMMM ORD, y", "MMM d, y"]),
    "German": ("de", ["EEEE, 'den' d. MMMM y", "d. MMMM y", "dd.MM.y"]),
    "French": ("fr", ["EEEE d MMMM y", "'le' d MMMM y", "d MMM y"]),
    "Spanish": ("es", ["EEEE, d 'de' MMMM 'de' y", "d 'de' MMMM 'de' y", "d MMM y"]),
    "Italian": ("it", ["EEEE d MMMM y", "d MMMM y", "d MMM y"]),
}
WAYS = [(language, form) for language, (_, forms) in FORMATS.items() for form in forms]


def ordinal(n):
    return f"{n}" + ("th" if 11 <= n % 100 <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th"))


def say(day, language, form):
    """A day as people write it."""
    form = form.replace("ORD", f"'{ordinal(day.day)}'")
    return format_date(day, form, locale=FORMATS[language][0])


for language, form in WAYS:
    print(f"{language:8} {say(date(2026, 3, 3), language, form)}")

# %% [markdown]
# A hundred years have 36,525 days. The model learns from a third of them, each in four ways, and is
# judged on *other days*: no day of the test occurs in training, in any language or format.
# Otherwise it could simply have memorised the answer to "3. März 2026" from "3 mars 2026".

# %%
rng = random.Random(0)
days = [date(1950, 1, 1) + timedelta(n) for n in range(36525)]
rng.shuffle(days)


def pairs_of(days, ways):
    """(words, ISO 8601, language) of each day in some of the ways."""
    return [
        (say(day, *way), day.isoformat(), way[0]) for day in days for way in rng.sample(WAYS, ways)
    ]


train, valid, test = (
    pairs_of(days[:12000], 4),
    pairs_of(days[12000:12200], 4),
    pairs_of(days[12200:12700], 4),
)
assert not {iso for _, iso, _ in train + valid} & {iso for _, iso, _ in test}
print(f"{len(train)} pairs to learn from, {len(valid)} to choose with, {len(test)} to be judged by")

# %% [markdown]
# The tokens are characters, the simplest vocabulary there is. Four of them are special: padding, an
# unknown character, the start of the output, and its end.

# %%
tokenizer = mt.data.train_tokenizer([text for pair in train for text in pair[:2]], "characters")
START, END = tokenizer.id_of("[START]"), tokenizer.id_of("[END]")
print(tokenizer.vocab_size, "tokens:", " ".join(tokenizer.tokens(range(tokenizer.vocab_size))))


def encode(pairs):
    words, iso, _ = zip(*pairs, strict=True)
    return mt.data.encode_pairs(words, iso, tokenizer, END)


train_data, valid_data, test_data = map(encode, (train, valid, test))
print(train[0][0], "->", tokenizer.tokens(train_data.targets[0]))

# %% [markdown]
# ## 2. Teacher forcing
#
# The decoder writes from left to right: $p(y \mid x) = \prod_t p(y_t \mid y_{<t}, x)$. While it
# learns, it does not read its own output, which at first is nonsense, but the right target, as if a
# teacher guided its hand at every letter. So all positions can be computed at once, and each has a
# right answer. At position $t$ it must know what comes *before* $y_t$. At the first position
# nothing does, so there it reads a start token.
#
# | position | 0 | 1 | 2 | ... | 9 | 10 |
# | --- | --- | --- | --- | --- | --- | --- |
# | reads | start | `2` | `0` | ... | `0` | `3` |
# | must predict | `2` | `0` | `2` | ... | `3` | end |
#
# ### Exercise 1: what the decoder reads


# %%
def my_shift_right(target, start_id):
    """What the decoder reads, as integer ids: (batch, length).

    target: (batch, length), the ids to be written, each row with its end token, then padding;
    start_id: the id that comes first.
    """
    # BEGIN SOLUTION
    start = torch.full_like(target[:, :1], start_id)
    return torch.cat([start, target[:, :-1]], dim=1)
    # END SOLUTION


mt.check.shift_right(my_shift_right)

# %% [markdown]
# ## 3. Three masks
#
# There are three places where something must not be seen:
#
# - in the **encoder**, the source's padding;
# - in the **decoder**, the future. The whole target is there, and without a mask position $t$ would
#   look one place ahead, where the token it must predict is being read;
# - from the **decoder to the encoder's output**, the source's padding again. The encoder hid it as
#   keys, but its outputs at those places exist, and the decoder must not look at them.
#
# The target's padding needs no mask of its own: it comes after the target, in the future.
#
# ### Exercise 2: both halves, with their masks


# %%
def my_transformer(source, target, source_keep, encoder, decoder):
    """The decoder's output: (batch, length, d_model).

    source: (batch, keys, d_model), embedded; source_keep: (batch, 1, 1, keys), True = a real token.
    target: (batch, length, d_model), what the decoder reads, embedded.
    encoder(x, keep) and decoder(y, z, keep, memory_keep) are functions. The masks are boolean, True
    = may attend, and broadcast to (batch, heads, queries, keys).
    """
    # BEGIN SOLUTION
    z = encoder(source, source_keep)
    length = target.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return decoder(target, z, causal, source_keep)
    # END SOLUTION


mt.check.encoder_decoder(my_transformer)

# %% [markdown]
# Here the second use of the source's mask is forgotten, the most common slip of the three. It does
# not crash, and it trains; but the same date gives a different result with different neighbours in
# its batch.


# %%
def forgets_one(source, target, source_keep, encoder, decoder):
    causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).tril()
    return decoder(target, encoder(source, source_keep), causal, None)


mt.check.encoder_decoder(forgets_one)

# %% [markdown]
# ## 4. Put together
#
# Two encoder blocks and two decoder blocks, 64 numbers per token. Source and target share one table
# of embeddings, and the same table, transposed, makes the logits (section 3.4 of the paper). We use
# pre-LN blocks, which notebook 03 found easier to train than the paper's post-LN.

# %%
config = mt.TransformerConfig(
    vocab_size=tokenizer.vocab_size, d_model=64, n_heads=4, n_layers=2, d_ff=256, max_len=64,
    norm_position="pre", dropout=0.0, start_id=START, eos_id=END,
)  # fmt: skip


def new_model():
    torch.manual_seed(0)
    return mt.Seq2SeqLM(mt.EncoderDecoder(config))


model = new_model()
ours = model.encoder_decoder
for name, part in (
    ("embeddings", ours.encoder.embeddings),
    ("encoder blocks", ours.encoder.blocks),
    ("decoder blocks", ours.decoder.blocks),
):
    print(f"{name:15} {sum(p.numel() for p in part.parameters()):7,} weights")
print(f"{'all':15} {sum(p.numel() for p in model.parameters()):7,}")

# %% [markdown]
# Is that *the* Transformer? torch has one of its own. Give it our weights, random ones of order 1, in
# which no slip could hide, and the same embedded batch, with padding:


# %%
def copy_attention(theirs, mine):
    theirs.in_proj_weight.data = torch.cat([mine.W_Q.weight, mine.W_K.weight, mine.W_V.weight])
    theirs.in_proj_bias.data = torch.cat([mine.W_Q.bias, mine.W_K.bias, mine.W_V.bias])
    theirs.out_proj.load_state_dict(mine.W_O.state_dict())


def copy_block(theirs, mine):
    copy_attention(theirs.self_attn, mine.attention)
    pairs = [
        (theirs.linear1, mine.feed_forward.W_1),
        (theirs.linear2, mine.feed_forward.W_2),
        (theirs.norm1, mine.norm_1),
    ]
    if hasattr(mine, "cross_attention"):
        copy_attention(theirs.multihead_attn, mine.cross_attention)
        pairs += [(theirs.norm2, mine.norm_cross), (theirs.norm3, mine.norm_2)]
    else:
        pairs += [(theirs.norm2, mine.norm_2)]
    for a, b in pairs:
        a.load_state_dict(b.state_dict())


wild = new_model().encoder_decoder.double().eval()
for p in wild.parameters():
    p.data = torch.randn_like(p) / p.shape[-1] ** 0.5 + (p.ndim == 1)
torchs = nn.Transformer(64, 4, 2, 2, 256, 0.0, batch_first=True, norm_first=True).double().eval()
for name in ("encoder", "decoder"):
    theirs, mine = getattr(torchs, name), getattr(wild, name)
    theirs.norm.load_state_dict(mine.norm.state_dict())
    for a, b in zip(theirs.layers, mine.blocks, strict=True):
        copy_block(a, b)

batch = next(valid_data.batches(32, seed=0))
given = shift_right(batch.target, START)  # the package's, as in exercise 1
padding = ~batch.source_keep[:, 0, 0]  # nn.Transformer's masks are True where one may *not* look
with torch.no_grad():
    theirs = torchs(
        wild.encoder.embeddings(batch.source), wild.decoder.embeddings(given),
        tgt_mask=~mt.causal_mask(given.shape[1]),
        src_key_padding_mask=padding, memory_key_padding_mask=padding,
    )  # fmt: skip
    error = (wild(batch.source, given, batch.source_keep) - theirs).abs().max().item()
print(
    f"largest difference to nn.Transformer: {error:.0e}; padding in the batch: {int(padding.sum())} tokens"
)
assert error < 1e-10 and padding.any()

# %% [markdown]
# *Notice* what `nn.Transformer` does not have: embeddings, positions, logits, the start token, a loss.
# And its masks are the other way round. Hence the `~`.
#
# ## 5. The loss
#
# At every position the model gives a distribution over all characters, and the right one is known:
#
# $$L = -\frac1N \sum_{n,t} \log p(y_{n,t} \mid y_{n,<t}, x_n)$$
#
# $N$ counts the real tokens of the batch. (All our dates have 11 tokens with the end; sentences
# vary in length.)
#
# ### Exercise 3: the loss of a batch


# %%
def my_loss(logits, target, keep):
    """The mean loss over the real tokens, as a tensor that holds one number, of shape ().

    logits: (batch, length, vocab); target: (batch, length), the tokens to predict;
    keep: (batch, length), True = a real token, the end included.
    """
    # BEGIN SOLUTION
    losses = -logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return losses[keep].mean()
    # END SOLUTION


mt.check.target_loss(my_loss)

# %% [markdown]
# The three exercises together are `seq2seq_loss`, which the package trains with. A model that has
# learned nothing yet spreads its bets over all tokens, so its loss must be about the logarithm of
# their number. Anything else, before the first step, is a mistake:

# %%
first, guessing = seq2seq_loss(model, batch).item(), math.log(tokenizer.vocab_size)
print(f"loss of the new model {first:.2f}, log {tokenizer.vocab_size} = {guessing:.2f}")
assert abs(first - guessing) < 0.1

# %% [markdown]
# ## 6. Training
#
# AdamW, a learning rate that rises and falls, 1,200 batches of 64 pairs: one and a half times
# through the training data.

# %%
history = mt.pretrain(
    model, train_data, valid_data, steps=1200, validate_every=100, batch_size=64, lr=2e-3,
    progress=False,
)  # fmt: skip
ax = history.plot(plots.figure(size=(6, 3.2)))
blind = math.log(len(days)) / 11  # a day among 36,525, in 11 tokens
ax.axhline(blind, color="gray", linestyle=":", linewidth=1)
ax.text(
    1200, blind, "knows all dates, reads none", ha="right", va="bottom", fontsize=8, color="gray"
)
print(history)
assert history.best["valid_loss"] < 0.05

# %% [markdown]
# *Notice* the dotted line. Where the hyphens are, how long a month is, that years start with 19 or
# 20: all this the decoder can learn without looking at the source. Somebody who knew it perfectly
# but could not read would still have to guess one day among 36,525, spread over 11 tokens:
# $\log(36525) / 11 \approx 0.95$. Below the line it *reads*.
#
# ## 7. Days it has never seen
#
# In the test nobody guides its hand. `mt.generate` lets it write, character by character, each read
# before the next is written. Only a date without a single wrong character counts.


# %%
def write(model, words):
    """What the model writes for each text, up to the end token."""
    source = tokenizer.batch(words)
    ids = mt.generate(model, source.ids, 14, source.keep)[:, 1:]  # without the start token
    texts = []
    for row in ids.tolist():
        ended = row.index(END) if END in row else len(row)
        texts.append(tokenizer.decode(row[:ended]))
    return texts


def exact(model, pairs):
    """The share of dates without any error."""
    written = write(model, [words for words, _, _ in pairs])
    return sum(w == iso for w, (_, iso, _) in zip(written, pairs, strict=True)) / len(pairs)


print(write(model, ["Tuesday the 3rd of March 2026"])[0], "\n")
for language in FORMATS:
    own = [pair for pair in test if pair[2] == language]
    print(f"{language:8} {exact(model, own):7.2%} of {len(own)} right")
total = exact(model, test)
print(f"{'all':8} {total:7.2%} of {len(test)}")
assert write(model, ["Tuesday the 3rd of March 2026"]) == ["2026-03-03"]
assert total > 0.99

# %% [markdown]
# *Notice* that it gets nearly or exactly all of them right. The weekday in the words is of no use
# to it, and it has learned to ignore it. But has it learned *dates*? Try two things that no example
# showed: years beyond 2049, and a language that is not among the five.

# %%
later = [date(2050, 1, 1) + timedelta(37 * n) for n in range(400)]
future = pairs_of(later, 1)
beyond = exact(model, future)
portuguese = [
    (format_date(day, "d 'de' MMMM 'de' y", locale="pt"), day.isoformat(), "Portuguese")
    for day in days[12200:12700]
]
abroad = exact(model, portuguese)
print(f"years from 2050 to 2090: {beyond:.0%} right; Portuguese: {abroad:.0%} right")
for words, _, _ in (future[200], portuguese[0], portuguese[1]):
    print(f"  {words:32} -> {write(model, [words])[0]}")
assert beyond < 0.4 and 0.5 < abroad < total

# %% [markdown]
# *Notice* that it passed the test, and yet something is missing. It reads Portuguese well: the
# month names are cousins, and it never learned to ask for a language. But few of the years from
# 2050 on come out right, although every digit stands there to be copied: in all examples the third
# digit of a year after 2000 was 0 to 4, and it learned that too. Unseen days are not unseen *kinds*
# of days.
#
# ## 8. Without the causal mask
#
# How much depends on that triangle? The same model, the same data, only 300 batches, and the
# decoder's attention may look ahead; everything else is equal.


# %%
def without_causal_mask(model):
    for block in model.encoder_decoder.decoder.blocks:
        forward = block.attention.forward
        block.attention.forward = lambda *args, forward=forward, **named: forward(
            *args, **(named | {"causal": False})
        )
    return model


cheat = without_causal_mask(new_model())
cheated = mt.pretrain(
    cheat, train_data, valid_data, steps=300, validate_every=300, batch_size=64, lr=2e-3,
    progress=False,
).best  # fmt: skip
honest = next(e for e in history.validations if e["step"] == 300)
right = exact(cheat, test)
print(f"validation loss after 300 steps: {honest['valid_loss']:.3f} with the mask, ", end="")
print(f"{cheated['valid_loss']:.3f} without")
print(f"dates right: {right:.1%}; it writes", *write(cheat, [words for words, _, _ in test[:3]]))
assert cheated["valid_loss"] < 0.6 * honest["valid_loss"] and right < 0.05

# %% [markdown]
# *Notice* the trap. Without the mask the loss falls faster, on validation data too: position $t$
# copies the token from position $t + 1$, where it is being read. When it has to write, there is no
# next position yet, and nothing useful comes out. A loss that falls too fast is a reason to look at
# the mask.
#
# ## 9. What the decoder looks at
#
# For every character that the decoder writes, the cross-attention distributes a total weight of 1
# over the characters of the source. Each row is one of the eleven written tokens, each column a
# character that was read.


# %%
def cross_attention(words, iso):
    """The weights of every decoder block: (layers, heads, written, read)."""
    (one,) = mt.data.encode_pairs([words], [iso], tokenizer, END).batches(1)
    maps, hooks = [], []
    for block in model.encoder_decoder.decoder.blocks:

        def record(module, args, named):
            maps.append(module.weights(*args, **named)[0])

        hooks.append(block.cross_attention.register_forward_pre_hook(record, with_kwargs=True))
    with torch.no_grad():
        model(one.source, shift_right(one.target, START), one.source_keep)
    for hook in hooks:
        hook.remove()
    return torch.stack(maps)


words, iso = "Tuesday the 3rd of March 2026", "2026-03-03"
weights = cross_attention(words, iso)
ax = plots.figure(size=(6, 3.4))
plots.attention(
    weights[1].mean(0), [*iso, "end"], list(words), "block 2, mean of its 4 heads", 0.8, ax
)
ax.set_xticklabels([c if c != " " else "␣" for c in words], rotation=0, ha="center")
ax.set(xlabel="read", ylabel="written")
start = words.index("March")
on_month = weights[1, :, 5:7, start : start + 5].sum(-1).mean().item()
print(f"writing the month's two digits, the second block looks at March with {on_month:.0%}")
assert on_month > 0.5

# %% [markdown]
# *Notice* the rows of the two digits after the first hyphen. Their weight lies on the letters of
# "March": those became `03`. The rows of the year look at the end, those of the day at the 3, and
# "Tuesday" stays white. Nobody told the model which part of the words is which.
#
# A single example may be hand-picked, so take the first 400 texts of the test and, of those, all
# with a month in letters: how much of the second block's weight goes from each written part to each
# read part?

# %%
WRITTEN = {"year": slice(0, 4), "month": slice(5, 7), "day": slice(8, 10)}


def parts_of(words, day, language):
    """Where the words have the year, the month's name and the day; None without a name."""
    year = words.rindex(str(day.year))
    for form in ("MMMM", "MMM"):
        name = format_date(day, form, locale=FORMATS[language][0])
        if name in words:
            number = next(i for i in range(len(words)) if words[i:].startswith(str(day.day)))
            spans = (year, 4), (words.index(name), len(name)), (number, len(str(day.day)))
            return [slice(i, i + n) for i, n in spans]
    return None


table, n = torch.zeros(3, 3), 0
for words, iso, language in test[:400]:
    read = parts_of(words, date.fromisoformat(iso), language)
    if read is not None:
        w = cross_attention(words, iso)[1].mean(0)
        table += torch.tensor([[w[a, b].sum(-1).mean() for b in read] for a in WRITTEN.values()])
        n += 1
table /= n
print(f"{n} dates; written \\ read {'year':>8} {'month':>8} {'day':>8}")
for name, row in zip(WRITTEN, table, strict=True):
    print(f"{name:>22} " + " ".join(f"{share:8.0%}" for share in row))
assert (table.argmax(1) == torch.arange(3)).all()  # each part looks most at its own

# %% [markdown]
# *Notice* the diagonal: each part of the date is mostly read off its own part of the words. (Weights
# are evidence, not proof: what a block takes from where it looks is another question, and the first
# block's map is less tidy.)
#
# ## What to read next
#
# - **Notebook 15, generating text**: a decoder without an encoder, and other ways to choose the
#   next token than taking the likeliest.
# - Vaswani et al. 2017, sections 3.1 to 3.4; Bahdanau, Cho and Bengio 2015, who drew the first such
#   map, of translated words.
# - In the package: `minitransformer/model/transformer.py`, `minitransformer/training/objectives.py`.
