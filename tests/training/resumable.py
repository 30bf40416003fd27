"""A small run with dropout for the tests that stop it: in a module of its own, for other processes."""

import os
import signal
import time
from pathlib import Path

import torch

import minitransformer as mt

VOCAB, STEPS = 23, 36


def model(dropout: float = 0.3, seed: int = 0, **changes) -> mt.CausalLM:
    torch.manual_seed(seed)
    config = mt.TransformerConfig.gpt2(
        vocab_size=VOCAB, d_model=20, n_heads=5, n_layers=2, d_ff=28, max_len=16, dropout=dropout,
        attention_dropout=dropout, init_std=0.3, start_id=1, eos_id=1,
    ).with_(**changes)  # fmt: skip
    return mt.CausalLM(mt.Decoder(config))


def texts(n: int = 45, seed: int = 0) -> mt.data.EncodedTexts:
    """Of very different lengths."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 16, (n,), generator=g).tolist()
    ids = [tuple(torch.randint(1, VOCAB, (k,), generator=g).tolist()) for k in lengths]
    return mt.data.EncodedTexts(tuple(ids), None, 0)


def run(folder: Path | None, resume: bool = True, **options) -> tuple[mt.CausalLM, object]:
    """Six batches an epoch, validation in the middle of epochs, a checkpoint in between."""
    trained = options.pop("model", None) or model()
    train, valid = options.pop("data", None) or (texts(), texts(20, 1))
    options = dict(
        steps=STEPS, validate_every=9, lr=0.02, batch_size=8, seed=3, precision="highest",
        checkpoint_every=4,
    ) | options  # fmt: skip
    history = mt.pretrain(
        trained, train, valid, checkpoint=folder, resume=resume, progress=False, **options
    )
    return trained, history


def run_in_a_process(folder: Path, die_at_sync: int | None) -> None:
    """Until it is killed; or dies, by its own SIGKILL, in the middle of a write."""
    torch.set_num_threads(1)
    sync, calls = os.fsync, []

    def slow(file: int) -> None:
        calls.append(file)
        if len(calls) == die_at_sync:
            if os.readlink(f"/proc/self/fd/{file}").endswith(".part"):
                os.ftruncate(file, os.fstat(file).st_size // 2)  # half has reached the disk
            os.kill(os.getpid(), signal.SIGKILL)
        if die_at_sync is None:
            time.sleep(0.1)  # so that whoever kills it is not too late, however busy the machine
        sync(file)

    os.fsync = slow
    run(folder)
