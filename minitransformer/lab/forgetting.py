"""What fine-tuning does to the knowledge that the model had."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..data.tokenizers import Tokenizer, encode
from ..model.heads import SequenceClassifier, mean_pool
from ..model.layers import eval_mode
from ..model.transformer import Encoder
from ..training.precision import matmul_precision
from ..training.strategies import layers_of

CANDIDATES = 20


@torch.no_grad()
def pairing_accuracy(encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    r"""How well the encoder still tells which two halves of a text belong together.

    That is what a sentence encoder was pretrained for: among the second halves of `CANDIDATES`
    texts the right one should have the largest cosine with the first half. Guessing gives
    1 / `CANDIDATES`. Texts of one word are left out, and so are the last ones if they fill no group.

    $$\frac1n \sum_i \left[\, i = \arg\max_j \cos(h(a_i), h(b_j)) \,\right]$$

    Raises: ValueError: too few texts for one group.
    Source: the contrastive objective of the successors of Reimers and Gurevych 2019, as accuracy; van
    den Oord et al. 2018, equation 4.
    """
    words = [w for w in map(str.split, texts) if len(w) > 1]
    words = words[: len(words) // CANDIDATES * CANDIDATES]
    if not words:
        raise ValueError(
            f"pairing takes at least {CANDIDATES} texts of two words, got {len(texts)}"
        )
    halves = [" ".join(w[: len(w) // 2]) for w in words]
    halves += [" ".join(w[len(w) // 2 :]) for w in words]
    vectors = torch.zeros(len(halves), encoder.config.d_model)
    with eval_mode(encoder), matmul_precision("medium"):
        for batch in encode(halves, tokenizer).batches(64):
            hidden = encoder(batch.ids, batch.keep)
            vectors[list(batch.indices)] = mean_pool(hidden, batch.keep[:, 0, 0, :]).float()
    a, b = F.normalize(vectors, dim=-1).unflatten(0, (2, -1, CANDIDATES))  # groups of candidates
    right = (a @ b.mT).argmax(-1) == torch.arange(CANDIDATES)
    return right.double().mean().item()


@torch.no_grad()
def moved(before: SequenceClassifier, after: SequenceClassifier) -> dict[str, float]:
    r"""How far each layer moved, relative to its own size: $\|W - W_0\| / \|W_0\|$."""
    shares = {}
    for old, new in zip(layers_of(before), layers_of(after), strict=True):
        flat = ([p.flatten() for m in x.modules for p in m.parameters()] for x in (old, new))
        was, now = map(torch.cat, flat)
        shares[old.name] = ((now - was).norm() / was.norm()).item()
    return shares
