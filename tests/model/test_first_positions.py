"""Computing the first positions only against computing all and keeping the first."""

import pytest
import torch

import minitransformer as mt


def build(norm_position: str, n_layers: int = 2) -> mt.Encoder:
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(
        vocab_size=20, d_model=6, n_heads=2, n_layers=n_layers, d_ff=10, max_len=8,
        dropout=0.0, attention_dropout=0.0, init_std=0.5, norm_position=norm_position,
    )  # fmt: skip
    return mt.Encoder(config).double()


IDS = torch.tensor([[5, 9, 11, 3, 2], [4, 7, 6, 0, 0], [8, 8, 1, 2, 0]])
MASKS = {"padding": None, "causal": mt.causal_mask(5), "keys": IDS[:, None, None, :] != 8}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_first_positions_are_those_of_the_whole(n_layers, norm_position, first, mask):
    encoder = build(norm_position, n_layers)
    some = encoder(IDS, MASKS[mask], first=first)
    whole = encoder(IDS, MASKS[mask])[:, :first]
    assert some.shape == (3, first, 6)
    torch.testing.assert_close(some, whole, rtol=0, atol=1e-12)
    parameters = list(encoder.parameters())[:-2]  # not the pooler, which takes no part
    g = torch.randn_like(whole)
    for a, b in zip(
        torch.autograd.grad(some, parameters, g), torch.autograd.grad(whole, parameters, g),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_classifier_of_the_first_position_does_not_compute_the_others():
    model = mt.SequenceClassifier(build("post"), 2, "cls").double()
    rows = []
    for block in model.encoder.blocks:
        block.feed_forward.register_forward_hook(lambda m, a, y: rows.append(y.shape[1]))
    logits = model(IDS)
    assert rows == [5, 1]
    whole = model.classifier(model.dropout(model.encoder.pooler(model.encoder(IDS))))
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-12)
