"""Files and folders that are written whole or not at all: killed anywhere, the old or the new ones."""

import os
import shutil
import stat
from functools import partial
from pathlib import Path

import pytest
from killing import killed_at_every_call

from minitransformer.data.atomic import current, whole_file, write_folder, write_whole

OLD = {"key": b"old", "weights": b"old weights", "words": b"old words"}
NEW = {"key": b"new", "weights": b"new weights, longer", "more": b"new too"}


def save(folder: Path, files: dict[str, bytes]) -> None:
    write_folder(folder, files, "key", lambda name: name in ("words", "more"))


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """A kill loses nothing that the system has: only that it is asked to sync is counted."""
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture
def old(tmp_path):
    """A folder with the old files and other things in it."""
    save(tmp_path / "old", OLD)
    (tmp_path / "old" / "notes.txt").write_text("mine")
    (tmp_path / "old" / "training").mkdir()
    (tmp_path / "old" / "training" / "checkpoint").write_text("mine too")
    return tmp_path / "old"


def copy_of(old: Path):
    folder = old.with_name("folder")

    def copy() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)

    return folder, copy


def is_whole(folder: Path, *versions: dict[str, bytes]) -> bool:
    """Whether the files that count are one version, and nobody else can take a mixture for one."""
    counting, seen = content(current(folder)), content(folder)
    mine, theirs = ({n: f[n] for n in f if n != "notes.txt"} for f in (counting, seen))
    return mine in versions and ("key" not in theirs or theirs in versions)


@pytest.mark.parametrize("links", [True, False])
def test_killed_at_any_system_call_a_folder_is_the_old_or_the_new_one(old, links, monkeypatch):
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    folder, copy = copy_of(old)
    seen = []
    for _ in killed_at_every_call(lambda: save(folder, NEW), copy):
        assert is_whole(folder, OLD, NEW)
        seen.append(content(current(folder))["key"])
        assert (folder / "training" / "checkpoint").read_text() == "mine too"
        save(folder, OLD)
        assert content(folder) == OLD | {"notes.txt": b"mine"}
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["training"]
    assert seen == sorted(seen, reverse=True), "once it is the new one, it stays so"
    assert {b"old", b"new"} == {*seen} and len(seen) > 30


def test_killed_again_while_it_mends_what_a_kill_left(old):
    folder, copy = copy_of(old)
    third = {"key": b"3", "weights": b"third"}
    for number in killed_at_every_call(lambda: save(folder, NEW), copy):
        if number % 15 == 14:
            shutil.rmtree(half := folder.with_name("half"), ignore_errors=True)
            folder.rename(half)
            again, copy_again = copy_of(half)
            work = partial(save, again, third)
            for _ in killed_at_every_call(work, copy_again):
                assert is_whole(again, OLD, NEW, third)


def test_killed_while_it_makes_the_folder_there_is_none_or_the_new_one(tmp_path):
    folder = tmp_path / "deep" / "folder"
    for _ in killed_at_every_call(lambda: save(folder, NEW), lambda: shutil.rmtree(tmp_path / "deep", True)):  # fmt: skip
        assert not folder.exists() or is_whole(folder, {}, NEW)
        save(folder, OLD)
        assert content(folder) == OLD and len(list(folder.iterdir())) == 3


def test_killed_at_any_system_call_a_file_is_the_old_or_the_new_one(tmp_path):
    path, seen = tmp_path / "file", []
    for _ in killed_at_every_call(lambda: write_whole(path, b"new"), lambda: path.write_bytes(b"old")):  # fmt: skip
        seen.append(path.read_bytes())
        write_whole(path, b"third")
        assert content(tmp_path) == {"file": b"third"}, "what the kill left is gone"
    assert seen == sorted(seen, reverse=True) and {*seen} == {b"old", b"new"}


def test_a_full_disk_leaves_what_was_there_and_says_where(old, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="old could not be written"):
        patch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left")))
        save(old, NEW)
    assert content(old) == OLD | {"notes.txt": b"mine"} and len(list(old.iterdir())) == 5
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left")))
        save(old.with_name("none"), NEW)
    assert not old.with_name("none").exists()


def test_a_draft_has_a_name_that_nobody_can_guess_and_follows_no_link(tmp_path):
    (victim := tmp_path / "victim").write_text("precious")
    path = tmp_path / "table.csv"
    (tmp_path / "table.csv.part").symlink_to(victim)
    names = []
    for _ in range(2):
        with whole_file(path) as file:
            names.append(Path(file.name))
            file.write(b"text")
    assert names[0] != names[1] and {n.parent for n in names} == {tmp_path}
    assert victim.read_text() == "precious" and (tmp_path / "table.csv.part").is_symlink()


def test_permissions_and_links_stay(tmp_path):
    (real := tmp_path / "real").write_text("old")
    os.chmod(real, 0o640)
    (link := tmp_path / "link").symlink_to("real")
    write_whole(link, b"new")
    assert link.is_symlink() and real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    write_whole(tmp_path / "fresh", b"")
    (tmp_path / "usual").touch()
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "usual").stat().st_mode
    save(tmp_path / "m", OLD)
    os.chmod(tmp_path / "m" / "key", 0o600)
    save(tmp_path / "m", NEW)
    assert stat.S_IMODE((tmp_path / "m" / "key").stat().st_mode) == 0o600
    write_whole(tmp_path / ("n" * 250), b"a long name")


def test_a_device_is_written_to_and_stays_one():
    write_whole(Path(os.devnull), b"text")
    assert Path(os.devnull).is_char_device()


def test_a_write_protected_file_is_left(tmp_path, monkeypatch):
    (path := tmp_path / "file").write_text("mine")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="write-protected"):
        write_whole(path, b"new")
    assert content(tmp_path) == {"file": b"mine"}
