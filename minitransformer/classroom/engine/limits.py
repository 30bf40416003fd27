"""Limits around a student's function, so that an endless loop or a huge tensor gets an answer too.

`limited(seconds)` stops what takes too long, bounds memory, shortens what is printed, and makes
`input()` an error. It needs no second process: the function runs in the notebook itself.

What it cannot do: a single operation in C (one huge matrix product) is only stopped when it returns;
on Windows, and outside the main thread, a bare `except:` in a loop swallows the stop, as it swallows
the stop button; memory is limited on Linux only, and not with CUDA, which reserves address space freely.
"""

import builtins
import contextlib
import ctypes
import dis
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import psutil
import torch

SECONDS = 10.0  # for all runs of one check; a right answer takes hundredths of a second
MEMORY = 2 * 2**30  # bytes in addition to what the process already has
PRINTED = 2000  # characters of output that are shown
REPEAT = 0.3  # seconds between a stop and the next, where the first one was swallowed
HERE = (__file__, contextlib.__file__)
# The instruction at the start of every `except`, and of what `with` or `finally` do on an exception.
HANDLER = dis.opmap["PUSH_EXC_INFO"]


class TimeUp(BaseException):
    """Raised in the running code when its time is up; `except Exception` does not catch it."""


STOPS = (TimeUp, MemoryError, SystemExit, KeyboardInterrupt)
"""What ends a student's function from outside, or would end the notebook."""


@contextlib.contextmanager
def limited(seconds: float, memory: int = MEMORY) -> Iterator:
    """All limits. Raises: TimeUp after that many seconds, wherever the code inside is then."""
    main = threading.current_thread() is threading.main_thread()
    clock = alarm if main and hasattr(signal, "setitimer") else watcher
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, builtins, "input", builtins.input)
        builtins.input = no_questions
        stack.enter_context(contextlib.redirect_stdout(Shortened(sys.stdout, PRINTED)))
        # Small tensors gain nothing from several threads, which on a busy server wait for each other.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        stack.enter_context(address_space(memory))
        stack.enter_context(clock(seconds))
        yield


@contextlib.contextmanager
def usual_state() -> Iterator:
    """Within, torch is as after its import, but float64 by default; afterwards it is as it was."""
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float64)
        yield


def no_questions(*_: Any) -> str:
    """Instead of `input`: nobody can answer during a check."""
    raise RuntimeError("input() asks a question and nobody answers: use only the arguments")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator:
    """The system's timer, which also interrupts a `sleep`. Main thread only, and not on Windows.

    A bare `except:` catches `TimeUp` like anything else. So from the second ring on it is raised again
    where the code carries on as if nothing had happened: after that `except`, and after what `with` and
    `finally` have to do first.
    """
    rung, start, trace = 0, time.monotonic(), sys.gettrace()
    stack = (frame for frame, _ in traceback.walk_stack(sys._getframe()))
    outer = next(frame for frame in stack if frame.f_code.co_filename not in HERE)

    def again(frame: FrameType, event: str, arg: Any) -> Any:
        at_handler = frame.f_code.co_code[frame.f_lasti] == HANDLER
        if event == "line" and not at_handler and sys.exc_info()[0] is not TimeUp:
            raise TimeUp
        return again

    def ring(signum: int, frame: FrameType | None) -> None:
        nonlocal rung
        signal.setitimer(signal.ITIMER_REAL, REPEAT)
        # On the way in or out, the student's code is not running: nothing is raised.
        if frame is not None and frame.f_code.co_filename in HERE:
            return
        rung += 1
        if rung > 1:
            sys.settrace(lambda *_: None)  # functions called from now on are not traced
            while frame is not None and frame is not outer:
                frame.f_trace, frame = again, frame.f_back
        raise TimeUp

    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.settrace(trace)
        if left:  # limits inside limits: the outer timer continues
            left = max(left - time.monotonic() + start, 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


@contextlib.contextmanager
def watcher(seconds: float) -> Iterator:
    """The same for all other cases: a second thread raises in this one, between two instructions."""
    thread, done = threading.get_ident(), threading.Event()
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def watch() -> None:
        pause = seconds
        while not done.wait(pause):
            frame = sys._current_frames().get(thread)
            if frame is not None and frame.f_code.co_filename not in HERE:
                raise_in(ctypes.c_ulong(thread), ctypes.py_object(TimeUp))
            pause = REPEAT

    other = threading.Thread(target=watch, daemon=True)
    other.start()
    try:
        yield
    finally:
        # A stop that is already on its way arrives here. It cannot be taken back: CPython would keep
        # asking for it at every call, and under a profiler never get past the first.
        for _ in range(2):
            with contextlib.suppress(TimeUp):
                done.set()
                other.join()


@contextlib.contextmanager
def address_space(memory: int) -> Iterator:
    """At most this many bytes more: a tensor too large is then an error, not the end of the kernel."""
    if sys.platform != "linux" or torch.cuda.is_available():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [n for n in (soft, hard) if n != resource.RLIM_INFINITY]
    least = min([psutil.Process().memory_info().vms + memory, *bounds])
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Shortened:
    """A text stream that passes on the first characters, then one remark, then nothing."""

    def __init__(self, stream: Any, left: int) -> None:
        self.stream, self.left = stream, left

    def write(self, text: str) -> int:
        """Pass on what fits."""
        if self.left > 0:
            self.stream.write(text[: self.left])
            if len(text) > self.left:
                self.stream.write("\n... (the rest of what your function prints is not shown)\n")
            self.left -= len(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


CAUSES = (
    (TimeUp, "Usually it is a `while` whose condition stays true, or a loop over single numbers "
     "where one operation on the whole tensor would do."),
    (MemoryError, "It asked for far more memory than this exercise needs. Usually a size is in the "
     "wrong place, or a list grows in an endless loop."),
    (RecursionError, "It calls itself without end. Did you mean another function of that name?"),
    (SystemExit, "exit() would end the whole notebook: use `return`."),
)  # fmt: skip


def usual_cause(error: BaseException) -> str:
    """The usual cause of an error that says little by itself; "" for all others."""
    kind = MemoryError if "allocate memory" in str(error) else type(error)
    return next((cause for known, cause in CAUSES if issubclass(kind, known)), "")
