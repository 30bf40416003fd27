"""Training only the rows of the embedding table that the training texts read.

A batch reads a few hundred tokens, but the gradient, its norm and AdamW's update run over the whole
table. Without the unread rows, fine-tuning a six-block encoder of width 384 takes 1.2 times less CPU
time with BERT's 30,522 tokens, and 2.1 times less with a multilingual vocabulary of 250,037 (`python
tests/benchmarks/rows_in_use.py`). The result is the same to rounding.
"""

import contextlib
import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.batches import EncodedTexts
from ..model.layers import Embeddings


class RowsInUse(nn.Embedding):
    r"""Stands in for the table of token embeddings, with only the rows that the training texts read.

    The other rows get no gradient, so their momentum stays 0 and AdamW only decays them, all alike:
    $\theta \leftarrow (1 - \eta\lambda)\,\theta$. One row of ones, which no id reads, goes through AdamW
    and records that decay for all of them. `inside` surrounds the training, with the making of the
    optimizer; `outside` surrounds a look at other texts in between, as for validation.

    Not for a table shared with an output layer: there every row gets a gradient.

    Shapes: ids (batch, length) -> (batch, length, d_model).
    """

    embeddings: Embeddings
    table: nn.Embedding

    def __init__(self, embeddings: Embeddings, data: EncodedTexts):
        rows = torch.tensor(sorted({data.pad_id, *itertools.chain(*data.ids)}))
        weight = embeddings.tokens.weight.detach()
        mine = torch.cat([weight[rows], torch.ones_like(weight[:1])])
        super().__init__(*mine.shape, _weight=mine)
        self.rows, self.place = rows, torch.full((len(weight),), -1)
        self.place[rows] = torch.arange(len(rows))  # for any other id -1 remains, an IndexError
        self.weight.requires_grad_(embeddings.tokens.weight.requires_grad)
        self.written = torch.ones_like(weight[:1])
        """The decay already written to the table."""
        self.start: Tensor | None = None
        """The table before any of it was."""
        # not as submodules, which would count the table's parameters twice
        self.__dict__ |= {"embeddings": embeddings, "table": embeddings.tokens}

    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... d_model"]:
        """Look up."""
        return super().forward(self.place[ids])

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Inside, ids read these rows; afterwards the table has learned what they learned."""
        self.embeddings.tokens = self
        try:
            yield
        finally:
            self.write()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Inside, ids read the whole table; afterwards these rows again."""
        self.write()
        try:
            yield
        finally:
            self.embeddings.tokens = self

    @torch.no_grad()
    def write(self) -> None:
        """Bring the table up to date, and put it back."""
        decay = self.weight.detach()[-1:].clone()
        if (decay != self.written).any():  # a frozen table has not decayed
            if self.start is None:
                self.start = self.table.weight.detach().clone()
            self.table.weight.copy_(self.start * decay)
            self.written = decay
        self.table.weight[self.rows] = self.weight[:-1]
        self.embeddings.tokens = self.table
