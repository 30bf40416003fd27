"""Protection by the system: a submission can change nothing outside its folder.

With bubblewrap installed, each submission runs in namespaces of its own: it sees the machine's files without
being able to change them, and neither the network nor other processes. Otherwise a Linux kernel from 5.13 on
keeps it from changing files (Landlock), from 6.12 on also from ending other processes.
"""

import ctypes
import functools
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable

CREATE, ADD, RESTRICT = 444, 445, 446  # Landlock's three system calls
WRITES = 0b1111111111111 & ~0b1101  # write a file, remove, make: all rights but execute and read
LATER = ((2, 1 << 13), (3, 1 << 14))  # since which version: moving and truncating files


@functools.cache
def bubblewrap() -> str:
    """The program that makes namespaces; "" where there is none, or where it may not."""
    program = shutil.which("bwrap") or ""
    probe = [*sandbox(program, "/tmp", ()), "true"]
    if program and subprocess.run(probe, capture_output=True).returncode:
        return ""
    return program


def sandbox(program: str, folder: str, hidden: Iterable[str]) -> list[str]:
    """The start of a command line: the rest may change this folder only, and not read some files."""
    hide = [w for file in hidden if os.path.exists(file) for w in ("--ro-bind", os.devnull, file)]
    return [program, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *hide, "--bind", folder, folder,
            "--unshare-all", "--die-with-parent", "--chdir", folder]  # fmt: skip


@functools.cache
def landlock() -> int:
    """The version of Landlock in this kernel; 0 if there is none."""
    if sys.platform != "linux" or "64" not in platform.machine():
        return 0
    return max(ctypes.CDLL(None).syscall(CREATE, None, ctypes.c_size_t(0), 1), 0)


def keep_inside(folder: str) -> None:
    """Confine this process to changes in this folder, where the kernel can do that."""
    version = landlock()
    if not version:
        return
    rights = WRITES | sum(right for since, right in LATER if version >= since)
    network, signals = (0b11 if version >= 4 else 0), (0b11 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    syscall = ctypes.CDLL(None).syscall
    rules = syscall(CREATE, struct.pack("=QQQ", rights, network, signals), ctypes.c_size_t(size), 0)
    for path, allowed in ((folder, rights), (os.devnull, rights & 0b100000000000010)):
        place = os.open(path, os.O_PATH)
        syscall(ADD, rules, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no new privileges: a condition of the next line
    syscall(RESTRICT, rules, 0)
    os.close(rules)


def protection() -> str:
    """A description of the protection that is on."""
    if bubblewrap():
        return "bubblewrap: namespaces of its own, no network, all files but its folder read-only"
    if landlock():
        more = ", no signals to other processes" if landlock() >= 6 else ""
        return f"Landlock: no changes to files outside its folder{more}"
    return "Python's audit hook only, which keeps off accidents but no intent"
