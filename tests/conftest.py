"""What all tests share: no network, no windows, one tokenizer."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the hub is a mistake
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

import minitransformer as mt


@pytest.fixture(scope="session")
def tokenizer():
    """MiniLM's tokenizer: BERT's uncased English word pieces."""
    return mt.load_pretrained("all-MiniLM-L6-v2")[1]
