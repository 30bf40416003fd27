"""What a decoder has read: keys and values of earlier tokens, which the next one attends to."""

from collections import defaultdict
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

ROOM = 256
"""Positions allocated at a time, so that appending a token does not copy the cache."""

Heads = Float[Tensor, "batch heads keys d_k"]


class KeyValues:
    """The keys and values of one attention, in one tensor, so that one write serves both.

    Args:
        grows: whether each call appends (a decoder's own text), or the first call's keys and values
            serve all later ones (an encoder's output).

    Shapes: both (2, batch, heads, length, d_k), K before V.
    """

    def __init__(self, grows: bool = True) -> None:
        self.grows, self.length = grows, 0
        self.both: Tensor | None = None  # with room after the first `length` positions
        self.maps: tuple[Tensor, Tensor | None] | None = None

    def update(
        self, compute: Callable[[], Float[Tensor, "2 batch heads new d_k"]]
    ) -> tuple[Heads, Heads]:
        """All keys and values, with those of `compute` appended; a memory is computed only once."""
        if self.grows or self.both is None:
            new = compute()
            start, self.length = self.length, self.length + new.shape[3]
            self.both = put(self.both, start, new)
        K, V = self.both.narrow(3, 0, self.length).unbind()
        return K, V

    def project(self, x: Tensor, *maps: nn.Module) -> Float[Tensor, "batch new wide"]:
        """The outputs of an attention's maps side by side, from one product with the joined matrices.

        For a single token a product costs little more than its call. Not for maps that learn, whose
        matrices change, nor for those that are more than a matrix (LoRA).
        """
        if torch.is_grad_enabled() or any(type(m) is not nn.Linear for m in maps):
            return torch.cat([m(x) for m in maps], -1)
        if self.maps is None:
            W, b = ([getattr(m, name) for m in maps] for name in ("weight", "bias"))
            self.maps = torch.cat(W), None if b[0] is None else torch.cat(b)
        return nn.functional.linear(x, *self.maps)


def put(store: Tensor | None, start: int, new: Tensor) -> Tensor:
    """Write `new` from position `start` on, into a larger store if it does not fit."""
    end = start + new.shape[3]
    if new.requires_grad:  # gradients need the old values: copy, do not overwrite
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

    Give the same cache to one call after another, each with only the new tokens: together they return
    what one call with all tokens would.

    >>> import minitransformer as mt
    >>> decoder = mt.Decoder(mt.TransformerConfig(vocab_size=9, d_model=8, n_heads=2, d_ff=8)).eval()
    >>> ids, cache = torch.tensor([[4, 7, 5]]), KeyValueCache()
    >>> first, last = decoder(ids[:, :2], cache=cache), decoder(ids[:, 2:], cache=cache)
    >>> bool(torch.allclose(last, decoder(ids)[:, 2:], atol=1e-6)), cache.length
    (True, 3)
    """

    def __init__(self) -> None:
        self.own: defaultdict[int, KeyValues] = defaultdict(KeyValues)
        """Of self-attention, by layer."""
        self.memory: defaultdict[int, KeyValues] = defaultdict(lambda: KeyValues(grows=False))
        """Of cross-attention, by layer."""
        self.keep: Tensor | None = None
        """Which tokens so far may be attended to, (batch, 1, 1, length); None: all."""
        self.masked = False
        """Whether a mask was given; if so, later tokens count as real whatever their ids."""
        self.next: Tensor | None = None
        """The position of the next token, (batch, 1), if positions were given."""

    @property
    def length(self) -> int:
        """How many tokens were read."""
        return self.own[0].length

    def count(self, positions: Tensor | None, new: int) -> Tensor | None:
        """The positions of new tokens: those given, or counted on from those given before."""
        if positions is None and self.next is not None:
            positions = self.next + torch.arange(new, device=self.next.device)
        if positions is not None:
            self.next = positions[:, -1:] + 1
        return positions

    def reorder(self, indices: Int[Tensor, "new_batch"]) -> None:
        """Make example `indices[n]` the n-th of the batch: beam search follows its best beams."""
        for one in (*self.own.values(), *self.memory.values()):
            one.both = None if one.both is None else one.both[:, indices]
        self.keep = None if self.keep is None else self.keep[indices]
        self.next = None if self.next is None else self.next[indices]
