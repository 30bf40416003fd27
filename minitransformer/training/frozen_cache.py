"""The outputs of the frozen layers at the bottom, computed once for each text."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch, EncodedTexts
from ..model.heads import SequenceClassifier

MIB = 2**20


class FrozenPrefix:
    """Keeps the frozen layers' outputs for the texts of one dataset, so that an epoch starts there.

    A frozen layer has no dropout and no new weights: its output for a text is the same every epoch.
    The first batch with a text computes it, later ones look it up. Only real positions are kept, one
    after another, in `budget` MiB; the texts that do not fit are computed every time.
    """

    def __init__(self, model: SequenceClassifier, data: EncodedTexts, budget: int):
        self.model, self.budget = model, budget
        self.lengths = torch.tensor([len(ids) for ids in data.ids])
        self.starts = torch.full((len(data),), -1)
        """The row where a text begins; -1 if it is not kept."""
        self.rows: Tensor | None = None
        self.used = self.n_frozen = 0

    @property
    def need(self) -> int:
        """MiB for all texts, in float32."""
        return -(-int(self.lengths.sum()) * self.model.encoder.config.d_model * 4 // MIB)

    def freeze(self, n_layers: int) -> None:
        """From now on the first `n_layers` are fixed (0: none); if they change, forget the outputs."""
        if n_layers != self.n_frozen:
            self.rows, self.used, self.n_frozen = None, 0, n_layers
            self.starts.fill_(-1)

    def logits(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """The model's logits, with the frozen layers' outputs looked up where they are known."""
        if not self.n_frozen or not self.budget:
            return self.model(batch.ids, batch.keep)
        encoder, bottom = self.model.encoder, self.frozen_output(batch)
        hidden = encoder.run(bottom, batch.keep, self.n_frozen - 1, first=self.model.first)
        return self.model.classify(encoder.finish(hidden), batch.ids, batch.keep)

    def frozen_output(self, batch: Batch) -> Float[Tensor, "batch length d_model"]:
        """The output of the last frozen layer."""
        indices, real = torch.tensor(batch.indices), batch.keep[:, 0, 0]
        new = self.starts[indices] < 0
        if not new.any():
            return self.look_up(indices, real)
        encoder = self.model.encoder
        with torch.no_grad():
            embedded = encoder.embeddings(batch.ids[new])
            computed = encoder.run(embedded, batch.keep[new], 0, self.n_frozen - 1)
        self.store(indices[new], computed, real[new])
        if new.all():
            return computed
        hidden = computed.new_empty(*batch.ids.shape, computed.shape[-1])
        hidden[new], hidden[~new] = computed, self.look_up(indices[~new], real[~new])
        return hidden

    def store(self, indices: Tensor, hidden: Tensor, real: Tensor) -> None:
        """Keep as many texts as fit."""
        if self.rows is None:
            width, total = hidden.shape[-1], int(self.lengths.sum())
            room = int(self.budget * MIB / (hidden.element_size() * width))
            self.rows = hidden.new_empty(min(room, total), width)
            if room < total:
                warnings.warn(
                    f"keeping the frozen layers' output for all {len(self.lengths)} texts takes "
                    f"{self.need} MiB, the budget is {self.budget}: about {room / total:.0%} of it is "
                    "kept, the rest is computed every epoch; cache_mib=... raises the budget",
                    stacklevel=2,
                )
        ends = self.used + self.lengths[indices].cumsum(0)
        if n := int((ends <= len(self.rows)).sum()):
            self.starts[indices[:n]] = ends[:n] - self.lengths[indices[:n]]
            start, self.used = self.used, int(ends[n - 1])
            self.rows[start : self.used] = hidden[:n][real[:n]]

    def look_up(self, indices: Tensor, real: Tensor) -> Tensor:
        """Rows back into a padded batch; padding repeats a neighbour, which the mask hides."""
        assert self.rows is not None
        place = (real.cumsum(1) - 1).clamp(min=0)
        return self.rows[self.starts[indices, None] + place]


def prefixes(
    model: SequenceClassifier, datasets: tuple[EncodedTexts, ...], budget: int
) -> list[FrozenPrefix]:
    """One per dataset; the first ones take what they need of the budget, the last gets the rest."""
    made = []
    for data in datasets:
        made.append(FrozenPrefix(model, data, budget))
        budget -= min(budget, made[-1].need)
    return made
