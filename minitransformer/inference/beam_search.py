r"""Several texts at once: beam search."""

import torch
from jaxtyping import Int
from torch import Tensor

from .decoding import Reader


def beam_search(
    reader: Reader,
    max_new_tokens: int,
    n_beams: int,
    length_penalty: float = 1.0,
    eos_id: int | None = None,
) -> Int[Tensor, "batch length"]:
    r"""Keep the `n_beams` likeliest beginnings at every step; return the best of the finished texts.

    $$\mathrm{score}(y) = \frac{1}{|y|^{\alpha}} \sum_t \log p(y_t \mid y_{<t}, x)$$

    $\alpha$ is `length_penalty`, $|y|$ the number of new tokens, the end of the text among them. A
    sum of logarithms falls with every token, so $\alpha = 0$ prefers short texts; 1 is the mean.

    A text is finished when it is among the best `n_beams` and ends in `eos_id`, or has
    `max_new_tokens`. A prompt is done when `n_beams` of its texts are finished and the best
    unfinished one, scored as it is, is no better than the worst of them.

    Shapes: (batch, length + new).
    Source: Wu et al. 2016, section 7, with the plain power of the length that is common since.
    """
    eos_id = reader.config.eos_id if eos_id is None else eos_id
    batch, alpha = len(reader.ids), length_penalty
    first = torch.arange(batch, device=reader.ids.device)[:, None] * n_beams  # each prompt's beam 0
    written = reader.ids.new_zeros(batch, n_beams, 0)
    total: Tensor | None = None
    finished: list[list[tuple[float, Tensor]]] = [[] for _ in range(batch)]
    done = [False] * batch

    new = reader.ids
    for length in range(1, max_new_tokens + 1):
        log_p = reader.read(new).log_softmax(-1)
        vocab = log_p.shape[-1]
        if total is None:  # all beams are the prompt: only one of them may go on
            reader.reorder(torch.arange(batch, device=new.device).repeat_interleave(n_beams))
            log_p = log_p.repeat_interleave(n_beams, 0)
            total = log_p.new_full((batch, n_beams), -torch.inf)
            total[:, 0] = 0.0
        sums = (total[:, :, None] + log_p.view(batch, n_beams, vocab)).flatten(1)
        # Twice as many as beams: should each beam end, as many are left that do not.
        best, at = sums.topk(min(2 * n_beams, sums.shape[1]))
        beam, token = at // vocab, at % vocab
        texts = torch.cat([written.gather(1, beam[:, :, None].expand(-1, -1, length - 1)),
                           token[:, :, None]], -1)  # fmt: skip
        ends = token == (-1 if eos_id is None else eos_id)

        for b in range(batch):
            if done[b]:
                continue
            for score, text, end in zip(
                best[b, :n_beams].tolist(), texts[b], ends[b].tolist(), strict=False
            ):
                if (end or length == max_new_tokens) and score > -torch.inf:
                    finished[b].append((score / length**alpha, text))
            finished[b] = sorted(finished[b], key=lambda f: -f[0])[:n_beams]

        total, order = best.masked_fill(ends, -torch.inf).topk(min(n_beams, best.shape[1]))
        for b in range(batch):
            worst = finished[b][-1][0] if len(finished[b]) == n_beams else -torch.inf
            done[b] = done[b] or float(total[b, 0]) / length**alpha <= worst
        if all(done):
            break
        written = texts.gather(1, order[:, :, None].expand(-1, -1, length))
        new = written[:, :, -1].reshape(-1, 1)
        reader.reorder((first + beam.gather(1, order)).flatten())

    return put_together(reader, [f[0][1] for f in finished], eos_id)


def put_together(reader: Reader, texts: list[Tensor], eos_id: int | None) -> Tensor:
    """The prompts with the texts behind them, filled up to the longest."""
    longest = max(map(len, texts))
    output = reader.ids.new_full(
        (len(texts), longest), reader.fill(0 if eos_id is None else eos_id)
    )
    for row, text in zip(output, texts, strict=True):
        row[: len(text)] = text
    return torch.cat([reader.ids, output], 1)
