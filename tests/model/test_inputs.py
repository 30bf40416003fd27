"""Bad input to the model: the message says what, where, and what to do instead."""

import dataclasses

import jaxtyping
import pytest
import torch

import minitransformer as mt

CONFIG = mt.TransformerConfig(
    vocab_size=43, d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=19, dropout=0.0, pooler=True
)


def unchecked(**changes) -> mt.TransformerConfig:
    """A config without the annotations' own check, which only tests have: to reach our message."""
    config = object.__new__(mt.TransformerConfig)
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, changes.get(field.name, field.default))
    config.__post_init__()
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 20, "n_heads": 6}, "d_model=20 cannot be split into n_heads=6 equal heads; use a divisor such as n_heads=5, or choose d_head"),
        ({"norm_position": "middle"}, r"norm_position='middle' is not known; choose one of \('post', 'pre'\)"),
        ({"norm": "batch"}, r"norm='batch' is not known; choose one of \('layer', 'rms'\)"),
        ({"activation": "swish"}, "activation='swish' is not known"),
        ({"positions": "rotary"}, "positions='rotary' is not known"),
        ({"ops": "fast"}, "ops='fast' is not known"),
        ({"n_layers": 0}, "n_layers must be at least 1"),
        ({"d_head": -2}, "d_head must be at least 1, got -2; leave it out for the default"),
        ({"n_decoder_layers": -1}, "n_decoder_layers must be at least 1, got -1"),
        ({"n_decoder_layers": 0}, "n_decoder_layers must be at least 1, got 0"),
        ({"n_buckets": 30}, "n_buckets=30 must be a multiple of 4 and less than twice max_distance=128"),
        ({"n_buckets": 32, "max_distance": 16}, "less than twice max_distance=16, such as 32 and 128"),
        ({"init": "xavier"}, r"init='xavier' is not known; choose one of \('normal', 'depth', 'fan_in'\)"),
        ({"feed_forward_dropout": 1.0}, r"feed_forward_dropout must be in \[0, 1\)"),
        ({"final_dropout": -1.0}, r"final_dropout must be in \[0, 1\)"),
        ({"vocab_size": -1}, "vocab_size must be at least 1, got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"attention_dropout must be in \[0, 1\), got -0.1"),
    ],
)  # fmt: skip
def test_config_refuses_what_makes_no_model(changes, message):
    with pytest.raises(ValueError, match=message):
        unchecked(**changes)


def test_config_is_frozen_and_with_changes_a_copy():
    assert CONFIG.with_(n_heads=4).d_head == 5 and CONFIG.d_head == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.n_heads = 4
    with pytest.raises(ValueError, match="cannot be split"):
        CONFIG.with_(n_heads=3)


@pytest.mark.parametrize("module", ["block", "attention", "encoder", "weights", "maps"])
@pytest.mark.parametrize(
    ("keep", "kind", "message"),
    [
        (torch.ones(3, 7), TypeError, r"boolean mask \(True = may attend\), got torch.float32"),
        (torch.ones(3, 1, 1, 7, dtype=torch.long), TypeError, r"becomes one with keep.bool\(\)"),
        (torch.ones(3, 7, dtype=torch.bool), ValueError, r"keep of shape \(3, 7\) does not broadcast"),
        (torch.ones(3, 1, 1, 6, dtype=torch.bool), ValueError, r"padding_mask\(ids, pad_id\) gives"),
        (torch.ones(2, 3, 5, 7, 7, dtype=torch.bool), ValueError, "does not broadcast"),
    ],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_refused(module, keep, kind, message):
    x, ids = torch.randn(3, 7, 20), torch.ones(3, 7, dtype=torch.long)
    call = {
        "block": lambda: mt.EncoderBlock(CONFIG)(x, keep),
        "attention": lambda: mt.MultiHeadAttention(20, 5)(x, keep=keep),
        "encoder": lambda: mt.Encoder(CONFIG)(ids, keep),
        "weights": lambda: mt.MultiHeadAttention(20, 5).weights(x, keep=keep),
        "maps": lambda: mt.attention_maps(mt.Encoder(CONFIG), ids, keep),
    }
    with pytest.raises(kind, match=message):
        call[module]()


def test_scaled_dot_product_attention_refuses_a_mask_that_does_not_fit():
    Q, K, V = torch.randn(2, 7, 4), torch.randn(2, 11, 4), torch.randn(2, 11, 3)
    with pytest.raises(ValueError, match=r"keep of shape \(11, 7\) .* \(2, 7, 11\)"):
        mt.scaled_dot_product_attention(Q, K, V, torch.ones(11, 7, dtype=torch.bool))


def test_mean_pooling_refuses_a_mask_that_is_not_of_padding():
    """A causal mask's first row would say that all tokens but the first are padding."""
    model, ids = mt.SequenceClassifier(mt.Encoder(CONFIG), 2, "mean"), torch.ones(3, 7).long()
    for keep in (mt.causal_mask(7), mt.causal_mask(7).expand(3, 1, 7, 7)):
        with pytest.raises(ValueError, match=r"needs \(batch, 1, 1, length\) = \(3, 1, 1, 7\)"):
            model(ids, keep)
        mt.SequenceClassifier(mt.Encoder(CONFIG), 2, "cls")(ids, keep)  # reads no mask


def test_ids_and_lengths_that_the_tables_lack_are_named():
    encoder = mt.Encoder(CONFIG)
    with pytest.raises(
        ValueError, match=r"id 43 at example 1, position 2 is outside the vocabulary of 43"
    ):
        encoder(torch.tensor([[1, 2, 3], [4, 5, 43]]))
    with pytest.raises(ValueError, match="id -1 at example 0, position 1"):
        encoder(torch.tensor([[1, -1]]))
    with pytest.raises(ValueError, match="20 positions, the model 19; truncate"):
        encoder(torch.ones(1, 20, dtype=torch.long))
    free = mt.Encoder(CONFIG.with_(positions="none"))
    assert torch.isfinite(free(torch.ones(1, 20, dtype=torch.long))).all()


def test_segments_that_do_not_fit_are_refused():
    encoder, ids = mt.Encoder(CONFIG.with_(n_segments=2)), torch.ones(3, 7, dtype=torch.long)
    with pytest.raises(ValueError, match="segment 2 is not one of the model's 2"):
        encoder(ids, segments=2 * ids)
    with pytest.raises(ValueError, match="is not one of the model's 0"):
        mt.Encoder(CONFIG)(ids, segments=ids)
    # Not checked by the annotations alone: one row would broadcast over the batch.
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="segments"):
        encoder(ids, segments=ids[:1])


def test_a_classifier_says_what_it_needs():
    with pytest.raises(ValueError, match="needs an encoder with a pooler"):
        mt.SequenceClassifier(mt.Encoder(CONFIG.with_(pooler=False)), 2, "cls")
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        mt.SequenceClassifier(mt.Encoder(CONFIG), 1, "mean")
    with pytest.raises(ValueError, match="n_heads=3 does not divide d_model=20"):
        mt.MultiHeadAttention(20, 3)


def test_annotations_are_enforced_while_the_tests_run():
    """Rule of the house: shapes are types. Without the import hook these would run."""
    norm = mt.LayerNorm(20)
    norm.bias.data = torch.zeros(1)
    with pytest.raises(jaxtyping.TypeCheckError):
        norm(torch.randn(3, 20))
    with pytest.raises(jaxtyping.TypeCheckError):
        mt.scaled_dot_product_attention(torch.randn(5, 4), torch.randn(7, 4), torch.randn(6, 3))
