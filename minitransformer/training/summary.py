"""What a strategy will do to a model, as a table to read before training."""

from itertools import compress, groupby

from torch import nn

from ..options import Number
from .optim import WEIGHT_DECAY, split_by_decay
from .strategies import Progress, Strategy, layers_of

STEPS = 1000
"""How finely a run is divided to find where the rates change."""


def plan(
    model: nn.Module, strategy: Strategy, *, epochs: Number = 3, lr: Number | None = None
) -> str:
    """For each layer: its parameters, how many learn, at which peak rate and when, decay, dropout.

    A strategy that changes its rates during the run has a column for each part of it.

    Raises: ValueError: the strategy does not fit the model.

    >>> from minitransformer import Encoder, SequenceClassifier, TransformerConfig
    >>> tiny = TransformerConfig(vocab_size=10, d_model=4, n_heads=2, n_layers=1, d_ff=8)
    >>> from minitransformer.training.strategies import HeadOnly
    >>> print(plan(SequenceClassifier(Encoder(tiny), 2, "mean"), HeadOnly()))
    HeadOnly(), base rate 3e-03
    layer       parameters  trained    rate  decay  dropout
    embeddings          40        0  frozen      -      off
    block 0            172        0  frozen      -      off
    head                10       10   3e-03   0.01       on
    all                222       10 (4.5% at most at a time)
    """
    base = strategy.learning_rate if lr is None else lr
    most = most_trained(model, strategy, epochs)
    with strategy.applied(model):
        layers, learning = layers_of(model), learning_parameters(model, strategy)
        sizes = [sum(p.numel() for m in x.modules for p in m.parameters()) for x in layers]
    phases = phases_of(strategy, len(layers), epochs)
    header = ["rate"] if len(phases) == 1 else [f"from {share:.0%}" for share, _ in phases]
    rows = [["layer", "parameters", "trained", *header, "decay", "dropout"]]
    for i, (decayed, plain) in enumerate(learning):
        rates = [base * rates[i] for _, rates in phases]
        frozen = not any(rates)
        rows.append([
            layers[i].name, f"{sizes[i]:,}", f"{0 if frozen else decayed + plain:,}",
            *(f"{rate:.0e}" if rate else "frozen" for rate in rates),
            f"{WEIGHT_DECAY:g}" if decayed and not frozen else "-", "off" if frozen else "on",
        ])  # fmt: skip
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))

    def line(name: str, *cells: str) -> str:
        return "  ".join([name.ljust(first), *map(str.rjust, cells, widths)])

    last = line("all", f"{sum(sizes):,}", f"{most:,}")
    last += f" ({most / sum(sizes):.1%} at most at a time)"
    return "\n".join([f"{strategy}, base rate {base:.0e}", *(line(*row) for row in rows), last])


def most_trained(model: nn.Module, strategy: Strategy, epochs: Number = 3) -> int:
    """The largest number of parameters that learn at the same time."""
    with strategy.applied(model):
        learning = [sum(both) for both in learning_parameters(model, strategy)]
    phases = phases_of(strategy, len(learning), epochs)
    return max(sum(compress(learning, rates)) for _, rates in phases)


def phases_of(strategy: Strategy, n_layers: int, epochs: Number) -> list[tuple[float, list[float]]]:
    """(share of the run, rates) wherever the rates change."""
    points = (Progress(step, STEPS, int(step * epochs // STEPS)) for step in range(STEPS))
    phases = groupby(points, key=lambda at: strategy.rates(n_layers, at))
    return [(next(during).share, rates) for rates, during in phases]


def learning_parameters(model: nn.Module, strategy: Strategy) -> list[tuple[int, int]]:
    """How many numbers of each layer learn when it does, with and without weight decay."""
    names = {p: name for name, p in model.named_parameters()}
    layers, counts = layers_of(model), []
    for layer in layers:
        decayed, plain = (
            sum(p.numel() for p in part if layer is layers[-1] or strategy.learns(names[p]))
            for part in split_by_decay(layer)
        )
        counts.append((decayed, plain))
    return counts
