"""Crews of workers that label shards: this process itself, or processes on this machine.

A crew takes tasks and reports the outcome of each, including the death of its worker. How to react to
a death (retry, find the culprit, give up) is for the foreman to decide (`kdasr.labelling.foreman`).
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NamedTuple, Protocol

import torch

from kdasr.beside import end_with_parent, without_ctrl_c
from kdasr.errors import ConfigError, KdasrError, ShardError
from kdasr.labelling.audio_source import local_copy
from kdasr.labelling.settings import Settings, ShardResult
from kdasr.labelling.shard_job import label_shard, probe
from kdasr.labelling.teachers import Teacher, TeacherSource
from kdasr.storage import Place, StorageError, is_url

_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_READY = "ready"
#: A GPU if the Ray cluster has any, otherwise the CPU.
AUTO_DEVICE = "auto"
#: The job gives up after this many workers in a row have died before they were ready.
MAX_STILLBORN = 3


@dataclass(frozen=True)
class Work:
    """What every worker of a job needs to know.

    Attributes:
        teacher: loads the teacher.
        out: where the labels go.
        settings: how to label.
        device: where the teacher runs.
        overwrite: whether to replace labels of another teacher or with other settings.
    """

    teacher: TeacherSource
    out: Place
    settings: Settings
    device: str = "cpu"
    overwrite: bool = False


@dataclass(frozen=True)
class Task:
    """A shard to label, or an utterance to try, for one worker.

    Attributes:
        audio: an audio shard.
        probe_key: None to label the shard, or the key of an utterance to label alone, keeping nothing.
        exclude: keys to skip, with the reasons.
    """

    audio: str
    probe_key: str | None = None
    exclude: Mapping[str, str] = field(default_factory=dict)


class Report(NamedTuple):
    """The outcome of a task.

    Attributes:
        task: the task.
        worker: number of the worker that had it.
        kind: `done`; `failed` (an error, but the worker lives on); `died` (the worker is gone).
        result: set if a shard was labelled.
        reason: of a failure or death.
        fatal: every other shard would fail in the same way (a full disk, …).
        may_pass: a store or file system was out of reach, perhaps only temporarily.
    """

    task: Task
    worker: int
    kind: Literal["done", "failed", "died"]
    result: ShardResult | None = None
    reason: str = ""
    fatal: bool = False
    may_pass: bool = False


class Crew(Protocol):
    """Workers with at most one task each; tasks are started in the order of submission."""

    size: int

    def submit(self, task: Task) -> None:
        """Submit a task; at most `size` may be unfinished at any time."""
        ...

    def wait(self) -> Report:
        """Wait for the next report; only called while tasks are unfinished. A dead worker is replaced."""
        ...

    def stop(self) -> None: ...


def execute(teacher: Teacher, work: Work, task: Task, worker: int) -> Report:
    """Do a task in this process; any other error becomes a report.

    Raises:
        torch.AcceleratorError: this process can no longer use the device and should end.
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
        # A StorageError is about storing labels: audio that cannot be fetched raises ShardError.
        fatal = isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _FATAL)
        may_pass = _is_remote_outage(error, work.out) if fatal else _is_unfetched(error)
        reason = f"{type(error).__name__}: {error}"
        return Report(task, worker, "failed", reason=reason, fatal=fatal, may_pass=may_pass)


def _is_unfetched(error: Exception) -> bool:
    """Whether the audio could not be read at all, as opposed to being read and found damaged."""
    found = error.__cause__ if isinstance(error, ShardError) else error
    return isinstance(found, OSError | StorageError)


def _is_remote_outage(error: Exception, out: Place) -> bool:
    """Whether labels could not be stored for a reason that may pass by itself, which rules out local disks
    and missing permissions."""
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
    """`label_shard` for a shard at a path or a URL. `wall_s` includes fetching the audio, since a machine
    also costs money while its worker waits.

    Raises:
        ShardError: the audio cannot be fetched, or is damaged.
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
        # The same process may go on to train a model.
        torch.set_num_threads(self._threads_before)


class ProcessCrew:
    """Processes on this machine, each with its own teacher; one that dies is replaced."""

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
        # A worker may have died while idle; `wait` handles its death.
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
        """Replace a dead worker; if it died before it was ready, its successor gets the task (no report)."""
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
            raise ConfigError(f"workers cannot start: {reason}", fix="Run with `--engine inline` to see why.")
        self._give(worker, self._tasks[worker])
        return None

    def _start(self, number: int) -> tuple[BaseProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(self._work, number, theirs), name=f"label-{number}", daemon=True
        )
        with without_ctrl_c():
            process.start()
        theirs.close()
        return process, ours


def _serve(work: Work, number: int, connection: Any) -> None:
    """Main loop of a worker process, which ends when the parent closes the pipe or dies."""
    end_with_parent()
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
    """The device of a worker: "cuda" distributes workers round-robin over all GPUs of this machine."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    return f"cuda:{worker % gpus}" if gpus > 1 else device


def settings_of_one(settings: Settings, workers: int) -> Settings:
    """Settings with this process's threads divided among the workers, unless `threads` is set.

    Processes that each use all cores slow one another down many times over.
    """
    if settings.threads is not None:
        return settings
    return replace(settings, threads=max(1, torch.get_num_threads() // workers))


def on_one_machine(settings: Settings, workers: int, device: str) -> Settings:
    """As `settings_of_one`, with the decoding threads divided as well."""
    decoders = settings.decoders_for(torch.device(device), workers)
    return replace(settings_of_one(settings, workers), decoders=decoders)


def set_threads(settings: Settings) -> None:
    """Set torch's number of threads if `settings` has one."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
