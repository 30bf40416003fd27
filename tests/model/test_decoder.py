"""Decoder, encoder-decoder and language models: causality, padding, the cache, tied weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import normal, randomise

import minitransformer as mt
from minitransformer.formulas import by_hand_decoder, fast, ops
from minitransformer.model.block import DecoderBlock

CONFIG = mt.TransformerConfig(
    vocab_size=43, d_model=20, n_heads=5, n_layers=3, n_decoder_layers=2, d_ff=28, max_len=19,
    dropout=0.0, norm_eps=1e-3, init_std=0.3, pad_id=0,
)  # fmt: skip
T5 = dict(
    positions="relative", n_buckets=8, max_distance=6, norm="rms", norm_position="pre", d_head=3,
    gated=True, bias=False, scale_attention=False, scale_embeddings=False,
)  # fmt: skip
KINDS = {
    "sinusoidal, post-LN": CONFIG,
    "learned, pre-LN": CONFIG.with_(positions="learned", norm_position="pre", d_head=6),
    "relative, RMS": CONFIG.with_(**T5),
}
EVERY = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
SETS = pytest.mark.parametrize("kind", ["formula", "fused"])
few = settings(max_examples=20, deadline=None)


def draw(*shape: int, seed: int = 0, low: int = 1) -> torch.Tensor:
    return torch.randint(low, 43, shape, generator=torch.Generator().manual_seed(seed))


def causal_lm(config: mt.TransformerConfig, seed: int = 0) -> mt.CausalLM:
    return randomise(mt.CausalLM(mt.Decoder(config)), seed)


def seq2seq(config: mt.TransformerConfig, seed: int = 0) -> mt.Seq2SeqLM:
    return randomise(mt.Seq2SeqLM(mt.EncoderDecoder(config)), seed)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# --- Causality ----------------------------------------------------------------------------------


@EVERY
@SETS
@pytest.mark.parametrize("training", [True, False])
def test_no_position_sees_the_future(config, kind, training):
    """Mistake 12, and the decoder that masks in training only."""
    model = causal_lm(config.with_(ops=kind)).train(training)
    both = seq2seq(config.with_(ops=kind)).train(training)
    ids, source = draw(3, 7), draw(3, 5, seed=5)
    for f in (model, lambda target: both(source, target)):
        logits = f(ids)
        for t in range(1, 7):
            changed = ids.clone()
            changed[:, t:] = 1 + (ids[:, t:] + 7) % 42
            moved = (f(changed) - logits).abs().amax((0, 2))
            assert moved[:t].max() < 1e-10 and moved[t:].min() > 1e-3


@EVERY
def test_every_target_position_sees_the_whole_source(config):
    model, source, target = seq2seq(config), draw(2, 6), draw(2, 4, seed=1)
    logits = model(source, target)
    for s in range(6):
        changed = source.clone()
        changed[:, s] = 1 + (source[:, s] + 5) % 42
        assert (model(changed, target) - logits).abs().amax((0, 2)).min() > 1e-4


@SETS
@pytest.mark.parametrize("keys", [9, fast.FEW_KEYS + 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_causal_attention_is_attention_with_a_causal_mask(kind, keys, masked, biased):
    """On both sides of FEW_KEYS, with and without a mask and a bias, values and gradients."""
    for queries in (keys, 3, 1):
        Q = normal(2, 5, queries, 4, seed=1).requires_grad_()
        K, V = (normal(2, 5, keys, 4, seed=n).requires_grad_() for n in (2, 3))
        bias = 2 * normal(1, 5, queries, keys, seed=4) if biased else None
        keep = normal(2, 1, 1, keys, seed=5) > -0.5 if masked else None
        if keep is not None:
            keep[1, ..., :2] = False  # the first queries have nothing to attend to
        expected_keep = mt.causal_mask(queries, keys)
        expected_keep = expected_keep if keep is None else expected_keep & keep
        expected = ops.attention(Q, K, V, expected_keep, bias=bias, scale=0.3)
        output = ops.OPS[kind].attention(Q, K, V, keep, bias=bias, scale=0.3, causal=True)
        close(output, expected, 1e-12)
        g = normal(*output.shape, seed=6)
        for a, b in zip(
            torch.autograd.grad((output * g).sum(), (Q, K, V)),
            torch.autograd.grad((expected * g).sum(), (Q, K, V)),
            strict=True,
        ):
            assert torch.isfinite(a).all()
            close(a, b, 1e-11)


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_of_many_tokens_stores_no_scores(masked):
    """What backward needs is of the size of Q: memory grows with the length, not with its square."""
    n, stored = 3 * fast.FEW_KEYS, []
    Q, K, V = (torch.randn(1, 2, n, 4, requires_grad=True) for _ in range(3))
    keep = mt.padding_mask(torch.ones(1, n, dtype=torch.long), 0) if masked else None

    def note(a):
        stored.append(a.untyped_storage().nbytes())
        return a

    with torch.autograd.graph.saved_tensors_hooks(note, lambda a: a):
        fast.fused_attention(Q, K, V, keep, causal=not masked)
        assert 0 < max(stored) < 4 * n * n / 10
        ops.attention(Q, K, V, keep, causal=not masked)
        assert max(stored) >= 4 * n * n


def test_a_decoder_block_without_cross_is_a_causal_encoder_block():
    for position in ("post", "pre"):
        config = CONFIG.with_(norm_position=position)
        encoder = randomise(mt.EncoderBlock(config))
        decoder = DecoderBlock(config).double()
        decoder.load_state_dict(encoder.state_dict())
        x = normal(3, 7, 20)
        close(decoder(x), encoder(x, mt.causal_mask(7)), 1e-12)


# --- Padding ------------------------------------------------------------------------------------


@EVERY
@SETS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_prompt_is_invisible(config, kind, side):
    model, ids = causal_lm(config.with_(ops=kind)), draw(2, 5)
    padding = torch.zeros(2, 3, dtype=torch.long)
    padded = torch.cat([padding, ids] if side == "left" else [ids, padding], 1)
    real = slice(3, None) if side == "left" else slice(0, 5)
    positions = mt.token_positions(mt.padding_mask(padded, 0))
    for training in (True, False):
        model.train(training)
        close(model(padded, positions=positions)[:, real], model(ids))


def test_without_positions_left_padding_shifts_learned_ones():
    """What `positions` is for; relative positions need none."""
    ids = draw(1, 5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    learned, relative = causal_lm(KINDS["learned, pre-LN"]), causal_lm(KINDS["relative, RMS"])
    assert (learned(padded)[:, 3:] - learned(ids)).abs().max() > 1e-2
    close(relative(padded)[:, 3:], relative(ids))


@EVERY
@SETS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_source_is_invisible(config, kind, side):
    if side == "left" and config.positions != "relative":
        config = config.with_(positions="none")  # absolute positions do count padding on the left
    model, source, target = seq2seq(config.with_(ops=kind)), draw(2, 5), draw(2, 4, seed=1)
    padding = torch.zeros(2, 3, dtype=torch.long)
    padded = torch.cat([padding, source] if side == "left" else [source, padding], 1)
    close(model(padded, target), model(source, target))


@EVERY
def test_a_target_may_begin_with_the_padding_id(config):
    """Its start token is no padding, and what pads it on the right is hidden by causality."""
    model, source, target = seq2seq(config), draw(2, 5), draw(2, 4, seed=1)
    target[:, 0] = 0
    logits = model(source, target)
    longer = torch.cat([target, torch.zeros(2, 3, dtype=torch.long)], 1)
    close(model(source, longer)[:, :4], logits)
    close(model(source, target, target_keep=torch.ones(2, 1, 1, 4, dtype=torch.bool)), logits)
    hidden = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    hidden[..., 0] = False
    assert (model(source, target, target_keep=hidden) - logits).abs().max() > 1e-3


@EVERY
@SETS
def test_examples_of_padding_alone_harm_nothing(config, kind):
    """An empty source, an empty prompt: finite, and the others do not notice."""
    model, both = causal_lm(config.with_(ops=kind)), seq2seq(config.with_(ops=kind))
    ids, source, g = draw(2, 7), draw(2, 5, seed=1), normal(2, 7, 43)
    for f, *inputs in ((model, ids), (both, source, ids)):
        alone = f(*inputs)
        empty = [torch.cat([a, torch.zeros(1, a.shape[1], dtype=torch.long)]) for a in inputs]
        logits = f(*empty)
        assert torch.isfinite(logits).all()
        close(logits[:2], alone)
        weights = list(f.parameters())
        for a, b in zip(
            torch.autograd.grad((logits[:2] * g).sum(), weights, retain_graph=True),
            torch.autograd.grad((alone * g).sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
        for a in torch.autograd.grad(logits[2].sum(), weights):
            assert torch.isfinite(a).all()


def test_an_example_has_the_same_logits_alone_and_in_a_batch():
    for config in KINDS.values():
        model, source, target = seq2seq(config).eval(), draw(3, 5), draw(3, 4, seed=1)
        source[1, 3:] = 0
        close(model(source, target)[1:2], model(source[1:2, :3], target[1:2]))


# --- The cache ----------------------------------------------------------------------------------


def in_chunks(f, ids, cuts, **first):
    """Read ids piece by piece with one cache; `first` goes with the first piece."""
    cache, pieces = mt.KeyValueCache(), []
    for start, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        pieces.append(f(ids[:, start:stop], cache, **(first if not start else {})))
        assert cache.length == stop
    return torch.cat(pieces, 1)


@few
@given(
    kind=st.sampled_from(list(KINDS)),
    cuts=st.sets(st.integers(1, 10), max_size=10).map(sorted),
    which=st.sampled_from(["formula", "fused"]),
    grad=st.booleans(),
)
def test_a_cache_changes_nothing_however_the_text_is_cut(kind, cuts, which, grad):
    config = KINDS[kind].with_(ops=which)
    model, both = causal_lm(config).eval(), seq2seq(config).eval()
    ids, source = draw(2, 11), draw(2, 6, seed=1)
    source[0, 4:] = 0
    with torch.set_grad_enabled(grad):
        close(in_chunks(lambda a, c: model(a, cache=c), ids, cuts), model(ids), 1e-12)
        halves = both.encoder_decoder
        keep = halves.source_keep(source)
        memory = halves.encode(source, keep)

        def step(target, cache):
            return both.logits(halves.decode(target, memory, keep, cache=cache))

        close(in_chunks(step, ids, cuts), both(source, ids), 1e-12)


@EVERY
@pytest.mark.parametrize("cuts", [[5], [5, 6, 7, 8, 9, 10], [6, 9]])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_cache_with_padding_on_the_left(config, cuts, explicit):
    """Mask and positions are given once, with the prompt; the cache counts on."""
    model, ids = causal_lm(config).eval(), draw(3, 11)
    ids[0, :4], ids[1, :1] = 0, 0
    keep = mt.padding_mask(ids, 0)
    positions = mt.token_positions(keep)
    expected = model(ids, keep, positions=positions)
    first = {"positions": positions[:, : cuts[0]]}
    if explicit:
        first["keep"] = keep[..., : cuts[0]]
    result = in_chunks(lambda a, c, **more: model(a, cache=c, **more), ids, cuts, **first)
    close(result[keep[:, 0, 0]], expected[keep[:, 0, 0]], 1e-12)


def test_a_cache_grows_past_its_room_and_keeps_gradients_right():
    config = CONFIG.with_(positions="none", n_layers=1, n_decoder_layers=1)
    model, ids = causal_lm(config).eval(), draw(2, 530)
    with torch.no_grad():
        close(
            in_chunks(lambda a, c: model(a, cache=c), ids, [250, 256, 257, 400, 520]),
            model(ids),
            1e-12,
        )
    ids, weights = ids[:, :9], list(model.parameters())
    g = normal(2, 9, 43)
    cached = in_chunks(lambda a, c: model(a, cache=c), ids, [3, 4, 8])
    for a, b in zip(
        torch.autograd.grad((cached * g).sum(), weights),
        torch.autograd.grad((model(ids) * g).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9)


@torch.no_grad()
def test_a_cache_reads_with_maps_that_are_more_than_a_matrix():
    """LoRA puts such a module in their place; joined by their weights, its change would be lost."""
    model, ids = causal_lm(CONFIG).eval(), draw(2, 9)
    plain = model(ids)
    attention = model.decoder.blocks[1].attention
    attention.W_Q = torch.nn.Sequential(attention.W_Q, torch.nn.Tanh())
    assert (model(ids) - plain).abs().max() > 0.01
    close(in_chunks(lambda a, c: model(a, cache=c), ids, [4, 5, 6]), model(ids), 1e-12)


def test_what_was_read_without_gradients_goes_on_with_them():
    """A prompt that stays fixed: the new tokens' loss has a gradient for all three maps."""
    model, ids, cache = causal_lm(CONFIG).eval(), draw(2, 9), mt.KeyValueCache()
    with torch.no_grad():
        model(ids[:, :6], cache=cache)
    model(ids[:, 6:], cache=cache).sum().backward()
    attention = model.decoder.blocks[0].attention
    for linear in (attention.W_Q, attention.W_K, attention.W_V):
        assert linear.weight.grad.abs().max() > 1e-3


def test_finished_texts_may_go_on_with_padding():
    """A batch in which one text ended: its padding is hidden, also in the cache."""
    model, ids = causal_lm(CONFIG).eval(), draw(2, 9)
    ids[1, 6:] = 0
    close(in_chunks(lambda a, c: model(a, cache=c), ids, [4, 5, 6, 7, 8]), model(ids), 1e-12)


@EVERY
@torch.no_grad()
def test_reorder_follows_the_beams(config):
    both, source, target = seq2seq(config).eval(), draw(3, 6), draw(3, 8, seed=1)
    source[2, 3:] = 0
    order = torch.tensor([2, 2, 0, 1])
    halves, cache = both.encoder_decoder, mt.KeyValueCache()
    keep = halves.source_keep(source)
    memory, seen = halves.encode(source, keep), torch.ones(3, 1, 1, 5, dtype=torch.bool)
    seen[1, ..., :2] = False
    positions = mt.token_positions(seen)
    halves.decode(target[:, :5], memory, keep, seen, cache, positions)
    cache.reorder(order)
    rest = target[:, 5:][order]
    h = halves.decode(rest, memory[order], keep[order], cache=cache)
    whole = torch.cat([seen, seen.new_ones(3, 1, 1, 3)], -1)
    expected = halves.decode(target, memory, keep, whole, positions=mt.token_positions(whole))
    close(h, expected[order][:, 5:], 1e-12)


def test_keys_and_values_of_the_memory_are_computed_once():
    both, source, target = seq2seq(CONFIG).eval(), draw(2, 6), draw(2, 4, seed=1)
    halves, cache, calls = both.encoder_decoder, mt.KeyValueCache(), []
    memory = halves.encode(source)
    for block in halves.decoder.blocks:
        block.cross_attention.W_K.register_forward_hook(lambda *_: calls.append(1))
    for t in range(4):
        halves.decode(target[:, t : t + 1], memory, cache=cache)
    assert len(calls) == len(halves.decoder.blocks) == 2


# --- Relative positions -------------------------------------------------------------------------


def test_t5_buckets_are_those_of_its_checkpoints():
    both = {-200: 15, -128: 15, -64: 14, -32: 12, -16: 10, -8: 8, -7: 7, 0: 0, 1: 17, 8: 24, 16: 26,
            64: 30, 128: 31, 199: 31}  # fmt: skip
    past = {-1: 1, -16: 16, -32: 21, -64: 26, -128: 31, -200: 31, 0: 0, 1: 0, 150: 0}
    for bidirectional, table in ((True, both), (False, past)):
        buckets = ops.relative_buckets(201, 201, 32, 128, bidirectional)
        by_hand = by_hand_decoder.relative_bucket
        for r, bucket in table.items():
            i = max(0, -r)
            assert buckets[i, i + r] == bucket == by_hand(r, 32, 128, bidirectional), r
        assert torch.equal(ops.relative_buckets(3, 201, 32, 128, bidirectional), buckets[-3:])


def test_each_stack_has_one_bias_and_cross_attention_none():
    model = mt.EncoderDecoder(KINDS["relative, RMS"])
    names = [name for name in model.state_dict() if "relative_positions" in name]
    assert names == [f"{s}.relative_positions.buckets.weight" for s in ("encoder", "decoder")]
    assert model.encoder.relative_positions.bidirectional
    assert not model.decoder.relative_positions.bidirectional


def test_relative_positions_depend_on_distance_alone():
    """Moved along by padding, every token sees the same; the order of tokens still counts."""
    model, ids = causal_lm(KINDS["relative, RMS"]), draw(1, 6)
    assert (model(ids.flip(1))[:, -1] - model(ids)[:, -1]).abs().max() > 1e-3
    long = draw(1, 60)  # no table of positions can be too short
    assert torch.isfinite(model(long)).all()


# --- Switches -----------------------------------------------------------------------------------


@EVERY
def test_formula_and_fused_models_are_equal(config):
    results = []
    for kind in ("formula", "fused"):
        model = seq2seq(config.with_(ops=kind, tie_embeddings=False, scale_logits=True))
        source, target = draw(3, 6), draw(3, 5, seed=1)
        source[1, 4:] = 0
        logits = model(source, target)
        results.append((logits, torch.autograd.grad((logits**2).sum(), list(model.parameters()))))
    close(results[0][0], results[1][0], 1e-9)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


def test_heads_may_be_wider_than_their_share():
    config = CONFIG.with_(n_heads=3, d_head=7)
    attention = mt.Decoder(config).blocks[0].attention
    assert attention.W_Q.weight.shape == (21, 20) and attention.W_O.weight.shape == (20, 21)
    x = normal(2, 5, 20)
    assert randomise(attention)(x).shape == (2, 5, 20)
    with pytest.raises(
        ValueError, match="n_heads=3 equal heads; use a divisor such as n_heads=2, or choose d_head"
    ):
        CONFIG.with_(n_heads=3)
    assert config.with_(d_ff=8).d_head == 7 and CONFIG.with_(n_heads=4).d_head == 5


def test_without_scale_scores_are_plain_products():
    plain = randomise(mt.MultiHeadAttention(20, 5, scale=False))
    scaled = mt.MultiHeadAttention(20, 5).double()
    state = plain.state_dict()
    scaled.load_state_dict(state | {k: 2 * a for k, a in state.items() if "W_Q" in k})
    x = normal(2, 7, 20)
    close(plain(x), scaled(x), 1e-12)  # d_k = 4: the root is 2
    close(plain.weights(x, causal=True), scaled.weights(x, causal=True), 1e-12)


def test_weights_are_what_forward_averages_with():
    attention = randomise(mt.MultiHeadAttention(20, 5, scale=False, d_head=3))
    x, bias = normal(2, 7, 20), normal(1, 5, 7, 7, seed=1)
    keep = mt.padding_mask(torch.tensor([[1] * 7, [1] * 5 + [0] * 2]), 0)
    P = attention.weights(x, None, keep, bias, True)
    V = attention.W_V(x).unflatten(-1, (5, 3)).transpose(1, 2)
    close(attention.W_O((P @ V).transpose(1, 2).flatten(2)), attention(x, None, keep, bias, True))
    assert P.triu(1).abs().max() == 0 and P[1, ..., 5:].abs().max() == 0


def test_dropouts_stand_where_the_config_says():
    ids, source = draw(2, 7), draw(2, 5, seed=1)
    for name in ("dropout", "attention_dropout", "feed_forward_dropout", "final_dropout"):
        plain = seq2seq(CONFIG)
        model = mt.Seq2SeqLM(mt.EncoderDecoder(CONFIG.with_(**{name: 0.3}))).double()
        model.load_state_dict(plain.state_dict())
        assert not torch.equal(model.train()(source, ids), plain(source, ids)), name
        assert torch.equal(model.eval()(source, ids), plain(source, ids)), name
    nothing = seq2seq(CONFIG.with_(final_dropout=1 - 1e-9))
    assert nothing(source, ids).abs().max() == 0
    ffn = randomise(mt.FeedForward(20, 28, dropout=1 - 1e-9))
    assert torch.equal(ffn(normal(3, 20)), ffn.W_2.bias.expand(3, -1))


def test_presets_have_the_parameters_of_the_published_models():
    """Counted on the meta device: nothing is laid out."""
    with torch.device("meta"):
        count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
        gpt2 = mt.CausalLM(mt.Decoder(mt.TransformerConfig.gpt2()))
        t5 = mt.Seq2SeqLM(mt.EncoderDecoder(mt.TransformerConfig.t5()))
        v1_1 = mt.Seq2SeqLM(mt.EncoderDecoder(mt.TransformerConfig.t5_v1_1()))
        bert = mt.MaskedLM(mt.Encoder(mt.TransformerConfig.bert(pooler=False)))
    assert count(gpt2) == 124_439_808
    assert count(t5) == 60_506_624
    assert count(v1_1) == 76_961_152
    assert count(bert) == 109_514_298


# --- Tied weights and the start -----------------------------------------------------------------


def test_shared_weights_stand_in_the_state_dict_once(tmp_path):
    model = seq2seq(CONFIG)
    state = model.state_dict()
    assert sorted(state) == sorted(name for name, _ in model.named_parameters())
    assert len({a.data_ptr() for a in state.values()}) == len(state)
    assert [a.shape for a in state.values()].count((43, 20)) == 1
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, tmp_path / "model.safetensors")  # refuses shared memory
    other = seq2seq(CONFIG, seed=1)
    other.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
    source, target = draw(2, 5), draw(2, 4, seed=1)
    assert torch.equal(other(source, target), model(source, target))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tied):
    """Copied, converted, trained: source, target and logits keep one table, untied logits their own."""
    model = copy.deepcopy(seq2seq(CONFIG.with_(tie_embeddings=tied)).float()).double()
    halves = model.encoder_decoder
    table = halves.encoder.embeddings.tokens.weight
    assert halves.decoder.embeddings.tokens.weight is table
    assert ("head.weight" in model.state_dict()) is not tied
    source, target = draw(2, 5), draw(2, 4, seed=1)
    logits = model(source, target)
    grad = torch.autograd.grad(logits.square().sum(), table)[0]
    absent = [v for v in range(43) if v not in source and v not in target]
    assert (
        grad[absent].abs().max().item() > 0
    ) == tied  # words that no one read learn from the logits
    with torch.no_grad():
        table[absent[0]] += 1.0
    moved = (model(source, target) - logits).abs().amax((0, 1))
    assert (moved[absent[0]] > 0) == tied and moved[absent[1:]].max() == 0


def test_logits_of_t5_are_scaled_once():
    plain, scaled = causal_lm(CONFIG), causal_lm(CONFIG.with_(scale_logits=True))
    ids = draw(2, 5)
    close(scaled(ids) * 20**0.5, plain(ids), 1e-11)


def test_masked_lm_ends_with_a_bias_for_each_word():
    model, ids = randomise(mt.MaskedLM(mt.Encoder(CONFIG.with_(activation="gelu")))), draw(2, 5)
    logits = model(ids)
    with torch.no_grad():
        model.head.bias[7] += 2.0
    moved = model(ids) - logits
    close(moved[..., 7], torch.full((2, 5), 2.0).double())
    assert moved[..., :7].abs().max() == 0 == moved[..., 8:].abs().max()
    assert (model(ids.flip(0)).flip(0) - model(ids)).abs().max() < 1e-10
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    close(model(padded)[:, :5], model(ids))


def test_weights_start_as_the_config_says():
    torch.manual_seed(0)
    sizes = dict(vocab_size=900, d_model=64, n_heads=4, n_layers=8, d_ff=160)

    def std(model, name):
        return dict(model.named_parameters())[name].std().item()

    gpt2 = mt.Decoder(mt.TransformerConfig.gpt2(**sizes))
    for name, expected in (
        ("embeddings.tokens.weight", 0.02), ("blocks.3.attention.W_Q.weight", 0.02),
        ("blocks.3.feed_forward.W_1.weight", 0.02), ("blocks.3.attention.W_O.weight", 0.005),
        ("blocks.3.feed_forward.W_2.weight", 0.005),
    ):  # fmt: skip
        assert abs(std(gpt2, name) / expected - 1) < 0.06, name
    t5 = mt.EncoderDecoder(mt.TransformerConfig.t5(**sizes, d_head=25))
    for name, expected in (
        ("encoder.embeddings.tokens.weight", 1.0),
        ("decoder.blocks.3.attention.W_Q.weight", (64 * 25) ** -0.5),
        ("decoder.blocks.3.cross_attention.W_K.weight", 64**-0.5),
        ("decoder.blocks.3.attention.W_O.weight", 100**-0.5),
        ("encoder.blocks.3.feed_forward.W_2.weight", 160**-0.5),
        ("decoder.relative_positions.buckets.weight", 64**-0.5),
    ):
        assert abs(std(t5, name) / expected - 1) < 0.2, name


# --- What does not fit --------------------------------------------------------------------------


def test_a_prompt_longer_than_the_positions_is_refused():
    model, cache = causal_lm(CONFIG), mt.KeyValueCache()
    with pytest.raises(ValueError, match="the input has 20 positions, the model 19; truncate"):
        model(draw(1, 20))
    model(draw(1, 19), cache=cache)
    with pytest.raises(
        ValueError, match=r"20 positions, the model 19.*19 of them are in the cache"
    ):
        model(draw(1, 1), cache=cache)
    with pytest.raises(ValueError, match="20 positions, the model 19"):
        model(draw(1, 2), positions=torch.tensor([[18, 19]]))
    with pytest.raises(ValueError, match="position -1 is negative"):
        model(draw(1, 2), positions=torch.tensor([[-1, 0]]))
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), draw(1, 15)], 1)
    model(padded, positions=mt.token_positions(mt.padding_mask(padded, 0)))  # 15 real ones fit


def test_memory_and_cross_attention_belong_together():
    ids, memory = draw(2, 5), normal(2, 4, 20)
    with pytest.raises(
        ValueError, match="no cross-attention for the memory; build it with cross=True"
    ):
        mt.Decoder(CONFIG).double()(ids, memory=memory)
    with pytest.raises(ValueError, match="give it as memory"):
        mt.Decoder(CONFIG, cross=True).double()(ids)
    with pytest.raises(ValueError, match="needs a decoder without cross-attention"):
        mt.CausalLM(mt.Decoder(CONFIG, cross=True))


def test_masks_that_do_not_fit_are_refused():
    model, cache = causal_lm(CONFIG), mt.KeyValueCache()
    with pytest.raises(TypeError, match="boolean mask"):
        model(draw(2, 5), torch.ones(2, 1, 1, 5))
    with pytest.raises(ValueError, match=r"keep of shape \(2, 5\) does not broadcast"):
        model(draw(2, 5), torch.ones(2, 5, dtype=torch.bool))
    model(draw(2, 5), cache=cache)
    with pytest.raises(ValueError, match="does not broadcast"):  # the mask of the new ones alone
        model(draw(2, 2), torch.ones(2, 1, 1, 2, dtype=torch.bool), cache)


def test_unknown_operations_are_named():
    with pytest.raises(
        ValueError, match=r"ops='x' is not known; choose one of \('formula', 'fused'\)"
    ):
        mt.MultiHeadAttention(20, 5, ops="x")
