"""Properties that need no reference: what every right Transformer does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import normal, randomise

import minitransformer as mt
from minitransformer.formulas import fast, ops
from minitransformer.model.block import EncoderBlock
from minitransformer.model.heads import mean_pool
from minitransformer.model.layers import Embeddings

CONFIG = mt.TransformerConfig(
    vocab_size=43, d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=19, dropout=0.0,
    norm_eps=1e-3, init_std=0.3,
)  # fmt: skip
SETS = pytest.mark.parametrize("kind", ["formula", "fused"])
NORMS = pytest.mark.parametrize("norm_position", ["post", "pre"])
few = settings(max_examples=20, deadline=None)


def block(norm_position: str, kind: str = "fused") -> EncoderBlock:
    return randomise(EncoderBlock(CONFIG.with_(norm_position=norm_position, ops=kind)))


@few
@given(shift=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_softmax_ignores_a_shift_and_sums_to_one(shift, seed):
    scores = 3 * normal(4, 7, seed=seed)
    for f in (ops.softmax, fast.fused_softmax):
        torch.testing.assert_close(f(scores + shift), f(scores), atol=1e-10, rtol=0)
        torch.testing.assert_close(f(scores).sum(-1), torch.ones(4).double(), atol=1e-12, rtol=0)


@few
@given(seed=st.integers(0, 99), order=st.permutations(range(7)))
def test_attention_does_not_care_for_the_order_of_the_keys(seed, order):
    Q, K, V = (
        normal(2, 5, 4, seed=seed),
        normal(2, 7, 4, seed=seed + 1),
        normal(2, 7, 3, seed=seed + 2),
    )
    keep = normal(2, 5, 7, seed=seed + 3) > -0.5
    output, weights = mt.scaled_dot_product_attention(Q, K, V, keep)
    moved, its = mt.scaled_dot_product_attention(Q, K[:, order], V[:, order], keep[..., order])
    torch.testing.assert_close(moved, output, atol=1e-12, rtol=0)
    torch.testing.assert_close(its, weights[..., order], atol=1e-12, rtol=0)


@few
@given(order=st.permutations(range(7)), norm_position=st.sampled_from(["post", "pre"]))
def test_a_block_without_positions_moves_with_its_tokens(order, norm_position):
    f, x = block(norm_position), normal(3, 7, 20)
    torch.testing.assert_close(f(x[:, order]), f(x)[:, order], atol=1e-10, rtol=0)


@SETS
@NORMS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_invisible(kind, norm_position, training, side):
    """Alone or padded, whatever the filling holds; values and gradients of the weights."""
    f, x = block(norm_position, kind).train(training), normal(1, 5, 20)
    real = slice(3, None) if side == "left" else slice(0, 5)
    keep = torch.zeros(1, 1, 1, 8, dtype=torch.bool)
    keep[..., real] = True
    alone = f(x)
    g = normal(1, 5, 20, seed=9)
    expected = torch.autograd.grad((alone * g).sum(), list(f.parameters()))
    for seed in (1, 2):
        padded = 5 * normal(1, 8, 20, seed=seed)
        padded[:, real] = x
        y = f(padded, keep)[:, real]
        torch.testing.assert_close(y, alone, atol=1e-10, rtol=0)
        for a, b in zip(
            torch.autograd.grad((y * g).sum(), list(f.parameters())), expected, strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@SETS
@NORMS
@pytest.mark.parametrize("training", [True, False])
def test_a_causal_block_does_not_see_the_future(kind, norm_position, training):
    f, x = block(norm_position, kind).train(training), normal(3, 7, 20)
    keep = mt.causal_mask(7)
    y = f(x, keep)
    for t in range(1, 7):
        changed = x.clone()
        changed[:, t:] = normal(3, 7 - t, 20, seed=t)  # random: a constant could cancel in the norm
        moved = (f(changed, keep) - y).abs().amax((0, 2))
        assert moved[:t].max() < 1e-10 and moved[t] > 1e-2


@SETS
@pytest.mark.parametrize("keys", [11, fast.FEW_KEYS + 3])
def test_a_query_without_keys_gives_zeros_and_finite_gradients(kind, keys):
    Q, K, V = (normal(2, n, 4, seed=n).requires_grad_() for n in (6, keys, keys))
    keep = torch.ones(2, 6, keys, dtype=torch.bool)
    keep[1, 2] = False
    output = ops.OPS[kind].attention(Q, K, V, keep)
    assert output[1, 2].abs().max() == 0 and output[1, 1].abs().min() > 0
    for grad in torch.autograd.grad((output * normal(2, 6, 4, seed=1)).sum(), (Q, K, V)):
        assert torch.isfinite(grad).all() and grad.abs().max() > 0


@SETS
@pytest.mark.parametrize("keys", [11, fast.FEW_KEYS + 3])
def test_attention_is_the_same_on_both_sides_of_few_keys(kind, keys):
    Q, K, V = (normal(2, n, 4, seed=n) for n in (6, keys, keys))
    keep = normal(2, 6, keys) > -0.5
    expected = torch.nn.functional.scaled_dot_product_attention(Q, K, V, attn_mask=keep)
    torch.testing.assert_close(ops.OPS[kind].attention(Q, K, V, keep), expected, atol=1e-12, rtol=0)


def test_causal_mask_of_fewer_queries_than_keys_is_that_of_the_last_ones():
    assert torch.equal(mt.causal_mask(3, 7), mt.causal_mask(7)[-3:])
    assert mt.causal_mask(1, 7).all()
    with pytest.raises(ValueError, match="1 <= queries <= keys"):
        mt.causal_mask(7, 3)


@SETS
def test_layer_norm_ignores_shift_and_scale(kind):
    norm = randomise(mt.LayerNorm(20, eps=0.0, ops=kind))
    x = normal(5, 20)
    torch.testing.assert_close(norm(7 * x - 3000), norm(x), atol=1e-9, rtol=0)
    far = mt.LayerNorm(20, ops=kind)(x.float() + 3000)  # E[x^2] - E[x]^2 would be NaN here
    assert torch.isfinite(far).all() and far.std() > 0.9


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
def test_formula_and_fused_classifiers_are_equal(pooling, positions):
    config = CONFIG.with_(positions=positions, pooler=True, n_segments=2, embedding_norm=True)
    models = [
        randomise(mt.SequenceClassifier(mt.Encoder(config.with_(ops=kind)), 3, pooling))
        for kind in ("formula", "fused")
    ]
    ids = torch.randint(1, 43, (3, 11), generator=torch.Generator().manual_seed(0))
    ids[1, 6:] = 0
    results = []
    for model in models:
        logits = model(ids, segments=(torch.arange(11) > 5).long().expand(3, -1))
        loss, weights = (logits**2).sum(), list(model.parameters())
        # With mean pooling the pooler does not take part.
        grads = torch.autograd.grad(loss, weights, materialize_grads=True)
        results.append((logits, grads))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-9, rtol=0)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_text_has_the_same_logits_alone_and_in_a_batch(pooling):
    model = randomise(
        mt.SequenceClassifier(mt.Encoder(CONFIG.with_(pooler=True)), 3, pooling)
    ).eval()
    ids = torch.randint(1, 43, (1, 5), generator=torch.Generator().manual_seed(0))
    together = torch.cat(
        [torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1), torch.full((1, 9), 7)]
    )
    torch.testing.assert_close(model(together)[0], model(ids)[0], atol=1e-10, rtol=0)


def test_mean_pool_of_nothing_is_zero():
    real = torch.tensor([[True, True, False], [False, False, False]])
    pooled = mean_pool(normal(2, 3, 4), real)
    torch.testing.assert_close(pooled[0], normal(2, 3, 4)[0, :2].mean(0))
    assert pooled[1].abs().max() == 0


def test_attention_maps_are_the_weights_that_the_model_uses():
    encoder = randomise(mt.Encoder(CONFIG)).train()
    ids = torch.randint(1, 43, (2, 7), generator=torch.Generator().manual_seed(0))
    ids[0, 5:] = 0
    maps = mt.attention_maps(encoder, ids)
    assert [m.shape for m in maps] == [(2, 5, 7, 7)] * 2 and encoder.training
    x, attention = encoder.embeddings(ids), encoder.blocks[0].attention
    V = attention.W_V(x).unflatten(-1, (5, 4)).transpose(1, 2)
    output = attention.W_O((maps[0] @ V).transpose(1, 2).flatten(2))
    torch.testing.assert_close(
        output, attention(x, keep=mt.padding_mask(ids, 0)), atol=1e-10, rtol=0
    )
    assert maps[0][0, ..., 5:].abs().max() == 0


def test_attention_maps_of_a_decoder_show_no_future():
    maps = mt.attention_maps(randomise(mt.Decoder(CONFIG)), torch.randint(1, 43, (2, 7)))
    assert [m.shape for m in maps] == [(2, 5, 7, 7)] * 2
    assert all(m.triu(1).abs().max() == 0 and m[..., 1:, 0].min() > 0 for m in maps)


def test_attention_maps_leave_no_trace_and_know_no_dropout():
    encoder = randomise(mt.Encoder(CONFIG.with_(dropout=0.3, attention_dropout=0.3))).train()
    ids = torch.full((2, 7), 3)
    first, second = mt.attention_maps(encoder, ids), mt.attention_maps(encoder, ids)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first[1].sum(-1), torch.ones(2, 5, 7).double())
    assert not any(m._forward_pre_hooks for m in encoder.modules())


def test_dropout_is_off_in_evaluation_and_on_in_training():
    encoder = mt.Encoder(CONFIG.with_(dropout=0.3, attention_dropout=0.2))
    ids = torch.full((2, 7), 3)
    assert torch.equal(encoder.eval()(ids), encoder.eval()(ids))
    assert not torch.equal(encoder.train()(ids), encoder.train()(ids))


def test_state_dict_holds_weights_and_no_buffers():
    encoder = mt.Encoder(CONFIG)
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}


@SETS
@NORMS
def test_an_example_of_padding_alone_harms_nothing(kind, norm_position):
    """All keys hidden: finite, and neither the others nor the gradients notice."""
    model = randomise(
        mt.SequenceClassifier(
            mt.Encoder(CONFIG.with_(ops=kind, norm_position=norm_position)), 3, "mean"
        )
    )
    ids = torch.randint(1, 43, (2, 7), generator=torch.Generator().manual_seed(0))
    alone, g = model(ids), normal(3, 3)
    logits = model(torch.cat([ids, torch.zeros(1, 7, dtype=torch.long)]))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:2], alone, atol=1e-10, rtol=0)
    weights = list(model.encoder.blocks.parameters())
    grads = torch.autograd.grad((logits * g).sum(), weights)
    for a, b in zip(grads, torch.autograd.grad((alone * g[:2]).sum(), weights), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@SETS
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifier_without_positions_ignores_padding_on_either_side(kind, side):
    config = CONFIG.with_(positions="none", ops=kind)
    model = randomise(mt.SequenceClassifier(mt.Encoder(config), 3, "mean"))
    ids = torch.randint(1, 43, (2, 7), generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 4, dtype=torch.long)
    padded = torch.cat([padding, ids] if side == "left" else [ids, padding], 1)
    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(model(padded), model(ids), atol=1e-10, rtol=0)


@SETS
def test_causal_and_padding_masks_combine_through_a_whole_encoder(kind):
    encoder = randomise(mt.Encoder(CONFIG.with_(ops=kind)))
    ids = torch.randint(1, 43, (3, 9), generator=torch.Generator().manual_seed(0))
    ids[0, 6:] = 0
    keep = mt.padding_mask(ids, 0) & mt.causal_mask(9)
    h = encoder(ids, keep)
    changed = ids.clone()
    changed[:, 4:] = torch.randint(1, 43, (3, 5), generator=torch.Generator().manual_seed(1))
    moved = (encoder(changed, keep) - h).abs().amax((0, 2))
    assert moved[:4].max() < 1e-10 and moved[4:].min() > 1e-2


@SETS
def test_rms_norm_ignores_scale_but_not_shift(kind):
    norm, x = randomise(mt.RMSNorm(20, eps=0.0, ops=kind)), normal(5, 20)
    torch.testing.assert_close(norm(7 * x), norm(x), atol=1e-10, rtol=0)
    assert (norm(x + 1) - norm(x)).abs().max() > 0.1


@SETS
@pytest.mark.parametrize("keys", [5, fast.FEW_KEYS + 3])
def test_dropout_of_attention_keeps_the_mean(kind, keys):
    """Mistake 32: on the weights, scaled by 1 / (1 - p), so that the mean over masks is kept."""
    torch.manual_seed(0)
    n, p = 4000, 0.1
    Q, K, V = normal(1, 1, 4), normal(1, keys, 4, seed=1), normal(1, keys, 3, seed=2)
    f = ops.OPS[kind].attention
    draws = f(*(t.expand(n, -1, -1) for t in (Q, K, V)), None, p)
    error = draws.std(0) / n**0.5
    assert ((draws.mean(0) - f(Q, K, V)[0]).abs() < 5 * error).all()
    weights = mt.scaled_dot_product_attention(Q, K, V)[1][0]
    expected = (p / (1 - p) * weights**2 @ V[0] ** 2).sqrt()  # the variance of dropped weights
    torch.testing.assert_close(draws.std(0), expected, atol=0, rtol=0.1)


ALL = 1 - 1e-9  # drops every entry: what stays tells where dropout stands


def test_dropout_of_everything_leaves_the_residual_stream():
    x, ids = normal(3, 7, 20), torch.ones(2, 7, dtype=torch.long)
    post = randomise(EncoderBlock(CONFIG.with_(dropout=ALL)))
    torch.testing.assert_close(post(x), post.norm_2(post.norm_1(x)), atol=1e-12, rtol=0)
    pre = randomise(EncoderBlock(CONFIG.with_(dropout=ALL, norm_position="pre")))
    torch.testing.assert_close(pre(x), x, atol=0, rtol=0)
    # After the norm of the embeddings, whose shift would otherwise be seen.
    embeddings = randomise(Embeddings(CONFIG.with_(dropout=ALL, embedding_norm=True)))
    assert embeddings(ids).abs().max() == 0
    head = randomise(mt.SequenceClassifier(mt.Encoder(CONFIG), 3, "mean", dropout=ALL))
    assert torch.equal(head(ids), head.classifier.bias.expand(2, -1))
    heads = randomise(mt.MultiHeadAttention(20, 5, dropout=ALL))
    torch.testing.assert_close(heads(x), heads.W_O.bias.expand(3, 7, -1), atol=0, rtol=0)


def test_dropout_stands_on_embeddings_weights_and_sublayers():
    """Each of the two switches alone changes what training computes, and nothing in evaluation."""
    ids = torch.randint(1, 43, (2, 7), generator=torch.Generator().manual_seed(0))
    plain = randomise(mt.Encoder(CONFIG))
    for changes in ({"dropout": 0.3}, {"attention_dropout": 0.3}):
        encoder = mt.Encoder(CONFIG.with_(**changes)).double()
        encoder.load_state_dict(plain.state_dict())
        assert not torch.equal(encoder.train()(ids), plain(ids))
        assert torch.equal(encoder.eval()(ids), plain(ids))


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_encoder_ends_in_a_norm(norm_position):
    """Mistake 23: the stream of a pre-LN stack grows with its depth; one more norm ends it."""
    encoder = mt.Encoder(CONFIG.with_(norm_position=norm_position, norm_eps=1e-9)).double()
    h = encoder(torch.randint(1, 43, (3, 7), generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(h.mean(-1), torch.zeros(3, 7).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        h.var(-1, correction=0), torch.ones(3, 7).double(), atol=1e-6, rtol=0
    )


def test_init_weights_are_those_of_bert():
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(
        vocab_size=500, d_model=60, n_layers=1, d_ff=90, init_std=0.03
    )
    model = mt.SequenceClassifier(mt.Encoder(config), 50)
    for name, p in model.named_parameters():
        if "norm" in name:
            assert torch.equal(p, torch.ones(60) if name.endswith("weight") else torch.zeros(60)), (
                name
            )
        elif name.endswith("bias"):
            assert p.abs().max() == 0, name
        elif p.numel() > 1000:
            assert abs(p.std().item() / 0.03 - 1) < 0.1 and abs(p.mean().item()) < 0.003, name
