"""Progress bars that a log file bears."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, unit: str, show: bool = True, **options: Any) -> "tqdm[Any]":
    """A bar that a terminal and a notebook see move; a file gets a line every half minute."""
    moves = sys.stderr.isatty() or "ipykernel" in sys.modules
    often = {"mininterval": 0.1 if moves else 30.0, "maxinterval": 10.0 if moves else 60.0}
    return tqdm(total=total, unit=unit, disable=not show, **often, **options)
