"""A student's process: it runs the cells, and calls the functions when a check asks for it.

Nothing is decided here: the process sends outputs, and `checking` judges them in another one. So patches of
torch, of the package or of this file harm only the student's own answers. Accidents and clumsy tricks are
kept off the machine, such as an endless loop or an `rmtree`; how well depends on the system (`protection`).
Without a kernel's help this is no sandbox: grade strangers in a container.
"""

import ast
import asyncio
import builtins
import contextlib
import copy
import inspect
import linecache
import os
import re
import secrets
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any
from unittest.mock import MagicMock

import psutil
import torch
from torch import Tensor, nn

from .. import registry
from ..engine import limits
from .notebooks import check_call
from .protection import keep_inside
from .remote import LARGEST, Writer

HOME = str(Path(__file__).parents[2])
# Torch's own attention, under its modules' and functions' names for it.
FUSED = re.compile("scaled_dot_product_attention|_native_multi_head|_transformer_encoder_layer")
PROCESSES = {"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system",
             "os.startfile", "subprocess.Popen", "os.kill", "os.killpg"}  # fmt: skip
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink",
           "os.truncate", "os.utime", "shutil.rmtree", "shutil.move", "sqlite3.connect"}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
LARGEST_FILE = 2**28
WATCHED = 8  # calls of a function in which we look at what it calls


class Host:
    """A student's cells and functions, at the service of a check."""

    def __init__(self, memory: int) -> None:
        self.most = psutil.Process().memory_info().vms + memory
        # Of a notebook's surroundings there is only what lets its cells run.
        shell = MagicMock()
        self.names: dict[str, Any] = {
            "__name__": "__main__", "__builtins__": builtins, "display": shell.display,
            "get_ipython": lambda: shell,
        }  # fmt: skip
        self.before: dict[str, Any] = {}  # the student's functions that right answers replace
        self.calls: dict[int, tuple[list[Tensor], list[Tensor]]] = {}  # tensors in and out

    def left(self) -> int:
        """Bytes that the submission may still take."""
        return max(self.most - psutil.Process().memory_info().vms, 0)

    def cell(self, source: str, name: str, seconds: float) -> dict[str, Any]:
        """Run a cell without its checks, which are ours to make; says what stopped it, or ""."""
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        try:
            tree = ast.parse(source, name)
            tree.body = [s for s in tree.body if not check_call(s)]
            code = compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            # An eighth is kept for the calls, so that a greedy cell does not cost the answers.
            with limits.limited(seconds, self.left() * 7 // 8):
                if (waiting := FunctionType(code, self.names)()) is not None:  # for an `await`
                    asyncio.run(waiting)
            return {"trouble": ""}
        except limits.TimeUp as error:
            return {"trouble": f"not done after {seconds:.0f} seconds{line_in(name, error)}"}
        except BaseException as error:  # the next cells still count
            text = f"{type(error).__name__}: {str(error)[:500]}{line_in(name, error)}"
            return {"trouble": text}

    def look_up(self, function: str, instead: dict[str, str]) -> dict[str, Any]:
        """Find the student's function; `instead` replaces other functions by right answers."""
        self.before = {name: self.names[name] for name in instead if name in self.names}
        self.names |= {name: registry.every()[right].right for name, right in instead.items()}
        self.function, self.calls = self.names.get(function), {}
        known, code = callable(self.function), None
        if callable(self.function):
            code = getattr(inspect.unwrap(self.function), "__code__", None)
        where = (code.co_filename, code.co_firstlineno) if code else ("", 0)
        value = None if known else self.function
        return {"found": function in self.names, "callable": known, "value": value, "where": where}

    def restore(self) -> dict[str, Any]:
        """The student's own functions again."""
        self.names |= self.before
        return {}

    def call(self, inputs: Sequence[Any], grad: bool, seconds: float) -> dict[str, Any]:
        """Call the function: its value or its error, what it changed, and what of ours it used."""
        self.leaves = [a for a in inputs if isinstance(a, Tensor) and a.requires_grad]
        before, used = copy.deepcopy([*map(state, inputs)]), set[str]()
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        answer: dict[str, Any] = {"used": used}
        try:
            with (
                limits.limited(seconds, self.left()),
                torch.inference_mode(False),
                torch.set_grad_enabled(grad),
            ):
                if len(self.calls) < WATCHED:
                    sys.setprofile(watch(used, inputs))
                try:
                    answer["value"] = self.function(*inputs)
                finally:
                    sys.setprofile(None)
        except BaseException as error:
            answer["error"] = described(error)
        pairs = zip(map(state, inputs), before, strict=True)
        return answer | {"changed": [None if same(a, b) else a for a, b in pairs]}

    def backward(self, call: int, grads: Sequence[Any], seconds: float) -> dict[str, Any]:
        """The gradients of the inputs of a call, given those of its outputs."""
        leaves, outputs = self.calls[call]
        pairs = zip(outputs, grads, strict=True)
        wanted = [(a, g) for a, g in pairs if a.requires_grad and g is not None]
        try:
            with limits.limited(seconds):
                outputs, grads = map(list, zip(*wanted, strict=True))
                back = torch.autograd.grad(outputs, leaves, grads, True, allow_unused=True)
                return {"value": back}
        except BaseException as error:
            return {"error": described(error)}

    def answer(self, number: int, kind: str, *request: Any) -> bytes:
        """The answer to a request, in bytes."""
        answer = {"number": number}
        try:
            written = Writer(answer | getattr(self, kind)(*request))
            if len(written.file.getvalue()) > LARGEST:
                raise ValueError("it returns too much")
        except Exception as error:
            written = Writer(answer | {"error": described(error)})
        if kind == "call":
            self.calls[number] = self.leaves, written.tensors
        return written.file.getvalue()


def state(value: Any) -> Any:
    """The part of an argument that a function may change: its content, or a module's mode."""
    if isinstance(value, Tensor | nn.Module):
        return value.detach() if isinstance(value, Tensor) else value.training
    return value if isinstance(value, dict | list) else None


def same(a: Any, b: Any) -> bool:
    """Whether an argument is as it was."""
    with contextlib.suppress(Exception):
        return torch.equal(a, b) if isinstance(b, Tensor) else bool(a == b)
    return False


def described(error: BaseException) -> list[Any]:
    """An error: its type, its text, and where it arose."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    frames = traceback.extract_tb(error.__traceback__)
    inner = [(f.filename, f.lineno or 1, f.name) for f in frames if f.filename != __file__]
    return [type(error).__name__, text[:2000], inner[-20:]]


def line_in(cell: str, error: BaseException) -> str:
    """The line of a cell at which it stopped."""
    if isinstance(error, SyntaxError):
        return f", at the line `{(error.text or '').strip()}`"
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if f.filename == cell]
    return f", at the line `{lines[-1]}`" if lines else ""


def watch(found: set[str], inputs: Sequence[Any]) -> Callable[[FrameType, str, Any], None]:
    """A profile function that notes which functions of the package are called, under any name."""
    depth = 0  # calls of the package inside a call of the package
    given = {id(m) for a in inputs if isinstance(a, nn.Module) for m in a.modules()}

    def note(frame: FrameType, event: str, called: Any) -> None:
        nonlocal depth
        name = frame.f_code.co_qualname
        if event in ("call", "return") and frame.f_code.co_filename.startswith(HOME):
            # Nested functions are arguments of ours, or the lazy import of a name.
            ours = "<" not in name and id(frame.f_locals.get("self")) not in given
            if event == "call" and not depth and ours:
                found.add(f"{frame.f_globals['__name__']}.{name.split('.')[0]}")
            depth += 1 if event == "call" else -1
        elif event == "c_call" and not depth and FUSED.search(called.__name__):
            found.add(f"torch.{called.__name__}")

    return note


# --- The process ------------------------------------------------------------------------------


def work(channel: Connection) -> None:
    """Answer the requests of a check until it hangs up."""
    folder, hidden, memory = channel.recv()
    channel = shut_in(channel, folder, hidden, memory)
    host, receive, send = Host(memory), channel.recv, channel.send_bytes
    with contextlib.suppress(EOFError, OSError):
        while True:
            send(host.answer(*receive()))
    os._exit(0)


def shut_in(channel: Connection, folder: str, hidden: frozenset[str], memory: int) -> Connection:
    """Silence, an empty folder, bounds on files and memory, and no access to other processes."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    sys.dont_write_bytecode = True
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(folder)
    tempfile.tempdir = folder
    if sys.platform != "win32":
        import fcntl
        import resource

        # Whoever writes to all open files finds none: the connection is the only one, and far away.
        number = fcntl.fcntl(channel.fileno(), fcntl.F_DUPFD_CLOEXEC, 150 + secrets.randbelow(50))
        os.closerange(3, number)
        os.closerange(number + 1, 2**16)
        channel = Connection(number)
        bounds = [(resource.RLIMIT_FSIZE, LARGEST_FILE), (resource.RLIMIT_CORE, 0)]
        if sys.platform == "linux" and not torch.cuda.is_available():
            bounds.append((resource.RLIMIT_AS, psutil.Process().memory_info().vms + memory))
        for kind, most in bounds:
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))
    keep_inside(os.path.dirname(folder))
    vars(torch._C)["PyTorchFileWriter"] = partial(announced, torch._C.PyTorchFileWriter)
    sys.addaudithook(door(folder, hidden))
    return channel


def announced(make: Callable[..., Any], file: Any, *rest: Any, **options: Any) -> Any:
    """Let the audit hook know of a file that torch opens without saying so."""
    if isinstance(file, str):
        sys.audit("open", file, "w", os.O_WRONLY)
    return make(file, *rest, **options)


def door(folder: str, hidden: frozenset[str]) -> Callable[[str, tuple], None]:
    """An audit hook that forbids what a submission has no business doing."""
    home = os.path.realpath(folder) + os.sep

    def inside(path: Any) -> bool:
        return f"{os.path.realpath(os.fsdecode(path))}{os.sep}".startswith(home)

    def check(event: str, arguments: tuple) -> None:
        what = ""
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, _, flags = arguments
            if (flags or 0) & WRITING and not inside(path) and path != os.devnull:
                what = f"write {path}, outside its own folder"
            elif os.path.realpath(os.fsdecode(path)) in hidden:
                what = "read solutions or other submissions"
        elif event in PROCESSES:
            what = f"start or end processes ({event})"
        elif event.startswith("socket.") and event != "socket.__new__":
            what = "use the network"
        elif event in CHANGES:
            paths = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            if not all(map(inside, paths)):
                what = f"change files outside its own folder ({event})"
        elif event == "resource.setrlimit" and -1 in arguments[1]:
            what = "lift its limits"
        if what:
            raise PermissionError(f"a submission may not {what}")

    return check
