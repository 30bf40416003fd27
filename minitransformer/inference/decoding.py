"""What writing is built on: the logits after all that was read, with a cache or without."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..model.attention import check_keep, padding_mask, token_positions
from ..model.config import TransformerConfig
from ..model.heads import CausalLM, Seq2SeqLM
from ..model.kv_cache import KeyValueCache
from ..model.layers import eval_mode


class Reader:
    """A model reading its own words.

    Give `read` the prompt first and then each new token; a `Seq2SeqLM` has read the source before,
    and its prompt is `start_id`.

    Raises:
        TypeError: a model that cannot write, ids or a mask of another type.
        ValueError: no prompt, a prompt of padding only, or more tokens than there are positions.
    """

    def __init__(
        self,
        model: CausalLM | Seq2SeqLM,
        ids: Int[Tensor, "batch length"],
        keep: Shaped[Tensor, "..."] | None,
        max_new_tokens: int,
        use_cache: bool,
    ):
        if not isinstance(model, CausalLM | Seq2SeqLM):
            raise TypeError(
                f"{type(model).__name__} does not write; CausalLM(decoder) and "
                "Seq2SeqLM(encoder_decoder) do"
            )
        self.model, self.config = model, model.config
        keep = check_prompt(ids, keep, self.config.pad_id)
        self.memory: Tensor | None = None
        self.memory_keep: Tensor | None = None
        self.keep: Tensor | None = None
        self.positions: Tensor | None = None
        self.cache = KeyValueCache() if use_cache else None
        self.seen: Tensor | None = None  # without a cache
        if isinstance(model, Seq2SeqLM):
            self.decoder = model.encoder_decoder.decoder
            if self.config.start_id is None:
                raise ValueError(
                    "what does a target start with? Name it: config.with_(start_id=...)"
                )
            ids, keep = align(ids, keep, "left")
            with torch.no_grad(), eval_mode(model):
                self.memory = model.encoder_decoder.encode(ids, keep)
            self.memory_keep = keep
            self.ids = ids.new_full((len(ids), 1), self.config.start_id)
        else:
            self.decoder = model.decoder
            self.ids, keep = align(ids, keep, "right")
            if not keep.all():
                self.keep, self.positions = keep, token_positions(keep)
        check_room(self.config, self.ids.shape[1], max_new_tokens)

    def read(self, new: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """The logits of the token after `new`, which is what follows all that was read before."""
        keep, positions = self.keep, self.positions
        if self.cache is None:
            new, keep, positions = self.all_with(new)
        elif self.cache.length:
            keep = positions = None  # the cache counts them on
        with torch.inference_mode():  # a tenth faster than no_grad; what it makes stays in here
            hidden = self.decoder(
                new, keep, self.memory, self.memory_keep, self.cache, positions, last=1
            )
            logits = self.model.logits(hidden)[:, 0]
        return logits.clone()  # an ordinary tensor

    def all_with(self, new: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """All tokens so far, their mask and positions, as a cache counts them on."""
        if self.seen is not None:
            if self.keep is not None and self.positions is not None:
                pad_id = -1 if self.config.pad_id is None else self.config.pad_id
                self.keep = torch.cat([self.keep, padding_mask(new, pad_id)], -1)
                self.positions = torch.cat([self.positions, self.positions[:, -1:] + 1], 1)
            new = torch.cat([self.seen, new], 1)
        self.seen = new
        return new, self.keep, self.positions

    def reorder(self, indices: Int[Tensor, "new_batch"]) -> None:
        """Go on with text `indices[n]` as the n-th; texts may be doubled or dropped."""
        if self.cache is not None:
            self.cache.reorder(indices)
        for name in ("seen", "memory", "memory_keep", "keep", "positions"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[indices])

    def fill(self, eos_id: int) -> int:
        """What stands behind the end of a text."""
        return eos_id if self.config.pad_id is None else self.config.pad_id


def check_prompt(ids: Tensor, keep: Tensor | None, pad_id: int | None) -> Tensor:
    """Refuse what cannot be continued; returns the mask of real tokens, (batch, 1, 1, length).

    Raises:
        TypeError, ValueError: as `Reader` and `check_keep`.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(
            f"ids must be a tensor (batch, length), got {shape}; torch.tensor([ids]) makes a batch of one"
        )
    if not ids.numel():
        raise ValueError(
            "the prompt is empty, there is nothing to continue; give at least one token, such as "
            "the tokenizer's start of text: torch.tensor([[start_id]])"
        )
    if keep is None:
        keep = padding_mask(ids, -1 if pad_id is None else pad_id)
    check_keep(keep, (len(ids), 1, 1, ids.shape[1]))
    keep = keep.expand(len(ids), 1, 1, ids.shape[1])
    empty = (~keep.any(-1)).flatten().nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"the prompts {empty} are all padding (id {pad_id}); leave them out, or give each at "
            "least one token"
        )
    return keep


def check_room(config: TransformerConfig, length: int, max_new_tokens: int) -> None:
    """Refuse a text that would outgrow the positions before it is half written.

    Raises:
        ValueError: says how many tokens there is room for.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    room = config.max_len if config.positions in ("learned", "sinusoidal") else None
    if room is not None and length + max_new_tokens > room:
        raise ValueError(
            f"{length} tokens and {max_new_tokens} new ones are {length + max_new_tokens}, but the "
            f"model has {room} positions; give max_new_tokens={max(room - length, 0)} or less, or the "
            f"end of the prompt only: ids[:, -{max(room - max_new_tokens, 1)}:]"
        )


def align(
    ids: Int[Tensor, "batch length"], keep: Bool[Tensor, "batch 1 1 length"], side: str
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch 1 1 length"]]:
    """Move the real tokens to one side, in their order, and the padding to the other.

    A decoder writes behind the last place, so its prompts must end there.

    >>> align(torch.tensor([[7, 8, 0]]), torch.tensor([[[[True, True, False]]]]), "right")[0].tolist()
    [[0, 7, 8]]
    """
    if keep.all():
        return ids, keep
    real = keep[:, 0, 0]
    order = (real if side == "right" else ~real).long().argsort(stable=True, dim=-1)
    return ids.gather(1, order), real.gather(1, order)[:, None, None]
