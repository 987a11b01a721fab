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
        self.tasks: list[Task] = []

    def submit(self, worker: int, task: Task) -> None:
        self.begun.append(task.audio)
        self.tasks.append(task)
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


def test_an_utterance_that_kills_is_left_out_by_name_and_the_rest_labelled(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path, 3, per_shard=3)
    deaths_to_come = 1  # of the shard without the utterance that kills: by another misfortune

    def outcome(task: Task, worker: int) -> Report:
        nonlocal deaths_to_come
        if task.exclude and deaths_to_come:
            deaths_to_come -= 1
            return Report(task, worker, "died", reason="the machine was restarted")
        if task.probe_key == "utt-001" or (task.probe_key is None and not task.exclude):
            return Report(task, worker, "died", reason="exit status -9")
        return Report(task, worker, "done")

    crew = Said(1, outcome)
    (found,) = Foreman(crew).run([str(audio)])
    # Three deaths, then each utterance alone and at once again where it kills, then the others together,
    # for whom deaths are counted anew.
    whole: tuple[str | None, dict[str, str]] = (None, {})
    rest = (None, {"utt-001": "kills the process that labels it: exit status -9"})
    alone: list[tuple[str | None, dict[str, str]]] = [(f"utt-00{number}", {}) for number in (0, 1, 1, 2)]
    assert [(task.probe_key, task.exclude) for task in crew.tasks] == [*[whole] * 3, *alone, *[rest] * 2]
    # What was tried alone was no attempt at the shard.
    assert (found.reason, found.attempts) == ("", 5)


@pytest.mark.parametrize(("count", "is_put_aside"), [(1, False), (2, True)])
def test_where_every_utterance_kills_it_is_none_of_them(
    count: int, is_put_aside: bool, tmp_path: Path
) -> None:
    """The one utterance of a shard may still be the one that does."""
    (audio,) = make_audio(tmp_path, count, per_shard=count)

    def outcome(task: Task, worker: int) -> Report:
        return Report(task, worker, "done" if task.exclude else "died", reason="exit status -9")

    crew = Said(1, outcome)
    (found,) = Foreman(crew).run([str(audio)])
    reason = (
        "put aside: killed 3 workers, and each utterance of it kills one by itself: look for the cause "
        "outside of the audio: exit status -9"
    )
    assert (found.reason == reason) == is_put_aside
    assert list(crew.tasks[-1].exclude) == ([] if is_put_aside else ["utt-000"])


def test_a_shard_that_goes_on_to_kill_without_its_culprit_is_put_aside(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path, 3, per_shard=3)

    def outcome(task: Task, worker: int) -> Report:
        lives = task.probe_key in ("utt-000", "utt-002")
        return Report(task, worker, "done" if lives else "died", reason="exit status -9")

    (found,) = Foreman(Said(1, outcome)).run([str(audio)])
    assert found.reason == (
        "put aside: killed 3 workers, and it does so without those utterances that kill one by "
        "themselves (1), too: exit status -9"
    )


def test_a_shard_is_searched_before_others_are_tried_again(tmp_path: Path) -> None:
    one, two = (str(path) for path in make_audio(tmp_path, 4, per_shard=2))

    def outcome(task: Task, worker: int) -> Report:
        return Report(task, worker, "done" if task.probe_key else "died", reason="exit status -9")

    crew = Said(1, outcome)
    outcomes = list(Foreman(crew).run([one, two]))
    assert [(task.audio == one, task.probe_key) for task in crew.tasks] == [
        (True, None), (False, None), (True, None), (False, None), (True, None),
        (True, "utt-000"), (True, "utt-001"), (False, None), (False, "utt-002"), (False, "utt-003"),
    ]  # fmt: skip
    assert [(outcome.audio, outcome.attempts) for outcome in outcomes] == [(one, 3), (two, 3)]


def test_the_threads_of_a_label_job_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_audio(tmp_path / "audio", 3)
    given: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    label(
        teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels", settings=Settings(threads=1)
    )
    assert given == [1, 3]
