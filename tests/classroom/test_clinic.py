"""Each mistake shows its own symptoms and no other's; the healthy models show none."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from untyped import untyped

import minitransformer as mt
from minitransformer.classroom.clinic import charts as clinic
from minitransformer.classroom.clinic import instruments
from minitransformer.classroom.clinic.patients import FAULTS, SEATS, broken
from minitransformer.data.batches import Batch


@pytest.mark.trains
@pytest.mark.parametrize("kind", ["writer", "reader"])
def test_a_healthy_model_has_no_symptom(kind):
    chart = clinic.chart(kind)
    assert chart.signs == frozenset(), chart
    assert chart.kind == kind


@pytest.mark.trains
@pytest.mark.parametrize("letter", clinic.PATIENTS)
def test_a_patient_shows_its_own_symptoms_and_no_others(letter):
    fault = FAULTS[SEATS[clinic.PATIENTS.index(letter)]]
    with untyped():  # the same model and batches as the others have
        chart = clinic.chart(letter)
    assert chart.signs == fault.signs, chart
    assert chart.kind == fault.kind and not fault.sometimes, "a patient's symptoms are certain"


@pytest.mark.trains
@pytest.mark.parametrize("name", sorted(set(FAULTS) - set(SEATS)))
def test_mistakes_that_nobody_has_show_their_symptoms_too(name):
    chart = clinic.examine(lambda: broken(name))
    assert FAULTS[name].explains(chart.signs), chart


def test_all_mistakes_can_be_told_apart():
    known = {s.name for s in clinic.SYMPTOMS}
    assert all(f.signs and f.signs | f.sometimes <= known for f in FAULTS.values())
    for a, b in itertools.combinations(FAULTS.values(), 2):
        both = a.signs | b.signs
        assert a.kind != b.kind or not (a.explains(both) and b.explains(both))
    assert {s for f in FAULTS.values() for s in f.signs} == known
    assert len(set(SEATS)) == len(clinic.PATIENTS)


@pytest.mark.parametrize("name", ["reader", *clinic.PATIENTS])
def test_the_one_batch_of_a_reader_has_both_labels(name):
    patient = clinic.patient(name)
    if patient.kind == "reader":
        assert sorted(clinic.one_batch(patient).labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_one_chart_twice_is_the_same_and_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    again = clinic.examine(lambda: clinic.patient("C"), "C")
    assert torch.equal(torch.rand(2), wanted)
    assert again == clinic.chart("C")


def test_the_files_a_reader_may_open_name_no_mistake():
    import inspect

    for module in (clinic, instruments):
        source = inspect.getsource(module)
        assert not [name for name in FAULTS if f'"{name}"' in source]


def test_an_unknown_patient_is_refused():
    with pytest.raises(ValueError, match="no patient 'Z'; there are A, B"):
        clinic.patient("Z")


# --- The instruments, on models whose truth is known ------------------------------------------------

CONFIG = mt.TransformerConfig(
    vocab_size=11, d_model=20, n_heads=5, n_layers=2, d_ff=44, max_len=16, dropout=0.3, pad_id=0,
    init_std=0.3, norm_position="pre",
)  # fmt: skip


@pytest.mark.parametrize(("block", "ahead"), [(mt.DecoderBlock, False), (mt.EncoderBlock, True)])
def test_leak(block, ahead):
    block = block(CONFIG).double().train()
    moved = instruments.leak(block, torch.randn(3, 7, 20, dtype=torch.float64), 4)
    assert (moved > 1e-3) if ahead else (moved == 0.0)
    assert block.training, "the mode is given back"


def test_influence_is_the_past_and_oneself_of_a_decoder():
    model = mt.CausalLM(mt.Decoder(CONFIG)).double().eval()
    ids = torch.randint(1, 11, (3, 7))
    with torch.no_grad():
        moved = instruments.influence(lambda b: model(b.ids, b.keep), ids, ids % 10 + 1)
    assert torch.equal(moved > 1e-9, torch.ones(7, 7).tril() > 0)


def test_alone_against_batch_sees_a_missing_mask_and_no_garbage_at_padding():
    encoder = mt.Encoder(CONFIG).double().eval()
    texts = [[3, 4, 5, 6, 7], [8, 9], [10, 1, 2]]
    with torch.no_grad():
        masked = instruments.alone_against_batch(lambda b: encoder(b.ids, b.keep), texts, 0)
        heard = instruments.alone_against_batch(
            lambda b: encoder(b.ids, torch.ones_like(b.keep)), texts, 0
        )
    assert masked < 1e-9 < 1e-3 < heard


def test_gradient_norms_are_those_of_the_layers():
    model = mt.CausalLM(mt.Decoder(CONFIG)).double().eval()
    model.decoder.blocks[0].requires_grad_(False)
    ids = torch.randint(1, 11, (3, 7))

    def loss():
        return nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    norms = instruments.gradient_norms(model, loss())
    assert list(norms) == ["embeddings", "block 0", "block 1", "head"]
    wanted = torch.autograd.grad(loss(), list(model.decoder.blocks[1].parameters()))
    assert norms["block 1"] == pytest.approx(float(torch.cat([g.flatten() for g in wanted]).norm()))
    assert norms["block 0"] == 0.0 < norms["embeddings"]
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_of_knowing_nothing():
    assert instruments.chance_loss(65) == pytest.approx(4.174, abs=1e-3)


def test_copies_and_random_tokens():
    batch = instruments.random_tokens(8, 4, (16, 24), seed=1)
    assert batch.ids.unique().tolist() == list(range(4, 12))
    assert not torch.equal(batch.ids, instruments.random_tokens(8, 4, (16, 24), seed=2).ids)
    assert instruments.copies(lambda b: nn.functional.one_hot(b.ids, 12), batch) == 1.0
    assert instruments.copies(lambda b: nn.functional.one_hot(b.ids.roll(1, 1), 12), batch) < 0.3


def test_piled_up():
    layer = nn.Linear(3, 1)
    batch = Batch(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 1, 1, 3, dtype=torch.bool))

    def step(batch, clear):
        if clear:
            layer.zero_grad()
        layer(batch.ids.float()).sum().backward()

    assert instruments.piled_up(layer, lambda b: step(b, True), batch) == pytest.approx(1)
    layer.zero_grad()
    assert instruments.piled_up(layer, lambda b: step(b, False), batch) == pytest.approx(2)


def test_charts_are_records():
    assert dataclasses.is_dataclass(clinic.Chart)
    with pytest.raises(dataclasses.FrozenInstanceError):
        clinic.chart("C").start = 0.0
