"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path


def write_whole(path: Path, raw: bytes) -> None:
    """Write a file so that, whenever the process dies, the old or the new one is there, whole.

    Raises:
        OSError: it could not be written; the old one is as it was.
    """
    draft = path.with_name(f"{path.name}.part")
    try:
        with open(draft, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it gets its name
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the new name too; not every system can
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
