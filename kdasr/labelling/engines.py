"""Crews of workers that label shards: this process itself, or processes of this machine.

A crew takes tasks and reports what became of each, its worker's death included; what follows from
a death (again, look for the culprit, give up) is the foreman's business (`kdasr.labelling.foreman`).
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NamedTuple, Protocol

import torch

from kdasr.errors import ConfigError, KdasrError, ShardError
from kdasr.labelling.audio_source import local_copy
from kdasr.labelling.settings import Settings, ShardResult
from kdasr.labelling.shard_job import label_shard, probe
from kdasr.labelling.teachers import Teacher, TeacherSource
from kdasr.storage import Place, StorageError, is_url

_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_READY = "ready"
#: A device that Ray's cluster decides.
AUTO_DEVICE = "auto"
#: Workers in a row that die before they are ready, until the job gives up.
MAX_STILLBORN = 3


@dataclass(frozen=True)
class Work:
    """What every worker of a job needs to know.

    Attributes:
        teacher: how to get the teacher.
        out: where the labels go.
        settings: how to label.
        device: where the teacher runs.
        overwrite: whether labels of another teacher or with other settings are replaced.
    """

    teacher: TeacherSource
    out: Place
    settings: Settings
    device: str = "cpu"
    overwrite: bool = False


@dataclass(frozen=True)
class Task:
    """Something for one worker to do.

    Attributes:
        audio: an audio shard.
        probe_key: None to label the shard; a key to try this utterance alone and keep nothing.
        exclude: keys not to be tried, with the reasons.
    """

    audio: str
    probe_key: str | None = None
    exclude: Mapping[str, str] = field(default_factory=dict)


class Report(NamedTuple):
    """What became of a task.

    Attributes:
        task: the task.
        worker: who had it.
        kind: `done`; `failed` (an error, and the worker lives); `died` (the worker is gone).
        result: of a shard that was labelled.
        reason: of a failure or death.
        fatal: the failure would meet every other shard too (a full disk, …).
        may_pass: a store or a file system was out of reach, perhaps not for long.
    """

    task: Task
    worker: int
    kind: Literal["done", "failed", "died"]
    result: ShardResult | None = None
    reason: str = ""
    fatal: bool = False
    may_pass: bool = False


class Crew(Protocol):
    """Workers, each with at most one task, who take tasks in the order in which they are given."""

    size: int

    def submit(self, task: Task) -> None:
        """Give a task; at most `size` may be out."""
        ...

    def wait(self) -> Report:
        """The next report; only called while tasks are out. A dead worker is replaced."""
        ...

    def stop(self) -> None: ...


def execute(teacher: Teacher, work: Work, task: Task, worker: int) -> Report:
    """Do a task here and now; every error becomes a report.

    Raises:
        torch.AcceleratorError: the device is of no more use to this process, which should end.
    """
    try:
        if task.probe_key is not None:
            with local_copy(task.audio) as path:
                probe(teacher, path, task.probe_key, work.settings)
            return Report(task, worker, "done")
        result = fetch_and_label(
            teacher, task.audio, work.out, work.settings, exclude=task.exclude, overwrite=work.overwrite
        )
        return Report(task, worker, "done", result)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        # A store that fails is the one of the labels: what cannot be fetched is a ShardError.
        fatal = isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _FATAL)
        may_pass = _is_remote_outage(error, work.out) if fatal else _is_unfetched(error)
        reason = f"{type(error).__name__}: {error}"
        return Report(task, worker, "failed", reason=reason, fatal=fatal, may_pass=may_pass)


def _is_unfetched(error: Exception) -> bool:
    """Whether the audio could not be read at all, rather than read and found damaged."""
    found = error.__cause__ if isinstance(error, ShardError) else error
    return isinstance(found, OSError | StorageError)


def _is_remote_outage(error: Exception, out: Place) -> bool:
    """Whether labels could not be stored for a reason that passes by itself, as a full or broken disk and
    missing rights do not."""
    return is_url(out) and not isinstance(error.__cause__, PermissionError)


def fetch_and_label(
    teacher: Teacher,
    audio: str,
    out: Place,
    settings: Settings,
    *,
    exclude: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> ShardResult:
    """`label_shard` for a shard at a path or a URL; what it took has the fetching in it, since a machine is
    paid for while its worker waits for audio, too.

    Raises:
        ShardError: it cannot be fetched, or is damaged.
        and whatever `label_shard` raises.
    """
    started = time.perf_counter()
    with local_copy(audio) as path:
        fetched = time.perf_counter()
        result = label_shard(teacher, path, out, settings, exclude=exclude, overwrite=overwrite)
    result.fetch_s = fetched - started
    result.wall_s = time.perf_counter() - started
    return result


class InlineCrew:
    """One worker: this process."""

    size = 1

    def __init__(self, work: Work, teacher: Teacher) -> None:
        self._work, self._teacher = work, teacher
        self._threads_before = torch.get_num_threads()
        set_threads(work.settings)
        self._tasks: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self) -> Report:
        task = self._tasks.popleft()
        try:
            return execute(self._teacher, self._work, task, 0)
        except torch.AcceleratorError as error:
            return Report(task, 0, "failed", reason=f"{type(error).__name__}: {error}", fatal=True)

    def stop(self) -> None:
        self._tasks.clear()
        # A training of the same run may follow in this process.
        torch.set_num_threads(self._threads_before)


class ProcessCrew:
    """Processes of this machine, each with a teacher of its own; one that dies is started anew."""

    def __init__(self, work: Work, size: int) -> None:
        self.size, self._work = (
            size,
            replace(work, settings=on_one_machine(work.settings, size, work.device)),
        )
        # spawn: a forked child would inherit torch's thread pools in an unknown state.
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start(number) for number in range(size)]
        self._tasks: dict[int, Task] = {}
        self._ready: set[int] = set()
        self._stillborn = 0

    def submit(self, task: Task) -> None:
        self._give(next(worker for worker in range(self.size) if worker not in self._tasks), task)

    def _give(self, worker: int, task: Task) -> None:
        self._tasks[worker] = task
        # A worker may have died while idle; its death is reported by `wait`.
        with contextlib.suppress(OSError):
            self._workers[worker][1].send(task)

    def wait(self) -> Report:
        while True:
            busy = {self._workers[number][1]: number for number in self._tasks}
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                report = self._receive(connection, busy[connection])
                if report is not None:
                    return report

    def _receive(self, connection: Connection, worker: int) -> Report | None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if isinstance(message, Report):
            del self._tasks[worker]
            return message
        if message != _READY:
            raise ConfigError(f"a worker cannot start: {message}")
        self._ready.add(worker)
        self._stillborn = 0
        return None

    def stop(self) -> None:
        for process, connection in self._workers:
            connection.close()
            process.join(0.2)
            if process.is_alive():
                process.terminate()
                process.join()

    def _bury(self, worker: int) -> Report | None:
        """Replace a dead worker; no report if it died before it had begun its task."""
        process, connection = self._workers[worker]
        connection.close()
        process.join()
        reason = f"the worker process ended with code {process.exitcode}"
        self._workers[worker] = self._start(worker)
        if worker in self._ready:
            self._ready.discard(worker)
            return Report(self._tasks.pop(worker), worker, "died", reason=reason)
        self._stillborn += 1
        if self._stillborn >= MAX_STILLBORN:
            raise ConfigError(f"workers cannot start: {reason}", fix="Run `--engine inline` to see why.")
        self._give(worker, self._tasks[worker])
        return None

    def _start(self, number: int) -> tuple[BaseProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(self._work, number, theirs), name=f"label-{number}", daemon=True
        )
        process.start()
        theirs.close()
        return process, ours


def _serve(work: Work, number: int, connection: Any) -> None:
    """The life of a worker process: ends when its parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_threads(work.settings)
    with contextlib.suppress(EOFError, OSError):
        try:
            teacher = work.teacher.load(_device_of(work.device, number))
        except (KdasrError, OSError, RuntimeError) as error:
            connection.send(f"{type(error).__name__}: {error}")
            return
        connection.send(_READY)
        while True:
            connection.send(execute(teacher, work, connection.recv(), number))


def _device_of(device: str, worker: int) -> str:
    """The device of a worker: "cuda" means all GPUs of this machine, taken in turns."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    return f"cuda:{worker % gpus}" if gpus > 1 else device


def _end_with_parent() -> None:
    """End this process, in the middle of whatever it does, once the driver is gone.

    A worker that finished its shard first would write beside the driver that comes next.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def settings_of_one(settings: Settings, workers: int) -> Settings:
    """Settings with this process's threads shared out among the workers, unless they say how many.

    Processes that take all cores each slow one another down many times over.
    """
    if settings.threads is not None:
        return settings
    return replace(settings, threads=max(1, torch.get_num_threads() // workers))


def on_one_machine(settings: Settings, workers: int, device: str) -> Settings:
    """As `settings_of_one`, with the threads that decode shared out, too."""
    decoders = settings.decoders_for(torch.device(device), workers)
    return replace(settings_of_one(settings, workers), decoders=decoders)


def set_threads(settings: Settings) -> None:
    """Give torch the number of threads that the settings ask for."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
