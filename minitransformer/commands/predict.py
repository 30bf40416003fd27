"""`python -m minitransformer predict`: label texts with a classifier."""

import argparse
import csv
import io
from pathlib import Path
from typing import Any

from ..data.atomic import write_whole
from ..data.tables import read_texts
from .inputs import load_classifier


def add(commands: Any) -> None:
    p = commands.add_parser("predict", help="label texts with a trained model")
    p.add_argument("model", help="folder that finetune wrote")
    p.add_argument("texts", nargs="*", help="texts, each in quotes")
    p.add_argument("--file", help="a .csv, .tsv or .jsonl with a column text; or one text per line")
    p.add_argument("--out", help="write a CSV (text, label, probability) instead of printing")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a label for each text, or write them to a CSV."""
    texts = [*args.texts, *(read_texts(args.file) if args.file else [])]
    if not texts:
        raise ValueError('give texts in quotes, or --file: predict my-model "I liked it"')
    model, tokenizer = load_classifier(args.model)
    from ..data import encode
    from ..training.evaluate import predict

    probabilities = predict(model, encode(texts, tokenizer), progress=len(texts) > 500).softmax(-1)
    rows = [
        (text, model.labels[int(p.argmax())], f"{p.max():.3f}")
        for text, p in zip(texts, probabilities, strict=True)
    ]
    if args.out:
        table = io.StringIO(newline="")
        csv.writer(table).writerows([("text", "label", "probability"), *rows])
        write_whole(Path(args.out), table.getvalue().encode())
        print(f"{len(rows)} texts labelled in {args.out}")
    else:
        width = max(len(label) for _, label, _ in rows)
        for text, label, p in rows:
            print(f"{label:{width}}  {p}  {text}")
    return 0
