r"""A language model writes one token after another, and reads each before it writes the next.

There are three ways to choose the next token from the model's logits $s$:

- greedy, the default: $\arg\max_v s_v$;
- sampling from `next_token_probabilities`;
- `beam_search`, which writes several texts at once and keeps the likeliest.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..model.heads import CausalLM, Seq2SeqLM
from ..model.layers import eval_mode
from .beam_search import beam_search
from .decoding import Decoding

Choice = Callable[[Tensor], Tensor]


def generate(
    model: CausalLM | Seq2SeqLM,
    ids: Int[Tensor, "batch length"],
    max_new_tokens: int,
    keep: Shaped[Tensor, "..."] | None = None,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    n_beams: int = 1,
    length_penalty: float = 1.0,
    eos_id: int | tuple[int, ...] | None = None,
    seed: int = 0,
    use_cache: bool = True,
) -> Int[Tensor, "batch new_length"]:
    r"""Continue each prompt, or write the target of each source.

    Args:
        ids: prompts of a `CausalLM`, or sources of a `Seq2SeqLM`. Shorter ones are padded on either
            side; the result is padded on the left.
        keep: which of `ids` are real tokens, (batch, 1, 1, length). By default all but the runs of
            `config.pad_id` at both ends. What the model writes is real, whatever its id.
        temperature: $T$ in `next_token_probabilities`; 0, the limit, is greedy.
        top_k: sample only from the `top_k` likeliest tokens.
        top_p: sample only from the smallest set of likeliest tokens whose probabilities sum to `top_p`.
        n_beams: a number above 1 selects `beam_search`, with `length_penalty`.
        eos_id: the token or tokens that end a text, by default `config.eos_id`. A finished text is
            filled with `config.pad_id` (or the first `eos_id` if there is none) until all have finished.
        seed: seed for sampling. Torch's own random state is neither used nor changed.
        use_cache: keep the keys and values of earlier tokens instead of computing them again.

    Returns: the prompts with their continuations; for a `Seq2SeqLM` the targets, with `start_id`.
    Shapes: (batch, length) -> (batch, length + new), or (batch, 1 + new).
    Raises: ValueError, TypeError as `stream`; ValueError for an invalid number of beams.

    >>> import minitransformer as mt
    >>> config = mt.TransformerConfig(vocab_size=9, d_model=8, n_heads=2, d_ff=8, n_layers=1)
    >>> generate(mt.CausalLM(mt.Decoder(config)), torch.tensor([[4, 7, 5]]), 4).shape
    torch.Size([1, 7])
    """
    if n_beams < 1:
        raise ValueError(f"n_beams={n_beams} must be at least 1; 1 is no beam search")
    if n_beams == 1 and length_penalty != 1.0:
        raise ValueError(f"length_penalty={length_penalty} is for beam search; give n_beams too")
    if n_beams > 1 and (temperature or top_k is not None or top_p is not None):
        raise ValueError(
            "beam search does not sample: leave out temperature, top_k and top_p, or n_beams"
        )
    decoding = Decoding(model, ids, keep, max_new_tokens, use_cache, eos_id)
    if n_beams > 1:
        with eval_mode(model):
            return beam_search(decoding, n_beams, length_penalty)
    choose = make_choice(decoding, temperature, top_k, top_p, seed)
    return torch.cat([decoding.ids, *write_steps(decoding, choose)], 1)


def stream(
    model: CausalLM | Seq2SeqLM,
    ids: Int[Tensor, "batch length"],
    max_new_tokens: int,
    keep: Shaped[Tensor, "..."] | None = None,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | tuple[int, ...] | None = None,
    seed: int = 0,
    use_cache: bool = True,
) -> Iterator[Int[Tensor, "batch"]]:
    """The new tokens of `generate`, one step at a time, with the same options except for beams.

    The model stays in evaluation mode until the last token, or until the iterator is closed.

    Shapes: (batch, length) -> (batch) at every step.
    Raises: ValueError for invalid prompts or options; TypeError for another model.

    >>> import minitransformer as mt
    >>> config = mt.TransformerConfig(vocab_size=9, d_model=8, n_heads=2, d_ff=8, n_layers=1)
    >>> model = mt.CausalLM(mt.Decoder(config))
    >>> [tuple(new.shape) for new in stream(model, torch.tensor([[4, 7], [5, 8]]), 3)]
    [(2,), (2,), (2,)]
    """
    decoding = Decoding(model, ids, keep, max_new_tokens, use_cache, eos_id)
    choose = make_choice(decoding, temperature, top_k, top_p, seed)
    return (new[:, 0] for new in write_steps(decoding, choose))


def write_steps(decoding: Decoding, choose: Choice) -> Iterator[Int[Tensor, "batch 1"]]:
    """Choose one new token per text at a time, until every text has ended."""
    new = decoding.ids
    ended = torch.zeros_like(new[:, :1], dtype=torch.bool)
    with eval_mode(decoding.model):
        for _ in range(decoding.max_new_tokens):
            new = choose(decoding.next_logits(new))
            new = new.masked_fill(ended, decoding.filling)
            ended = ended | decoding.ended(new)
            yield new
            if decoding.ends and ended.all():
                return


def make_choice(
    decoding: Decoding, temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> Choice:
    """How the next token is chosen from the logits; ValueError for an option out of range or unused."""
    vocab = decoding.config.vocab_size
    if not temperature >= 0:  # nor NaN
        raise ValueError(f"temperature={temperature} must not be negative; 0 is greedy, 1 draws "
                         "from the model's own distribution")  # fmt: skip
    if top_k is not None and not 1 <= top_k <= vocab:
        raise ValueError(f"top_k={top_k} must be from 1 to the size of the vocabulary, {vocab}; "
                         "leave it out to draw from all")  # fmt: skip
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be in (0, 1]; leave it out to draw from all tokens")
    if temperature == 0:
        if top_k is not None or top_p is not None:
            raise ValueError(
                "top_k and top_p say what to draw from, and temperature=0 draws nothing: it takes the "
                "likeliest token; give a temperature too, such as 1.0"
            )
        return lambda logits: logits.argmax(-1, keepdim=True)
    generator = torch.Generator(decoding.ids.device).manual_seed(seed)
    return lambda logits: torch.multinomial(
        next_token_probabilities(logits, temperature, top_k, top_p), 1, generator=generator
    )


def next_token_probabilities(
    logits: Float[Tensor, "batch vocab"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "batch vocab"]:
    r"""The distribution that the next token is sampled from.

    $$p_v = \frac{e^{s_v / T}}{\sum_{w \in A} e^{s_w / T}} \text{ for } v \in A, \text{ otherwise } 0$$

    $T < 1$ sharpens, $T > 1$ flattens. $A$ is the whole vocabulary, or

    - top-k: the $k$ likeliest tokens;
    - top-p, the nucleus: the fewest likeliest tokens whose probabilities sum to at least $p$;
    - both: the nucleus of the distribution over the $k$ likeliest.

    Among equally likely tokens the smaller id comes first, so $A$ has exactly that size.

    Shapes: (batch, vocab) -> the same.
    Source: top-k Fan et al. 2018, section 5.4; top-p Holtzman et al. 2020, section 3.1, equation 2.

    >>> s = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> next_token_probabilities(s, top_p=0.8).tolist()  # 0.5 + 0.3 reach 0.8
    [[0.625, 0.375, 0.0]]
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    temperature = max(temperature, torch.finfo(wide.dtype).tiny)  # no 0 / 0 near T = 0
    scores = (wide - wide.amax(-1, keepdim=True)) / temperature  # and no overflow
    if top_k is None and top_p is None:
        return scores.softmax(-1)
    ordered, order = scores.sort(stable=True, dim=-1, descending=True)
    in_set = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        in_set[:, top_k:] = False
    if top_p is not None and top_p < 1:
        p = ordered.masked_fill(~in_set, -torch.inf).softmax(-1).double()
        before = p.cumsum(-1) - p  # as long as these do not suffice, the token is in the nucleus
        # Slightly less suffices, since 0.5 + 0.3 is rounded.
        in_set &= before < top_p * (1 - 4 * torch.finfo(ordered.dtype).eps)
    p = ordered.masked_fill(~in_set, -torch.inf).softmax(-1)
    return torch.zeros_like(p).scatter(-1, order, p)
