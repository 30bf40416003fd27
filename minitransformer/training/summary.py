"""What a strategy will do to a model, as a table to read before training."""

from torch import nn

from .layers import Layer, layers_of
from .optim import split_by_decay
from .strategies import Progress, Strategy


def plan(
    model: nn.Module,
    strategy: Strategy,
    *,
    epochs: int = 3,
    lr: float | None = None,
    weight_decay: float = 0.01,
) -> str:
    """For each layer: its parameters, how many learn, at which peak rate and when, decay, dropout.

    A strategy that changes its mind during the run has a column for each part of it.

    Raises:
        ValueError: the strategy does not fit the model.

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
    with strategy.applied(model):
        layers = layers_of(model)
        phases = phases_of(strategy, len(layers), epochs)
        header = ["layer", "parameters", "trained"]
        header += ["rate"] if len(phases) == 1 else [f"from {at:.0%}" for at, _ in phases]
        rows = [[*header, "decay", "dropout"]]
        learning = [learning_parameters(model, layer, strategy, layers[-1]) for layer in layers]
        for i, (layer, (decayed, plain)) in enumerate(zip(layers, learning, strict=True)):
            rates = [base * rates[i] for _, rates in phases]
            frozen = not any(rates)
            rows.append([
                layer.name, f"{size(layer):,}", f"{0 if frozen else decayed + plain:,}",
                *(f"{rate:.0e}" if rate else "frozen" for rate in rates),
                f"{weight_decay:g}" if decayed and not frozen else "-", "off" if frozen else "on",
            ])  # fmt: skip
        everything = sum(map(size, layers))
    most = largest([a + b for a, b in learning], phases)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{strategy}, base rate {base:.0e}"]
    for name, *rest in rows:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    last = "  ".join(["all".ljust(widths[0]), f"{everything:,}".rjust(widths[1])])
    last += "  " + f"{most:,}".rjust(widths[2])
    return "\n".join([*lines, f"{last} ({most / everything:.1%} at most at a time)"])


def most_trained(model: nn.Module, strategy: Strategy, epochs: int = 3) -> int:
    """How many parameters learn at a time, at most."""
    with strategy.applied(model):
        layers = layers_of(model)
        learning = [sum(learning_parameters(model, x, strategy, layers[-1])) for x in layers]
    return largest(learning, phases_of(strategy, len(layers), epochs))


def largest(learning: list[int], phases: list[tuple[float, list[float]]]) -> int:
    """Of `learning`, the parameters of each layer, the most that have a rate in one phase."""
    return max(
        sum(n for n, rate in zip(learning, rates, strict=True) if rate) for _, rates in phases
    )


def phases_of(
    strategy: Strategy, n_layers: int, epochs: int, steps: int = 1000
) -> list[tuple[float, list[float]]]:
    """(share of the run, rates) wherever the rates change."""
    phases: list[tuple[float, list[float]]] = []
    for step in range(steps):
        rates = strategy.rates(n_layers, Progress(step, steps, step * epochs // steps))
        if not phases or rates != phases[-1][1]:
            phases.append((step / steps, rates))
    return phases


def learning_parameters(
    model: nn.Module, layer: Layer, strategy: Strategy, head: Layer
) -> tuple[int, int]:
    """How many numbers of a layer learn, with and without weight decay."""
    names = {p: name for name, p in model.named_parameters()}
    decayed, plain = (
        sum(p.numel() for p in part if layer is head or strategy.learns(names[p]))
        for part in split_by_decay(layer)
    )
    return decayed, plain


def size(layer: Layer) -> int:
    """All parameters of a layer."""
    return sum(p.numel() for module in layer.modules for p in module.parameters())
