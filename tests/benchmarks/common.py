"""Time candidates side by side: interleaved in one process, so that the machine's moods hit all alike."""

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from tqdm import tqdm

from minitransformer.lab.memory import PeakMemory

Seconds = dict[str, list[float]]


def interleave(candidates: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    """Run each candidate once a round; the first round warms up and is not counted."""
    seconds: Seconds = {name: [] for name in candidates}
    for number in tqdm(range(rounds + 1), leave=False):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def interleave_with_memory(
    candidates: dict[str, Callable[[], object]], rounds: int
) -> tuple[Seconds, dict[str, float]]:
    """The same, and the peak memory of each in MiB, over what it begins with."""
    memory = dict.fromkeys(candidates, 0.0)

    def measured(name: str) -> None:
        with PeakMemory() as peak:
            candidates[name]()
        memory[name] = max(memory[name], peak.mib)

    return interleave({name: partial(measured, name) for name in candidates}, rounds), memory


def table(title: str, seconds: Seconds, baseline: str) -> str:
    """Medians, fastest turns, and the ratio of both to a baseline, as Markdown.

    On a machine that does something else at times, the fastest turns tell more than the medians.
    """
    base, fastest = statistics.median(seconds[baseline]), min(seconds[baseline])
    lines = [
        f"\n### {title}\n",
        "| | median ms | times faster | fastest ms | times faster |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in seconds.items():
        median = statistics.median(values)
        lines.append(
            f"| {name} | {1e3 * median:.0f} | {base / median:.2f} "
            f"| {1e3 * min(values):.0f} | {fastest / min(values):.2f} |"
        )
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except OSError:
        pass
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"
