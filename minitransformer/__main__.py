"""The command line: `python -m minitransformer COMMAND --help`."""

import argparse
import csv
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import get_args

import torch

from . import data
from .classroom import report
from .classroom.grade import EXERCISES, grade
from .classroom.measure import catalogue, listed
from .commands import pretrain as pretrain_command
from .data.datasets import LabelledTexts, read_table, read_texts
from .data.domains import DOMAINS
from .formulas.verify import verify
from .model.heads import SequenceClassifier
from .model.language_models import MaskedLM
from .model.transformer import Encoder
from .pretrained import load_pretrained, save_pretrained
from .pretrained.checkpoints import refuse_foreign
from .training.evaluate import evaluate, predict
from .training.experiments import Grid, Lab, run
from .training.finetune import finetune
from .training.plan import plan
from .training.precision import Precision
from .training.results import TF_IDF, table
from .training.strategies import STRATEGIES, named


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors of the user's making print one clear line and exit with 2."""
    args = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(
                f"note: {message}", file=sys.stderr
            )
            return args.run(args)
    except (OSError, ValueError, KeyError, FloatingPointError) as error:
        # str(KeyError) is the repr of its message
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"minitransformer: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nstopped; {str(stop) or 'nothing was written'}", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m minitransformer",
        description="Check the formulas, pretrain or fine-tune a model on texts, and use it.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    show_defaults = argparse.ArgumentDefaultsHelpFormatter

    p = commands.add_parser(
        "verify", help="check every formula of the ledger; exit 1 if one is off"
    )
    p.add_argument("formulas", nargs="*", help="ids such as attention layer_norm; all by default")
    p.add_argument("--seed", type=int, default=20171206, help="of the random inputs")
    p.set_defaults(run=run_verify)

    p = commands.add_parser(
        "mistakes", help="make every mistake that the exercises know; exit 1 if one goes unseen"
    )
    p.add_argument("exercises", nargs="*", help="names such as attention softmax; all by default")
    p.add_argument("--list", action="store_true", help="only print them, with the term they break")
    p.set_defaults(run=run_mistakes)

    p = commands.add_parser(
        "finetune",
        help="train a classifier on your texts",
        formatter_class=show_defaults,
        epilog="example: python -m minitransformer finetune --data reviews.csv --out my-model",
    )
    p.add_argument("--data", required=True, help=f"{TABLE}; or a domain: {', '.join(DOMAINS)}")
    p.add_argument("--out", required=True, help="folder to write the model to")
    p.add_argument(
        "--model", default="all-MiniLM-L6-v2", help="name or folder of a pretrained model"
    )
    p.add_argument("--strategy", default="full", metavar="NAME[:NUMBER]",
                   help=f"which layers learn: {', '.join(STRATEGIES)}; last-layers:2 the last two, lora:8 rank 8")  # fmt: skip
    p.add_argument("--pooling", choices=("mean", "cls"), default="mean",
                   help="the sentence's vector; a cls model also opens in transformers as a classifier")  # fmt: skip
    p.add_argument("--epochs", type=int, default=3, help="passes over the data")
    p.add_argument("--lr", type=float, help="learning rate; the strategy's own if not given")
    p.add_argument("--batch-size", type=int, default=32, help="texts in a batch")
    p.add_argument(
        "--max-length", type=int, help="cut texts to so many tokens; the model's if not given"
    )
    p.add_argument("--precision", choices=get_args(Precision), default="auto",
                   help="of matrix products; auto is bfloat16 on a CPU that has it, else medium")  # fmt: skip
    p.add_argument(
        "--seed", type=int, default=0, help="of the split, the new head, order and dropout"
    )
    p.set_defaults(run=run_finetune)

    pretrain_command.add(commands)

    p = commands.add_parser(
        "experiment",
        help="compare strategies over numbers of labels and seeds",
        formatter_class=show_defaults,
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
    p.set_defaults(run=run_experiment)

    p = commands.add_parser("predict", help="label texts with a trained model")
    p.add_argument("model", help="folder that finetune wrote")
    p.add_argument("texts", nargs="*", help="texts, each in quotes")
    p.add_argument(
        "--file", help="texts to label: .csv, .tsv, .jsonl with a column text, or one a line"
    )
    p.add_argument("--out", help="write a CSV (text, label, probability) instead of printing")
    p.set_defaults(run=run_predict)

    p = commands.add_parser("evaluate", help="score a trained model on labelled texts")
    p.add_argument("model", help="folder that finetune wrote")
    p.add_argument("--data", required=True, help=f"{TABLE}; or a domain: {', '.join(DOMAINS)}")
    p.set_defaults(run=run_evaluate)

    p = commands.add_parser(
        "grade",
        help="check what a class handed in",
        formatter_class=show_defaults,
        description="Check the functions that exercise sheets ask for, one process a submission. "
        "A notebook answers the sheet that it has most in common with, whatever its name. The "
        "cells that a student changed or added run in their order, those that were handed out only "
        "where the others use what they define; a cell that fails does not stop the next.",
        epilog="example: python -m minitransformer grade handed-in/ --out grades",
    )
    p.add_argument("submissions", nargs="+", help="notebooks (.ipynb, .py with # %%%%), or folders of them")  # fmt: skip
    p.add_argument("--out", default="grades", help="folder for grades.csv, grades.html, mistakes.png")  # fmt: skip
    p.add_argument("--exercises", default=str(EXERCISES), help="folder of the sheets as handed out")
    p.add_argument("--seconds", type=float, default=120.0, help="limit for a cell; a submission has 5 times that")  # fmt: skip
    p.add_argument("--memory", type=float, default=4.0, help="GiB for a submission; on Linux only")
    p.set_defaults(run=run_grade)
    return top


TABLE = "a .csv, .tsv or .jsonl file with the columns text and label"


def run_verify(args: argparse.Namespace) -> int:
    """Print the ledger."""
    report = verify(args.formulas or None, args.seed)
    print(report)
    return 0 if report.ok else 1


def run_mistakes(args: argparse.Namespace) -> int:
    """Print how well the exercises know their mistakes, or which they know."""
    if args.list:
        print(listed(args.exercises or None))
        return 0
    found = catalogue(args.exercises or None)
    print(found)
    return 0 if found.ok else 1


def run_finetune(args: argparse.Namespace) -> int:
    """From a file of labelled texts to a folder with a model, and its figures on unseen texts."""
    if args.epochs < 1 or args.batch_size < 1:
        raise ValueError("--epochs and --batch-size must be at least 1")
    refuse_foreign(Path(args.out))  # now, not after an hour of training
    strategy, labelled = named(args.strategy), read_labelled(args.data)
    train, valid, test = labelled.split(seed=args.seed)
    encoder, tokenizer = load_encoder(args.model)
    torch.manual_seed(args.seed)
    model = SequenceClassifier(encoder, len(labelled.label_names), args.pooling)
    encoded = [data.encode(part, tokenizer, args.max_length) for part in (train, valid, test)]
    print(f"{labelled!r}: {len(train)} to train, {len(valid)} to validate, {len(test)} to test")
    print(plan(model, strategy, epochs=args.epochs, lr=args.lr), "\n")
    history = finetune(
        model, encoded[0], encoded[1], strategy, epochs=args.epochs, lr=args.lr,
        batch_size=args.batch_size, seed=args.seed, precision=args.precision,
    )  # fmt: skip
    print(history)
    folder = save_pretrained(model, tokenizer, args.out)
    metrics = evaluate(model, encoded[2])
    print(f"\non the {len(test)} texts kept for the test: {metrics}\n\n{metrics.report()}")
    print(f"trained in {history.seconds:.0f} s; the model is in {folder}; try it:")
    print(f'  python -m minitransformer predict {folder} "{test.texts[0]}"')
    return 0


def run_experiment(args: argparse.Namespace) -> int:
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
    results = run(lab, grid, args.out)
    print(f"before fine-tuning: pairs {lab.pairs_before:.3f}\n\n{table(results)}")
    return 0


def run_predict(args: argparse.Namespace) -> int:
    """Label texts."""
    texts = [*args.texts, *(read_texts(args.file) if args.file else [])]
    if not texts:
        raise ValueError('give texts in quotes, or --file: predict my-model "I liked it"')
    model, tokenizer = load_classifier(args.model)
    encoded = data.encode(texts, tokenizer)
    probabilities = predict(model, encoded, progress=len(texts) > 500).softmax(-1)
    rows = [
        (text, model.labels[int(p.argmax())], f"{p.max():.3f}")
        for text, p in zip(texts, probabilities, strict=True)
    ]
    if args.out:
        write_csv(Path(args.out), [("text", "label", "probability"), *rows])
        print(f"{len(rows)} texts labelled in {args.out}")
    else:
        width = max(len(label) for _, label, _ in rows)
        for text, label, p in rows:
            print(f"{label:{width}}  {p}  {text}")
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Score a model on labelled texts."""
    model, tokenizer = load_classifier(args.model)
    labelled = read_labelled(args.data, model.labels)
    start = time.perf_counter()
    metrics = evaluate(model, data.encode(labelled, tokenizer), progress=len(labelled) > 500)
    rate = len(labelled) / (time.perf_counter() - start)
    print(f"{metrics} ({rate:.0f} a second)\n\n{metrics.report()}")
    return 0


def run_grade(args: argparse.Namespace) -> int:
    """From notebooks to a table of who got what right, and what not."""
    if args.seconds <= 0 or args.memory <= 0:
        raise ValueError("--seconds and --memory must be more than 0")
    submissions = [Path(path) for path in args.submissions]
    grades = grade(submissions, Path(args.exercises), args.seconds, args.memory)
    written = report.write(grades, Path(args.out))
    passed, students = sum(g.passed for g in grades), len({g.student for g in grades})
    print(f"{students} submissions, {passed} of {len(grades)} exercises passed; open {written[1]}")
    return 0


def read_labelled(source: str, label_names: tuple[str, ...] | None = None) -> LabelledTexts:
    """A file, or one of the domains by name."""
    if source not in DOMAINS:
        return read_table(source, label_names)
    domain = data.load(source)
    if label_names not in (None, domain.label_names):
        raise ValueError(
            f"{source} has the labels {', '.join(domain.label_names)}, the model knows "
            f"{', '.join(label_names or ())}"
        )
    return domain


def load_encoder(name: str) -> tuple[Encoder, data.Tokenizer]:
    """The encoder of a folder, to go on from: a head that it has is left behind."""
    model, tokenizer = load_pretrained(name)
    if isinstance(model, SequenceClassifier | MaskedLM):
        model = model.encoder
    if not isinstance(model, Encoder):
        raise ValueError(f"{name} holds a {type(model).__name__}; a classifier needs an encoder")
    return model, tokenizer


def load_classifier(folder: str) -> tuple[SequenceClassifier, data.Tokenizer]:
    """A folder that holds a classifier."""
    model, tokenizer = load_pretrained(folder)
    if not isinstance(model, SequenceClassifier):
        raise ValueError(f"{folder} is a model without a classifier; train one with finetune")
    return model, tokenizer


def write_csv(path: Path, rows: list[tuple[str, ...]]) -> None:
    """Write beside the target, then rename: a crash leaves no half file."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}-", newline="", encoding="utf-8", delete=False
    ) as draft:
        csv.writer(draft).writerows(rows)
    os.umask(mask := os.umask(0))  # the only way to read it
    os.chmod(draft.name, 0o666 & ~mask)  # a temporary file is its owner's alone
    os.replace(draft.name, path)


if __name__ == "__main__":
    sys.exit(main())
