"""A check answers whatever a student's function does: it never hangs, and takes no kernel along."""

import builtins
import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import minitransformer as mt
from minitransformer.classroom.engine import limits


@pytest.fixture(autouse=True)
def long(monkeypatch):
    """What ends by itself has the time that a busy machine needs."""
    monkeypatch.setattr(limits, "SECONDS", 60.0)


@pytest.fixture
def short(long, monkeypatch):
    """What never ends is stopped soon."""
    monkeypatch.setattr(limits, "SECONDS", 0.3)


def in_main_thread(f):
    return f()


def in_another_thread(f):
    """The way of Windows, and of a kernel that runs cells in threads."""
    answer = []
    thread = threading.Thread(target=lambda: answer.append(f()))
    thread.start()
    thread.join(120)
    return answer[0]


each_thread = pytest.mark.parametrize("run", [in_main_thread, in_another_thread])
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")


def never_ends(Q, K):
    i = 0
    while i < 10:
        pass
    return Q


def never_ends_in_a_helper(Q, K):
    return never_ends(Q, K)


def swallows_exceptions(Q, K):
    while True:
        try:  # noqa: SIM105
            Q @ K
        except Exception:
            pass


def slow_in_torch(Q, K):
    while True:
        Q = Q.softmax(-1)


@each_thread
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "answer",
    [never_ends, never_ends_in_a_helper, swallows_exceptions, slow_in_torch],
)
def test_a_loop_without_end_is_stopped_at_its_line(run, answer):
    start = time.monotonic()
    result = run(lambda: mt.check.scaled_scores(answer))
    assert time.monotonic() - start < 60  # not for ever: 0.3 on a machine that does nothing else
    assert not result.passed
    assert "Stopped after" in result.message and "stays true" in result.message
    assert "It stops in `" in result.message and "at the line\n\n    " in result.message
    assert ".py" not in result.message


def catches_all(Q, K):
    while True:
        try:  # noqa: SIM105
            Q @ K
        except:  # noqa: E722
            pass


def catches_all_and_goes_on(Q, K):
    while True:
        try:
            never_ends(Q, K)
        except BaseException:
            continue


def catches_all_in_a_helper(Q, K):
    while True:
        catches_all(Q, K)


def sleeps_and_catches_all(Q, K):
    while True:
        try:
            time.sleep(60)
        except:  # noqa: E722
            Q = Q + 1


def catches_all_on_one_line(Q, K):
    while True:
        try:  # noqa: SIM105
            never_ends(Q, K)
        except: pass  # noqa: E701, E722  # fmt: skip


def catches_all_around_a_with(Q, K):
    while True:
        try:
            with torch.no_grad():
                never_ends(Q, K)
        except:  # noqa: E722
            pass


def suppresses_all(Q, K):
    while True:
        with contextlib.suppress(BaseException):
            never_ends(Q, K)


@pytest.mark.usefixtures("short")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no such timer")
@pytest.mark.parametrize(
    "answer",
    [catches_all, catches_all_and_goes_on, catches_all_in_a_helper, sleeps_and_catches_all,
     catches_all_on_one_line, catches_all_around_a_with, suppresses_all],
)  # fmt: skip
def test_who_catches_everything_is_stopped_too(answer):
    """In the main thread: it is raised again where the exception was swallowed."""
    before = sys.gettrace()
    start = time.monotonic()
    result = mt.check.scaled_scores(answer)
    assert time.monotonic() - start < 60
    assert not result.passed and "Stopped after" in result.message
    assert sys.gettrace() is before and torch.is_grad_enabled()


def test_what_is_to_be_done_at_the_end_is_done_when_it_is_raised_again(short):
    done = {"with": 0, "finally": 0}

    @contextlib.contextmanager
    def counted():
        try:
            yield
        finally:
            done["with"] += 1

    def answer(Q, K):
        entered = 0
        while True:
            entered += 1
            assert done == {"with": entered - 1, "finally": entered - 1}
            try:
                with counted():
                    try:
                        never_ends(Q, K)
                    finally:
                        done["finally"] += 1
            except BaseException:
                pass

    assert "Stopped after" in mt.check.scaled_scores(answer).message
    assert done["with"] == done["finally"] > 1


@each_thread
def test_what_was_stopped_leaves_nothing_behind(run, short, monkeypatch):
    def both():
        assert not mt.check.scaled_scores(never_ends).passed
        monkeypatch.setattr(limits, "SECONDS", 60.0)
        until = time.monotonic() + 0.5  # a late stop would come here
        while time.monotonic() < until:
            pass
        return mt.check.scaled_scores(lambda Q, K: Q @ K.mT / K.shape[-1] ** 0.5)

    before = builtins.input, sys.stdout, signal.getsignal(signal.SIGINT)
    threads = threading.active_count()
    assert run(both).passed
    assert (builtins.input, sys.stdout, signal.getsignal(signal.SIGINT)) == before
    assert threading.active_count() <= threads + 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timer on Windows")
@pytest.mark.parametrize("answer", ["Q @ K.mT / Q.shape[-1] ** 0.5", "forever()"])
def test_a_profiler_goes_on_after_a_check_in_another_thread(answer):
    """The interpreter must not be left with a request for an exception that never comes."""
    script = f"""
import sys, threading
import minitransformer as mt
from minitransformer.classroom.engine import limits
limits.SECONDS = 0.3
def forever():
    while True: pass
thread = threading.Thread(target=lambda: mt.check.scaled_scores(lambda Q, K: {answer}))
thread.start(), thread.join()
def nothing(): pass
sys.setprofile(lambda *_: None)
for _ in range(1000): nothing()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_a_sleep_is_woken_and_an_outer_timer_goes_on(short):
    rings = []
    old = signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
    signal.setitimer(signal.ITIMER_REAL, 600)
    try:
        assert "Stopped" in mt.check.scaled_scores(lambda Q, K: time.sleep(60)).message
        assert not rings
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 599.9
        signal.raise_signal(signal.SIGALRM)
        assert rings == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@each_thread
def test_the_stop_ends_one_check_of_several_outputs_too(run, short):
    def answer(dO, Q, K, V, keep):
        while True:
            pass

    assert "while True:" in run(lambda: mt.check.attention_backward(answer)).message


@linux
@each_thread
@pytest.mark.parametrize(
    "answer",
    [
        lambda Q, K: torch.zeros(10**6, 10**6),
        lambda Q, K: torch.zeros(Q.numel(), 10**6, 4),
        lambda Q, K: bytearray(10**11),
    ],
    ids=["far too large", "more than the limit", "no tensor"],
)
def test_a_tensor_too_large_is_an_answer(run, answer):
    result = run(lambda: mt.check.scaled_scores(answer))
    assert not result.passed
    assert "It does not run" in result.message and "far more memory" in result.message


@linux
def test_a_list_that_grows_without_end_stops_before_memory_is_full():
    def answer(Q, K):
        rows = []
        while True:
            rows.append(torch.empty(2**27))

    result = mt.check.scaled_scores(answer)
    assert "far more memory" in result.message and "rows.append" in result.message


@linux
def test_the_memory_limit_is_lifted_afterwards():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    mt.check.scaled_scores(lambda Q, K: torch.zeros(10**6, 10**6))
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    within = []

    def answer(Q, K):
        within.append(resource.getrlimit(resource.RLIMIT_AS)[0])

    mt.check.scaled_scores(answer)
    assert 0 < within[0] < 2**50


def calls_itself(Q, K):
    return calls_itself(Q, K)


def asks(Q, K):
    return Q * float(input("scale?"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (calls_itself, "calls itself without end"),
        (asks, "nobody answers"),
        (lambda Q, K: sys.exit(), "use `return`"),
        (lambda Q, K: exit(1), "use `return`"),
    ],
)
def test_other_ways_to_end_a_notebook(answer, said):
    result = mt.check.scaled_scores(answer)
    assert not result.passed and said in result.message


def test_a_key_press_stops_a_check_and_says_where():
    def answer(Q, K):
        raise KeyboardInterrupt

    result = mt.check.scaled_scores(answer)
    assert result.message.startswith("You stopped it.") and "raise Keyboard" in result.message


def test_prints_are_shown_in_part(capsys):
    def answer(Q, K):
        print("shape", Q.shape)
        for _ in range(200):
            print("x" * 100)
        return Q @ K.mT / K.shape[-1] ** 0.5

    assert mt.check.scaled_scores(answer).passed
    shown = capsys.readouterr().out
    assert shown.startswith("shape") and len(shown) < 2 * limits.PRINTED
    assert shown.count("is not shown") == 1
