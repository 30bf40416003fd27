"""Losses of language models against transformers and against loops; training against a plain one."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import minitransformer as mt
from minitransformer.data import EncodedPairs, EncodedTexts, pad
from minitransformer.training.objectives import causal_lm_loss, objective_of, seq2seq_loss
from minitransformer.training.pretrain import mean_loss

VOCAB, START, END = 23, 2, 3


def causal(**changes) -> mt.CausalLM:
    """Weights of order 1, float64."""
    torch.manual_seed(0)
    config = mt.TransformerConfig(
        vocab_size=VOCAB, d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=16,
        norm_position="pre", dropout=0.0, init_std=0.4, start_id=START, eos_id=END,
    ).with_(**changes)  # fmt: skip
    return mt.CausalLM(mt.Decoder(config)).double()


def seq2seq(**changes) -> mt.Seq2SeqLM:
    return mt.Seq2SeqLM(mt.EncoderDecoder(causal(**changes).config)).double()


def texts(n: int = 9, shortest: int = 2, seed: int = 0) -> EncodedTexts:
    """Of different lengths, ended."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, 12, (n,), generator=g).tolist()
    ids = [(*torch.randint(4, VOCAB, (k - 1,), generator=g).tolist(), END) for k in lengths]
    return EncodedTexts(tuple(ids), None, 0)


def pairs(n: int = 9) -> EncodedPairs:
    return EncodedPairs(texts(n, seed=1).ids, texts(n, seed=2).ids, 0)


class Oracle(mt.CausalLM):
    """Says with certainty what its table says for each position."""

    def __init__(self, said: torch.Tensor):
        super().__init__(causal().decoder)
        self.decoder.forward = lambda ids, keep=None: said[:, : ids.shape[1]]

    def logits(self, hidden):
        return hidden


# --- The causal loss ----------------------------------------------------------------------------


def loop_over_tokens(model, data) -> list[float]:
    """The loss of every token that has one before it, text by text, without any batch."""
    losses = []
    for ids in data.ids:
        log_p = model(torch.tensor([ids]))[0].log_softmax(-1)
        losses += [-log_p[t, ids[t + 1]].item() for t in range(len(ids) - 1)]
    return losses


@pytest.mark.parametrize("operations", ["formula", "fused"])
def test_causal_loss_is_the_mean_over_all_next_tokens(operations):
    model, data = causal(ops=operations), texts()
    losses = loop_over_tokens(model, data)
    batch = pad(data.ids, 0)
    assert batch.n_targets == len(losses)
    assert causal_lm_loss(model, batch).item() == pytest.approx(
        sum(losses) / len(losses), abs=1e-12
    )


@pytest.mark.parametrize(("ahead", "loss"), [(1, "none"), (0, "large"), (2, "large")])
def test_causal_loss_shifts_once(ahead, loss):
    """Mistakes 37 and 38: an oracle for the next token has no loss, one for another has much."""
    ids = torch.tensor([[5, 9, 4, 17, 8, 11, 3]])
    said = F.one_hot(F.pad(ids, (0, 2))[:, ahead : ahead + 7], VOCAB) * 50.0
    got = causal_lm_loss(Oracle(said), pad(ids.tolist(), 0)).item()
    assert got < 1e-9 if loss == "none" else got > 30


def test_causal_loss_equals_transformers():
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=20, n_head=5, n_layer=2, n_positions=16, n_inner=28, bos_token_id=START, eos_token_id=END,
                   initializer_range=0.4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ).double()  # fmt: skip
    batch = pad(texts().ids, 0)
    logits = theirs(batch.ids, attention_mask=batch.keep[:, 0, 0].long()).logits
    labels = batch.ids.masked_fill(~batch.keep[:, 0, 0], -100)
    wanted = theirs(batch.ids, attention_mask=batch.keep[:, 0, 0].long(), labels=labels).loss
    got = causal_lm_loss(Oracle(logits), batch)
    assert got.item() == pytest.approx(wanted.item(), abs=1e-6)  # theirs is computed in float32
    for wrong in (batch.ids, labels.roll(1, 1), labels.roll(-1, 1)):  # padding counted; shifts
        other = theirs(batch.ids, attention_mask=batch.keep[:, 0, 0].long(), labels=wrong).loss
        assert abs(other - wanted) > 1e-3


@pytest.mark.parametrize("pad_id", [0, None])
def test_padding_never_counts_whatever_it_is(pad_id):
    """Mistake 39; and with the padding an end token too, an end inside a text does (mistake 42)."""
    model, data = causal(pad_id=pad_id), texts()
    alone = sum(loop_over_tokens(model, data)) / len(loop_over_tokens(model, data))
    for filling in (0, END, 7):
        assert causal_lm_loss(model, pad(data.ids, filling)).item() == pytest.approx(
            alone, abs=1e-12
        )
    longer = pad([*data.ids, (5,) * 14], 0)
    batch = mt.data.Batch(longer.ids[:-1], longer.keep[:-1])
    assert causal_lm_loss(model, batch).item() == pytest.approx(alone, abs=1e-12)


def test_left_padding_is_no_context():
    """What stands before the first real token must not be asked for it."""
    batch = mt.data.Batch(
        torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([0, 0, 1, 1, 1]).bool()[None, None, None]
    )
    assert batch.predicted.tolist() == [[False, False, True, True]] and batch.n_targets == 2
    assert causal_lm_loss(causal(), batch).isfinite()


def test_a_batch_without_a_next_token_says_so():
    with pytest.raises(ValueError, match="no text of this batch has two tokens"):
        causal_lm_loss(causal(), pad([[5], [6]], 0))


def test_causal_loss_of_a_new_model_is_that_of_guessing():
    model = causal(init_std=0.001).float()
    assert causal_lm_loss(model, pad(texts().ids, 0)).item() == pytest.approx(
        math.log(VOCAB), abs=0.01
    )


# --- The loss of pairs --------------------------------------------------------------------------


def loop_over_targets(model, data) -> list[float]:
    losses = []
    for source, target in zip(data.sources, data.targets, strict=True):
        log_p = model(torch.tensor([source]), torch.tensor([[START, *target[:-1]]]))[0].log_softmax(
            -1
        )
        losses += [-log_p[t, y].item() for t, y in enumerate(target)]
    return losses


def test_seq2seq_loss_is_the_mean_over_all_target_tokens_with_the_end():
    model, data = seq2seq(), pairs()
    losses = loop_over_targets(model, data)
    (batch,) = data.batches(99)
    assert batch.n_targets == len(losses) == sum(map(len, data.targets))
    assert seq2seq_loss(model, batch).item() == pytest.approx(sum(losses) / len(losses), abs=1e-12)


def test_seq2seq_loss_equals_transformers():
    torch.manual_seed(0)
    theirs = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCAB, d_model=20, d_kv=4, num_heads=5, num_layers=2, d_ff=28,
                 dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=END)
    ).double()  # fmt: skip
    (batch,) = pairs().batches(99)
    keep = batch.source_keep[:, 0, 0].long()
    labels = batch.target.masked_fill(~batch.target_keep[:, 0, 0], -100)

    class Theirs(mt.Seq2SeqLM):
        """Their hidden states and head in our place."""

        def __init__(self):
            super().__init__(seq2seq(start_id=0).encoder_decoder)
            self.encoder_decoder.forward = lambda source, given, source_keep: (
                theirs(
                    source, attention_mask=source_keep[:, 0, 0].long(), decoder_input_ids=given
                ).logits
            )

        def logits(self, hidden):
            return hidden

    wanted = theirs(batch.source, attention_mask=keep, labels=labels).loss
    assert seq2seq_loss(Theirs(), batch).item() == pytest.approx(wanted.item(), abs=1e-6)
    counted = theirs(batch.source, attention_mask=keep, labels=batch.target).loss
    assert abs(counted - wanted) > 1e-3


def test_seq2seq_decoder_never_reads_what_it_is_asked_for():
    """Changing the target from t on leaves what is said at t; the end token is never read."""
    model, (batch,) = seq2seq(), pairs().batches(99)
    given = []
    forward = model.encoder_decoder.forward
    model.encoder_decoder.forward = lambda s, g, k: (given.append(g), forward(s, g, k))[1]
    seq2seq_loss(model, batch)
    assert (given[0][:, 0] == START).all() and torch.equal(given[0][:, 1:], batch.target[:, :-1])


def test_seq2seq_padding_never_counts():
    model, data = seq2seq(), pairs()
    wanted = sum(loop_over_targets(model, data)) / len(loop_over_targets(model, data))
    for filling in (0, END, 7):
        (batch,) = EncodedPairs(data.sources, data.targets, filling).batches(99)
        assert seq2seq_loss(model, batch).item() == pytest.approx(wanted, abs=1e-12)


def test_seq2seq_needs_a_start_token():
    (batch,) = pairs().batches(99)
    with pytest.raises(ValueError, match=r"TransformerConfig\(start_id"):
        seq2seq_loss(seq2seq(start_id=None), batch)


# --- Perplexity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_perplexity_weighs_by_tokens_not_by_batches(batch_size):
    """Mistake 41."""
    model, data = causal(), texts()
    losses = loop_over_tokens(model, data)
    wanted = math.exp(sum(losses) / len(losses))
    assert mt.perplexity(model, data, batch_size, "highest") == pytest.approx(wanted, rel=1e-12)
    losses = loop_over_targets(seq2seq(), pairs())
    got = mt.perplexity(seq2seq(), pairs(), batch_size, "highest")
    assert got == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-12)
    of_batches = [causal_lm_loss(model, b).item() for b in data.batches(4)]
    assert abs(math.exp(sum(of_batches) / len(of_batches)) / wanted - 1) > 1e-3


def test_perplexity_is_without_dropout_and_leaves_the_mode():
    model = causal(dropout=0.4).train()
    model.decoder.blocks[0].eval()
    assert mt.perplexity(model, texts()) == mt.perplexity(model, texts())
    assert model.training and not model.decoder.blocks[0].training


# --- Training -----------------------------------------------------------------------------------


def test_pretrain_equals_a_plain_torch_loop():
    ours, plain, data = causal(), causal(), texts(30)
    history = mt.pretrain(
        ours, data, data, epochs=2, lr=0.01, batch_size=8, warmup=0.25, weight_decay=0.3,
        clip=0.5, seed=3, precision="highest", progress=False,
    )  # fmt: skip
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    rest = [p for p in plain.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": rest, "weight_decay": 0.0}], weight_decay=0.3, fused=False
    )
    losses, step = [], 0
    for epoch in range(2):
        for batch in data.batches(8, seed=3000 + epoch):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * min((step + 1) / 2, (8 - step) / 6)
            labels = batch.ids.masked_fill(~batch.keep[:, 0, 0], -100)[:, 1:]
            loss = F.cross_entropy(plain(batch.ids)[:, :-1].flatten(0, 1), labels.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
    assert [s["loss"] for s in history.steps] == pytest.approx(losses, abs=1e-10)
    assert history.best is history.validations[-1], "the comparison needs the last weights"
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0, msg=name)


@pytest.mark.trains
def test_pretrain_learns_to_copy():
    """Pairs whose target is the source: learnable without a remainder, and the end is written."""
    g = torch.Generator().manual_seed(0)
    sources = [tuple(torch.randint(4, 9, (3,), generator=g).tolist()) for _ in range(200)]
    data = EncodedPairs(tuple(sources), tuple((*s, END) for s in sources), 0)
    model = seq2seq(init_std=0.1).float()
    before = mt.perplexity(model, data)
    history = mt.pretrain(model, data, data, steps=200, lr=1e-2, progress=False)
    assert mt.perplexity(model, data) < 1.05 < before
    assert history.best["valid_loss"] == min(e["valid_loss"] for e in history.validations)
    assert not model.training and "validation loss" in repr(history)


def test_pretrain_moves_every_weight_once_and_keeps_the_tied_ones_tied():
    model = seq2seq().float()
    before = {n: p.clone() for n, p in model.named_parameters()}
    mt.pretrain(model, pairs(), pairs(), epochs=1, lr=1e-2, progress=False)
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert not still
    tables = model.encoder_decoder
    assert tables.encoder.embeddings.tokens is tables.decoder.embeddings.tokens


@pytest.mark.trains
def test_an_objective_of_ones_own():
    model, data = causal().float(), texts()

    def halved(model, batch):
        return causal_lm_loss(model, batch) / 2

    assert mean_loss(model, data, halved) == pytest.approx(mean_loss(model, data) / 2)
    history = mt.pretrain(model, data, data, halved, steps=2, progress=False)
    assert history.validations[0]["valid_loss"] < 0.6 * mean_loss(causal().float(), data)


def test_the_objective_follows_from_the_model():
    assert objective_of(causal()) is causal_lm_loss and objective_of(seq2seq()) is seq2seq_loss
    with pytest.raises(TypeError, match="Linear has no objective of its own"):
        mt.pretrain(torch.nn.Linear(2, 2), texts(), texts(), progress=False)
