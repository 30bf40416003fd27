"""What all tests share: no network, no windows, one tokenizer; and other machines, imitated."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the hub is a mistake
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

import minitransformer as mt
from minitransformer.training import precision


@pytest.fixture(scope="session")
def tokenizer():
    """MiniLM's tokenizer: BERT's uncased English word pieces."""
    return mt.load_pretrained("all-MiniLM-L6-v2")[1]


@pytest.fixture(scope="session", autouse=True)
def another_machine():
    """Under tests/portable.py: what `auto` means is given, and every seed is moved."""
    means, moved_by = os.environ.get("TEST_PRECISION"), int(os.environ.get("TEST_SEED", "0"))
    resolve, manual_seed = precision.resolve, torch.manual_seed
    with pytest.MonkeyPatch.context() as patch:
        if means:
            patch.setattr(precision, "resolve", lambda p: means if p == "auto" else resolve(p))
        if moved_by:
            patch.setattr(torch, "manual_seed", lambda seed: manual_seed(seed + 1000 * moved_by))
        yield
