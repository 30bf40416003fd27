"""The frozen layers at the bottom, computed once for each text."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch, EncodedTexts
from ..model.heads import SequenceClassifier

MIB = 2**20


class FrozenPrefix:
    """Keeps what the frozen layers say to each text of one dataset, so that an epoch starts there.

    A frozen layer has no dropout and no new weights: its output for a text is the same every epoch.
    The first batch that holds a text computes it, later ones look it up. Only real positions are
    kept, one after the other; when the budget is used up, the remaining texts are computed each time.

    Args:
        budget: MiB of memory for the outputs; 0 keeps nothing.
    """

    def __init__(self, model: SequenceClassifier, data: EncodedTexts, budget: int):
        self.model, self.budget = model, budget
        self.lengths = torch.tensor([len(ids) for ids in data.ids])
        self.starts = torch.full((len(data),), -1)
        """The row where a text begins; -1: not kept."""
        self.rows: Tensor | None = None
        self.used = self.n_frozen = 0

    @property
    def need(self) -> int:
        """MiB for all texts, in float32."""
        return -(-int(self.lengths.sum()) * self.model.encoder.config.d_model * 4 // MIB)

    def freeze(self, n_layers: int) -> None:
        """From now on the first `n_layers` are fixed (0: none): what was kept before is of no use."""
        self.rows, self.used, self.n_frozen = None, 0, n_layers
        self.starts.fill_(-1)

    def logits(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """What the model says to a batch, the frozen layers looked up where they are known."""
        if not self.n_frozen or not self.budget:
            return self.model(batch.ids, batch.keep)
        encoder = self.model.encoder
        hidden = encoder.run(
            self.frozen_output(batch), batch.keep, self.n_frozen - 1, first=self.model.first
        )
        return self.model.classify(encoder.finish(hidden), batch.ids, batch.keep)

    def frozen_output(self, batch: Batch) -> Float[Tensor, "batch length d_model"]:
        """The output of the last frozen layer."""
        indices, real = torch.tensor(batch.indices), batch.keep[:, 0, 0]
        known = self.starts[indices] >= 0
        if known.all():
            return self.look_up(indices, real)
        new = ~known
        computed = self.compute(batch.ids[new], batch.keep[new])
        self.store(indices[new], computed, real[new])
        if new.all():
            return computed
        hidden = computed.new_empty(*batch.ids.shape, computed.shape[-1])
        hidden[new] = computed
        hidden[known] = self.look_up(indices[known], real[known])
        return hidden

    @torch.no_grad()
    def compute(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Run the frozen layers: the embeddings, and the blocks that follow them."""
        encoder = self.model.encoder
        return encoder.run(encoder.embeddings(ids), keep, 0, self.n_frozen - 1)

    def store(self, indices: Tensor, hidden: Tensor, real: Tensor) -> None:
        """Keep as many texts as fit."""
        if self.rows is None:
            width = hidden.shape[-1]
            room = int(self.budget * MIB / (hidden.element_size() * width))
            total = int(self.lengths.sum())
            self.rows = hidden.new_empty(min(room, total), width)
            if room < total:
                warnings.warn(
                    f"keeping the frozen layers' output for all {len(self.lengths)} texts takes "
                    f"{self.need} MiB, the budget is {self.budget}: about {room / total:.0%} "
                    "of it is kept, the rest computed anew each epoch; cache_mib=... raises it",
                    stacklevel=2,
                )
        ends = self.used + self.lengths[indices].cumsum(0)
        n = int((ends <= len(self.rows)).sum())
        if n:
            self.starts[indices[:n]] = ends[:n] - self.lengths[indices[:n]]
            self.rows[self.used : int(ends[n - 1])] = hidden[:n][real[:n]]
            self.used = int(ends[n - 1])

    def look_up(self, indices: Tensor, real: Tensor) -> Tensor:
        """Rows back into a padded batch; padding repeats a neighbour, the mask hides it."""
        assert self.rows is not None
        place = (real.cumsum(1) - 1).clamp(min=0)
        return self.rows[self.starts[indices, None] + place]


def prefixes(
    model: SequenceClassifier, datasets: tuple[EncodedTexts, ...], budget: int
) -> list[FrozenPrefix]:
    """One for each dataset; the first ones take what they need of the budget, the last the rest."""
    made = []
    for data in datasets:
        made.append(FrozenPrefix(model, data, budget))
        budget -= min(budget, made[-1].need)
    return made
