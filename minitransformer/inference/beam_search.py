r"""Beam search: several texts are written at once, and the likeliest is kept."""

import torch
from jaxtyping import Int
from torch import Tensor

from .decoding import Decoding


def beam_search(
    decoding: Decoding, n_beams: int, length_penalty: float = 1.0
) -> Int[Tensor, "batch length"]:
    r"""Keep the `n_beams` likeliest beginnings at every step; return the best of the finished texts.

    $$\mathrm{score}(y) = \frac{1}{|y|^{\alpha}} \sum_t \log p(y_t \mid y_{<t}, x)$$

    $\alpha$ is `length_penalty` and $|y|$ the number of new tokens, including the end of the text.
    The sum falls with every token, so $\alpha = 0$ prefers short texts; $\alpha = 1$ takes the mean.

    A text is finished when it is among the best `n_beams` and ends in `eos_id`, or has
    `max_new_tokens`. A prompt is done when `n_beams` of its texts are finished and its best
    unfinished text, at its present score, is no better than the worst of them.

    Shapes: (batch, length + new).
    Source: Wu et al. 2016, section 7, with the plain power of the length that is now usual.
    """
    batch, alpha, last = len(decoding.ids), length_penalty, decoding.max_new_tokens
    beam_0 = torch.arange(batch, device=decoding.ids.device)[:, None] * n_beams  # of each prompt
    written = decoding.ids.new_zeros(batch, n_beams, 0)
    total: Tensor | None = None
    finished: list[list[tuple[float, Tensor]]] = [[] for _ in range(batch)]
    done = [False] * batch

    new = decoding.ids
    for length in range(1, last + 1):
        log_p = decoding.next_logits(new).log_softmax(-1)
        vocab = log_p.shape[-1]
        if total is None:  # all beams are the prompt, so only one of them may continue
            decoding.reorder(torch.arange(batch, device=new.device).repeat_interleave(n_beams))
            log_p = log_p.repeat_interleave(n_beams, 0)
            total = log_p.new_full((batch, n_beams), -torch.inf)
            total[:, 0] = 0.0
        sums = (total[:, :, None] + log_p.view(batch, n_beams, vocab)).flatten(1)
        # Twice as many candidates as beams: even if every beam ends, enough are left that do not.
        best, at = sums.topk(min(2 * n_beams, sums.shape[1]))
        beam, token = at // vocab, at % vocab
        history = written.gather(1, beam[:, :, None].expand(-1, -1, length - 1))
        texts = torch.cat([history, token[:, :, None]], -1)
        ends = decoding.ended(token)
        total, order = best.masked_fill(ends, -torch.inf).topk(min(n_beams, best.shape[1]))

        for b in range(batch):
            if done[b]:
                continue
            ranked = zip(best[b, :n_beams].tolist(), texts[b], ends[b].tolist(), strict=False)
            for score, text, end in ranked:
                if (end or length == last) and score > -torch.inf:
                    finished[b].append((score / length**alpha, text))
            finished[b] = sorted(finished[b], key=lambda f: -f[0])[:n_beams]
            worst = finished[b][-1][0] if len(finished[b]) == n_beams else -torch.inf
            done[b] = float(total[b, 0]) / length**alpha <= worst
        if all(done):
            break
        written = texts.gather(1, order[:, :, None].expand(-1, -1, length))
        new = written[:, :, -1].reshape(-1, 1)
        decoding.reorder((beam_0 + beam.gather(1, order)).flatten())

    chosen = [best_first[0][1] for best_first in finished]
    output = decoding.ids.new_full((batch, max(map(len, chosen))), decoding.filling)
    for row, text in zip(output, chosen, strict=True):
        row[: len(text)] = text
    return torch.cat([decoding.ids, output], 1)
