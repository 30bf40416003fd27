"""Next-token logits given everything read so far, with or without a cache."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..model.attention import check_keep, padding_mask, token_positions
from ..model.config import TransformerConfig
from ..model.heads import CausalLM, Seq2SeqLM
from ..model.kv_cache import KeyValueCache
from ..model.layers import eval_mode


class Decoding:
    """Texts that a model is writing, and what it has read of them.

    Pass `next_logits` the prompts (`ids`) first and then each new token. A `Seq2SeqLM` has already
    encoded the source, and its prompt is `start_id`.

    Raises:
        TypeError: a model that cannot write, or ids or a mask of another type.
        ValueError: no prompt, a prompt of padding only, or more tokens than there are positions.
    """

    def __init__(
        self,
        model: CausalLM | Seq2SeqLM,
        ids: Int[Tensor, "batch length"],
        keep: Shaped[Tensor, "..."] | None,
        max_new_tokens: int,
        use_cache: bool = True,
        eos_id: int | tuple[int, ...] | None = None,
    ):
        if not isinstance(model, CausalLM | Seq2SeqLM):
            which = "CausalLM(decoder) and Seq2SeqLM(encoder_decoder)"
            raise TypeError(f"{type(model).__name__} does not write; {which} do")
        if asked := model.generation_config:
            said = ", ".join(f"{name}={value!r}" for name, value in asked.items())
            raise ValueError(
                f"this model's generation_config.json asks for {said}, which `generate` does not "
                "follow; call model.generation_config.clear() and pass the options that you want"
            )
        self.model, self.config, self.max_new_tokens = model, model.config, max_new_tokens
        self.ends = as_ends(self.config.eos_id if eos_id is None else eos_id)
        self.cache = KeyValueCache() if use_cache else None
        self.seen: Tensor | None = None  # all tokens so far, if there is no cache
        self.memory: Tensor | None = None
        self.memory_keep: Tensor | None = None
        self.keep: Tensor | None = None
        self.positions: Tensor | None = None
        keep = check_prompt(ids, keep, self.config.pad_id)
        if isinstance(model, Seq2SeqLM):
            self.decoder = model.encoder_decoder.decoder
            if self.config.start_id is None:
                raise ValueError("what does a target start with? Use config.with_(start_id=...)")
            ids, self.memory_keep = align(ids, keep, "left")
            with torch.no_grad(), eval_mode(model):
                self.memory = model.encoder_decoder.encode(ids, self.memory_keep)
            self.ids = ids.new_full((len(ids), 1), self.config.start_id)
        else:
            self.decoder = model.decoder
            self.ids, self.keep = align(ids, keep, "right")
            self.positions = None if self.keep.all() else token_positions(self.keep)
        check_room(self.config, self.ids.shape[1], max_new_tokens)

    @property
    def filling(self) -> int:
        """The token that fills up a finished text."""
        pad_id = self.config.pad_id
        return pad_id if pad_id is not None else [*self.ends, 0][0]

    def ended(self, token: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Whether each token ends its text."""
        return torch.isin(token, token.new_tensor(self.ends))

    def next_logits(self, new: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """The logits of the token that follows `new`, which itself follows all earlier tokens."""
        keep, positions = self.keep, self.positions
        if self.cache is None:
            new, keep, positions = self.append(new)
        elif self.cache.length:
            keep = positions = None  # the cache continues them
        with torch.inference_mode():  # a tenth faster than no_grad; its tensors stay in here
            hidden = self.decoder(
                new, keep, self.memory, self.memory_keep, self.cache, positions, last=1
            )
            logits = self.model.logits(hidden)[:, 0]
        return logits.clone()  # an ordinary tensor

    def append(self, new: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """All tokens so far, with their mask and positions continued as a cache would."""
        if self.seen is not None:
            if self.keep is not None:  # written tokens are real, even with the padding's id
                self.keep = F.pad(self.keep, (0, 1), value=True)
            if self.positions is not None:
                self.positions = torch.cat([self.positions, self.positions[:, -1:] + 1], 1)
            new = torch.cat([self.seen, new], 1)
        self.seen = new
        return new, self.keep, self.positions

    def reorder(self, indices: Int[Tensor, "new_batch"]) -> None:
        """Make text `indices[n]` the n-th; texts may be doubled or dropped."""
        if self.cache is not None:
            self.cache.reorder(indices)
        for name in ("seen", "memory", "memory_keep", "keep", "positions"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[indices])


def check_prompt(
    ids: Tensor, keep: Tensor | None, pad_id: int | None
) -> Bool[Tensor, "batch 1 1 length"]:
    """The mask of real tokens; ValueError or TypeError for prompts that cannot be continued.

    Without a mask, only runs of `pad_id` at the two ends of a prompt count as padding.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        advice = "torch.tensor([ids]) makes a batch of one"
        raise ValueError(f"ids must be a tensor (batch, length), got {got}; {advice}")
    if not ids.numel():
        raise ValueError(
            "the prompt is empty, there is nothing to continue; give at least one token, such as "
            "the tokenizer's start of text: torch.tensor([[start_id]])"
        )
    shape = (len(ids), 1, 1, ids.shape[1])
    if keep is None:
        real = padding_mask(ids, pad_id).long()
        keep = (real.cumsum(-1) > 0) & (real.flip(-1).cumsum(-1).flip(-1) > 0)
    check_keep(keep, shape)
    if empty := (~keep.expand(shape).any(-1)).flatten().nonzero().flatten().tolist():
        padding = f"the prompts {empty} are all padding (id {pad_id})"
        raise ValueError(f"{padding}; leave them out, or give each at least one token")
    return keep.expand(shape)


def as_ends(eos_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """The ids that end a text, as a tuple."""
    return (eos_id,) if isinstance(eos_id, int) else tuple(eos_id or ())


def check_room(config: TransformerConfig, length: int, max_new_tokens: int) -> None:
    """Raise ValueError before writing if the text would outgrow the model's positions."""
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens!r} must be at least 1, a whole number")
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
    """Shift each text to one side: its padding there moves to the other; holes inside stay.

    A decoder continues at the last place, so its prompts must end there.

    >>> align(torch.tensor([[7, 8, 0]]), torch.tensor([[[[True, True, False]]]]), "right")[0].tolist()
    [[0, 7, 8]]
    """
    if keep.all():
        return ids, keep
    real, n = keep[:, 0, 0].int(), ids.shape[1]
    shift = -real.flip(-1).argmax(-1) if side == "right" else real.argmax(-1)
    order = (torch.arange(n, device=ids.device) + shift[:, None]) % n
    return ids.gather(1, order), keep[:, 0, 0].gather(1, order)[:, None, None]
