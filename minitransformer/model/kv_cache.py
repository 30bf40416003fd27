"""What a decoder has read: the keys and values of earlier tokens, which the next one attends to."""

from collections import defaultdict

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROOM = 256
"""How many positions memory is laid out for at a time, so that a token is written, not all copied."""


class KeyValues:
    """Keys and values of one attention, in one tensor: what is new is written at once.

    Shapes: both (2, batch, heads, length, d_k), K before V.
    """

    def __init__(self) -> None:
        self.length = 0
        self.both: Tensor | None = None  # with room behind the first `length` positions
        self.maps: tuple[Tensor, Tensor | None] | None = None
        """The attention's three maps side by side, which stay the same while a text is written."""

    def append(self, new: Float[Tensor, "2 batch heads new d_k"]) -> None:
        """Put the new ones behind those there are."""
        start, self.length = self.length, self.length + new.shape[3]
        self.both = put(self.both, start, new)

    def read(
        self,
    ) -> tuple[Float[Tensor, "batch heads keys d_k"], Float[Tensor, "batch heads keys d_k"]]:
        """All keys and values so far."""
        assert self.both is not None, "nothing was appended"
        K, V = self.both.narrow(3, 0, self.length).unbind()
        return K, V


def put(store: Tensor | None, start: int, new: Tensor) -> Tensor:
    """Write `new` from position `start` on; more room is laid out when there is too little."""
    end = start + new.shape[3]
    if new.requires_grad:  # what gradients need must not be written over: a copy
        return new if store is None else torch.cat([store[:, :, :, :start], new], 3)
    if store is None or end > store.shape[3] or store.requires_grad:
        two, batch, heads, _, d_k = new.shape
        larger = new.new_empty(two, batch, heads, -(-end // ROOM) * ROOM, d_k)
        if store is not None:
            larger[:, :, :, :start] = store[:, :, :, :start]
        store = larger
    store.narrow(3, start, new.shape[3]).copy_(new)
    return store


class KeyValueCache:
    """The keys and values of every layer of a decoder, so that each token is read once.

    Give the same cache to one call after another, with the new tokens only; the result is that of
    one call with all of them. Keys and values of the encoder's output are computed in the first.

    >>> import minitransformer as mt
    >>> decoder = mt.Decoder(mt.TransformerConfig(vocab_size=9, d_model=8, n_heads=2, d_ff=8)).eval()
    >>> ids, cache = torch.tensor([[4, 7, 5]]), KeyValueCache()
    >>> first, last = decoder(ids[:, :2], cache=cache), decoder(ids[:, 2:], cache=cache)
    >>> bool(torch.allclose(last, decoder(ids)[:, 2:], atol=1e-6)), cache.length
    (True, 3)
    """

    def __init__(self) -> None:
        self.own: defaultdict[int, KeyValues] = defaultdict(KeyValues)
        """Of the self-attention, by layer."""
        self.memory: defaultdict[int, KeyValues] = defaultdict(KeyValues)
        """Of the cross-attention, by layer."""
        self.keep: Tensor | None = None
        """Which of the tokens so far may be attended to, (batch, 1, 1, length); None: all."""
        self.next: Tensor | None = None
        """The position of the next token, (batch, 1), where positions were given."""

    @property
    def length(self) -> int:
        """How many tokens were read."""
        return self.own[0].length

    def reorder(self, indices: Int[Tensor, "new_batch"]) -> None:
        """Make example `indices[n]` the n-th of the batch: beam search follows its best beams."""
        for one in (*self.own.values(), *self.memory.values()):
            one.both = None if one.both is None else one.both[:, indices]
        self.keep = None if self.keep is None else self.keep[indices]
        self.next = None if self.next is None else self.next[indices]
