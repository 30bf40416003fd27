"""Strategy by number of labels by seed: what each is worth, in one file that resumes.

A *trial* is one training, a *result* its outcome, one line of a JSONL file. The runner looks up the
results that the file has, runs the missing trials, and appends each result as soon as it has it. A
trial is known by all that its result depends on, the weights and the texts included.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, TextIO

from ..data.batches import EncodedTexts
from ..data.datasets import LabelledTexts
from ..data.tokenizers import Tokenizer, encode
from ..model.heads import SequenceClassifier
from ..model.transformer import Encoder
from ..options import Pooling, Precision
from ..progress import progress_bar
from ..training.checkpointing import checksum
from ..training.evaluate import evaluate
from ..training.finetune import finetune
from ..training.history import History
from ..training.precision import resolve
from ..training.strategies import named
from ..training.summary import most_trained
from .baseline import tf_idf
from .forgetting import moved, pairing_accuracy
from .grid import TF_IDF, Grid
from .memory import PeakMemory
from .results import Result, Trial, by_validation, read

PAIRS = 300
"""Texts to measure forgetting on."""


class Lab:
    """A pretrained encoder and labelled texts, ready for trials.

    A tenth of each domain is its test part, the same for every trial. The validation set has as many
    texts as the training set (at most a tenth of the domain): whoever has few labels to train with
    has few to choose with, too.

    Args:
        domains: labelled texts by name.
        unrelated: texts of a domain that is not trained on, to measure forgetting.
    """

    def __init__(
        self, encoder: Encoder, tokenizer: Tokenizer, domains: dict[str, LabelledTexts],
        unrelated: Sequence[str], pooling: Pooling = "mean", precision: Precision = "auto",
    ):  # fmt: skip
        self.encoder, self.tokenizer, self.pooling = encoder, tokenizer, pooling
        self.unrelated, self.precision = list(unrelated)[:PAIRS], precision
        self.parts = {name: texts.split(seed=0) for name, texts in domains.items()}
        self.tests = {n: parts[2] for n, parts in self.parts.items()}
        self.encoded_tests = {n: encode(test, tokenizer) for n, test in self.tests.items()}

    @cached_property
    def basis(self) -> str:
        """A hash of all that decides the result of a trial besides what the trial says itself."""
        settings = (self.encoder.config, self.pooling, resolve(self.precision), self.unrelated)
        texts = [(n, t.texts, t.labels, t.label_names) for n in self.parts for t in self.parts[n]]
        about = {"settings": repr((settings, texts)), "tokenizer": self.tokenizer.to_json()}
        return checksum(about, self.encoder.state_dict())[:16]

    def texts(self, trial: Trial) -> tuple[LabelledTexts, LabelledTexts]:
        """The training and the validation texts of a trial.

        Raises:
            KeyError: a domain that the lab does not have.
            ValueError: more texts than there are, or only one label among those drawn.
        """
        if trial.domain not in self.parts:
            raise KeyError(f"no domain {trial.domain!r}; choose one of {', '.join(self.parts)}")
        train, valid, _ = self.parts[trial.domain]
        few = train.sample(trial.labels, trial.seed)
        if len(set(few.labels)) < 2:
            raise ValueError(
                f"{trial.labels} texts of {trial.domain} with seed {trial.seed} all have one label; "
                "take more texts or another seed"
            )
        return few, valid.sample(min(trial.labels, len(valid)), trial.seed)

    def new_model(self, trial: Trial) -> SequenceClassifier:
        """The pretrained encoder with a new head, which depends on the seed alone."""
        n_classes = len(self.parts[trial.domain][0].label_names)
        return SequenceClassifier(self.encoder, n_classes, self.pooling, seed=trial.seed)

    def numbered(self, trial: Trial) -> dict[str, LabelledTexts]:
        """Every test part, its labels numbered as those that the trial trains on."""
        names = self.parts[trial.domain][0].label_names
        return {name: test.numbered_as(names) for name, test in self.tests.items()}

    def encoded_test(self, name: str, trial: Trial) -> EncodedTexts:
        """A test part for the model of a trial."""
        test = self.numbered(trial)[name]
        return replace(self.encoded_tests[name], labels=test.labels, label_names=test.label_names)

    def refuse(self, grid: Grid) -> None:
        """Raise now, before the first trial, what would stop a later one."""
        for method in grid.methods:
            if method != TF_IDF:
                named(method)
        for domain, labels, seed in product(grid.domains, grid.labels, grid.seeds):
            self.texts(Trial(domain, "", labels, seed))
            self.numbered(Trial(domain, "", labels, seed))

    def train(self, trial: Trial, **options: Any) -> tuple[SequenceClassifier, History, float]:
        """(model, history, peak memory in MiB) of a trial that is a strategy."""
        train, valid = (encode(part, self.tokenizer) for part in self.texts(trial))
        model = self.new_model(trial)
        with PeakMemory() as memory:
            history = finetune(
                model, train, valid, named(trial.method), steps=trial.steps, lr=trial.lr,
                batch_size=trial.batch_size, seed=trial.seed, precision=self.precision,
                **({"progress": False} | options),
            )  # fmt: skip
        return model, history, memory.mib

    def run(self, trial: Trial) -> Result:
        """Train and test; the lab itself does not change.

        Raises: KeyError, ValueError as `texts`.
        """
        if trial.method == TF_IDF:
            return self.count_words(trial)
        model, history, mib = self.train(trial)
        metrics = {name: evaluate(model, self.encoded_test(name, trial)) for name in self.tests}
        return Result(
            trial,
            valid_accuracy=history.best["valid_accuracy"],
            valid_loss=history.best["valid_loss"],
            accuracy={name: m.accuracy for name, m in metrics.items()},
            collapsed=len(set(metrics[trial.domain].predictions.tolist())) == 1,
            seconds=history.seconds,
            trained=most_trained(model, named(trial.method)),
            memory_mib=mib,
            pairs=pairing_accuracy(model.encoder, self.tokenizer, self.unrelated),
            moved=moved(self.new_model(trial), model),
        )

    def count_words(self, trial: Trial) -> Result:
        """A trial of the baseline."""
        train, valid = self.texts(trial)
        start = time.perf_counter()
        counting = tf_idf(train, valid)
        seconds = time.perf_counter() - start
        tests = self.numbered(trial)
        accuracy = {n: counting.score(t.texts, t.labels) for n, t in tests.items()}
        collapsed = len(set(counting.predict(self.tests[trial.domain].texts))) == 1
        valid_accuracy = counting.score(valid.texts, valid.labels)
        return Result(trial, valid_accuracy, 0.0, accuracy, collapsed, seconds)

    @cached_property
    def pairs_before(self) -> float:
        """`pairing_accuracy` of the pretrained encoder."""
        return pairing_accuracy(self.encoder, self.tokenizer, self.unrelated)


def trials(grid: Grid, do: Callable[[Trial], Result]) -> Iterator[Result]:
    """Every result in turn: for each cell the search for a rate, then the other seeds."""
    for domain in grid.domains:
        for method in grid.methods:
            own = best = 0.0 if method == TF_IDF else named(method).learning_rate
            for labels in sorted(grid.labels):
                search = own > 0 and labels <= grid.tune_up_to
                # six digits, so that 3 * 5e-5 and 1.5e-4 are the same rate
                rates = [float(f"{own * f:.6g}") for f in grid.lr_factors] if search else [best]
                steps = grid.steps(labels) if own else 0
                cell = partial(Trial, domain, method, labels, steps=steps, batch_size=grid.batch_size)  # fmt: skip
                tried = [do(cell(seed=grid.seeds[0], lr=rate)) for rate in rates]
                yield from tried
                best = max(tried, key=by_validation).trial.lr
                for seed in grid.seeds[1:]:
                    yield do(cell(seed=seed, lr=best))


def refuse_second(file: TextIO) -> None:
    """Lock the results for this process: two at once would make every trial twice."""
    with contextlib.suppress(ImportError):  # not on every system
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            text = f"another process is adding results to {file.name}; wait for it, or choose another file"
            raise ValueError(text) from None


def run(lab: Lab, grid: Grid, path: str | Path, progress: bool = True) -> list[Result]:
    """Run the trials of a grid that the file does not have yet; return the results of all.

    Each result is on the disk before the next trial begins, so a run that was stopped continues.

    Raises: ValueError: the file has a line that is no result; or too few texts for a trial, a test
        part with other labels, or an unknown strategy, before the first trial.
    """
    path = Path(path)
    lab.refuse(grid)
    known = {result.trial: result for result in read(path, mend=True)}
    path.parent.mkdir(parents=True, exist_ok=True)

    def do(trial: Trial) -> Result:
        trial = replace(trial, basis=lab.basis)
        if trial not in known:
            bar.set_postfix_str(
                f"{trial.method}, {trial.labels} labels of {trial.domain}", refresh=False
            )
            known[trial] = lab.run(trial)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(known[trial])) + "\n")
                file.flush()
                os.fsync(file.fileno())
        bar.update()
        return known[trial]

    with open(path, "a") as file, progress_bar(len(grid), " trials", progress) as bar:
        refuse_second(file)
        return list(trials(grid, do))
