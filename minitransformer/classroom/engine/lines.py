"""The line at fault: the one in which a single edit makes a student's function right.

When no known mistake explains an answer, the edits of `edits` are tried on the student's own source, the
likeliest first. The line is shown, never the edit. All of it happens in a forked process, which changes
nothing in the notebook and is ended when its time is up; without fork there is no such advice.
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
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from . import limits
from .edits import HELPERS, Edit, edits
from .numbers import EXACT, distance
from .running import copies, paragraphs

SECONDS = 3.0  # for the whole search; 0 switches it off
TRIAL = 0.02  # for one run of an edited function, which may never end, unless the original needs more
MOST = 3  # so many lines are shown if a change in any of them would do
Place = tuple[str, int, str]  # a file, a line, and the kind of edit that helps there


def own(student: Any) -> list[FunctionType]:
    """The student's function or methods, and the functions next to them that they call."""
    found: list[FunctionType] = []
    todo = [student]
    for f in todo:
        f = inspect.unwrap(f.func if isinstance(f, functools.partial) else f)
        f = f.__func__ if isinstance(f, MethodType) else f
        if not isinstance(f, FunctionType):  # a class, or an object that is called
            methods = vars(f if isinstance(f, type) else type(f)).values()
            todo += [m for m in methods if isinstance(m, FunctionType)]
        elif f not in found and f.__globals__ is [*found, f][0].__globals__:
            found.append(f)
            cells = [c.cell_contents for c in f.__closure__ or ()]
            todo += filter(callable, [*map(f.__globals__.get, names_in(f.__code__)), *cells])
    return found


def names_in(code: CodeType) -> list[str]:
    """The names in a function's code, including the functions inside it."""
    inner = [n for c in code.co_consts if isinstance(c, CodeType) for n in names_in(c)]
    return [*code.co_names, *inner]


class Source:
    """The tree of a function's source, which can be compiled again after a change."""

    def __init__(self, f: FunctionType) -> None:
        self.f, self.file, self.names = f, f.__code__.co_filename, set(f.__code__.co_freevars)
        every = ast.walk(ast.parse("".join(linecache.getlines(self.file))))
        self.node: Any = next(node for node in every if self.fits(node))
        self.node.decorator_list, self.node.returns, arguments = [], None, self.node.args
        arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
        for node in ast.walk(self.node):
            if isinstance(node, ast.arg):
                node.annotation = None
                self.names.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.names.add(node.id)
        # What it takes from a function around it stays free, whether the edited code uses it or not.
        outer: Any = ast.parse("def outer(): " + "".join(f"{n} = 0;" for n in f.__code__.co_freevars) + "0")
        last = ast.Expr(self.node) if isinstance(self.node, ast.Lambda) else self.node
        outer.body[0].body.append(last)
        self.tree = ast.fix_missing_locations(outer)

    def fits(self, node: ast.AST) -> bool:
        """Whether this is the function."""
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            return False
        code, lines = self.f.__code__, [n.lineno for n in (node, *getattr(node, "decorator_list", ()))]
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        return (
            min(lines) == code.co_firstlineno
            and getattr(node, "name", "<lambda>") == code.co_name
            and tuple(arguments) == code.co_varnames[: code.co_argcount]
        )

    @contextlib.contextmanager
    def edited(self, edit: Edit) -> Iterator[bool]:
        """Within, the student's function is the edited one; False if the edit makes no function."""
        before, old = self.f.__code__, edit.store[edit.key]
        for new in edit.new if isinstance(edit.new, list) else [edit.new]:
            if new is not None and not hasattr(new, "lineno"):
                new.lineno = new.end_lineno = edit.line
                new.col_offset = new.end_col_offset = 0
                ast.fix_missing_locations(new)
        edit.store[edit.key] = edit.new
        try:
            with contextlib.suppress(Exception):  # many edits make no program
                code = compile(self.tree, self.file, "exec", dont_inherit=True)
                for _ in range(2):
                    code = next(c for c in code.co_consts if isinstance(c, CodeType))
                self.f.__code__ = code
            yield self.f.__code__ is not before
        finally:
            edit.store[edit.key], self.f.__code__ = old, before


def search(exercise: Any, student: Any, seed: int, diagnose: Callable) -> Iterator[Place]:
    """Where an edit repairs the function; after the first one, only edits as likely are tried."""
    sources = []
    for f in own(student):
        with contextlib.suppress(StopIteration, SyntaxError):
            sources.append(Source(f))
            f.__globals__.update(HELPERS)
    inputs = exercise.inputs(seed)
    right = {case: exercise.correct(*copies(given)) for case, given in inputs.items()}

    def fails(case: str, seconds: float) -> bool:
        given, wanted = copies(inputs[case]), right[case]
        try:
            with limits.alarm(seconds):
                output = exercise.tensor(student(*given))
            same = output.shape == wanted.shape and output.dtype == wanted.dtype
            return not same or distance(output.detach(), wanted) > EXACT
        except (Exception, *limits.STOPS):
            return True

    with limits.limited(SECONDS):
        start = time.perf_counter()
        order = sorted(inputs, key=lambda case: not fails(case, SECONDS))
        seconds = max(TRIAL, 4 * (time.perf_counter() - start) / len(inputs))
        tries = [(edit.rank, s, edit) for s in sources for edit in edits(s.node, s.names)]
        best = math.inf
        for rank, source, edit in sorted(tries, key=lambda each: each[0]):
            if rank > best:
                return
            with source.edited(edit) as made, contextlib.suppress(Exception):
                if made and not any(fails(case, seconds) for case in order):
                    diagnose(exercise, student, seed)
                    diagnose(exercise, student, seed + 1)
                    best = rank
                    yield source.file, edit.line, edit.kind


def in_a_fork(work: Callable[[], Iterator[Place]], seconds: float) -> list[Place]:
    """What an iterator yields in that time, in a forked process: whatever happens there stays there."""
    mine, others = Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nowhere, stream)
            sys.stdout = sys.stderr = os.fdopen(nowhere, "w")
            warnings.simplefilter("ignore")
            for found in work():
                others.send(found)
        os._exit(0)
    others.close()
    found, end = [], time.monotonic() + seconds
    try:
        with contextlib.suppress(EOFError):
            while mine.poll(max(0.0, end - time.monotonic())):
                found.append(mine.recv())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        mine.close()
    return found


def advice(exercise: Any, student: Any, seed: int, diagnose: Callable) -> str:
    """Which line to look at, and at what in it; "" if no edit helps."""
    if not SECONDS or not hasattr(os, "fork"):
        return ""
    found = in_a_fork(lambda: search(exercise, student, seed, diagnose), SECONDS)
    lines = dict.fromkeys(linecache.getline(file, line).strip() for file, line, _ in found)
    kinds = dict.fromkeys(f"the {kind}" for *_, kind in found)
    if not 0 < len(lines) <= MOST:
        return ""
    which = "this line" if len(lines) == 1 else "one of these lines"
    return paragraphs(
        f"A change in {which} alone would make it right:",
        "\n".join(f"    {line}" for line in lines),
        f"Look at {' or '.join(kinds)}." if len(kinds) <= MOST else "",
    )
