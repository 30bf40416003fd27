"""Writing: equal to transformers', the same with a cache and without, alone and in a batch."""

import copy
from contextlib import nullcontext

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from untyped import untyped

import minitransformer as mt
from minitransformer.inference.decoding import Decoding, check_prompt
from minitransformer.inference.generation import next_token_probabilities

VOCAB, EOS, PAD = 41, 40, 0
GPT2 = dict(
    vocab_size=VOCAB, n_embd=21, n_head=3, n_layer=3, n_positions=40, n_inner=34,
    bos_token_id=EOS, eos_token_id=EOS,
)  # fmt: skip
T5 = dict(
    vocab_size=VOCAB, d_model=22, num_heads=3, d_kv=5, num_layers=2, d_ff=34,
    relative_attention_num_buckets=8, relative_attention_max_distance=12, eos_token_id=EOS,
    decoder_start_token_id=PAD, pad_token_id=PAD,
)  # fmt: skip
BEAMS = [(2, 1.0), (3, 1.0), (3, 0.0), (5, 2.0), (4, -1.0)]


def tokenizer() -> Tokenizer:
    words = ["<pad>", *(f"w{i}" for i in range(1, VOCAB))]
    return Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "w1"))


def randomise(model: torch.nn.Module, std: float) -> torch.nn.Module:
    """Weights that matter, in float64; gains around one. Large biases would say one word forever."""
    for number, (name, p) in enumerate(model.double().named_parameters()):
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(number)).double()
        p.data = std * noise + (p.ndim == 1 and name.endswith("weight"))
    return model.eval()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Their model and ours with the same weights, by family."""
    made = {}
    for name, std, theirs in (
        ("gpt2", 0.4, GPT2LMHeadModel(GPT2Config(**GPT2))),
        ("t5", 0.25, T5ForConditionalGeneration(T5Config(**T5))),
    ):
        folder = tmp_path_factory.mktemp(name)
        randomise(theirs, std).save_pretrained(folder)
        tokenizer().save(str(folder / "tokenizer.json"))
        made[name] = theirs, mt.load_pretrained(folder)[0].double()
    return made


def prompts(batch: int = 4, length: int = 9, seed: int = 1):
    """Ids padded on the left, and which are real; the first row has no padding."""
    ids = torch.randint(1, EOS, (batch, length), generator=torch.Generator().manual_seed(seed))
    real = torch.ones_like(ids, dtype=torch.bool)
    for n in range(1, batch):
        real[n, : 2 * n] = False
    return ids.where(real, PAD), real


def theirs_write(hf, ids, real, new: int, eos_token_id: int, **options) -> torch.Tensor:
    pad = PAD if hf.config.model_type == "t5" else eos_token_id  # GPT-2 has no padding id
    return hf.generate(
        input_ids=ids, attention_mask=real.long(), max_new_tokens=new, do_sample=False,
        eos_token_id=eos_token_id, pad_token_id=pad, **options,
    )  # fmt: skip


def ours_write(model, ids, real, new: int, **options) -> torch.Tensor:
    """A long text has the shapes of a short one."""
    with untyped() if new > 1 else nullcontext():
        return mt.generate(model, ids, new, real[:, None, None], **options)


def written_by(ids: torch.Tensor, start: int, end: int) -> list[list[int]]:
    """Each text up to its end: what stands behind is padding, which transformers fills in two ways."""
    texts = ids[:, start:].tolist()
    return [t[: t.index(end) + 1] if end in t else t for t in texts]


def an_end(model, ids, real, **options) -> int:
    """A token that some of the texts would write soon: with it as the end, some end and some go on."""
    written = ours_write(model, ids, real, 6, eos_id=VOCAB, **options)[:, -4:]
    counts = torch.stack([(written == v).any(1).sum() for v in range(VOCAB)])
    counts[counts == len(ids)] = 0
    return int(counts.argmax())


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_transformers(pairs, family, use_cache):
    theirs, ours = pairs[family]
    ended = set()
    for seed in range(5):
        ids, real = prompts(seed=seed)
        end = an_end(ours, ids, real)
        for new in (1, 25):
            expected = theirs_write(theirs, ids, real, new, eos_token_id=end)
            written = ours_write(ours, ids, real, new, eos_id=end, use_cache=use_cache)
            start = 1 if family == "t5" else ids.shape[1]
            assert torch.equal(written[:, :start], expected[:, :start])
            assert written_by(written, start, end) == written_by(expected, start, end)
            assert written.shape == expected.shape
        ended |= set((written[:, start:] == end).any(1).tolist())
    assert ended == {True, False}


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize(("n_beams", "length_penalty"), BEAMS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_equals_transformers(pairs, family, n_beams, length_penalty, use_cache):
    theirs, ours = pairs[family]
    options = {"length_penalty": length_penalty, "use_cache": use_cache}
    ended = set()
    for seed in range(4):
        ids, real = prompts(seed=seed)
        end = an_end(ours, ids, real, n_beams=n_beams)
        for new in (1, 6, 20):
            expected = theirs_write(
                theirs, ids, real, new, num_beams=n_beams, eos_token_id=end, **options
            )
            written = ours_write(ours, ids, real, new, n_beams=n_beams, eos_id=end, **options)
            start = 1 if family == "t5" else ids.shape[1]
            assert torch.equal(written[:, :start], expected[:, :start])
            assert written_by(written, start, end) == written_by(expected, start, end)
            assert written.shape == expected.shape
        ended |= set((written[:, start:] == end).any(1).tolist())
    assert True in ended


# --- The cache, the batch, the modes ------------------------------------------------------------

CONFIG = mt.TransformerConfig(
    vocab_size=VOCAB, d_model=20, n_heads=5, n_layers=3, d_ff=28, max_len=40, init_std=0.6,
    norm_position="pre", dropout=0.3, pad_id=PAD, tie_embeddings=False, start_id=1, eos_id=None,
)  # fmt: skip
RELATIVE = dict(
    positions="relative", n_buckets=8, max_distance=6, norm="rms", d_head=3, bias=False,
    scale_attention=False, scale_embeddings=False,
)  # fmt: skip
EVERY = pytest.mark.parametrize(
    "model",
    [
        mt.CausalLM(mt.Decoder(CONFIG)),
        mt.CausalLM(mt.Decoder(CONFIG.with_(positions="learned", ops="formula"))),
        mt.CausalLM(mt.Decoder(CONFIG.with_(**RELATIVE, pad_id=None))),
        mt.Seq2SeqLM(mt.EncoderDecoder(CONFIG)),
        mt.Seq2SeqLM(mt.EncoderDecoder(CONFIG.with_(**RELATIVE))),
    ],
    ids=["sinusoidal", "learned", "relative", "seq2seq", "seq2seq, relative"],
)


@pytest.fixture(autouse=True)
def double(request):
    if "model" in request.fixturenames:
        randomise(request.getfixturevalue("model"), 0.4)


@EVERY
@pytest.mark.parametrize("n_beams", [1, 3])
def test_a_cache_changes_nothing(model, n_beams):
    ids, real = prompts()
    both = [
        ours_write(model, ids, real, 20, n_beams=n_beams, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*both)
    assert len(both[0][:, -20:].unique()) > 3, "texts that vary"


@EVERY
def test_logits_with_a_cache_are_those_without(model):
    ids, real = prompts()
    both = [Decoding(model, ids, real[:, None, None], 9, cached) for cached in (True, False)]
    new = both[0].ids
    for step in range(9):
        a, b = (decoding.next_logits(new) for decoding in both)
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
        new = torch.randint(0, VOCAB, (4, 1), generator=torch.Generator().manual_seed(step))
        if step == 4:  # texts doubled, dropped and exchanged, as beam search does
            for decoding in both:
                decoding.reorder(torch.tensor([3, 0, 0, 2]))


@EVERY
@pytest.mark.parametrize("n_beams", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_alone_is_written_as_in_a_batch(model, n_beams, side):
    ids, real = prompts()
    lengths = real.sum(1).tolist()
    if side == "right":
        ids, real = (
            torch.stack([a.roll(n) for a, n in zip(t, lengths, strict=True)]) for t in (ids, real)
        )
        assert not real[1, -1] and real[1, 0]
    together = ours_write(model, ids, real, 12, n_beams=n_beams, eos_id=38)
    for n, length in enumerate(lengths):
        only = ids[n][real[n]][None]
        alone = ours_write(model, only, only > PAD, 12, n_beams=n_beams, eos_id=38)
        start, start_together = length, ids.shape[1]
        if isinstance(model, mt.Seq2SeqLM):
            start = start_together = 1
        expected = written_by(together[n : n + 1], start_together, 38)
        assert written_by(alone, start, 38) == expected


@EVERY
def test_padding_is_found_by_its_id(model):
    if model.config.pad_id is None:
        pytest.skip("this one has no padding id")
    ids, real = prompts()
    assert torch.equal(mt.generate(model, ids, 5), ours_write(model, ids, real, 5))


@EVERY
def test_every_module_keeps_its_mode_and_gradients_stay_on(model):
    model.train()
    model.head.eval()
    before = {m: m.training for m in model.modules()}
    ids, _ = prompts()
    first = mt.generate(model, ids, 4)
    assert torch.equal(first, mt.generate(model, ids, 4, n_beams=1)), "no dropout"
    mt.generate(model, ids, 4, n_beams=2)
    for number, _ in enumerate(mt.stream(model, ids, 4)):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if number == 1:
            break
    assert before == {m: m.training for m in model.modules()}
    model.eval()


def test_what_was_written_can_be_trained_on():
    model = randomise(mt.CausalLM(mt.Decoder(CONFIG)), 0.4)
    for options in ({}, {"n_beams": 2}, {"temperature": 1.0}):
        ids = mt.generate(model, prompts()[0], 3, **options)
        model(ids).sum().backward()


def test_a_text_that_has_ended_is_filled_with_padding():
    model = randomise(mt.CausalLM(mt.Decoder(CONFIG)), 0.4)
    ids, _ = prompts()
    free = mt.generate(model, ids, 12)
    end = int(free[0, 11])
    ended = mt.generate(model, ids, 12, eos_id=end)
    for row, whole in zip(ended[:, 9:].tolist(), free[:, 9:].tolist(), strict=True):
        stop = whole.index(end) + 1 if end in whole else len(whole)
        assert row == (whole[:stop] + [PAD] * 12)[: len(row)]
    alone = mt.generate(model, ids[:1], 12, eos_id=end)
    assert alone[0, -1] == end and alone.shape[1] <= 12, "written no further than the end"
    config = CONFIG.with_(eos_id=end)
    model.config = config
    assert torch.equal(mt.generate(model, ids, 12), ended), "the config's"


# --- Drawing lots -------------------------------------------------------------------------------


def frequencies(draws: int = 10_000, **options):
    """How often each token is drawn after one prompt, and the logits it is drawn from."""
    model = randomise(mt.CausalLM(mt.Decoder(CONFIG)), 0.4)
    ids = prompts(1, length=2)[0].expand(draws, -1)
    # no cache: for so many prompts it would take gigabytes
    drawn = mt.generate(model, ids, 1, use_cache=False, **options)[:, -1]
    with torch.no_grad():
        logits = model(ids[:1])[0, -1]
    return torch.bincount(drawn, minlength=VOCAB).double(), logits


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.8}])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature, options):
    counts, logits = frequencies(temperature=temperature, **options)
    p = (logits / temperature).softmax(-1)
    order = p.argsort(descending=True)
    kept = order[: options.get("top_k", VOCAB)]
    p = torch.zeros_like(p).index_copy(0, kept, p[kept] / p[kept].sum())
    if "top_p" in options:
        n = 1
        while p[order[:n]].sum() < options["top_p"]:
            n += 1
        kept = order[:n]
        p = torch.zeros_like(p).index_copy(0, kept, p[kept] / p[kept].sum())
    assert counts[p == 0].sum() == 0
    expected = counts.sum() * p
    often = expected >= 5
    chi_square = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = max(int(often.sum()) - 1, 1)
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5, "five deviations"


@pytest.mark.parametrize(
    ("p", "options", "kept"),
    [
        ([0.4, 0.3, 0.2, 0.1], {"top_k": 2}, [0, 1]),
        ([0.1, 0.2, 0.3, 0.4], {"top_k": 2}, [2, 3]),
        ([0.25, 0.25, 0.25, 0.25], {"top_k": 2}, [0, 1]),
        ([0.1, 0.3, 0.3, 0.3], {"top_k": 2}, [1, 2]),
        ([0.4, 0.3, 0.2, 0.1], {"top_k": 4}, [0, 1, 2, 3]),
        ([0.5, 0.25, 0.125, 0.125], {"top_p": 0.75}, [0, 1]),
        ([0.5, 0.25, 0.125, 0.125], {"top_p": 0.7501}, [0, 1, 2]),
        ([0.4, 0.3, 0.2, 0.1], {"top_p": 0.7}, [0, 1]),
        ([0.4, 0.3, 0.2, 0.1], {"top_p": 0.9}, [0, 1, 2]),
        ([0.4, 0.3, 0.2, 0.1], {"top_p": 0.91}, [0, 1, 2, 3]),
        ([0.4, 0.3, 0.2, 0.1], {"top_p": 1e-9}, [0]),
        ([0.4, 0.3, 0.2, 0.1], {"top_p": 1.0}, [0, 1, 2, 3]),
        ([0.2, 0.2, 0.2, 0.4], {"top_p": 0.6}, [0, 3]),
        ([0.4, 0.3, 0.2, 0.1], {"top_k": 2, "top_p": 0.5}, [0]),  # 4/7 of the first two
        ([0.4, 0.3, 0.2, 0.1], {"top_k": 2, "top_p": 0.6}, [0, 1]),
        ([1.0, 0.0, 0.0, 0.0], {"top_p": 0.5}, [0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exactly_the_right_tokens_are_kept(p, options, kept, dtype):
    p = torch.tensor([p], dtype=dtype)
    output = next_token_probabilities(p.log(), **options)
    assert output[0].nonzero().flatten().tolist() == kept
    expected = torch.zeros_like(p)
    expected[:, kept] = p[:, kept] / p[:, kept].sum()
    torch.testing.assert_close(output, expected)


def test_a_low_temperature_is_greedy_and_does_not_overflow():
    logits = torch.tensor([[3.0, 90.0, 89.0]])
    assert next_token_probabilities(logits, 1e-30).tolist() == [[0, 1, 0]]
    assert next_token_probabilities(logits.bfloat16(), 0.5).dtype == torch.float32


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.8}])
def test_the_kept_set_is_transformers(options):
    """Where there are no ties, at many random logits."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(500, VOCAB, generator=torch.Generator().manual_seed(0))
    warper = TopKLogitsWarper(5) if "top_k" in options else TopPLogitsWarper(0.8)
    theirs = warper(None, TemperatureLogitsWarper(0.7)(None, logits)).softmax(-1)
    torch.testing.assert_close(next_token_probabilities(logits, 0.7, **options), theirs)


def test_a_seed_gives_a_text_and_leaves_torchs_state_alone():
    model = randomise(mt.CausalLM(mt.Decoder(CONFIG)), 0.4)
    ids, state = prompts()[0], torch.get_rng_state()
    texts = [mt.generate(model, ids, 12, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    torch.manual_seed(5)
    assert torch.equal(mt.generate(model, ids, 12, temperature=1.0, seed=1), texts[0])


@EVERY
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 7, "seed": 3}])
def test_a_stream_is_what_generate_writes(model, options):
    ids, real = prompts()
    options = options | {"eos_id": 38}
    whole = ours_write(model, ids, real, 12, **options)
    streamed = torch.stack(list(mt.stream(model, ids, 12, real[:, None, None], **options)), 1)
    assert torch.equal(streamed, whole[:, -streamed.shape[1] :])
    assert whole.shape[1] - streamed.shape[1] in (1, ids.shape[1])


def test_a_stream_reads_only_as_far_as_it_is_asked():
    model, calls = randomise(mt.CausalLM(mt.Decoder(CONFIG)), 0.4), []
    model.decoder.register_forward_hook(lambda *_: calls.append(1))
    text = mt.stream(model, prompts()[0], 10)
    next(text), next(text)
    assert len(calls) == 2


# --- What cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 32}, "9 tokens and 32 new ones are 41, but the model has 40 positions; "
                                 "give max_new_tokens=31 or less"),
        ({"ids": torch.zeros(2, 0, dtype=torch.long)}, "the prompt is empty"),
        ({"ids": torch.zeros(0, 3, dtype=torch.long)}, "the prompt is empty"),
        ({"ids": torch.tensor([[3, 4], [0, 0]])}, "the prompts [1] are all padding"),
        ({"ids": torch.tensor([[3, VOCAB]])}, "outside the vocabulary"),
        ({"keep": torch.ones(4, 9, dtype=torch.bool)}, "does not broadcast"),
        ({"temperature": -0.1}, "must not be negative; 0 is greedy"),
        ({"temperature": 1.0, "top_k": VOCAB + 1}, "the size of the vocabulary, 41"),
        ({"temperature": 1.0, "top_k": 0}, "the size of the vocabulary, 41"),
        ({"temperature": 1.0, "top_p": 0.0}, "must be in (0, 1]"),
        ({"temperature": 1.0, "top_p": 1.01}, "must be in (0, 1]"),
        ({"temperature": float("nan")}, "must not be negative"),
        ({"top_k": 5}, "give a temperature too"),
        ({"n_beams": 0}, "n_beams=0 must be at least 1"),
        ({"n_beams": 2, "temperature": 1.0}, "beam search does not sample"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_before_writing(options, said):
    model = mt.CausalLM(mt.Decoder(CONFIG))
    given = {"ids": prompts()[0], "max_new_tokens": 4} | options
    with pytest.raises((ValueError, TypeError)) as error:
        mt.generate(model, **given)
    assert said in str(error.value)
    if "n_beams" not in options and "vocabulary" not in said[:22]:
        with pytest.raises((ValueError, TypeError)):
            mt.stream(model, **given)  # not only at its first token


def test_other_models_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"torch.tensor\(\[ids\]\) makes a batch of one"):
        check_prompt(torch.tensor([3, 4]), None, PAD)
    both = mt.Seq2SeqLM(mt.EncoderDecoder(CONFIG.with_(start_id=None)))
    with pytest.raises(ValueError, match="what does a target start with"):
        mt.generate(both, prompts()[0], 3)


def test_the_last_position_is_used():
    """Prompt and new tokens may fill all positions."""
    model = mt.CausalLM(mt.Decoder(CONFIG.with_(positions="learned")))
    assert mt.generate(model, prompts()[0], 31).shape == (4, 40)


def test_the_inputs_stay_as_they_are():
    model, (ids, real) = mt.CausalLM(mt.Decoder(CONFIG)), prompts()
    before, other = copy.deepcopy((ids, real))
    mt.generate(model, ids, 3, real[:, None, None])
    assert torch.equal(ids, before) and torch.equal(real, other)
