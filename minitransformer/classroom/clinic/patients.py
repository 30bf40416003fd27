r"""The mistakes of the clinic, each one change of a healthy model. Reading on spoils the exercise.

There are two kinds of model, both tiny and both on real texts: a *writer*, GPT-2's architecture on the
characters of film reviews, and a *reader*, an encoder that tells tweets from newspaper comments. A
`Patient` is a model with its data and its way of training; a mistake replaces one part of it.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ... import data
from ...data.batches import Batch, EncodedTexts
from ...formulas import ops
from ...model.attention import MultiHeadAttention
from ...model.block import DecoderBlock
from ...model.config import TransformerConfig
from ...model.heads import CausalLM, SequenceClassifier
from ...model.layers import eval_mode
from ...model.transformer import Decoder, Encoder
from ...training.loop import reproducible
from ...training.objectives import causal_lm_loss, classification_loss


@dataclass
class Patient:
    """A model, its data, and how it is trained and asked."""

    kind: str  # "writer" or "reader"
    model: Any  # a `CausalLM` or a `SequenceClassifier`
    train: EncodedTexts
    valid: EncodedTexts
    n_answers: int  # the size of the vocabulary, or the number of classes
    loss_of: Callable[[Any, Batch], Tensor]
    learning_rate: float
    clears_gradients: bool = True
    evaluates: bool = True
    optimizer: torch.optim.Optimizer | None = None

    def predict(self, batch: Batch) -> Tensor:
        """The logits in the patient's own evaluation."""
        mode = eval_mode(self.model) if self.evaluates else nullcontext(self.model.train())
        with torch.no_grad(), mode:
            return self.model(batch.ids, batch.keep)

    def loss(self, batch: Batch) -> Tensor:
        """What is minimised."""
        return self.loss_of(self.model, batch)

    def step(self, batch: Batch) -> float:
        """One step of training; returns the loss before the step."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), self.learning_rate)
        self.model.train()
        if self.clears_gradients:
            self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def batches(self, steps: int) -> Iterator[Batch]:
        """This many batches of the training data."""
        epochs = (b for epoch in range(steps) for b in self.train.batches(32, seed=epoch))
        return islice(epochs, steps)


# --- The healthy ones ---------------------------------------------------------------------------

LENGTH = 24


@functools.cache
def writer_data() -> tuple[EncodedTexts, EncodedTexts, int]:
    """Film reviews as blocks of characters, and the number of different characters."""
    texts = [text.lower() for text in data.load("movies").texts[:500]]
    tokenizer = data.train_tokenizer(texts, "characters")
    blocks = data.pack(data.encode(texts, tokenizer), LENGTH, tokenizer.id_of("[END]"))
    train, valid = (replace(blocks, ids=ids) for ids in (blocks.ids[:-200], blocks.ids[-200:]))
    return train, valid, tokenizer.vocab_size


@functools.cache
def reader_data() -> tuple[EncodedTexts, EncodedTexts, int]:
    """Tweets (0) and newspaper comments (1), three of the first to two of the second, shuffled."""
    texts = [(t, 0) for t in data.load("tweets").texts[:900]]
    texts += [(t, 1) for t in data.load("editorials").texts[:600]]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    tokenizer = data.train_tokenizer([t for t, _ in texts], "bytes", 600)
    ids = [tuple(i[:LENGTH]) for i in tokenizer.encode_all([texts[i][0] for i in order])]
    labels = [texts[i][1] for i in order]
    parts = (slice(None, -400), slice(-400, None))
    train, valid = (EncodedTexts(tuple(ids[p]), tuple(labels[p]), 0) for p in parts)
    return train, valid, tokenizer.vocab_size


def healthy(kind: str) -> Patient:
    """A model that trains well."""
    train, valid, vocab_size = writer_data() if kind == "writer" else reader_data()
    sizes: dict[str, Any] = dict(
        vocab_size=vocab_size, d_model=32, n_heads=4, n_layers=2, d_ff=64, max_len=64, pad_id=0,
        dropout=0.1, attention_dropout=0.0,
    )  # fmt: skip
    with reproducible(0):
        if kind == "writer":
            config = TransformerConfig.gpt2(**sizes, start_id=3, eos_id=3)
            writer = CausalLM(Decoder(config))
            return Patient(kind, writer, train, valid, vocab_size, causal_lm_loss, 5e-3)
        config = TransformerConfig(
            **sizes, norm_position="pre", positions="learned", scale_embeddings=False
        )
        reader = SequenceClassifier(Encoder(config), 2, pooling="mean")
        return Patient(kind, reader, train, valid, 2, classification_loss, 3e-3)


# --- One change each ----------------------------------------------------------------------------


class OneAhead(MultiHeadAttention):
    """Causal, except for the next token."""

    def forward(self, x, memory=None, keep=None, bias=None, causal=False, cache=None):
        return super().forward(x, memory, with_next(x, keep), bias)

    def weights(self, x, memory=None, keep=None, bias=None, causal=False, cache=None):
        return super().weights(x, memory, with_next(x, keep), bias)


def with_next(x: Tensor, keep: Tensor | None) -> Tensor:
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(1)
    return seen if keep is None else keep & seen


class NotTransposed(MultiHeadAttention):
    """Heads are merged in the order in which they lie in memory."""

    def forward(self, x, memory=None, keep=None, bias=None, causal=False, cache=None):
        Q, K, V = self.project(x, x, keep)
        heads = self.f.attention(Q, K, V, keep, 0.0, bias, self.scale, causal)
        return self.W_O(heads.reshape(x.shape))


class HearsPadding(MultiHeadAttention):
    """Without its mask."""

    def forward(self, x, *_, **__):
        return super().forward(x)

    def weights(self, x, *_, **__):
        return super().weights(x)


class NoResiduals(DecoderBlock):
    """Each sublayer replaces the stream."""

    def forward(
        self, y, keep=None, memory=None, memory_keep=None, bias=None, cache=None, last=None
    ):
        y = self.attention(self.norm_1(y), keep=keep, causal=True)
        return self.feed_forward(self.norm_2(y if last is None else y[:, -last:]))


Change = Callable[[Patient], Any]


def instead(old: type, new: type) -> Change:
    """Every module of one class becomes one of another class, with the weights it has."""

    def change(patient: Patient) -> None:
        for module in patient.model.modules():
            if type(module) is old:
                module.__class__ = new

    return change


def with_(**fields: Any) -> Change:
    """Fields of the patient become others."""
    return lambda patient: patient.__dict__.update(fields)


def unshifted(model: CausalLM, batch: Batch) -> Tensor:
    return ops.FUSED.cross_entropy(model(batch.ids, batch.keep).flatten(0, 1), batch.ids.flatten())


def softmax_first(model: SequenceClassifier, batch: Batch) -> Tensor:
    return ops.FUSED.cross_entropy(model(batch.ids, batch.keep).softmax(-1), batch.labels)


def slipped_labels(patient: Patient) -> None:
    labels = patient.train.labels or ()
    patient.train = replace(patient.train, labels=labels[1:] + labels[:1])


def large_start(patient: Patient) -> None:
    torch.nn.init.normal_(patient.model.decoder.embeddings.tokens.weight)


@dataclass(frozen=True)
class Fault:
    """One mistake."""

    kind: str  # which models have it: "writer" or "reader"
    symptoms: str  # of `charts.SYMPTOMS`; a "?" marks those that depend on the seed and rounding
    change: Change
    story: str  # what happens, and the remedy

    @property
    def signs(self) -> frozenset[str]:
        """The symptoms that it shows for certain."""
        return frozenset(s for s in self.symptoms.split() if not s.endswith("?"))

    @property
    def sometimes(self) -> frozenset[str]:
        """The symptoms that depend on chance."""
        return frozenset(s[:-1] for s in self.symptoms.split() if s.endswith("?"))

    def explains(self, signs: frozenset[str]) -> bool:
        """Whether a model with this mistake can show these symptoms."""
        return self.signs <= signs <= self.signs | self.sometimes


# fmt: off
FAULTS = {
    "no shift": Fault("writer", "start random copies", with_(loss_of=unshifted),
     "The target at t is the token at t, which the model has just read. It learns to repeat, and its loss falls to 0 on "
     "anything, random tokens too. Nothing leaks: look at the loss, not at the mask. Shift once: logits[:, :-1] against ids[:, 1:]."),
    "sees one ahead": Fault("writer", "future random", instead(MultiHeadAttention, OneAhead),
     "The causal mask is off by one, tril(1) for tril(0): each block shows one more token of the future. It learns to look "
     "the answer up, and will write nonsense when there is no future yet."),
    "heads merged wrongly": Fault("writer", "future alone", instead(MultiHeadAttention, NotTransposed),
     "(batch, heads, length, d_k) was reshaped to (batch, length, d_model) without transposing first: a position gets "
     "numbers of other positions, and which ones depends on the length."),
    "no residuals": Fault("writer", "own one_batch", instead(DecoderBlock, NoResiduals),
     "Without y + ... a token reaches its own output only through attention, which at the start is a plain mean over all "
     "tokens so far. Every position gives the same output, and all that can be learned is how frequent each character is."),
    "starts too large": Fault("writer", "start one_batch copies", large_start,
     "The embeddings start with standard deviation 1 instead of 0.02 (torch's own choice for nn.Embedding), and they are "
     "the output map too: logits of size sqrt(d_model), the largest of them the token just read. It is sure of nonsense, and has to unlearn that first."),
    "padding is heard": Fault("reader", "alone", instead(MultiHeadAttention, HearsPadding),
     "Attention has no mask, so padding counts as words, and a text gets a different answer in a different batch. It trains, which "
     "is why nobody notices."),
    "dropout stays on": Fault("reader", "twice alone", with_(evaluates=False),
     "Nobody called model.eval(): each call drops different numbers at random. That also makes a text alone differ from itself "
     "in a batch, so ask this question first."),
    "softmax twice": Fault("reader", "one_batch", with_(loss_of=softmax_first),
     "Cross-entropy does the softmax itself; given probabilities for logits it cannot fall below ln(1 + (n - 1)/e), however "
     "right the answers are."),
    "body is frozen": Fault("reader", "gradient one_batch validation", lambda patient: patient.model.encoder.requires_grad_(False),
     "requires_grad is off below the head, left over from an earlier experiment: no gradient arrives there. The head alone "
     "cannot learn even one batch by heart."),
    "labels of other texts": Fault("reader", "validation", slipped_labels,
     "The labels slipped by one row, so each text has its neighbour's. All instruments look fine, one batch is learned by "
     "heart, and what was learned is of no use for any other text. Look at the data."),
    "gradients pile up": Fault("reader", "piled validation?", with_(clears_gradients=False),
     "Without zero_grad each step follows the sum of all gradients so far, including the outdated ones. Whether it learns "
     "anything in spite of that is a matter of luck."),
    "rate too high": Fault("reader", "climbs validation one_batch?", with_(learning_rate=0.5),
     "A hundred times the learning rate that the model can bear: after a few steps it gives one answer to everything, the "
     "more frequent one. It may or may not learn one batch by heart."),
}
# fmt: on


def broken(name: str) -> Patient:
    """The healthy model of its kind with one mistake."""
    patient = healthy(FAULTS[name].kind)
    with reproducible(0):
        FAULTS[name].change(patient)
    return patient


SEATS = (
    "padding is heard", "no shift", "body is frozen", "starts too large", "labels of other texts",
    "sees one ahead", "dropout stays on", "no residuals", "softmax twice",
)  # fmt: skip
"""Who is who in the clinic, A to I."""
