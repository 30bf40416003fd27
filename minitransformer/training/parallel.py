r"""A step's batch in parts: one after another in one process, or side by side in several.

The loss of a batch is a mean over its $N$ targets, so its gradient is a weighted sum over the parts:

$$\nabla L = \sum_p \frac{N_p}{N} \nabla L_p$$

The plain mean of the parts' gradients would differ wherever the parts have different numbers $N_p$ of
targets: a target in a part with few of them would count more.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.batches import cut


class LossOfPart(nn.Module):
    """The loss as a module, for `DistributedDataParallel` to wrap.

    The objectives call parts of the model, so wrapping the model itself would miss them.
    """

    def __init__(self, model: nn.Module, loss_of: Callable[[Any], Tensor], n_targets: Any):
        super().__init__()
        self.model, self.loss_of, self.n_targets = model, loss_of, n_targets

    def forward(self, part: Any) -> Tensor:
        """The mean over the part's targets; without any, a 0 whose gradients others wait for."""
        if self.n_targets(part):
            return self.loss_of(part)
        learning = [p.sum() for p in self.model.parameters() if p.requires_grad]
        return 0.0 * torch.stack(learning).sum()


def shared(loss: nn.Module) -> nn.Module:
    """The loss, its gradients averaged over all processes; to be made anew when others learn."""
    return DistributedDataParallel(loss) if rank_and_size()[1] > 1 else loss


def backward(
    loss: nn.Module, batch: Any, n_targets: Callable[[Any], int], accumulate: int = 1
) -> float:
    """Leave the gradient of the batch's loss in the parameters, and return that loss.

    Every process makes the same batch and works through its own part of it, in `accumulate` parts.
    """
    rank, processes = rank_and_size()
    parts, total, value = cut(batch, accumulate * processes)[rank::processes], n_targets(batch), 0.0
    if not total:
        raise ValueError("a batch has no target, so there is nothing to learn from it; remove it")
    for number, part in enumerate(parts, 1):
        share = n_targets(part) / total
        wait = processes > 1 and number < accumulate  # the gradients are exchanged only once
        with loss.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
            mean = loss(part)
            (mean * (share * processes)).backward()  # the exchange divides by `processes`
        value += mean.item() * share
    return sum(gathered(torch.tensor(value, dtype=torch.float64)).tolist())


def gathered(tensor: Tensor) -> Tensor:
    """This tensor of every process, along a new first axis."""
    processes = rank_and_size()[1]
    if processes == 1:
        return tensor[None]
    everyones = [torch.empty_like(tensor) for _ in range(processes)]
    dist.all_gather(everyones, tensor)
    return torch.stack(everyones)


def rank_and_size() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if started_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
        raise RuntimeError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but nothing has joined them; "
            'call torch.distributed.init_process_group("gloo") first'
        )
    return 0, 1


def started_by_torchrun() -> bool:
    """Whether `torchrun` (`python -m torch.distributed.run`) started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` started, on CPUs; any other process stays alone."""
    if not started_by_torchrun():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
