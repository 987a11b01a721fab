"""Run commands in parallel, each with its share of the cores, and begin and end worker processes.

A small model keeps one core busy and hardly uses a second one, so two training runs in parallel take little
longer than one.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker

from kdasr.errors import KdasrError

_SECONDS_BETWEEN_LOOKS = 0.1
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_beside(commands: Mapping[str, Sequence[str]], say: Callable[[str], None] = print) -> None:
    """Run `kdasr` with each list of arguments in parallel, and wait for all.

    Args:
        commands: the arguments, by the name of what they make.
        say: called with each line that a command writes to stderr.

    Raises:
        KdasrError: one of them failed; the others were terminated, as they are if this process dies.
    """
    threads = str(_threads_for_each(len(commands)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    end_with_parent = _end_with_parent()
    running: dict[str, subprocess.Popen[str]] = {}
    readers = []
    try:
        for name, arguments in commands.items():
            running[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", "kdasr.cli", *arguments],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                preexec_fn=end_with_parent,
            )
            readers.append(threading.Thread(target=_say_all, args=(running[name], say), daemon=True))
            readers[-1].start()
        while _some_run(running):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait()
        for reader in readers:
            reader.join()


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Processes started within this never see Ctrl-C, not even while they import modules: it is for their
    parent, which then ends them, and sees one of now a little later."""
    # The first process would start it, and up to Python 3.13 it leaves the signal unblocked.
    resource_tracker.ensure_running()
    with _ctrl_c_later():
        # Inherited by them, unlike a handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Ctrl-C comes after this. (If this thread blocks it, another one of a library gets it, and Python then
    interrupts the main thread all the same.) No other thread can be interrupted."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    pressed = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed.is_set():
            signal.raise_signal(signal.SIGINT)


def end_with_parent() -> None:
    """End this process of `multiprocessing` at once when its parent is gone.

    If it finished its work first, it could write at the same time as a command that was started next.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _threads_for_each(count: int) -> int:
    """Each process's share of the cores, or OMP_NUM_THREADS if that is less."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, usable_cores() // count)
    return min(share, int(allowed)) if allowed.isdigit() and int(allowed) > 0 else share


def _some_run(running: Mapping[str, subprocess.Popen[str]]) -> bool:
    statuses = {name: child.poll() for name, child in running.items()}
    for name, status in statuses.items():
        if status:
            raise KdasrError(
                f"{name} failed",
                got=f"exit status {status}",
                fix="The reason is above. What ran in parallel was stopped; the same command resumes it.",
            )
    return None in statuses.values()


def _say_all(child: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    assert child.stderr is not None
    for line in child.stderr:
        with contextlib.suppress(OSError):  # nobody reads our output; keep emptying the pipe
            say(line.rstrip("\n"))


def _end_with_parent() -> Callable[[], None] | None:
    """What a child calls first, on Linux, to end with its parent: an orphan and the next run would write into
    the same folder."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
