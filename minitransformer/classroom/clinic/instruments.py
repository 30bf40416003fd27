r"""What can be measured on any model that does not learn, without anything to compare it with.

`f` is the model as its own evaluation calls it: a function from a `Batch` to a tensor whose first axis
is the batch. `step` is one step of its own training: a function from a `Batch` to the loss. Nothing
here looks inside the model.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...data.batches import Batch, pad
from ...model.layers import eval_mode
from ...training.loop import reproducible
from ...training.strategies import layers_of

Predict = Callable[[Batch], Tensor]
Step = Callable[[Batch], float]


def chance_loss(n: int) -> float:
    r"""The cross-entropy of a model that knows nothing: $-\log \frac1n = \ln n$ for $n$ answers.

    A fresh model should start with it.
    """
    return math.log(n)


def gradient_norms(model: nn.Module, loss: Tensor) -> dict[str, float]:
    """The norm of the loss's gradient in each layer, from bottom to top; 0 if none arrives."""
    model.zero_grad()
    loss.backward()
    norms = {layer.name: gradient_norm(*layer.modules) for layer in layers_of(model)}
    model.zero_grad()
    return norms


def gradient_norm(*modules: nn.Module) -> float:
    """The norm of these modules' gradients; 0 if there are none."""
    parameters = [p for module in modules for p in module.parameters()]
    return float(nn.utils.clip_grad_norm_(parameters, math.inf))  # clips nothing


def leak(block: nn.Module, x: Float[Tensor, "batch length d_model"], t: int) -> float:
    r"""How far an output before $t$ moves when the input changes from $t$ on; 0 if nothing looks ahead.

    $$\max_{i < t} \lvert f(x')_i - f(x)_i \rvert, \qquad x'_j = x_j \text{ for } j < t$$

    The new numbers are random: a constant added to all of them would vanish in the next norm.
    """
    other = x.clone()
    with reproducible(0):
        other[:, t:] = torch.randn_like(other[:, t:])
    with torch.no_grad(), eval_mode(block):
        return float((block(other) - block(x))[:, :t].abs().max())


def influence(
    f: Predict, ids: Int[Tensor, "batch length"], others: Int[Tensor, "batch length"]
) -> Float[Tensor, "length length"]:
    r"""How far output $i$ moves when token $j$ becomes that of `others`, at [i, j]: `leak` everywhere.

    Entries below the diagonal show the past's influence, those above it the future's.
    """
    batch = Batch(ids, torch.ones(len(ids), 1, 1, ids.shape[1], dtype=torch.bool))
    before, columns = f(batch), []
    for here in torch.eye(ids.shape[1], dtype=torch.bool):
        moved = (f(Batch(others.where(here, ids), batch.keep)) - before).abs()
        columns.append(moved.amax((0, 2)))
    return torch.stack(columns, 1)


def alone_against_batch(f: Predict, sequences: Sequence[Sequence[int]], pad_id: int) -> float:
    """The largest difference between a text by itself and the same text in a padded batch.

    Outputs at padded positions mean nothing and are left out.
    """
    together = f(pad(sequences, pad_id))
    alone = [f(pad([ids], pad_id))[0] for ids in sequences]
    moved = (a - b[: len(a)] for a, b in zip(alone, together, strict=True))
    return max(float(difference.abs().max()) for difference in moved)


def twice_alike(f: Predict, batch: Batch) -> float:
    """The largest difference between two calls that should be the same."""
    return float((f(batch) - f(batch)).abs().max())


def overfit_one_batch(step: Step, batch: Batch, steps: int) -> list[float]:
    """The losses of training on one small batch, which every healthy model learns by heart."""
    return [step(batch) for _ in range(steps)]


def piled_up(model: nn.Module, step: Step, batch: Batch) -> float:
    """The gradient of a second, equal step relative to the first: 1, or 2 if it is never cleared.

    The step must leave the weights alone, as with a learning rate of 0.
    """
    norms = []
    for _ in range(2):
        with reproducible(0):  # the same dropout both times
            step(batch)
        norms.append(gradient_norm(model))
    return norms[1] / norms[0]


def random_tokens(letters: int, first: int, size: tuple[int, int], seed: int) -> Batch:
    """Random tokens, from `first` on: nothing can predict the next one better than $1/letters$."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(first, first + letters, size, generator=generator)
    return Batch(ids, torch.ones(size[0], 1, 1, size[1], dtype=torch.bool))


def copies(f: Predict, batch: Batch) -> float:
    """How often the likeliest next token is the one just read."""
    return float((f(batch).argmax(-1) == batch.ids).float().mean())
