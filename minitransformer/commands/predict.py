"""`python -m minitransformer predict`: label texts with a classifier."""

import argparse
import csv
import io
from typing import Any

from ..data.atomic import write_whole
from ..data.tables import existing, harmless, read_texts
from .inputs import load_classifier, writable

HEADER = ("text", "label", "probability")


def add(commands: Any) -> None:
    p = commands.add_parser("predict", help="label texts with a trained model")
    p.add_argument("model", help="folder that finetune wrote")
    p.add_argument("texts", nargs="*", help="texts, each in quotes")
    p.add_argument("--file", help="a .csv, .tsv or .jsonl with a column text; or one text per line")
    p.add_argument("--out", help="write a CSV (text, label, probability) instead of printing")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a label for each text, or write them to a CSV."""
    if args.out:
        refuse_to_replace(args.out, args.file)
    texts = [*args.texts, *(read_texts(args.file) if args.file else [])]
    if not texts:
        raise ValueError('give texts in quotes, or --file: predict my-model "I liked it"')
    model, tokenizer = load_classifier(args.model)
    from ..data import encode
    from ..training.evaluate import predict, shortened

    probabilities = predict(model, encode(texts, tokenizer), progress=len(texts) > 500).softmax(-1)
    rows = [
        (text, model.labels[int(p.argmax())], f"{p.max():.3f}")
        for text, p in zip(texts, probabilities, strict=True)
    ]
    if args.out:
        table = io.StringIO(newline="")
        cells = [(harmless(text), harmless(label), p) for text, label, p in rows]
        csv.writer(table).writerows([HEADER, *cells])
        write_whole(writable(args.out), table.getvalue().encode())
        print(f"{len(rows)} texts labelled in {args.out}")
    else:
        labels = [shortened(label, 40) for _, label, _ in rows]
        for label, (text, _, p) in zip(labels, rows, strict=True):
            print(f"{label:{max(map(len, labels))}}  {p}  {shortened(text, len(text))}")
    return 0


def refuse_to_replace(out: str, file: str | None) -> None:
    """Raise ValueError for an output that cannot be written, or whose content would be lost."""
    path = writable(out, make_folders=False)
    if path.is_dir():
        raise ValueError(f"--out {out} is a folder; give the name of a file")
    if path.exists() and file and path.samefile(existing(file)):
        raise ValueError(f"--out {out} is the file to be labelled; choose another name")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as old:
            if not old.readline().startswith(",".join(HEADER).encode()):
                raise ValueError(
                    f"--out {out} is there and holds something else; choose another name"
                )
