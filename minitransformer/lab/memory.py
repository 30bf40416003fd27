"""How much memory a piece of work takes."""

import ctypes
import gc
import threading

import psutil


class PeakMemory:
    """The most memory, in MiB, that the process held inside, above what it held before.

    A thread looks 200 times a second, so a short peak may be missed.

    >>> with PeakMemory() as memory:
    ...     block = b"x" * 2**26
    >>> memory.mib > 30
    True
    """

    mib = 0.0

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # memory that earlier work freed must not hide what this work takes
        self.process, self.done = psutil.Process(), threading.Event()
        self.before = self.process.memory_info().rss
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def watch(self) -> None:
        """Update the peak until the work is done, and once more then."""
        done = False
        while not done:
            done = self.done.wait(0.005)
            self.mib = max(self.mib, (self.process.memory_info().rss - self.before) / 2**20)
