"""Which trials an experiment makes."""

from dataclasses import dataclass

TF_IDF = "tf-idf"
"""The method that is no strategy: the baseline."""


@dataclass(frozen=True)
class Grid:
    """Which trials to make, with the same number of steps for every strategy."""

    domains: tuple[str, ...] = ("movies",)
    methods: tuple[str, ...] = ("full", "last-layers:2", "head-only", TF_IDF)
    labels: tuple[int, ...] = (16, 64, 256, 1024)
    seeds: tuple[int, ...] = (0, 1, 2)
    lr_factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    """Multiples of each strategy's own rate, tried with the first seed."""
    tune_up_to: int = 1024
    """With more labels than this the rate is not searched but taken over from fewer."""
    min_steps: int = 100
    epochs: int = 2
    batch_size: int = 32

    def steps(self, labels: int) -> int:
        """This many epochs, and with few labels at least `min_steps`."""
        return max(self.min_steps, self.epochs * -(-labels // self.batch_size))

    def __len__(self) -> int:
        """The number of trials."""
        searched = sum(n <= self.tune_up_to for n in self.labels) * (len(self.lr_factors) - 1)
        strategies = sum(m != TF_IDF for m in self.methods)
        seeds = len(self.labels) * len(self.seeds)
        return len(self.domains) * (len(self.methods) * seeds + strategies * searched)
