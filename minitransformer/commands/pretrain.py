"""`python -m minitransformer pretrain`: a file of texts becomes a language model."""

import argparse
import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch

from .. import data
from ..data.atomic import write_whole
from ..data.datasets import lines_of, read_texts, read_utf8
from ..data.domains import DOMAINS
from ..data.spans import span_numbers
from ..data.vocabulary import Kind
from ..model.config import TransformerConfig
from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM
from ..model.transformer import Decoder, Encoder, EncoderDecoder
from ..pretrained import save_pretrained
from ..pretrained.checkpoints import TRAINING, find_files, read_tokenizer, refuse_foreign
from ..training.checkpointing import refuse_existing
from ..training.loop import Data
from ..training.optim import SCHEDULES
from ..training.parallel import joined, place
from ..training.precision import Precision
from ..training.pretrain import pretrain

ENDS = {
    "causal": ("[END]", "<|endoftext|>", "</s>", "[SEP]"),
    "masked": ("[SEP]", "[END]", "</s>", "<|endoftext|>"),
    "spans": ("</s>", "[END]", "[SEP]", "<|endoftext|>"),
}
"""What ends a text: the first that the tokenizer has."""
SENTINEL = "<extra_id_%d>"
"""What stands for the n-th hole, by T5's name."""
LONGEST = 2**40
"""No text is cut: blocks are made of all of it."""
PART_TO_VALIDATE = 20
"""One block in so many, the last ones."""


def add(commands: Any) -> None:
    """Put the command and its options into the parser."""
    p = commands.add_parser(
        "pretrain",
        help="train a small language model on your texts, from scratch",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train a small language model from scratch: learn a tokenizer, pack the texts "
        "into blocks, train, write the model. It may be stopped at any moment, also by a power cut: "
        "the same command with --resume goes on, and ends as if nothing had happened.",
        epilog="examples: python -m minitransformer pretrain --texts book.txt --out my-gpt; with two "
        "processes: python -m torch.distributed.run --nproc-per-node 2 -m minitransformer pretrain "
        "--texts book.txt --out my-gpt",
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--texts", metavar="FILE", help="a text a line; or a .csv, .tsv or .jsonl with a column text")  # fmt: skip
    source.add_argument("--data", choices=tuple(DOMAINS), help="or a domain, which `make data` downloads")  # fmt: skip
    p.add_argument("--out", required=True, help=f"folder for the model; checkpoints and history.jsonl are in its {TRAINING}/")  # fmt: skip
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint; start if there is none")  # fmt: skip
    p.add_argument("--objective", choices=tuple(ENDS), default="causal",
                   help="causal: predict the next token, a GPT; masked: predict hidden ones, a BERT; spans: fill holes, a T5")  # fmt: skip
    p.add_argument("--tokenizer", default="bytes", metavar="KIND",
                   help=f"learn one of {', '.join(get_args(Kind))}; or a model's folder, to take its tokenizer")  # fmt: skip
    p.add_argument("--vocab-size", type=int, default=2000, help="tokens to learn; characters are as many as occur")  # fmt: skip
    p.add_argument("--layers", type=int, default=4, help="blocks of the model; the decoder of a T5 has as many again")  # fmt: skip
    p.add_argument("--d-model", type=int, default=128, help="its width")
    p.add_argument("--heads", type=int, default=4, help="attention heads of a block")
    p.add_argument("--length", type=int, default=128, help="tokens in a block, and positions of the model")  # fmt: skip
    p.add_argument("--dropout", type=float, default=0.1, help="everywhere; 0 for one pass over much text")  # fmt: skip
    p.add_argument("--steps", type=int, default=1000, help="batches to train on")
    p.add_argument("--batch-size", type=int, default=16, help="blocks in a batch")
    p.add_argument("--accumulate", type=int, default=1, help="work through a batch in so many parts, for less memory")  # fmt: skip
    p.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    p.add_argument("--schedule", choices=tuple(SCHEDULES), default="linear", help="how it falls")
    p.add_argument("--warmup", type=float, default=0.1, help="share of the steps over which it rises")  # fmt: skip
    p.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS", help="steps from one checkpoint to the next")  # fmt: skip
    p.add_argument("--precision", choices=get_args(Precision), default="auto", help="as in finetune")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the first weights, order, masks and dropout")  # fmt: skip
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """From texts to a folder with a model."""
    out, training = Path(args.out), Path(args.out) / TRAINING
    refuse_foreign(out)  # now, not after an hour of training
    with joined(), stoppable():
        refuse_existing(training, args.resume)
        first = place()[0] == 0
        texts = read_corpus(args)
        tokenizer = tokenizer_for(args, texts, training)
        end_id = end_of(tokenizer, args.objective)
        train, valid = blocks_of(texts, tokenizer, args.length, end_id)
        torch.manual_seed(args.seed)
        model = build(args, tokenizer, end_id)
        if first:
            weights = sum(p.numel() for p in model.parameters())
            print(f"{len(texts):,} texts: {len(train):,} blocks of {args.length} tokens to train, ", end="")  # fmt: skip
            print(f"{len(valid):,} to validate; {tokenizer.vocab_size:,} tokens, {weights / 1e6:.2f} million weights")  # fmt: skip
        history = pretrain(
            model, asked(args, train, tokenizer, end_id), asked(args, valid, tokenizer, end_id),
            steps=args.steps, batch_size=args.batch_size, lr=args.lr,
            schedule=args.schedule, warmup=args.warmup, accumulate=args.accumulate, seed=args.seed,
            precision=args.precision, checkpoint=training, checkpoint_every=args.checkpoint_every,
            resume=args.resume, progress=first,
        )  # fmt: skip
        if first:
            print(history)
            save_pretrained(model, tokenizer, out)
            print(f"trained in {history.seconds:.0f} s; the model is in {out}; to open it:")
            print(f'  model, tokenizer = mt.load_pretrained("{out}")')
    return 0


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and a plain kill say how to go on; nothing can after kill -9, but it goes on too."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "the same command with --resume goes on from the last checkpoint"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def read_corpus(args: argparse.Namespace) -> Sequence[str]:
    """The texts; blank lines between those of a plain file do no harm."""
    if args.data:
        return data.load(args.data).texts
    if Path(args.texts).suffix.lower() in (".csv", ".tsv", ".jsonl"):
        return read_texts(args.texts)
    return [line for line in lines_of(read_utf8(args.texts)) if line.strip()]


def tokenizer_for(args: argparse.Namespace, texts: Sequence[str], training: Path) -> data.Tokenizer:
    """Of a model's folder; or learned now, or by the run that goes on."""
    if args.tokenizer not in get_args(Kind):
        if not Path(args.tokenizer).is_dir():
            raise ValueError(
                f"--tokenizer {args.tokenizer}: there is no such folder, and the kinds are "
                f"{', '.join(get_args(Kind))}"
            )
        return read_tokenizer(find_files(args.tokenizer)[0], args.tokenizer, LONGEST)
    saved = training / "tokenizer.json"
    if args.resume and saved.exists():
        return data.Tokenizer.from_json(saved.read_text(encoding="utf-8"), LONGEST)
    bert = {"masked": True, "spans": False}.get(args.objective)
    extra = sentinels_for(args.length) if args.objective == "spans" else ()
    tokenizer = data.train_tokenizer(
        texts, args.tokenizer, args.vocab_size, LONGEST, bert=bert, extra=extra
    )
    if place()[0] == 0:
        training.mkdir(parents=True, exist_ok=True)
        write_whole(saved, tokenizer.to_json().encode())
    return tokenizer


def sentinels_for(length: int) -> list[str]:
    """As many as a block has holes, and the one that says that no other follows."""
    spans = data.CorruptedSpans
    _, n_spans = span_numbers(length, spans.share, spans.mean_span)
    return [SENTINEL % i for i in range(n_spans + 1)]


def end_of(tokenizer: data.Tokenizer, objective: str) -> int:
    """The id of the token that ends a text.

    Raises:
        ValueError: the tokenizer has none.
    """
    for token in ENDS[objective]:
        with contextlib.suppress(KeyError):
            return tokenizer.id_of(token)
    raise ValueError(
        f"the tokenizer has no token that ends a text; add one of {', '.join(ENDS[objective])}"
    )


def blocks_of(
    texts: Sequence[str], tokenizer: data.Tokenizer, length: int, end_id: int
) -> tuple[data.EncodedTexts, data.EncodedTexts]:
    """Blocks to train on and, from the end of the texts, to validate on.

    Raises:
        ValueError: too little text for one of each.
    """
    encoded = data.encode(texts, tokenizer)
    n_tokens = sum(map(len, encoded.ids))
    if n_tokens < 2 * length:
        raise ValueError(
            f"{len(texts)} texts with {n_tokens} tokens are too few for two blocks of {length}, one to "
            "train on and one to validate; give more text, or a smaller --length"
        )
    ids = data.pack(encoded, length, end_id).ids
    n_train = len(ids) - max(1, len(ids) // PART_TO_VALIDATE)
    train, valid = ids[:n_train], ids[n_train:]
    return data.EncodedTexts(train, None, encoded.pad_id), data.EncodedTexts(valid, None, encoded.pad_id)  # fmt: skip


def asked(
    args: argparse.Namespace, blocks: data.EncodedTexts, tokenizer: data.Tokenizer, end_id: int
) -> Data:
    """The blocks as the objective asks for them.

    Raises:
        ValueError: a tokenizer without the special tokens that it takes.
    """
    if args.objective == "masked":
        return data.MaskedTexts(blocks, tokenizer)
    if args.objective == "spans":
        names = (SENTINEL % i for i in range(len(tokenizer.special)))
        sentinels = [tokenizer.special[name] for name in names if name in tokenizer.special]
        return data.CorruptedSpans(blocks, sentinels, end_id)
    return blocks


def build(
    args: argparse.Namespace, tokenizer: data.Tokenizer, end_id: int
) -> CausalLM | MaskedLM | Seq2SeqLM:
    """A new model of the asked sizes: a small GPT-2, a small BERT or a small T5."""
    sizes: dict[str, Any] = dict(
        vocab_size=tokenizer.vocab_size, d_model=args.d_model, n_heads=args.heads,
        n_layers=args.layers, d_ff=4 * args.d_model, max_len=args.length, dropout=args.dropout,
        attention_dropout=args.dropout,
    )  # fmt: skip
    pad_id = (
        tokenizer.pad_id if tokenizer.pad_id != end_id else None
    )  # then a mask tells them apart
    if args.objective == "causal":
        ends = dict(pad_id=pad_id, start_id=end_id, eos_id=end_id)
        return CausalLM(Decoder(TransformerConfig.gpt2(**sizes, **ends)))
    if args.objective == "spans":
        sizes |= dict(
            feed_forward_dropout=args.dropout, final_dropout=args.dropout, pad_id=pad_id,
            start_id=tokenizer.pad_id, eos_id=end_id,
        )  # fmt: skip
        return Seq2SeqLM(EncoderDecoder(TransformerConfig.t5(**sizes)))
    return MaskedLM(Encoder(TransformerConfig.bert(**sizes, pad_id=pad_id, pooler=False)))
