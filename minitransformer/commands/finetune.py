"""`python -m minitransformer finetune`: train a classifier on labelled texts."""

import argparse
from shlex import quote
from typing import Any, get_args

from ..options import STRATEGIES, Pooling, Precision, number
from .inputs import LABELLED, load_encoder, read_labelled, writable

ENOUGH = 30
"""With fewer steps or test texts the figures say nothing."""


def add(commands: Any) -> None:
    p = commands.add_parser(
        "finetune",
        help="train a classifier on your texts",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="example: python -m minitransformer finetune --data reviews.csv --out my-model",
    )
    p.add_argument("--data", required=True, help=LABELLED)
    p.add_argument("--out", required=True, help="folder to write the model to")
    p.add_argument("--overwrite", action="store_true", help="replace a model of another kind in --out")  # fmt: skip
    p.add_argument("--model", default="all-MiniLM-L6-v2", help="name or folder of a pretrained model")  # fmt: skip
    p.add_argument("--strategy", default="full", metavar="NAME[:NUMBER]",
                   help=f"which layers learn: {', '.join(STRATEGIES)}; last-layers:2 is the last two, lora:8 rank 8")  # fmt: skip
    p.add_argument("--pooling", choices=get_args(Pooling), default="mean",
                   help="the sentence's vector; a cls model also opens in transformers as a classifier")  # fmt: skip
    p.add_argument("--epochs", type=number, default=3, help="passes over the data; 1.5 is one and a half")  # fmt: skip
    p.add_argument("--lr", type=float, help="learning rate; the strategy's own if not given")
    p.add_argument("--batch-size", type=int, default=32, help="texts in a batch")
    p.add_argument("--max-length", type=int, help="cut texts to this many tokens; the model's if not given")  # fmt: skip
    p.add_argument("--balance", action="store_true", help="weight the classes, where one has most of the texts")  # fmt: skip
    p.add_argument("--precision", choices=get_args(Precision), default="auto",
                   help="of matrix products; auto is bfloat16 on a CPU that has it")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the split, the new head, order and dropout")  # fmt: skip
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train on labelled texts, save the model and print its metrics on unseen texts."""
    out = writable(args.out)
    labelled = read_labelled(args.data)
    train, valid, test = labelled.split(seed=args.seed)

    from ..data import encode
    from ..model.heads import SequenceClassifier
    from ..pretrained.checkpoints import CLASSIFIER, refuse_foreign, save_pretrained
    from ..training.evaluate import evaluate, shortened
    from ..training.finetune import finetune
    from ..training.strategies import named
    from ..training.summary import plan

    refuse_foreign(out, [CLASSIFIER], args.overwrite)  # now, not after an hour
    strategy = named(args.strategy)
    encoder, tokenizer = load_encoder(args.model)
    model = SequenceClassifier(encoder, len(labelled.label_names), args.pooling, seed=args.seed)
    encoded = [encode(part, tokenizer, args.max_length) for part in (train, valid, test)]
    tokenizer.max_length = args.max_length or tokenizer.max_length  # predict cuts there too
    print(f"{labelled!r}: {len(train)} to train, {len(valid)} to validate, {len(test)} to test")
    print(plan(model, strategy, epochs=args.epochs, lr=args.lr), "\n")
    history = finetune(
        model, encoded[0], encoded[1], strategy, epochs=args.epochs, lr=args.lr,
        batch_size=args.batch_size, seed=args.seed, precision=args.precision,
        class_weights="balanced" if args.balance else None,
    )  # fmt: skip
    print(f"{history}\n(always the most frequent label: accuracy {valid.majority:.3f})")
    folder = save_pretrained(model, tokenizer, args.out, args.overwrite)
    metrics = evaluate(model, encoded[2])
    print(f"\non the {len(test)} texts kept for the test: {metrics}\n\n{metrics.report()}")
    steps = len(history.steps)
    if steps < ENOUGH or len(test) < ENOUGH:
        print(
            f"{steps} step{'s' * (steps > 1)} on {len(train)} texts and a test on {len(test)} only show that "
            "everything runs, not how good such a model can be\n"
        )
    print(f"trained in {history.seconds:.0f} s; the model is in {folder}; try it:")
    words = [str(folder), shortened(test.texts[0], 60)]
    end = "-- " if any(word.startswith("-") for word in words) else ""  # of the options
    print(f"  python -m minitransformer predict {end}{' '.join(map(quote, words))}")
    return 0
