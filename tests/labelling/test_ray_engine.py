"""Labelling on Ray, with a stand-in for its cluster; tests/faults/test_label_ray.py has a real one."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdasr import stages
from kdasr.errors import ConfigError
from kdasr.labelling import Settings, ray_engine
from kdasr.labelling.engines import Report, Task, Work
from kdasr.labelling.foreman import Foreman
from kdasr.labelling.ray_engine import RayCrew
from tests.labelling.tiny import TinySource, make_audio


class _RayError(Exception):
    pass


class _RayTaskError(_RayError):
    pass


class _AuthenticationError(_RayError):
    pass


class _Cluster:
    """What `RayCrew` asks of the package ray; actors live in this process.

    Attributes:
        actors: for each actor, the GPUs that it was given and the device of its teacher.
    """

    exceptions = SimpleNamespace(RayTaskError=_RayTaskError, RayError=_RayError)
    #: None: it is there already. Else what joining raises.
    refusal: Exception | None = None

    def __init__(self, gpus: int) -> None:
        self.joined: list[str] = []
        self.actors: list[tuple[int, str]] = []
        self.resources = {"CPU": 2.0, **({"GPU": float(gpus)} if gpus else {})}
        self.done: list[Any] = []

    def is_initialized(self) -> bool:
        return self.refusal is None

    def init(self, *, address: str, **_: Any) -> None:
        self.joined.append(address)
        if address != "local" and self.refusal is not None:
            raise self.refusal

    def shutdown(self) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return dict(self.resources)

    def remote(self, *, num_gpus: int, **_: Any) -> Any:
        def actor_class(kind: Any) -> Any:
            def start(work: Any, number: int, folder: Path) -> Any:
                self.actors.append((num_gpus, work.device))
                worker = kind(work, number, folder)
                ready, execute = self._at_once(worker.ready), self._at_once(worker.execute)
                return SimpleNamespace(ready=ready, execute=execute)

            return SimpleNamespace(remote=start)

        return actor_class

    def _at_once(self, method: Any) -> Any:
        """A method of an actor: what it gives is kept under the number that `remote` returns."""

        def remote(*arguments: Any) -> int:
            self.done.append(method(*arguments))
            return len(self.done) - 1

        return SimpleNamespace(remote=remote)

    def wait(self, tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, number: int) -> Any:
        return self.done[number]

    def kill(self, actor: Any) -> None:
        pass


def label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, gpus: int, **settings: Any
) -> list[tuple[int, str]]:
    """The actors of a job whose driver has no GPU."""
    make_audio(tmp_path / "audio", 4, per_shard=2)
    cluster = _Cluster(gpus)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    summary = stages.label(
        teacher=TinySource(),
        audio=str(tmp_path / "audio"),
        out=str(tmp_path / "labels"),
        engine="ray",
        workers=2,
        **settings,
    )
    assert summary["labelled"] == 4
    return cluster.actors


@pytest.mark.parametrize(
    ("gpus", "settings", "actor"),
    [
        (2, {}, (1, "cuda")),
        (2, {"device": "cuda"}, (1, "cuda")),
        (2, {"device": "cpu"}, (0, "cpu")),
        (0, {}, (0, "cpu")),
    ],
)
def test_a_driver_without_a_gpu_leaves_the_device_to_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, settings: dict[str, Any], actor: Any
) -> None:
    assert label(tmp_path, monkeypatch, gpus=gpus, **settings) == [actor, actor]


def test_more_workers_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no room for 2 workers.*a GPU for each.*1 GPUs.*--device cpu"):
        label(tmp_path, monkeypatch, gpus=1)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Cluster:
    """Two CPUs that are not joined yet, on a machine where Ray was never started."""
    made = _Cluster(0)
    made.refusal = ConnectionError("Could not find any running Ray instance")
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return made


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def crew() -> RayCrew:
    return RayCrew(Work(TinySource(), "audio", Settings(), "cpu"), 1)


def test_without_a_cluster_one_is_started_here(cluster: _Cluster) -> None:
    crew()
    assert cluster.joined == ["auto", "local"]


@pytest.mark.parametrize("named", ["", "auto"])
def test_a_killed_cluster_of_this_machine_is_not_waited_for(
    cluster: _Cluster,
    closed_port: int,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{closed_port}")
    crew()
    assert cluster.joined == ["local"]
    assert f"no Ray cluster answers at 127.0.0.1:{closed_port}" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_named_cluster_that_is_not_there_is_told_at_once(
    cluster: _Cluster, closed_port: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{scheme}127.0.0.1:{closed_port}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        ConfigError, match=rf"^{address}: the Ray cluster cannot be joined.*refused.*ray start"
    ):
        crew()
    assert cluster.joined == []


def _refused() -> ConnectionError:
    error = ConnectionError("Failed to connect")
    error.__cause__ = RuntimeError("RPC error: InvalidAuthToken: missing or incorrect")
    return error


@pytest.mark.parametrize("refusal", [_refused(), _AuthenticationError("no token was found")])
def test_a_cluster_that_wants_a_token_says_how_to_give_it(
    cluster: _Cluster, refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.refusal = refusal
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        with pytest.raises(ConfigError, match=r"(connect|found)\. .*RAY_AUTH_MODE=token.*RAY_AUTH_TOKEN"):
            crew()


class _Losing(_Cluster):
    """The node of the last worker is lost while this has its second shard. There is no room for its successor
    until nothing else was heard for `rounds` times.

    Attributes:
        begun: the shards, with the worker that had each.
    """

    def __init__(self, rounds: int) -> None:
        super().__init__(0)
        self.rounds, self.begun, self._begun_by, self._created = rounds, [], Counter[int](), Counter[int]()
        self._pending: set[int] = set()

    def remote(self, **_: Any) -> Any:
        def start(work: Work, number: int, folder: Path) -> Any:
            ready = self._at_once(lambda: None)
            execute = self._at_once(lambda task: self._execute(task, number))
            self._created[number] += 1
            return SimpleNamespace(ready=self._held(ready, number), execute=execute)

        return lambda kind: SimpleNamespace(remote=start)

    def _held(self, ready: Any, number: int) -> Any:
        def remote() -> Any:
            answer = ready.remote()
            if self._created[number] == 2:
                self._pending.add(answer)
            return answer

        return SimpleNamespace(remote=remote)

    def _execute(self, task: Task, number: int) -> Any:
        self.begun.append((task.audio, number))
        self._begun_by[number] += 1
        last = number == self.resources["CPU"] - 1
        return (
            _RayError("node lost") if last and self._begun_by[number] == 2 else Report(task, number, "done")
        )

    def wait(self, tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout == ray_engine._PATIENCE_S
        found = [task for task in tasks if task not in self._pending]
        if not found:
            self.rounds -= 1
            assert self.rounds >= 0, "waits for ever"
            if self.rounds == 0:
                self._pending.clear()
        # The last worker is as fast as the others: whoever was asked first answers first.
        return sorted(found)[:1], []

    def get(self, number: int) -> Any:
        if isinstance(self.done[number], Exception):
            raise self.done[number]
        return self.done[number]


def test_the_shards_of_a_node_that_is_lost_for_good_are_done_by_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = _Losing(rounds=0)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    crew = RayCrew(Work(TinySource(), "labels", Settings(), "cpu"), 2)
    outcomes = {one.audio: one.attempts for one in Foreman(crew).run([f"s{n}" for n in range(8)])}
    # What the lost worker had is done again, by the other one, and nothing else is.
    assert outcomes == {f"s{n}": 2 if n == 3 else 1 for n in range(8)}
    assert [audio for audio, worker in cluster.begun if worker == 1] == ["s1", "s3"]
    assert capsys.readouterr().err == ""


def test_where_no_worker_is_ready_people_are_told_until_one_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = _Losing(rounds=3)
    cluster.resources = {"CPU": 1.0}
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.setattr(ray_engine, "_PATIENCE_S", 0.5)
    crew = RayCrew(Work(TinySource(), "labels", Settings(), "cpu"), 1)
    outcomes = [(one.audio, one.attempts) for one in Foreman(crew).run(["s0", "s1", "s2"])]
    assert sorted(outcomes) == [("s0", 1), ("s1", 2), ("s2", 1)]
    said = "waiting for Ray: 0 of 1 worker ready"
    assert capsys.readouterr().err.count(said) == 3
