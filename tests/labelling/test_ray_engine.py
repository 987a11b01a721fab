"""Labelling on Ray, with a stand-in for its cluster; tests/faults/test_label_ray.py has a real one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdasr import stages
from kdasr.errors import ConfigError
from tests.labelling.tiny import TinySource, make_audio


class _RayError(Exception):
    pass


class _Cluster:
    """What `RayCrew` asks of the package ray; actors live in this process.

    Attributes:
        actors: for each actor, the GPUs that it was given and the device of its teacher.
    """

    exceptions = SimpleNamespace(RayTaskError=_RayError, RayError=_RayError)

    def __init__(self, gpus: int) -> None:
        self.actors: list[tuple[int, str]] = []
        self.resources = {"CPU": 2.0, **({"GPU": float(gpus)} if gpus else {})}
        self.done: list[Any] = []

    def is_initialized(self) -> bool:
        return True

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

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
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
