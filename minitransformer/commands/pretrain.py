"""`python -m minitransformer pretrain`: train a language model on a file of texts."""

import argparse
import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..data.domains import DOMAINS, load
from ..data.tables import TABLES, lines_of, read_text, read_texts
from ..options import Objective, Precision, Schedule, TokenizerKind, number
from .inputs import writable

if TYPE_CHECKING:
    from ..data import Tokenizer

TOKENIZERS = get_args(TokenizerKind)
UNCUT = 2**40
"""A maximum length that cuts no text: all of it goes into the blocks."""


def add(commands: Any) -> None:
    p = commands.add_parser(
        "pretrain",
        help="train a small language model on your texts, from scratch",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train a small language model from scratch: learn a tokenizer, pack the texts "
        "into blocks, train, write the model. It may stop at any moment, even through a power cut: "
        "the same command with --resume continues, and ends as if nothing had happened.",
        epilog="examples: python -m minitransformer pretrain --texts book.txt --out my-gpt; with two "
        "processes: python -m torch.distributed.run --nproc-per-node 2 -m minitransformer pretrain "
        "--texts book.txt --out my-gpt",
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--texts", metavar="FILE", help="one text per line; or a .csv, .tsv or .jsonl with a column text")  # fmt: skip
    source.add_argument("--data", choices=DOMAINS, help="or a domain, which `make data` downloads")
    p.add_argument("--out", required=True, help="folder for the model; checkpoints and history.jsonl are in its training/")  # fmt: skip
    p.add_argument("--resume", action="store_true", help="continue from the last checkpoint; start if there is none")  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace a model of another kind in --out")  # fmt: skip
    p.add_argument("--objective", choices=get_args(Objective), default="causal",
                   help="causal: predict the next token, a GPT; masked: predict hidden ones, a BERT; spans: fill holes, a T5")  # fmt: skip
    p.add_argument("--tokenizer", default="bytes", metavar="KIND",
                   help=f"learn one of {', '.join(TOKENIZERS)}; or a model's folder, to take its tokenizer")  # fmt: skip
    p.add_argument("--vocab-size", type=int, default=2000, help="tokens to learn; of characters, those that occur")  # fmt: skip
    p.add_argument("--layers", type=int, default=4, help="blocks of the model; the decoder of a T5 has as many again")  # fmt: skip
    p.add_argument("--d-model", type=int, default=128, help="its width")
    p.add_argument("--heads", type=int, default=4, help="attention heads per block")
    p.add_argument("--length", type=int, default=128, help="tokens in a block, and positions of the model")  # fmt: skip
    p.add_argument("--dropout", type=float, default=0.1, help="everywhere; 0 for one pass over much text")  # fmt: skip
    p.add_argument("--steps", type=int, default=1000, help="batches to train on")
    p.add_argument("--batch-size", type=int, default=16, help="blocks in a batch")
    p.add_argument("--accumulate", type=int, default=1, help="parts to work through a batch in, for less memory")  # fmt: skip
    p.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    p.add_argument("--schedule", choices=get_args(Schedule), default="linear", help="how it falls")
    p.add_argument("--warmup", type=number, default=0.1, help="share of the steps over which it rises, or their number")  # fmt: skip
    p.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS", help="steps between checkpoints")  # fmt: skip
    p.add_argument("--precision", choices=get_args(Precision), default="auto", help="as in finetune")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the initial weights, order, masks and dropout")  # fmt: skip
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train on texts and save the model."""
    out = writable(args.out)
    texts = read_corpus(args)

    import torch

    from ..pretrained.checkpoints import KINDS, TRAINING, refuse_foreign, save_pretrained
    from ..training.checkpointing import refuse_existing
    from ..training.from_scratch import blocks_of, end_of, examples, new_model
    from ..training.parallel import joined, rank_and_size
    from ..training.pretrain import pretrain

    training = out / TRAINING
    refuse_foreign(out, [KINDS[args.objective]], args.overwrite)  # now, not after an hour
    with joined(), stoppable():
        refuse_existing(training, args.resume)
        first = rank_and_size()[0] == 0
        tokenizer = tokenizer_for(args, texts, training)
        end_id = end_of(tokenizer, args.objective)
        blocks = blocks_of(texts, tokenizer, args.length, end_id)
        train, valid = (examples(args.objective, part, tokenizer, end_id) for part in blocks)
        torch.manual_seed(args.seed)
        model = new_model(
            args.objective, tokenizer, end_id, d_model=args.d_model, n_heads=args.heads,
            n_layers=args.layers, length=args.length, dropout=args.dropout,
        )  # fmt: skip
        if first:
            weights = sum(p.numel() for p in model.parameters())
            print(f"{len(texts):,} texts: {len(train):,} blocks of {args.length} tokens to train, ", end="")  # fmt: skip
            print(f"{len(valid):,} to validate; {tokenizer.vocab_size:,} tokens, {weights / 1e6:.2f} million weights")  # fmt: skip
        history = pretrain(
            model, train, valid, steps=args.steps, batch_size=args.batch_size, lr=args.lr,
            schedule=args.schedule, warmup=args.warmup, accumulate=args.accumulate, seed=args.seed,
            precision=args.precision, checkpoint=training, checkpoint_every=args.checkpoint_every,
            resume=args.resume, progress=first,
        )  # fmt: skip
        if first:
            print(history)
            save_pretrained(model, tokenizer, out, args.overwrite)
            print(f"trained in {history.seconds:.0f} s; the model is in {out}; to open it:")
            print(f'  import minitransformer as mt; model, tokenizer = mt.load_pretrained("{out}")')
    return 0


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Say how to continue after Ctrl-C or a plain kill. (After kill -9 it can be continued too.)"""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        advice = "the same command with --resume continues from the last checkpoint"
        raise KeyboardInterrupt(advice) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def read_corpus(args: argparse.Namespace) -> Sequence[str]:
    """The texts; blank lines in a plain file are skipped."""
    if args.data:
        return load(args.data).texts
    if Path(args.texts).suffix.lower() in TABLES:
        return read_texts(args.texts)
    return [line for line in lines_of(read_text(args.texts)) if line.strip()]


def tokenizer_for(args: argparse.Namespace, texts: Sequence[str], training: Path) -> "Tokenizer":
    """A model's tokenizer, or one learned now, or earlier by the run that is resumed."""
    from ..data.vocabulary import train_tokenizer
    from ..pretrained.checkpoints import find_files, read_tokenizer
    from ..training.from_scratch import keep_tokenizer, kept_tokenizer, sentinels_for
    from ..training.parallel import rank_and_size

    if args.tokenizer not in TOKENIZERS:
        if not Path(args.tokenizer).is_dir():
            problem = f"--tokenizer {args.tokenizer}: there is no such folder"
            raise ValueError(f"{problem}, and the kinds are {', '.join(TOKENIZERS)}")
        return read_tokenizer(find_files(args.tokenizer)[0], args.tokenizer, UNCUT)
    options = {"--tokenizer": args.tokenizer, "--vocab-size": args.vocab_size}
    if args.resume and (kept := kept_tokenizer(training, options, UNCUT)):
        return kept
    bert = {"masked": True, "spans": False}.get(args.objective)
    extra = sentinels_for(args.length) if args.objective == "spans" else ()
    tokenizer = train_tokenizer(texts, args.tokenizer, args.vocab_size, UNCUT, bert=bert, extra=extra)  # fmt: skip
    if rank_and_size()[0] == 0:
        keep_tokenizer(tokenizer, training, options)
    return tokenizer
