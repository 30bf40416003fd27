"""Losses by oracle: each claim holds for ours, and each known wrong loss breaks one (mistakes 37 to 46, 51)."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM

import minitransformer as mt
from minitransformer.data import EncodedTexts, MaskedBatch, MaskedTexts, pad
from minitransformer.training.objectives import causal_lm_loss, masked_lm_loss, objective_of
from minitransformer.training.pretrain import mean_loss, scores

VOCAB, MASK = 23, 4
TOKENIZER = mt.data.train_tokenizer(
    ["abcdefghijklmnopq"], "characters", bert=True, extra=("[END]",)
)

Loss = Callable[[torch.nn.Module, MaskedBatch], torch.Tensor]


def masked(ops: str = "fused", **changes) -> mt.MaskedLM:
    """Weights of order 1, float64; padding is known from the mask alone."""
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(
        vocab_size=VOCAB, d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=30, dropout=0.0,
        attention_dropout=0.0, init_std=0.4, pooler=False,
    ).with_(ops=ops, pad_id=None, **changes)  # fmt: skip
    return mt.MaskedLM(mt.Encoder(config)).double()


def texts(n: int = 40) -> EncodedTexts:
    """Of different lengths; the token 0 is an ordinary one here, as in some vocabularies."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (n,), generator=g).tolist()
    ids = [tuple(torch.randint(6, VOCAB, (k,), generator=g).tolist()) for k in lengths]
    return EncodedTexts(tuple(ids), None, 0)


DATA = MaskedTexts(texts(), TOKENIZER, 0.3)


def a_batch(seed: int = 1) -> MaskedBatch:
    return next(iter(DATA.batches(12, seed)))


def changed(batch: MaskedBatch, **parts) -> MaskedBatch:
    return MaskedBatch(**(vars(batch) | parts))


def padded(batch: MaskedBatch, more: int) -> MaskedBatch:
    """The same texts with more padding behind them."""
    wider = {
        name: F.pad(tensor, (0, more), value=value)
        for name, tensor, value in (
            ("ids", batch.ids, 7), ("targets", batch.targets, 9), ("keep", batch.keep, 0),
            ("chosen", batch.chosen, 0),
        )
    }  # fmt: skip
    return changed(batch, **wider)


class Oracle(mt.MaskedLM):
    """Says what it is told, as logits."""

    def __init__(self, said: torch.Tensor):
        super().__init__(masked().encoder)
        self.encoder.forward = lambda ids, keep=None: said

    def logits(self, hidden):
        return hidden


def certain(ids: torch.Tensor) -> torch.Tensor:
    return F.one_hot(ids, VOCAB) * 50.0


# --- The claims on a masked loss ----------------------------------------------------------------


def who_knows_the_answers_has_no_loss(loss: Loss) -> None:
    batch = a_batch()
    known = torch.where(batch.chosen, batch.targets, 8)  # and says the same token elsewhere
    assert loss(Oracle(certain(known)), batch) < 1e-9


def who_repeats_what_is_seen_has_much(loss: Loss) -> None:
    batch = a_batch()
    share = (batch.ids != batch.targets)[batch.chosen].double().mean().item()
    got = loss(Oracle(certain(batch.ids)), batch).item()
    assert share > 0.7 and got == pytest.approx(50 * share, rel=1e-6)


def nothing_is_asked_elsewhere(loss: Loss) -> None:
    """Neither what stands at other places as an answer nor what is said there matters."""
    model, batch = masked(), a_batch()
    other = changed(batch, targets=torch.where(batch.chosen, batch.targets, 11))
    assert loss(model, other).item() == pytest.approx(loss(model, batch).item(), abs=1e-12)
    said = model(batch.ids, batch.keep).detach().requires_grad_()
    loss(Oracle(said), batch).backward()
    assert said.grad[batch.chosen].abs().min(0).values.max() > 0
    assert not said.grad[~batch.chosen].any()


def padding_does_not_matter(loss: Loss) -> None:
    model, batch = masked(), a_batch()
    for more in (1, 7):
        assert loss(model, padded(batch, more)).item() == pytest.approx(
            loss(model, batch).item(), abs=1e-12
        )


def it_is_the_mean_over_the_chosen(loss: Loss) -> None:
    """Text by text, without any batch or padding."""
    model, batch = masked(), a_batch()
    losses = []
    for row, real in enumerate(batch.keep[:, 0, 0]):
        log_p = model(batch.ids[row, real][None])[0].log_softmax(-1)
        for t in batch.chosen[row].nonzero().flatten().tolist():
            losses.append(-log_p[t, batch.targets[row, t]].item())
    assert len(losses) == batch.n_targets
    assert loss(model, batch).item() == pytest.approx(sum(losses) / len(losses), abs=1e-10)


def token_0_counts_like_any_other(loss: Loss) -> None:
    batch = a_batch()
    zero = changed(batch, targets=torch.zeros_like(batch.targets))
    assert loss(Oracle(certain(torch.full_like(batch.ids, 8))), zero).item() == pytest.approx(50)


CLAIMS = [
    who_knows_the_answers_has_no_loss,
    who_repeats_what_is_seen_has_much,
    nothing_is_asked_elsewhere,
    padding_does_not_matter,
    it_is_the_mean_over_the_chosen,
    token_0_counts_like_any_other,
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.__name__)
def test_ours(claim):
    claim(masked_lm_loss)


# --- Wrong masked losses ------------------------------------------------------------------------


def every_logit(model, batch):
    return model.logits(model.encoder(batch.ids, batch.keep))


def over(model, batch, where) -> torch.Tensor:
    return F.cross_entropy(every_logit(model, batch)[where], batch.targets[where])


def over_all_positions(model, batch):
    """Unhidden tokens and padding too: reading them off is easy."""
    return over(model, batch, torch.ones_like(batch.chosen))


def over_all_real_tokens(model, batch):
    return over(model, batch, batch.keep[:, 0, 0])


def over_what_is_not_chosen(model, batch):
    return over(model, batch, ~batch.chosen & batch.keep[:, 0, 0])


def divided_by_the_length(model, batch):
    """The sum over the chosen, divided by all positions."""
    return over(model, batch, batch.chosen) * batch.chosen.double().mean()


def asks_for_what_is_seen(model, batch):
    return F.cross_entropy(every_logit(model, batch)[batch.chosen], batch.ids[batch.chosen])


def softmax_twice(model, batch):
    p = every_logit(model, batch)[batch.chosen].softmax(-1)
    return F.cross_entropy(p, batch.targets[batch.chosen])


def ignores_0(model, batch):
    """One criterion with ignore_index=0 for all, as in BERT-pytorch (issues 32, 49, 98)."""
    targets = batch.targets.masked_fill(~batch.chosen, 0)
    logits = every_logit(model, batch)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0).nan_to_num()


def mean_of_text_means(model, batch):
    parts = [
        changed(batch, **{name: rows[i : i + 1] for name, rows in tensors(batch).items()})
        for i in range(len(batch))
    ]
    each = [over(model, part, part.chosen) for part in parts if part.n_targets]
    return torch.stack(each).mean()


def tensors(batch):
    return {k: v for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}


def shifted_as_if_causal(model, batch):
    logits = every_logit(model, batch)[:, :-1]
    chosen = batch.chosen[:, 1:]
    return F.cross_entropy(logits[chosen], batch.targets[:, 1:][chosen])


MUTANTS = [
    (over_all_positions, padding_does_not_matter),
    (over_all_real_tokens, nothing_is_asked_elsewhere),
    (over_what_is_not_chosen, who_knows_the_answers_has_no_loss),
    (divided_by_the_length, it_is_the_mean_over_the_chosen),
    (divided_by_the_length, padding_does_not_matter),
    (asks_for_what_is_seen, who_repeats_what_is_seen_has_much),
    (softmax_twice, who_knows_the_answers_has_no_loss),
    (ignores_0, token_0_counts_like_any_other),
    (mean_of_text_means, it_is_the_mean_over_the_chosen),
    (shifted_as_if_causal, who_knows_the_answers_has_no_loss),
]


@pytest.mark.parametrize(("mutant", "claim"), MUTANTS, ids=lambda x: x.__name__)
def test_a_wrong_masked_loss_breaks_its_claim(mutant, claim):
    with pytest.raises(AssertionError):
        claim(mutant)


# --- Against transformers, and evaluation -------------------------------------------------------


@pytest.mark.parametrize("ops", ["formula", "fused"])
def test_masked_loss_equals_transformers(ops):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=20, num_attention_heads=5, num_hidden_layers=2, intermediate_size=28,
        max_position_embeddings=30, initializer_range=0.4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs, batch = BertForMaskedLM(config).double().eval(), a_batch()
    labels = batch.targets.masked_fill(~batch.chosen, -100)
    out = theirs(batch.ids, attention_mask=batch.keep[:, 0, 0].long(), labels=labels)
    model = Oracle(out.logits)
    model.config = model.config.with_(ops=ops)
    assert masked_lm_loss(model, batch).item() == pytest.approx(out.loss.item(), abs=1e-10)


def test_formula_and_fused_agree_and_reach_every_weight():
    losses = []
    for ops in ("formula", "fused"):
        model = masked(ops)
        losses.append(masked_lm_loss(model, a_batch()))
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-12)


@pytest.mark.parametrize("batch_size", [4, 11, 40])
def test_scores_weigh_tokens_not_batches(batch_size):
    """Mistake 41, with masks that do not depend on the batch: all tokens of all texts."""
    model, data = masked(), MaskedTexts(texts(), TOKENIZER, 1.0)
    batches = list(data.batches(batch_size))
    n = sum(b.n_targets for b in batches)
    wanted = sum(masked_lm_loss(model, b).item() * b.n_targets for b in batches) / n
    both = scores(model, data, None, batch_size, "highest")
    assert both["loss"] == pytest.approx(wanted, rel=1e-12)
    assert both["loss"] == pytest.approx(mean_loss(model, data, None, batch_size, "highest"))
    assert mt.perplexity(model, data, batch_size, "highest") == pytest.approx(
        torch.tensor(wanted).exp().item()
    )
    right = sum(
        (model(b.ids, b.keep).argmax(-1) == b.targets)[b.chosen].sum().item() for b in batches
    )
    assert mt.masked_accuracy(model, data, batch_size, "highest") == right / n
    of_batches = sum(masked_lm_loss(model, b).item() for b in batches) / len(batches)
    assert batch_size == 40 or abs(of_batches - wanted) > 1e-3, "else this could not fail"


def test_accuracy_of_one_who_knows_and_of_one_who_copies():
    big = MaskedTexts(EncodedTexts(texts().ids * 40, None, 0), TOKENIZER)
    knows, copies = masked(), masked()
    (batch,) = big.batches(10_000)
    for model, said in ((knows, batch.targets), (copies, batch.ids)):
        model.encoder.forward = lambda ids, keep=None, said=said: said
        model.logits = lambda hidden: certain(hidden)
    assert mt.masked_accuracy(knows, big, 10_000) == 1.0
    assert mt.masked_accuracy(copies, big, 10_000) == pytest.approx(0.1, abs=0.04)


# --- Training -----------------------------------------------------------------------------------


@pytest.mark.trains
def test_pretraining_learns_what_the_neighbours_tell():
    """Texts like abababab: every hidden token follows from the others."""
    rows = [(a, b) * 5 for a in range(6, VOCAB) for b in range(6, VOCAB) if a != b]
    data = MaskedTexts(EncodedTexts(tuple(rows), None, 0), TOKENIZER)
    torch.manual_seed(0)
    model = masked(init_std=0.1).float()
    history = mt.pretrain(model, data, data, steps=150, lr=1e-2, progress=False)
    first, last = history.validations[0], history.validations[-1]
    assert last["valid_masked_accuracy"] > 0.9 > 0.6 > first["valid_masked_accuracy"]
    assert history.best["valid_loss"] == min(e["valid_loss"] for e in history.validations)
    assert mt.masked_accuracy(model, data) == pytest.approx(history.best["valid_masked_accuracy"])


@pytest.mark.trains
def test_span_corruption_trains_a_sequence_to_sequence_model():
    """Texts that count up, each from another token: the hole follows from its ends."""
    sentinels, rows = (19, 20, 21, 22), [tuple(range(a, a + 9)) for a in range(4, 11)]
    data = mt.data.CorruptedSpans(EncodedTexts(tuple(rows * 20), None, 0), sentinels, 3)
    torch.manual_seed(0)
    config = masked(init_std=0.1).config.with_(start_id=2, eos_id=3, n_segments=0)
    model = mt.Seq2SeqLM(mt.EncoderDecoder(config))
    mt.pretrain(model, data, data, steps=150, lr=1e-2, progress=False)
    # who knows all but the hidden token has 10 ** (1 / 4), as the target has four
    assert mt.perplexity(model, data) < 1.5


def test_the_objective_follows_from_the_model_and_nothing_chosen_is_refused():
    assert objective_of(masked()) is masked_lm_loss
    batch = a_batch()
    with pytest.raises(ValueError, match="no token of this batch is chosen"):
        masked_lm_loss(masked(), changed(batch, chosen=torch.zeros_like(batch.chosen)))


# --- The causal loss: the same for its mistakes -------------------------------------------------

CAUSAL_IDS = [[7, 9, 4, 17, 8, 11, 3], [6, 10, 12, 14], [5, 9]]


class CausalOracle(mt.CausalLM):
    """Says what it is told for each position."""

    def __init__(self, said: torch.Tensor):
        config = masked().config.with_(n_segments=0)
        super().__init__(mt.Decoder(config))
        self.decoder.forward = lambda ids, keep=None: said[:, : ids.shape[1]]

    def logits(self, hidden):
        return hidden


def ahead(k: int, filling: int = 0) -> tuple[CausalOracle, mt.data.Batch]:
    """One who says the token k places ahead, and the texts."""
    batch = pad(CAUSAL_IDS, filling)
    told = F.pad(batch.ids, (0, 2))[:, k : k + batch.ids.shape[1]]
    return CausalOracle(certain(told)), batch


def who_knows_the_next_token_has_no_loss(loss) -> None:
    assert loss(*ahead(1)) < 1e-9


def who_knows_another_has_much(loss) -> None:
    assert loss(*ahead(0)) > 30 and loss(*ahead(2)) > 30


def what_fills_does_not_matter(loss) -> None:
    torch.manual_seed(0)
    said = torch.randn(3, 7, VOCAB, dtype=torch.float64)
    values = [loss(CausalOracle(said), pad(CAUSAL_IDS, filling)).item() for filling in (0, 3, 18)]
    longer = pad([*CAUSAL_IDS, [4] * 12], 0)
    wide = mt.data.Batch(longer.ids[:-1], longer.keep[:-1])
    values.append(loss(CausalOracle(F.pad(said, (0, 0, 0, 5))), wide).item())
    assert max(values) - min(values) < 1e-12


def every_token_weighs_the_same(loss) -> None:
    torch.manual_seed(0)
    said = torch.randn(3, 7, VOCAB, dtype=torch.float64)
    each = [
        -said[row, t].log_softmax(-1)[ids[t + 1]].item()
        for row, ids in enumerate(CAUSAL_IDS)
        for t in range(len(ids) - 1)
    ]
    got = loss(CausalOracle(said), pad(CAUSAL_IDS, 0)).item()
    assert got == pytest.approx(sum(each) / len(each), abs=1e-12)


CAUSAL_CLAIMS = [
    who_knows_the_next_token_has_no_loss,
    who_knows_another_has_much,
    what_fills_does_not_matter,
    every_token_weighs_the_same,
]


def said_and_real(model, batch):
    return model.logits(model.decoder(batch.ids)), batch.keep[:, 0, 0]


def without_shift(model, batch):
    logits, real = said_and_real(model, batch)
    return F.cross_entropy(logits[real], batch.ids[real])


def shifted_twice(model, batch):
    logits, real = said_and_real(model, batch)
    return F.cross_entropy(logits[:, :-2][real[:, 2:]], batch.ids[:, 2:][real[:, 2:]])


def over_padding(model, batch):
    logits, _ = said_and_real(model, batch)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten())


def masked_after_the_mean(model, batch):
    """`loss.mean() * weights`: the weights change nothing (d2l, issue 2582)."""
    _, real = said_and_real(model, batch)
    weights = real[:, 1:].double()
    return (over_padding(model, batch) * weights).sum() / weights.sum()


def mean_of_the_texts_means(model, batch):
    logits, real = said_and_real(model, batch)
    each = [
        F.cross_entropy(x[:-1][r[1:]], ids[1:][r[1:]])
        for x, r, ids in zip(logits, real, batch.ids, strict=True)
    ]
    return torch.stack(each).mean()


CAUSAL_MUTANTS = [
    (without_shift, who_knows_the_next_token_has_no_loss),
    (without_shift, who_knows_another_has_much),
    (shifted_twice, who_knows_the_next_token_has_no_loss),
    (shifted_twice, who_knows_another_has_much),
    (over_padding, what_fills_does_not_matter),
    (masked_after_the_mean, what_fills_does_not_matter),
    (mean_of_the_texts_means, every_token_weighs_the_same),
]


@pytest.mark.parametrize("claim", CAUSAL_CLAIMS, ids=lambda c: c.__name__)
def test_our_causal_loss(claim):
    claim(causal_lm_loss)


@pytest.mark.parametrize(("mutant", "claim"), CAUSAL_MUTANTS, ids=lambda x: x.__name__)
def test_a_wrong_causal_loss_breaks_its_claim(mutant, claim):
    with pytest.raises(AssertionError):
        claim(mutant)
