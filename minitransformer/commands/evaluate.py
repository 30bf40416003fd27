"""`python -m minitransformer evaluate`: how good a classifier is on labelled texts."""

import argparse
import time
from typing import Any

from .. import data
from ..data.domains import DOMAINS
from ..training.evaluate import evaluate
from .inputs import TABLE, load_classifier, read_labelled


def add(commands: Any) -> None:
    """Put the command and its options into the parser."""
    p = commands.add_parser("evaluate", help="score a trained model on labelled texts")
    p.add_argument("model", help="folder that finetune wrote")
    p.add_argument("--data", required=True, help=f"{TABLE}; or a domain: {', '.join(DOMAINS)}")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score a model on labelled texts."""
    model, tokenizer = load_classifier(args.model)
    labelled = read_labelled(args.data, model.labels)
    start = time.perf_counter()
    metrics = evaluate(model, data.encode(labelled, tokenizer), progress=len(labelled) > 500)
    rate = len(labelled) / (time.perf_counter() - start)
    print(f"{metrics} ({rate:.0f} a second)\n\n{metrics.report()}")
    return 0
