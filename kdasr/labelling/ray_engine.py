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

#: How long nothing may be heard until it is said that no worker is there.
_PATIENCE_S = 60.0


class RayCrew:
    """Actors with a teacher each; one that dies is created anew.

    Not ActorPool, which never replaces a dead actor, and not Ray Data, which retries for ever.
    Tasks name shards and carry no audio; each actor reads and writes by itself. A task is nobody's until an
    actor is there for it: where a node is lost for good, the others do its shards.

    Args:
        work: what to do. Places in it must mean the same on every node. A device of `AUTO_DEVICE` is a
            GPU for each actor where the cluster has any.
        size: number of actors.
        address: of a running cluster; None joins the one the environment names, or starts one here.
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
            # The cluster's to say: this machine may have no GPU, or be the only one that has.
            gpu_there = self._ray.cluster_resources().get("GPU", 0) >= 1
            self._work = replace(work, device="cuda" if gpu_there else "cpu")
        gpus = 1 if self._work.device.startswith("cuda") else 0
        self._check_room(gpus)
        # No restarts or retries by Ray: the foreman counts deaths, and only it tries again.
        self._actor_class = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Worker)
        self._stillborn = 0
        self._actors: dict[int, Any] = {}
        self._ready: set[int] = set()
        # What each worker is to answer next, or answered last: that it is ready, then its report.
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
            # A worker that has not started matters only where a task waits for one.
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
        # To those that are known to be ready only: an actor whose node is lost may never start, and a shard
        # that kills at once would look like one that cannot start, since Ray may lose the last answer of an
        # actor that dies.
        for worker in sorted(self._ready - self._tasks.keys())[: len(self._waiting)]:
            self._tasks[worker] = task = self._waiting.popleft()
            self._answers[worker] = self._actors[worker].execute.remote(task)

    def _say_who_is_missing(self) -> None:
        if self._tasks:
            return  # a shard may take longer
        print(
            f"waiting for Ray: none of {counted(self.size, 'worker')} is ready, because its teacher is still "
            "being loaded, or because the cluster has no room for it (`ray status`)",
            file=sys.stderr,
        )

    def _receive(self, answer: Any, worker: int) -> Report | None:
        try:
            report: Report | None = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            reason = f"{type(error.cause).__name__}: {error.cause}"
            return Report(self._tasks[worker], worker, "failed", reason=reason)
        except self._ray.exceptions.RayError as error:
            # The actor is gone: killed, out of its node's memory, its node lost, or out of reach.
            return self._bury(worker, error)
        if report is None:
            self._ready.add(worker)
            self._stillborn = 0
        return report

    def _check_room(self, gpus: int) -> None:
        """Refuse more actors than fit, which would never start."""
        for kind, needed in (("CPU", self.size), ("GPU", self.size * gpus)):
            there = int(self._ray.cluster_resources().get(kind, 0))
            if there < needed:
                raise ConfigError(
                    f"the Ray cluster has no room for {self.size} workers",
                    where="workers",
                    expected=f"a {kind} for each",
                    got=f"{there} {kind}s",
                    fix="Ask for fewer workers, add nodes first"
                    + (", or label with --device cpu." if kind == "GPU" else "."),
                )

    def _bury(self, worker: int, error: Exception) -> Report | None:
        """Replace a dead actor; no report if it died before it was ready for a task."""
        # One that is only out of reach must not keep the room of its successor.
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
        # Ray starts actors where the node was started, and recipes have relative paths.
        with contextlib.suppress(OSError):
            os.chdir(folder)
        set_threads(work.settings)
        self._teacher = work.teacher.load(work.device)
        self._work, self._number = work, number

    def ready(self) -> None:
        """Answered once the teacher is loaded."""

    def execute(self, task: Task) -> Report:
        try:
            return execute(self._teacher, self._work, task, self._number)
        except torch.AcceleratorError:
            os._exit(1)  # the next actor gets a device that answers


def _connect(ray: Any, address: str | None, num_cpus: int) -> None:
    """Join the cluster at `address`, or that of the environment, or one that runs here, or start one."""
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
            print(f"no Ray answers at {target}, where it ran before: one is started here", file=sys.stderr)
        options = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
        ray.init(address="local", num_cpus=num_cpus, **options)


def _last_started_here() -> str:
    """Where `ray start` keeps the address of its cluster, which stays when the cluster is killed."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    try:
        return (folder / "ray/ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT: Ray would try for a quarter of an hour."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()


def _unreachable(address: str, error: Exception) -> ConfigError:
    fix = (
        "Start one there (ray start --head), or give no address (RAY_ADDRESS, ray_address): one starts here."
    )
    # AuthenticationError, or a ConnectionError whose cause speaks of InvalidAuthToken: Ray takes no token
    # from the home folder for a cluster that is named by its address.
    if "Auth" in f"{error!r} {error.__cause__!r}":
        fix = (
            "The cluster wants a token: set RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN "
            "or in ~/.ray/auth_token."
        )
    return ConfigError("the Ray cluster cannot be joined", where=address, got=str(error), fix=fix)
