"""The line at fault: the one in which a single edit makes a student's function right.

When no known mistake explains an answer, the edits of `edits` are tried on the student's own source, the
likeliest first. The line is shown, never the edit. All of it happens in a forked process, which changes
nothing in the notebook and is ended when its time is up. Without `os.fork` there is no such advice.
"""

import ast
import contextlib
import functools
import inspect
import linecache
import math
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from textwrap import indent
from types import CodeType, FunctionType, MethodType
from typing import Any

from .edits import Source, number
from .limits import STOPS, TimeUp
from .numbers import SINGLE, distance
from .patches import source_of
from .running import copies, paragraphs

SECONDS = 3.0  # for the whole search; 0 switches it off
TRIAL = 0.02  # of CPU time for one run of an edited function, unless the student's needs more
MOST = 3  # lines that are shown, if a change in any of them would do
Place = tuple[str, int, str]  # a file, a line, and what to look at


class Function:
    """A student's function, whose source can be edited and compiled."""

    def __init__(self, f: FunctionType) -> None:
        self.f, code, whole = f, f.__code__, Source(source_of(f))
        kind: Any = ast.Lambda if code.co_name == "<lambda>" else ast.FunctionDef
        nodes = (n for n in ast.walk(whole.tree) if isinstance(n, kind))
        taken = list(code.co_varnames[: code.co_argcount])
        node: Any = next(n for n in nodes if [a.arg for a in n.args.args] == taken)
        self.first = code.co_firstlineno + node.lineno - 2  # the number of its first line, less 1
        self.source = Source(f"({whole.text(node)})" if kind is ast.Lambda else whole.text(node))
        self.used = Counter(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
        names = sorted({*code.co_varnames, *code.co_cellvars, *code.co_freevars})
        self.names = sorted(names, key=lambda name: self.used[name])  # a forgotten one comes first

    def become(self, source: str) -> bool:
        """Put the code of another source into the function; False if it makes none."""
        # What it takes from a function around it stays free, whether the source uses it or not.
        whole = f"def around({', '.join(self.f.__code__.co_freevars)}):\n{indent(source, ' ')}"
        with contextlib.suppress(Exception):  # many edits make no program
            code = compile(whole, self.f.__code__.co_filename, "exec", dont_inherit=True)
            for _ in range(2):
                code = next(c for c in code.co_consts if isinstance(c, CodeType))
            self.f.__code__ = code
            return True
        return False


def functions_of(student: Any) -> list[Function]:
    """The student's function or methods, and the functions next to them that they call."""
    found: dict[FunctionType, Function] = {}
    todo, package = [student], __name__.partition(".")[0]
    for f in todo:
        f = inspect.unwrap(f.func if isinstance(f, functools.partial) else f)
        f = f.__func__ if isinstance(f, MethodType) else f
        if str(getattr(f, "__module__", "")).partition(".")[0] == package:
            continue
        if not isinstance(f, FunctionType):  # a class, or an object that is called
            methods = vars(f if isinstance(f, type) else type(f)).values()
            todo += [m for m in methods if isinstance(m, FunctionType)]
        elif f not in found and f.__globals__ is [*found, f][0].__globals__:
            with contextlib.suppress(Exception):  # it may have no source, or be a strange object
                found[f] = Function(f)
                known = {**f.__globals__, **inspect.getclosurevars(f).nonlocals}
                todo += [known[name] for name in found[f].used if callable(known.get(name))]
    return list(found.values())


def search(
    functions: list[Function], exercise: Any, student: Any, seed: int, diagnose: Callable
) -> Iterator[Place]:
    """Where an edit repairs the answer; after the first one, only edits as likely are tried."""
    inputs, best = exercise.inputs(seed), math.inf
    nodes = ast.walk(ast.parse(source_of(inspect.unwrap(exercise.right))))
    numbers = sorted({repr(n) for node in nodes if (n := number(node)) is not None})
    right = {case: exercise.correct(*copies(given)) for case, given in inputs.items()}

    def ring(*_: Any) -> None:
        raise TimeUp

    def near(case: str) -> bool:
        output, wanted = exercise.tensor(student(*copies(inputs[case]))), right[case]
        tolerance = SINGLE * max(1.0, float(wanted.abs().max()))  # `diagnose` looks more closely
        return output.shape == wanted.shape and distance(output.detach(), wanted) <= tolerance

    def passes(case: str) -> bool:
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
            return near(case)
        except (Exception, *STOPS):
            return False
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    signal.signal(signal.SIGPROF, ring)
    start = time.process_time()
    order = sorted(inputs, key=near)  # the wrong cases first; after a crash its own line is known
    seconds = max(TRIAL, 4 * (time.process_time() - start) / len(inputs))
    for more in False, True:
        tries = [(*e, f) for f in functions for e in f.source.edits(f.names + numbers, more)]
        for rank, kind, line, source, function in sorted(tries, key=lambda edit: edit[0]):
            if rank > best:
                return
            before = function.f.__code__
            with contextlib.suppress(Exception, *STOPS):
                if function.become(source) and all(map(passes, order)):
                    diagnose(exercise, student, seed)
                    diagnose(exercise, student, seed + 1)
                    best = rank
                    yield before.co_filename, function.first + line, kind
            function.f.__code__ = before


def tell(channel: Connection, *of: Any) -> None:
    """In the forked process: search in silence, and send each place when it is found."""
    warnings.simplefilter("ignore")
    with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
        for place in search(*of):
            channel.send(place)


def found(*of: Any) -> list[Place]:
    """What the search finds in its time."""
    context, places, end = get_context("fork"), [], time.monotonic() + SECONDS
    mine, others = context.Pipe(duplex=False)
    child = context.Process(target=tell, args=(others, *of), daemon=True)
    try:
        with warnings.catch_warnings(), contextlib.suppress(OSError, AssertionError):
            warnings.simplefilter("ignore")  # about threads; forking may also be forbidden
            child.start()
        others.close()
        with contextlib.suppress(EOFError):
            while mine.poll(max(0.0, end - time.monotonic())):
                places.append(mine.recv())
    finally:
        mine.close()
        if child.pid:
            child.kill()
            child.join()
    return places


def advice(exercise: Any, student: Any, seed: int, diagnose: Callable) -> str:
    """Which line to look at, and at what in it; "" if no edit helps."""
    possible = SECONDS and "fork" in get_all_start_methods()
    functions = functions_of(student) if possible else []
    places = found(functions, exercise, student, seed, diagnose) if functions else []
    lines = dict.fromkeys(linecache.getline(file, line).strip() for file, line, _ in places)
    kinds = dict.fromkeys(f"the {kind}" for *_, kind in places)
    if not 0 < len(lines) <= MOST:
        return ""
    which = "this line" if len(lines) == 1 else "one of these lines"
    return paragraphs(
        f"A change in {which} alone would make it right:",
        "\n".join(f"    {line}" for line in lines),
        f"Look at {' or '.join(kinds)}." if len(kinds) <= MOST else "",
    )
