"""Which trials an experiment makes."""

from dataclasses import dataclass

from ..options import check_numbers

TF_IDF = "tf-idf"
"""The one method that is not a strategy: the baseline."""


@dataclass(frozen=True)
class Grid:
    """Every combination is a trial; all strategies train for the same number of steps."""

    domains: tuple[str, ...] = ("movies",)
    methods: tuple[str, ...] = ("full", "last-layers:2", "head-only", TF_IDF)
    labels: tuple[int, ...] = (16, 64, 256, 1024)
    seeds: tuple[int, ...] = (0, 1, 2)
    lr_factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    """Multiples of each strategy's own rate, tried with the first seed."""
    tune_up_to: int = 1024
    """With more labels than this, the best rate for fewer labels is used without a search."""
    min_steps: int = 100
    epochs: int = 2
    batch_size: int = 32

    def __post_init__(self):
        check_numbers(**vars(self))

    def steps(self, labels: int) -> int:
        """This many epochs, but at least `min_steps`."""
        return max(self.min_steps, self.epochs * -(-labels // self.batch_size))

    def __len__(self) -> int:
        """The number of trials."""
        searched = sum(n <= self.tune_up_to for n in self.labels) * (len(self.lr_factors) - 1)
        strategies = sum(m != TF_IDF for m in self.methods)
        seeds = len(self.labels) * len(self.seeds)
        return len(self.domains) * (len(self.methods) * seeds + strategies * searched)
