"""`python -m minitransformer evaluate`: score a classifier on labelled texts."""

import argparse
import time
from typing import Any

from .inputs import LABELLED, is_domain, load_classifier, read_labelled


def add(commands: Any) -> None:
    p = commands.add_parser("evaluate", help="score a trained model on labelled texts")
    p.add_argument("model", help="folder that finetune wrote")
    p.add_argument("--data", required=True, help=LABELLED)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the metrics of a model on labelled texts."""
    is_domain(args.data)  # a missing file is reported now, not after the model is loaded
    model, tokenizer = load_classifier(args.model)
    labelled = read_labelled(args.data, model.labels)
    from ..data import encode
    from ..training.evaluate import evaluate

    start = time.perf_counter()
    metrics = evaluate(model, encode(labelled, tokenizer), progress=len(labelled) > 500)
    rate = len(labelled) / (time.perf_counter() - start)
    print(f"{metrics} ({rate:.0f} per second)\n\n{metrics.report()}")
    return 0
