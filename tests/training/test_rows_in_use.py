"""The rows in use against the whole table, and the rows that no text reads."""

import pytest
import torch
from torch import nn

import minitransformer as mt
from minitransformer.data.batches import EncodedTexts
from minitransformer.training.objectives import classification_loss
from minitransformer.training.optim import make_adamw
from minitransformer.training.rows_in_use import RowsInUse
from minitransformer.training.strategies import layers_of

DATA = EncodedTexts(((5, 9, 11), (5, 3), (9, 9, 17, 3), (2,)), (0, 1, 1, 0), pad_id=1)
READ = [1, 2, 3, 5, 9, 11, 17]  # the padding's row too


def classifier() -> mt.SequenceClassifier:
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(
        vocab_size=20, d_model=6, n_heads=2, n_layers=2, d_ff=10, max_len=8, pad_id=1,
        dropout=0.0, attention_dropout=0.0, init_std=0.5,
    )  # fmt: skip
    return mt.SequenceClassifier(mt.Encoder(config), 2, "mean").double()


def train(model: mt.SequenceClassifier, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for epoch in range(4):
        for batch in DATA.batches(2, seed=10 * seed + epoch):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + epoch)
            classification_loss(model, batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


def test_training_the_rows_in_use_is_training_the_whole_table():
    plain, ours = classifier(), classifier()
    start = ours.encoder.embeddings.tokens.weight.detach().clone()
    optimizer = make_adamw(layers_of(plain), 0.1)
    embeddings = ours.encoder.embeddings
    rows = RowsInUse(embeddings, DATA)
    assert rows.rows.tolist() == READ and len(rows.weight) == len(READ) + 1
    with rows.inside():
        our_optimizer = make_adamw(layers_of(ours), 0.1)
    for turn in range(2):  # leave, as for validation, and go on with the same momentum
        train(plain, optimizer, turn)
        with rows.inside():
            train(ours, our_optimizer, turn)
        assert ours.state_dict().keys() == plain.state_dict().keys()
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-10)
    others = [i for i in range(20) if i not in READ]
    moved = (embeddings.tokens.weight.detach() / start)[others]
    assert (moved < 0.999).all(), "rows that no text reads still decay"


def test_frozen_rows_stay_and_the_table_returns_after_an_error():
    model = classifier()
    embeddings, table = model.encoder.embeddings, model.encoder.embeddings.tokens
    start, rows = table.weight.detach().clone(), RowsInUse(embeddings, DATA)
    with pytest.raises(IndexError), rows.inside():
        optimizer = make_adamw(layers_of(model), 0.1)
        embeddings.requires_grad_(False)
        train(model, optimizer, 0)
        model(torch.tensor([[4]]))  # an id of no text
    assert embeddings.tokens is table
    assert torch.equal(table.weight, start)


def test_outside_reads_the_whole_table_as_it_is_now():
    plain, ours = classifier(), classifier()
    optimizer, rows = make_adamw(layers_of(plain), 0.1), RowsInUse(ours.encoder.embeddings, DATA)
    train(plain, optimizer, 0)
    with rows.inside():
        our_optimizer = make_adamw(layers_of(ours), 0.1)
        train(ours, our_optimizer, 0)
        with rows.outside():
            unseen = torch.tensor([[4, 5, 19]])
            torch.testing.assert_close(ours(unseen), plain(unseen), rtol=0, atol=1e-10)
        train(ours, our_optimizer, 1)
    train(plain, optimizer, 1)
    torch.testing.assert_close(ours(unseen), plain(unseen), rtol=0, atol=1e-10)


def test_putting_rows_back_puts_the_decay_of_the_others_back():
    """As the loop does with its best weights: then the whole table is that of the best moment."""
    model = classifier()
    rows = RowsInUse(model.encoder.embeddings, DATA)
    with rows.inside():
        optimizer = make_adamw(layers_of(model), 0.5)
        train(model, optimizer, 0)
        with rows.outside():
            best = model.encoder.embeddings.tokens.weight.detach().clone()
        copy = rows.weight.detach().clone()
        train(model, optimizer, 1)
        with rows.outside():
            assert not torch.equal(model.encoder.embeddings.tokens.weight, best)
        with torch.no_grad():
            rows.weight.copy_(copy)
    torch.testing.assert_close(model.encoder.embeddings.tokens.weight, best, rtol=0, atol=1e-14)
