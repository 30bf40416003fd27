"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces the old one at the end; a crash or error leaves the old one as it was."""
    draft = path.with_name(f"{path.name}.part")
    try:
        with open(draft, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before it gets its name
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the new name too; not every system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, raw: bytes) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path) as file:
        file.write(raw)
