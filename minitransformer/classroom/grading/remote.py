"""A student's function in another process, called as if it were here.

Inputs are ours and travel as pickles. What comes back is the student's: numbers, texts, tensors and
containers of them are read, and nothing in it can run here.
"""

import builtins
import functools
import inspect
import io
import linecache
import os
import pickle
import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import cloudpickle  # which also takes nested functions
import numpy as np
import torch
from torch import Tensor, nn

from ..engine import limits

LARGEST = 2**24  # bytes of an answer
# Errors that a text alone cannot make.
TAKE_MORE = (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError, ExceptionGroup)


class Gone(BaseException):
    """The other process ended, or sent something that cannot be read."""


class Writer(pickle.Pickler):
    """Writes what a student's function returns, in terms of what `Reader` can make."""

    def __init__(self, value: Any) -> None:
        self.file, self.tensors = io.BytesIO(), list[Tensor]()
        super().__init__(self.file, pickle.HIGHEST_PROTOCOL)
        self.dump(value)

    def reducer_override(self, value: Any) -> Any:
        """How to make a value that is no plain number, text or container."""
        if any(value is maker for maker in MAKERS.values()):
            return NotImplemented
        if isinstance(value, Tensor):
            self.tensors.append(value)
            raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return tensor, (raw, tuple(value.shape), str(value.dtype)[6:], value.requires_grad)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            return array, (value.tobytes(), value.shape, value.dtype.str, np.isscalar(value))
        for kind in (dict, list, tuple):
            if isinstance(value, kind):
                return kind, (kind(value),)
        return unknown, (type(value).__name__,)


class Reader(pickle.Unpickler):
    """Reads what a student's process sends."""

    def __init__(self, message: bytes, instead: Iterable[Tensor] = ()) -> None:
        super().__init__(io.BytesIO(message))
        self.message, self.tensors, self.instead = message, list[Tensor](), iter(instead)

    def find_class(self, module: str, name: str) -> Any:
        """One of the few makers. Raises: KeyError: anything else."""
        return self.tensor if name == "tensor" else MAKERS[name]

    def tensor(self, *parts: Any) -> Tensor:
        """A tensor, or the one that is to stand in its place."""
        made = next(self.instead, None)
        self.tensors.append(tensor(*parts) if made is None else made)
        return self.tensors[-1]


def tensor(raw: bytes, shape: Sequence[int], dtype: str, requires_grad: bool) -> Tensor:
    """A tensor from its bytes."""
    kind = getattr(torch, dtype)
    flat = torch.frombuffer(bytearray(raw), dtype=kind) if raw else torch.empty(0, dtype=kind)
    return flat.reshape(shape).requires_grad_(requires_grad)


def array(raw: bytes, shape: Sequence[int], dtype: str, scalar: bool) -> Any:
    """An array of NumPy from its bytes, or one of its numbers."""
    made = np.frombuffer(bytearray(raw), dtype).reshape(shape)
    return made[()] if scalar else made


def unknown(name: str) -> Any:
    """A stand-in for an object that cannot travel: its type has the same name."""
    return type("".join(filter(str.isidentifier, name[:100])) or "object", (), {})()


MAKERS = {f.__name__: f for f in (tensor, array, unknown, dict, list, tuple)}


class Link:
    """Our end of the connection to a student's process."""

    def __init__(self, channel: Connection) -> None:
        self.channel, self.number, self.waiting, self.owner = channel, 0, False, os.getpid()

    def ask(self, *request: Any, seconds: float) -> tuple[dict[str, Any], Reader]:
        """The answer to a request. Raises: Gone; TimeUp: there is none after that many seconds."""
        if os.getpid() != self.owner:  # a fork would take the answers of another request
            raise Gone("was called from another process")
        self.number, self.waiting = self.number + 1, True
        until = time.monotonic() + seconds
        try:
            self.channel.send_bytes(cloudpickle.dumps((self.number, *request)))
            while self.channel.poll(max(until - time.monotonic(), 0)):
                reader = Reader(self.channel.recv_bytes(LARGEST))
                answer = reader.load()
                if answer["number"] == self.number:  # anything else is not ours
                    self.waiting = False
                    return answer, reader
        except (EOFError, OSError):
            raise Gone("ended the process") from None
        except Exception as error:
            raise Gone(f"sent what cannot be read ({type(error).__name__})") from None
        raise limits.TimeUp


class Remote:
    """A student's function in another process; gradients pass through it."""

    def __init__(self, link: Link, name: str, file: str) -> None:
        self.link, self.__name__, self.used = link, name, set[str]()
        self.__code__ = SimpleNamespace(co_filename=file)  # where the lines of its errors are from
        # It should stop by itself, and say where, before the check stops waiting for it.
        self.until = time.monotonic() + 0.95 * limits.SECONDS

    def __call__(self, *inputs: Any) -> Any:
        leaves = [a for a in inputs if isinstance(a, Tensor) and a.requires_grad]
        grad = bool(leaves) and torch.is_grad_enabled()
        answer, reader = self.ask("call", inputs, grad)
        for given, changed in zip(inputs, answer["changed"], strict=True):
            change(given, changed)
        self.used |= set(answer["used"])
        if grad and any(t.requires_grad for t in reader.tensors):
            joined = Through.apply(self, self.link.number, reader.tensors, *leaves)
            return Reader(reader.message, joined).load()["value"]
        for t in reader.tensors:
            t.requires_grad_(False)
        return answer["value"]

    def ask(self, *request: Any) -> tuple[dict[str, Any], Reader]:
        """As the link's, in the time that is left. Raises: the student's error."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise limits.TimeUp
        answer, reader = self.link.ask(*request, left, seconds=2 * left + 1)
        if "error" in answer:
            raise_at(*answer["error"])
        return answer, reader


class Through(torch.autograd.Function):
    """Joins the outputs of a student's function to its inputs: the gradient is computed over there."""

    @staticmethod
    def forward(ctx: Any, f: Remote, call: int, outputs: list[Tensor], *leaves: Tensor) -> Any:
        """The outputs as they are."""
        ctx.f, ctx.call = f, call
        joined = tuple(t.clone() for t in outputs)
        fixed = (a for a, b in zip(joined, outputs, strict=True) if not b.requires_grad)
        ctx.mark_non_differentiable(*fixed)
        return joined

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradients of the inputs, given those of the outputs."""
        return None, None, None, *ctx.f.ask("backward", ctx.call, grads)[0]["value"]


def change(given: Any, changed: Any) -> None:
    """Do to an argument what the student's function did to its copy."""
    match given, changed:
        case nn.Module(), bool():
            given.train(changed)
        case Tensor(), Tensor():
            with torch.no_grad():
                given.copy_(changed)
        case list(), list():
            given[:] = changed
        case dict(), dict():
            given.clear()
            given.update(changed)


def raise_at(kind: str, text: str, frames: list[tuple[str, int, str]]) -> None:
    """Raise a student's error again, with a traceback that names the same lines."""
    known: Any = {"TimeUp": limits.TimeUp}.get(kind) or getattr(builtins, kind, None)
    if known not in limits.STOPS and (known in TAKE_MORE or not inspect.isclass(known)):
        known = type(type(unknown(kind)).__name__, (Exception,), {})
    elif known not in limits.STOPS and not issubclass(known, Exception):
        known = RuntimeError
    error: BaseException = known(text)

    def step() -> None:
        raise error

    for file, line, name in reversed(frames[-20:]):
        file = file if file in linecache.cache else "<elsewhere>"
        code = compile("\n" * (min(line, 10**5) - 1) + "step()", file, "exec")
        step = functools.partial(exec, code.replace(co_name=name), {"step": step})
    step()
