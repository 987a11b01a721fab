"""A crew of Ray Core actors, on this machine or a cluster."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdasr.errors import ConfigError, MissingDependencyError
from kdasr.labelling.engines import AUTO_DEVICE, MAX_STILLBORN, Report, Task, Work, execute, set_threads
from kdasr.reasons import counted

#: Time without any answer after which a message says that no worker is ready.
_PATIENCE_S = 60.0


class RayCrew:
    """Actors with a teacher each; one that dies is replaced.

    Ray's ActorPool never replaces a dead actor, and Ray Data retries for ever, so neither is used. Tasks
    name shards and carry no audio; actors read and write the data themselves. Tasks are assigned only to
    actors that are ready: if a node is lost for good, actors on other nodes label its shards.

    Args:
        work: what to do. Its paths and URLs must be valid on every node. `AUTO_DEVICE` means a GPU for each
            actor if the cluster has any.
        size: number of actors.
        address: of a running cluster; None joins that in RAY_ADDRESS or on this machine, or starts one.
    """

    def __init__(self, work: Work, size: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError("ray", "ray") from error
        self._ray, self.size, self._work = ray, size, work
        self._started_here = not ray.is_initialized()
        if self._started_here:
            _connect(ray, address, size)
        if work.device == AUTO_DEVICE:
            # Ask the cluster: this machine may have no GPU, or be the only one that has.
            gpu_there = self._ray.cluster_resources().get("GPU", 0) >= 1
            self._work = replace(work, device="cuda" if gpu_there else "cpu")
        gpus = 1 if self._work.device.startswith("cuda") else 0
        self._check_room(gpus)
        # No restarts or retries by Ray: only the foreman counts deaths and retries.
        self._actor_class = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Worker)
        self._stillborn = 0
        self._actors: dict[int, Any] = {}
        self._ready: set[int] = set()
        # Each worker's pending or latest answer: first that of `ready`, then those of `execute`.
        self._answers: dict[int, Any] = {}
        self._tasks: dict[int, Task] = {}
        self._waiting: deque[Task] = deque()
        for number in range(size):
            self._start(number)

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def wait(self) -> Report:
        while True:
            self._hand_out()
            # Wait for a worker that is still starting only if a task is waiting for one.
            workers = {
                answer: worker
                for worker, answer in self._answers.items()
                if worker in self._tasks or (self._waiting and worker not in self._ready)
            }
            answers, _ = self._ray.wait(list(workers), num_returns=1, timeout=_PATIENCE_S)
            if not answers:
                self._say_who_is_missing()
                continue
            report = self._receive(answers[0], workers[answers[0]])
            if report is not None:
                del self._tasks[report.worker]
                return report

    def _hand_out(self) -> None:
        # Only to actors known to be ready: one whose node is lost may never start. Besides, Ray may lose the
        # last answer of an actor that dies, so one killed at once by a shard would seem unable to start.
        for worker in sorted(self._ready - self._tasks.keys())[: len(self._waiting)]:
            self._tasks[worker] = task = self._waiting.popleft()
            self._answers[worker] = self._actors[worker].execute.remote(task)

    def _say_who_is_missing(self) -> None:
        if self._tasks:
            return  # a shard may take longer
        print(
            f"waiting for Ray: 0 of {counted(self.size, 'worker')} ready, because the teacher is still being "
            "loaded or the cluster has no free resources (see `ray status`)",
            file=sys.stderr,
        )

    def _receive(self, answer: Any, worker: int) -> Report | None:
        try:
            report: Report | None = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            reason = f"{type(error.cause).__name__}: {error.cause}"
            return Report(self._tasks[worker], worker, "failed", reason=reason)
        except self._ray.exceptions.RayError as error:
            # The actor is gone: killed, out of memory, on a lost node, or out of reach.
            return self._bury(worker, error)
        if report is None:
            self._ready.add(worker)
            self._stillborn = 0
        return report

    def _check_room(self, gpus: int) -> None:
        """Raise ConfigError if the cluster has no room for all actors: the others would never start."""
        for kind, needed in (("CPU", self.size), ("GPU", self.size * gpus)):
            there = int(self._ray.cluster_resources().get(kind, 0))
            if there < needed:
                raise ConfigError(
                    f"the Ray cluster has no room for {self.size} workers",
                    where="workers",
                    expected=f"a {kind} for each",
                    got=f"{there} {kind}s",
                    fix="Use fewer workers, add nodes first"
                    + (", or label with --device cpu." if kind == "GPU" else "."),
                )

    def _bury(self, worker: int, error: Exception) -> Report | None:
        """Replace a dead actor; no report if it died before it was ready for a task."""
        # If it is only out of reach, it must not keep the resources that its successor needs.
        self._ray.kill(self._actors[worker])
        was_ready = worker in self._ready
        if not was_ready:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN:
                reason = str(error).strip().splitlines()[-1]
                raise ConfigError(f"a worker cannot start: {reason}") from error
        self._start(worker)
        if was_ready:
            reason = f"the actor died ({type(error).__name__})"
            return Report(self._tasks[worker], worker, "died", reason=reason)
        return None

    def stop(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._started_here:
            self._ray.shutdown()

    def _start(self, number: int) -> None:
        self._actors[number] = self._actor_class.remote(self._work, number, Path.cwd())
        self._ready.discard(number)
        self._answers[number] = self._actors[number].ready.remote()


class _Worker:
    def __init__(self, work: Work, number: int, folder: Path) -> None:
        # Ray starts actors in the node's working directory, but recipes have relative paths.
        with contextlib.suppress(OSError):
            os.chdir(folder)
        set_threads(work.settings)
        self._teacher = work.teacher.load(work.device)
        self._work, self._number = work, number

    def ready(self) -> None:
        """Return once the teacher is loaded."""

    def execute(self, task: Task) -> Report:
        try:
            return execute(self._teacher, self._work, task, self._number)
        except torch.AcceleratorError:
            os._exit(1)  # this process can no longer use its device; the next actor can


def _connect(ray: Any, address: str | None, num_cpus: int) -> None:
    """Join the cluster at `address`, in RAY_ADDRESS or on this machine, or else start one."""
    places = address, os.environ.get("RAY_ADDRESS")
    named = next((place for place in places if place and place != "auto"), None)
    target = named or _last_started_here()
    try:
        _knock(target)
        ray.init(address=named or "auto", log_to_driver=False)
    except (OSError, ray.exceptions.RayError) as error:
        if named:
            raise _unreachable(named, error) from error
        if target:
            print(
                f"no Ray cluster answers at {target}, where one ran before: starting one here",
                file=sys.stderr,
            )
        options = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
        ray.init(address="local", num_cpus=num_cpus, **options)


def _last_started_here() -> str:
    """The address that `ray start` last wrote to its file, which remains when the cluster is killed."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    try:
        return (folder / "ray/ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray would retry for a quarter of an hour."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()


def _unreachable(address: str, error: Exception) -> ConfigError:
    fix = (
        "Start one there (ray start --head), or give no address (RAY_ADDRESS, ray_address) to start one here."
    )
    # AuthenticationError, or a ConnectionError whose cause mentions InvalidAuthToken: for a cluster given by
    # its address, Ray does not use the token in the home folder.
    if "Auth" in f"{error!r} {error.__cause__!r}":
        fix = (
            "The cluster requires a token: set RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN "
            "or in ~/.ray/auth_token."
        )
    return ConfigError("the Ray cluster cannot be joined", where=address, got=str(error), fix=fix)
