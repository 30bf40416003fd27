"""`python -m minitransformer experiment`: strategies side by side, over labels and seeds."""

import argparse
from typing import Any, get_args

from .. import data
from ..data.domains import DOMAINS
from ..lab.experiments import Grid, Lab
from ..lab.experiments import run as run_trials
from ..lab.results import TF_IDF, table
from ..training.precision import Precision
from ..training.strategies import STRATEGIES, named
from .inputs import TABLE, load_encoder, read_labelled


def add(commands: Any) -> None:
    """Put the command and its options into the parser."""
    p = commands.add_parser(
        "experiment",
        help="compare strategies over numbers of labels and seeds",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="example: python -m minitransformer experiment --methods full head-only tf-idf "
        "--labels 64 1024 --out results.jsonl; stopped, it goes on where it was",
    )
    p.add_argument("--out", required=True, help="the JSONL file of results; what is in it is not redone")  # fmt: skip
    p.add_argument("--data", nargs="+", default=["movies"], help=f"{TABLE}; or domains: {', '.join(DOMAINS)}")  # fmt: skip
    p.add_argument("--also-test", nargs="*", default=[], help="more of them, to test on only")
    p.add_argument("--methods", nargs="+", default=list(Grid.methods),
                   help=f"strategies ({', '.join(STRATEGIES)}), with a number after a colon, and tf-idf")  # fmt: skip
    p.add_argument("--labels", nargs="+", type=int, default=list(Grid.labels), help="training texts")  # fmt: skip
    p.add_argument("--seeds", nargs="+", type=int, default=list(Grid.seeds), help="one training each")  # fmt: skip
    p.add_argument("--lr-factors", nargs="+", type=float, default=list(Grid.lr_factors),
                   help="multiples of each strategy's own rate to choose from, on validation")  # fmt: skip
    p.add_argument("--tune-up-to", type=int, default=Grid.tune_up_to,
                   help="with more labels take the rate that was best with fewer")  # fmt: skip
    p.add_argument("--min-steps", type=int, default=Grid.min_steps, help="for few labels")
    p.add_argument("--epochs", type=int, default=Grid.epochs, help="for many labels")
    p.add_argument("--batch-size", type=int, default=Grid.batch_size, help="texts in a batch")
    p.add_argument("--model", default="all-MiniLM-L6-v2", help="name or folder of an encoder")
    p.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="the text's vector")
    p.add_argument("--precision", choices=get_args(Precision), default="auto", help="as in finetune")  # fmt: skip
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the trials that are missing, print the table of all."""
    for method in args.methods:
        if method != TF_IDF:
            named(method)  # a wrong name now, not after the others have run
    grid = Grid(
        tuple(args.data), tuple(args.methods), tuple(args.labels), tuple(args.seeds),
        tuple(args.lr_factors), args.tune_up_to, args.min_steps, args.epochs, args.batch_size,
    )  # fmt: skip
    encoder, tokenizer = load_encoder(args.model)
    domains = {name: read_labelled(name) for name in (*args.data, *args.also_test)}
    unrelated = next(d for d in ("editorials", "movies") if d not in args.data[:1])
    lab = Lab(encoder, tokenizer, domains, data.load(unrelated).texts, args.pooling, args.precision)
    results = run_trials(lab, grid, args.out)
    print(f"before fine-tuning: pairs {lab.pairs_before:.3f}\n\n{table(results)}")
    return 0
