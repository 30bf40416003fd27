"""Archives are those that were pinned, and a member of one has a limit."""

import io
import os
import re
import tarfile
import zipfile

import pytest

from minitransformer.data import downloads
from minitransformer.data.downloads import HASHES, cached, data_folder, read_member

NAME = "vaderSentiment-3.3.2.tar.gz"


def test_the_hashes_are_those_of_the_requirements():
    text = (data_folder() / "requirements.txt").read_text()
    pinned = re.findall(r"^(\S+)==(\S+) .*\n.*sha256:(\w+)", text, re.MULTILINE)
    plain = {name.replace("_", "-"): digest for name, digest in HASHES.items()}
    assert len(pinned) == len(HASHES)
    for name, version, digest in pinned:
        (mine,) = (d for file, d in plain.items() if file.startswith(f"{name}-{version}"))
        assert mine == digest


def test_an_archive_is_checked_when_it_is_opened_and_again_when_it_changed(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / NAME
    path.write_bytes(whole := (data_folder() / "cache" / NAME).read_bytes())
    monkeypatch.setenv("MINITRANSFORMER_DATA", str(tmp_path))
    read = []
    digest = downloads.hashlib.file_digest
    monkeypatch.setattr(downloads.hashlib, "file_digest", lambda *a: read.append(a) or digest(*a))
    assert [cached(NAME) for _ in range(3)] == [path] * 3 and len(read) == 1
    path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"hash is not the pinned one.*`make data`"):
        cached(NAME)
    path.write_bytes(whole)
    os.utime(path, ns=(2, 2))
    assert cached(NAME) == path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_is_read_up_to_a_limit(kind, monkeypatch):
    archive, zeros = io.BytesIO(), bytes(100_000)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("zeros", zeros)
    else:
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            (entry := tarfile.TarInfo("zeros")).size = len(zeros)
            tar.addfile(entry, io.BytesIO(zeros))
    monkeypatch.setattr(downloads, "LIMIT", 100_000)
    assert read_member(archive.getvalue(), "zeros") == zeros
    monkeypatch.setattr(downloads, "LIMIT", 99_999)
    with pytest.raises(ValueError, match="zeros in the inner archive has more than 99,999 bytes"):
        read_member(archive.getvalue(), "zeros")
    for damaged in (archive.getvalue()[:-60], b"x" + archive.getvalue()[40:]):
        with pytest.raises(ValueError, match="damaged"):
            read_member(damaged, "zeros")
