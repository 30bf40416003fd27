"""Random small models with a padding id of their own: do they write what transformers writes?

    python tests/inference/random_writers.py 1000

The vocabularies are tiny, so that the models often write the padding's id themselves.
"""

import json
import random
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import minitransformer as mt
from minitransformer.pretrained import gpt2, t5

FAMILIES = {
    mt.CausalLM: (gpt2, GPT2Config, GPT2LMHeadModel),
    mt.Seq2SeqLM: (t5, T5Config, T5ForConditionalGeneration),
}


def draw_model(rng: random.Random) -> mt.CausalLM | mt.Seq2SeqLM:
    """A GPT-2 or a T5 whose weights, sizes and special ids are random."""
    vocab, heads = rng.randint(5, 12), rng.randint(1, 3)
    pad, *others = rng.sample(range(vocab), 4)
    ends = [others[0], None, tuple(others[:2])][rng.choice((0, 0, 1, 2))]
    sizes = dict(
        vocab_size=vocab, d_model=4 * heads, n_heads=heads, n_layers=rng.randint(1, 2), d_ff=9,
        max_len=40, dropout=0.0, attention_dropout=0.0, pad_id=pad, eos_id=ends, start_id=others[2],
    )  # fmt: skip
    if rng.random() < 0.6:
        model = mt.CausalLM(mt.Decoder(mt.TransformerConfig.gpt2(**sizes)))
    else:
        rates = dict(feed_forward_dropout=0.0, final_dropout=0.0)
        model = mt.Seq2SeqLM(mt.EncoderDecoder(mt.TransformerConfig.t5(**sizes, **rates)))
    for p in model.double().parameters():
        p.data = rng.choice((0.4, 0.7, 1.0)) * torch.randn_like(p)
    return model.eval()


def as_transformers(model: mt.CausalLM | mt.Seq2SeqLM) -> torch.nn.Module:
    """The same weights in a model of transformers'."""
    family, config, cls = FAMILIES[type(model)]
    entries = json.loads(json.dumps(family.write_config(model)))
    theirs = cls(config(**entries, attn_implementation="eager")).double()
    weights = model.state_dict()
    state = {other: weights[mine] for mine, other in family.key_map(model)}
    unused = theirs.load_state_dict(family.restore(state, model), strict=False).unexpected_keys
    theirs.tie_weights()
    assert not unused
    return theirs.eval()


def texts_of(ids: torch.Tensor, start: int, ends: tuple[int, ...]) -> list[list[int]]:
    """What was written, up to the end of each text."""
    written = []
    for row in ids[:, start:].tolist():
        at = [i for i, token in enumerate(row) if token in ends]
        written.append(row[: at[0] + 1] if at else row)
    return written


def differences(seed: int) -> tuple[int, list[str]]:
    """How many texts of one random model hold the padding's id, and which settings differ."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = draw_model(rng)
    theirs, pad = as_transformers(model), model.config.pad_id
    ends = model.config.eos_id
    ends = () if ends is None else ends if isinstance(ends, tuple) else (ends,)
    length, batch, new = rng.randint(2, 8), rng.randint(1, 3), rng.randint(1, 12)
    left = torch.randint(model.config.vocab_size, (batch, length))
    holes = [rng.randrange(length) for _ in range(batch)]
    for row, n in zip(left, holes, strict=True):
        row[:n] = pad
        if rng.random() < 0.7:  # otherwise the mask alone tells that this padding's id is a token
            row[n:][row[n:] == pad] = (pad + 1) % model.config.vocab_size
    real = torch.arange(length) >= torch.tensor(holes)[:, None]
    right, real_right = (
        torch.stack([r.roll(-n) for r, n in zip(a, holes, strict=True)]) for a in (left, real)
    )
    seq2seq, wrong, padded = isinstance(model, mt.Seq2SeqLM), [], 0
    penalty = rng.choice((0.0, 1.0, 2.0, -1.0))
    for options in ({}, {"n_beams": rng.randint(2, 4), "length_penalty": penalty}):
        expected = theirs.generate(
            input_ids=left, attention_mask=real.long(), max_new_tokens=new, do_sample=False,
            num_beams=options.get("n_beams", 1), length_penalty=options.get("length_penalty"),
            early_stopping=False,
        )  # fmt: skip
        wanted = texts_of(expected, 1 if seq2seq else length, ends)
        padded += sum(pad in text for text in wanted)
        for side, ids, mask in (("left", left, real), ("right", right, real_right)):
            whole = bool(((ids != pad) == mask).all())
            for keep in [mask[:, None, None]] + [None] * whole:
                for cached in (True, False):
                    ours = mt.generate(model, ids, new, keep, **options, use_cache=cached)
                    if texts_of(ours, 1 if seq2seq else length, ends) != wanted:
                        given = "a mask" if keep is not None else "no mask"
                        wrong.append(f"seed {seed}, {options}, padded {side}, {given}, {cached=}")
    return padded, wrong


def main(count: int) -> None:
    """Print how many of `count` models differ anywhere."""
    found = [differences(seed) for seed in range(count)]
    for _, wrong in found:
        print(*wrong, sep="\n", end="\n" * bool(wrong))
    print(f"{sum(bool(wrong) for _, wrong in found)} of {count} models differ; "
          f"{sum(n for n, _ in found)} texts hold the padding's id")  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
