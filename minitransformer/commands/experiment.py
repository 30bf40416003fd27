"""`python -m minitransformer experiment`: compare strategies over numbers of labels and seeds."""

import argparse
import warnings
from typing import Any, get_args

from ..lab.grid import Grid
from ..options import STRATEGIES, Pooling, Precision
from .inputs import LABELLED, load_encoder, read_labelled, writable


def add(commands: Any) -> None:
    p = commands.add_parser(
        "experiment",
        help="compare strategies over numbers of labels and seeds",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="example: python -m minitransformer experiment --methods full head-only tf-idf "
        "--labels 64 1024 --out results.jsonl; once stopped, it continues where it was",
    )
    p.add_argument("--out", required=True, help="JSONL file of results; trials that are in it are not repeated")  # fmt: skip
    p.add_argument("--data", nargs="+", default=list(Grid.domains), help=LABELLED)
    p.add_argument("--also-test", nargs="*", default=[], help="more of them, only to test on")
    p.add_argument("--methods", nargs="+", default=list(Grid.methods),
                   help=f"strategies ({', '.join(STRATEGIES)}), perhaps with a number after a colon; and tf-idf")  # fmt: skip
    p.add_argument("--labels", nargs="+", type=int, default=list(Grid.labels), help="training texts")  # fmt: skip
    p.add_argument("--seeds", nargs="+", type=int, default=list(Grid.seeds), help="one training run each")  # fmt: skip
    p.add_argument("--lr-factors", nargs="+", type=float, default=list(Grid.lr_factors),
                   help="multiples of each strategy's own rate; validation chooses")  # fmt: skip
    p.add_argument("--tune-up-to", type=int, default=Grid.tune_up_to,
                   help="with more labels, take the rate that was best with fewer")  # fmt: skip
    p.add_argument("--min-steps", type=int, default=Grid.min_steps, help="with few labels")
    p.add_argument("--epochs", type=int, default=Grid.epochs, help="with many labels")
    p.add_argument("--batch-size", type=int, default=Grid.batch_size, help="texts in a batch")
    p.add_argument("--model", default="all-MiniLM-L6-v2", help="name or folder of an encoder")
    p.add_argument("--pooling", choices=get_args(Pooling), default="mean", help="the text's vector")
    p.add_argument("--precision", choices=get_args(Precision), default="auto", help="as in finetune")  # fmt: skip
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the missing trials and print the table of all."""
    writable(args.out)
    domains = {name: read_labelled(name) for name in (*args.data, *args.also_test)}

    from ..data import load
    from ..lab.experiments import Lab
    from ..lab.experiments import run as run_trials
    from ..lab.results import table

    grid = Grid(
        tuple(args.data), tuple(args.methods), tuple(args.labels), tuple(args.seeds),
        tuple(args.lr_factors), args.tune_up_to, args.min_steps, args.epochs, args.batch_size,
    )  # fmt: skip
    encoder, tokenizer = load_encoder(args.model)
    unrelated = next(d for d in ("editorials", "movies") if d not in args.data[:1])
    try:
        texts = load(unrelated).texts
    except FileNotFoundError:  # without the downloads, measure on what there is
        texts = domains[args.data[0]].texts
        warnings.warn(
            f"pairs are measured on {args.data[0]}, since {unrelated} is not downloaded",
            stacklevel=1,
        )
    lab = Lab(encoder, tokenizer, domains, texts, args.pooling, args.precision)
    try:
        results = run_trials(lab, grid, args.out)
    except KeyboardInterrupt:
        advice = f"{args.out} has the results so far; the same command continues"
        raise KeyboardInterrupt(advice) from None
    print(f"before fine-tuning: pairs {lab.pairs_before:.3f}\n\n{table(results)}\n")
    shares = (f"{name} {test.majority:.3f}" for name, test in lab.tests.items())
    print(f"accuracy of always answering with the most frequent label: {', '.join(shares)}")
    return 0
