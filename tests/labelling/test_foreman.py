"""Who labels which shard, and what follows when a worker dies: with workers that only report."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdasr.labelling import Settings, label
from kdasr.labelling.engines import Report, Task
from kdasr.labelling.foreman import Foreman
from tests.labelling.tiny import TinySource, make_audio


class Said:
    """Workers that do nothing but say what became of a task."""

    def __init__(self, size: int, outcome: Callable[[Task, int], Report]) -> None:
        self.size, self._outcome = size, outcome
        self._reports: deque[Report] = deque()
        self.begun: list[str] = []

    def submit(self, worker: int, task: Task) -> None:
        self.begun.append(task.audio)
        self._reports.append(self._outcome(task, worker))

    def wait(self) -> Report:
        return self._reports.popleft()

    def stop(self) -> None: ...


def test_nothing_is_begun_after_a_failure_that_all_would_meet() -> None:
    def outcome(task: Task, worker: int) -> Report:
        if task.audio == "a":
            return Report(task, worker, "failed", reason="the disk is full", fatal=True)
        return Report(task, worker, "died", reason="killed")

    crew = Said(2, outcome)
    outcomes = list(Foreman(crew).run(["a", "b", "c"]))
    assert crew.begun == ["a", "b"]
    assert [(one.audio, one.reason) for one in outcomes] == [("a", "the disk is full")]


def test_a_shard_that_kills_without_a_culprit_is_put_aside_with_what_was_said_last(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path, 3, per_shard=3)

    def outcome(task: Task, worker: int) -> Report:
        if task.probe_key is None:
            return Report(task, worker, "died", reason="exit status -9")
        return Report(task, worker, "done")

    crew = Said(1, outcome)
    (found,) = Foreman(crew).run([str(audio)])
    assert len(crew.begun) == 3 + 3, "three deaths, and each utterance alone"
    assert found.reason == ("put aside: killed 3 workers, and no single utterance of it does: exit status -9")


def test_the_threads_of_a_label_job_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_audio(tmp_path / "audio", 3)
    given: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    label(
        teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels", settings=Settings(threads=1)
    )
    assert given == [1, 3]
