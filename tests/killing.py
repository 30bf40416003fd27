"""A piece of work killed before each of its system calls, in copies of this process."""

import os
import sys
from collections.abc import Callable
from itertools import count

WATCHED = ("open", "os.", "shutil.")


def killed_at_every_call(work: Callable[[], None], before: Callable[[], None], stop: int = 500):
    """For every system call of `work`: `before()`, then work up to that call; yields its number.

    The process dies as by kill -9: no `finally` runs. `os.fsync`, which announces itself to nobody,
    is counted too. The last number is that of the run that comes to its end.
    """
    for number in count():
        assert number < stop, "it does not end"
        before()
        child = os.fork()
        if not child:
            code = 2
            try:
                die_at(number)
                work()
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9), "the work itself failed"
        yield number
        if code == 0:
            return


def die_at(number: int) -> None:
    """Leave this process at its system call of this number."""
    calls, sync = iter(range(number)), os.fsync

    def call(event: str, args: tuple = ()) -> None:
        if event.startswith(WATCHED) and next(calls, None) is None:
            os._exit(9)

    def counted(file: int) -> None:
        call("os.fsync")
        sync(file)

    os.fsync = counted
    sys.addaudithook(call)
