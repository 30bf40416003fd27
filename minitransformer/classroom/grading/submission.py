"""What runs in a separate process: one student's cells, then our checks of their functions.

This is no sandbox. It keeps off accidents and clumsy tricks: an endless loop, a crash, `rmtree`, a
replaced `mt.check`, a printed "passed". The checks use a copy of the package that the student's
`import minitransformer` does not see; answers go through a pipe, each with a token known only here.
Code that searches the interpreter's memory, or calls the operating system through ctypes, gets past
all of it. Grade strangers in a container.
"""

import ast
import importlib
import json
import linecache
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import CodeType, ModuleType
from typing import Any

from .. import registry
from ..engine import limits
from .notebooks import check_call, runnable

PACKAGE = __name__.split(".")[0]
PROCESSES = {"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system",
             "os.startfile", "subprocess.Popen", "os.kill", "os.killpg"}  # fmt: skip
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link",
           "os.symlink", "os.truncate", "shutil.rmtree", "shutil.move"}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
LARGEST_FILE = 2**28
STUDENTS_COPY: dict[str, ModuleType] = {}  # what a student's `import minitransformer` finds


@dataclass(frozen=True)
class Job:
    """What the grader asks for."""

    cells: dict[int, str]  # the code to run, by its place in the notebook
    steps: Sequence[tuple[str, Any]]  # ("cell", place) or ("check", (exercise, function)), in order
    errors: dict[int, str]  # cells that are left out, and why
    folder: str  # an empty one to work in
    hidden: frozenset[str]  # files that a student may not read: solutions, and other submissions
    seconds: float  # limit for each cell
    memory: int  # in bytes, in addition to what the process starts with
    token: str


def work(job: Job, channel: Connection) -> None:
    """Take the steps one by one, and report the start and the result of each."""

    def say(**what: Any) -> None:
        channel.send_bytes(json.dumps({"token": job.token, **what}).encode())

    exercises = registry.every()
    students = STUDENTS_COPY or second_copy()
    take_out()
    sys.modules.update(students)
    shut_in(job)
    namespace: dict[str, Any] = {"__name__": "__main__", "display": lambda *_, **__: None}
    errors = dict(job.errors)
    for number, (kind, what) in enumerate(job.steps):
        say(step=number)
        start = time.perf_counter()
        if kind == "cell":
            error = run_cell(job.cells[what], f"cell {what + 1}", namespace, job)
            errors |= {what: error} if error else {}
            say(step=number, error=error)
            continue
        name, function = what
        answer = {"passed": False, "mistakes": [], "uses": []}
        try:
            if function in namespace:
                answer["uses"] = borrowed(namespace[function])
                check = exercises[name]
                # The evidence against a wrong diagnosis takes trainings, and the table does not show it.
                quick = {"measured": False} if isinstance(check, registry.Quiz) else {}
                result = check(namespace[function], **quick)
                answer |= {k: getattr(result, k) for k in ("passed", "mistakes", "message")}
            else:
                answer["message"] = undefined(function, job.cells, errors)
        except BaseException as error:
            answer["message"] = f"The check itself failed. {type(error).__name__}: {error}"
        say(step=number, seconds=time.perf_counter() - start, **answer)


def second_copy() -> dict[str, ModuleType]:
    """A second copy of the package's modules: whatever a student changes there, ours stay intact."""
    ours = take_out()
    try:
        package = importlib.import_module(PACKAGE)
        for name in package.__all__:  # most of its modules are loaded on first use
            getattr(package, name)
        return take_out()
    finally:
        sys.modules.update(ours)


def take_out() -> dict[str, ModuleType]:
    """Remove the package's modules, so that an import no longer finds them; returns them."""
    names = [name for name in sys.modules if name.split(".")[0] == PACKAGE]
    return {name: sys.modules.pop(name) for name in names}


def run_cell(cell: str, name: str, namespace: dict[str, Any], job: Job) -> str:
    """Run a cell without its checks, which are ours to make; returns what stopped it, or ""."""
    source = runnable(cell)
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        tree = ast.parse(source, name)
        tree.body = [s for s in tree.body if not check_call(s)]
        with limits.limited(job.seconds, job.memory):
            exec(compile(tree, name, "exec"), namespace)
        return ""
    except limits.TimeUp as error:
        return f"not done after {job.seconds:.0f} seconds{line_in(name, error)}"
    except BaseException as error:  # the next cells still count
        return f"{type(error).__name__}: {str(error)[:500]}{line_in(name, error)}"


def line_in(cell: str, error: BaseException) -> str:
    """The line of a cell at which it stopped."""
    if isinstance(error, SyntaxError):
        return f", at the line `{(error.text or '').strip()}`"
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if f.filename == cell]
    return f", at the line `{lines[-1]}`" if lines else ""


def undefined(function: str, cells: dict[int, str], errors: dict[int, str]) -> str:
    """Why the function does not exist."""
    for place, cell in cells.items():
        if f"def {function}" in cell and place in errors:
            return f"{function} does not exist, since its cell stops. {errors[place]}"
    return f"The notebook defines no function {function}."


def borrowed(function: Any) -> list[str]:
    """What a function, or a helper of the student's that it calls, uses from this package."""
    found, seen, todo = set(), set(), [function]
    while todo:
        f = todo.pop()
        if (getattr(f, "__module__", None) or "").split(".")[0] == PACKAGE:
            found.add(getattr(f, "__name__", type(f).__name__))
        code = getattr(f, "__code__", None)
        if code is None or id(f) in seen or f.__globals__.get("__name__") != "__main__":
            continue
        seen.add(id(f))
        names = names_in(code)
        for name in names:
            value = f.__globals__.get(name)
            if isinstance(value, ModuleType) and value.__name__.split(".")[0] == PACKAGE:
                used = [n for n in names if n in vars(value) and n != name]
                found |= {f"{name}.{n}" for n in used} or {name}
            elif callable(value):
                todo.append(value)
        found |= {name for name in names if name.split(".")[0] == PACKAGE}
    return sorted(found)


def names_in(code: CodeType) -> set[str]:
    """All names in a function's code, including the functions inside it."""
    inner = [names_in(c) for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*inner)


# --- Shut in ----------------------------------------------------------------------------------


def shut_in(job: Job) -> None:
    """Silence, an empty folder, bounds on files, and no access to other processes."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    sys.dont_write_bytecode = True
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(job.folder)
    tempfile.tempdir = job.folder
    if hasattr(os, "setsid"):
        os.setsid()  # so that whatever it starts can be ended with it
    if sys.platform != "win32":
        import resource

        for kind, most in ((resource.RLIMIT_FSIZE, LARGEST_FILE), (resource.RLIMIT_CORE, 0)):
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))
    sys.addaudithook(door(job.folder, job.hidden))


def door(folder: str, hidden: frozenset[str]) -> Callable[[str, tuple], None]:
    """An audit hook that forbids what a submission has no business doing."""
    home = os.path.realpath(folder) + os.sep

    def inside(path: Any) -> bool:
        return f"{os.path.realpath(os.fsdecode(path))}{os.sep}".startswith(home)

    def forbid(what: str) -> None:
        raise PermissionError(f"a submission may not {what}")

    def check(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or path is None:
                return
            if (flags or 0) & WRITING and not inside(path) and path != os.devnull:
                forbid(f"write {path}, outside its own folder")
            if os.path.realpath(os.fsdecode(path)) in hidden:
                forbid("read solutions or other submissions")
        elif event in PROCESSES:
            forbid(f"start or end processes ({event})")
        elif event.startswith("socket.") and event != "socket.__new__":
            forbid("use the network")
        elif event in CHANGES:
            paths = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            if not all(inside(path) for path in paths):
                forbid(f"change files outside its own folder ({event})")

    return check
