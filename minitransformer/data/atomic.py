"""Files, and folders of files, that are written whole or not at all."""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

NEW = ".new"
"""The folder inside a folder whose files have replaced it already, though not all are in place."""


def draft_of(path: Path) -> Path:
    """A hidden name in the same folder that nobody can guess; drafts left by a kill are removed."""
    start = f".{path.name[:40]}."  # with the rest it fits into the 255 bytes of a name
    left = re.compile(re.escape(start) + "[0-9a-f]{16}[.]part")
    for old in (p for p in path.parent.iterdir() if left.fullmatch(p.name)):
        with contextlib.suppress(OSError):  # of another user
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    return path.with_name(f"{start}{secrets.token_hex(8)}.part")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces the old one at the end; a crash or error leaves the old one as it was.

    The new file has the old one's permissions. A link is followed. A device or a pipe has no
    content to keep and is written to directly.
    """
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(13, "it is write-protected", str(path))
    draft = draft_of(path)
    try:
        with open(draft, "x+b") as file:  # x: never a file or a link that is there already
            if path.exists():
                os.chmod(draft, stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before it gets its name
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def write_whole(path: Path, raw: bytes) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path) as file:
        file.write(raw)


def sync(folder: Path) -> None:
    """Bring the names in a folder onto the disk; not every system can."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def current(folder: Path) -> Path:
    """Where the files of a folder are that `write_folder` wrote, even if it was killed."""
    return folder / NEW if (folder / NEW).is_dir() else folder


def write_folder(
    folder: Path, files: Mapping[str, bytes], key: str, obsolete: Callable[[str], bool]
) -> None:
    """Replace a set of files in a folder as one; all other files in it stay.

    The new files are written into a hidden folder inside. The moment it is renamed to `NEW`, they
    are the ones that count (`current`). Then each gets its place; whoever does not know `NEW` sees
    the old files, or the new ones, or in between a folder without its key file.

    Args:
        key: the file without which nobody takes the others for a whole.
        obsolete: whether an old file goes when it is not among the new ones, by its name.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        put_in_place(folder, key, obsolete)  # of an earlier call that was killed
        draft = draft_of(folder / NEW)
        try:
            draft.mkdir()
            for name, raw in files.items():
                write_whole(draft / name, raw)
                if (folder / name).exists():
                    shutil.copymode(folder / name, draft / name)
            os.replace(draft, folder / NEW)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if made:
                with contextlib.suppress(OSError):  # unless there is something in it now
                    folder.rmdir()
        put_in_place(folder, key, obsolete)
    except OSError as error:
        kept = "" if made else "; what it held is whole"
        raise OSError(f"{folder} could not be written ({error.strerror or error}){kept}") from error


def put_in_place(folder: Path, key: str, obsolete: Callable[[str], bool]) -> None:
    """Move the files of `NEW` where they belong; begun again, it ends in the same way."""
    new = folder / NEW
    if not new.is_dir():
        return
    sync(folder)  # the name `NEW`
    names = sorted((p.name for p in new.iterdir()), key=lambda name: name == key)
    (folder / key).unlink(missing_ok=True)
    sync(folder)
    for path in [*folder.iterdir()]:
        if path.name in names or (obsolete(path.name) and path.is_file()):
            path.unlink()
    for name in names:  # the key file last, after all others are on the disk
        sync(folder)
        try:
            os.link(new / name, folder / name)
        except OSError:  # not every system can
            write_whole(folder / name, (new / name).read_bytes())
            shutil.copymode(new / name, folder / name)
    sync(folder)
    os.replace(new, gone := draft_of(new))  # at once, for half of it must not count
    shutil.rmtree(gone)
