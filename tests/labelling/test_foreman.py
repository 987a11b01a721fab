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

    def __init__(self, size: int, outcome: Callable[[Task], Report]) -> None:
        self.size, self._outcome = size, outcome
        self._reports: deque[Report] = deque()
        self.begun: list[str] = []
        self.tasks: list[Task] = []

    def submit(self, task: Task) -> None:
        self.begun.append(task.audio)
        self.tasks.append(task)
        self._reports.append(self._outcome(task))

    def wait(self) -> Report:
        return self._reports.popleft()

    def stop(self) -> None: ...


def test_nothing_is_begun_after_a_failure_that_all_would_meet() -> None:
    def outcome(task: Task) -> Report:
        if task.audio == "a":
            return Report(task, 0, "failed", reason="the disk is full", fatal=True)
        return Report(task, 0, "died", reason="killed")

    crew = Said(2, outcome)
    outcomes = list(Foreman(crew).run(["a", "b", "c"]))
    assert crew.begun == ["a", "b"]
    assert [(one.audio, one.reason) for one in outcomes] == [("a", "the disk is full")]


def test_a_shard_that_kills_without_a_culprit_is_put_aside_with_what_was_said_last(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path, 3, per_shard=3)

    def outcome(task: Task) -> Report:
        if task.probe_key is None:
            return Report(task, 0, "died", reason="exit status -9")
        return Report(task, 0, "done")

    crew = Said(1, outcome)
    (found,) = Foreman(crew).run([str(audio)])
    assert len(crew.begun) == 3 + 3, "three deaths, and each utterance alone"
    assert found.reason == (
        "skipped: it killed 3 workers, and none of its utterances does so alone: exit status -9"
    )


def test_an_utterance_that_kills_is_left_out_by_name_and_the_rest_labelled(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path, 3, per_shard=3)
    deaths_to_come = 1  # of the shard without the utterance that kills: by another misfortune

    def outcome(task: Task) -> Report:
        nonlocal deaths_to_come
        if task.exclude and deaths_to_come:
            deaths_to_come -= 1
            return Report(task, 0, "died", reason="the machine was restarted")
        if task.probe_key == "utt-001" or (task.probe_key is None and not task.exclude):
            return Report(task, 0, "died", reason="exit status -9")
        return Report(task, 0, "done")

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


def test_utterances_that_kill_are_left_out_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Whichever of them is found first."""
    (audio,) = make_audio(tmp_path, 3, per_shard=3)

    def outcome(task: Task) -> Report:
        lives = task.probe_key == "utt-001" or task.exclude
        return Report(task, 0, "done" if lives else "died", reason="exit status -9")

    crew = Said(3, outcome)
    crew.wait = lambda: crew._reports.pop()  # type: ignore[method-assign]
    assert len(list(Foreman(crew).run([str(audio)]))) == 1
    assert list(crew.tasks[-1].exclude) == ["utt-000", "utt-002"]


@pytest.mark.parametrize(("count", "is_put_aside"), [(1, False), (2, True)])
def test_where_every_utterance_kills_it_is_none_of_them(
    count: int, is_put_aside: bool, tmp_path: Path
) -> None:
    """The one utterance of a shard may still be the one that does."""
    (audio,) = make_audio(tmp_path, count, per_shard=count)

    def outcome(task: Task) -> Report:
        return Report(task, 0, "done" if task.exclude else "died", reason="exit status -9")

    crew = Said(1, outcome)
    (found,) = Foreman(crew).run([str(audio)])
    reason = (
        "skipped: it killed 3 workers, and so does each of its utterances alone: look for the cause "
        "outside the audio: exit status -9"
    )
    assert (found.reason == reason) == is_put_aside
    assert list(crew.tasks[-1].exclude) == ([] if is_put_aside else ["utt-000"])


def test_a_shard_that_goes_on_to_kill_without_its_culprit_is_put_aside(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path, 3, per_shard=3)

    def outcome(task: Task) -> Report:
        lives = task.probe_key in ("utt-000", "utt-002")
        return Report(task, 0, "done" if lives else "died", reason="exit status -9")

    (found,) = Foreman(Said(1, outcome)).run([str(audio)])
    assert found.reason == (
        "skipped: it killed 3 workers, and it still does without the 1 that do so alone: exit status -9"
    )


def test_a_shard_is_searched_before_others_are_tried_again(tmp_path: Path) -> None:
    one, two = (str(path) for path in make_audio(tmp_path, 4, per_shard=2))

    def outcome(task: Task) -> Report:
        return Report(task, 0, "done" if task.probe_key else "died", reason="exit status -9")

    crew = Said(1, outcome)
    outcomes = list(Foreman(crew).run([one, two]))
    assert [(task.audio == one, task.probe_key) for task in crew.tasks] == [
        (True, None), (False, None), (True, None), (False, None), (True, None),
        (True, "utt-000"), (True, "utt-001"), (False, None), (False, "utt-002"), (False, "utt-003"),
    ]  # fmt: skip
    assert [(outcome.audio, outcome.attempts) for outcome in outcomes] == [(one, 3), (two, 3)]


def test_a_shard_that_is_out_of_reach_is_tried_again_once_after_all_others() -> None:
    lost = {"a": 1, "b": 2}  # how often they cannot be fetched

    def outcome(task: Task) -> Report:
        lost[task.audio] = lost.get(task.audio, 0) - 1
        if lost[task.audio] >= 0:
            return Report(task, 0, "failed", reason="it cannot be fetched", may_pass=True)
        return Report(task, 0, "done")

    crew = Said(1, outcome)
    outcomes = [(one.audio, one.reason, one.attempts) for one in Foreman(crew).run("abcd")]
    assert crew.begun == ["a", "b", "c", "d", "a", "b"]
    assert outcomes == [("c", "", 1), ("d", "", 1), ("a", "", 2), ("b", "it cannot be fetched", 2)]


def _not_stored(task: Task) -> Report:
    return Report(task, 0, "failed", reason="not stored", fatal=True, may_pass=True)


def _stored_but(failing: str) -> Said:
    """A crew of one whose shards fail to be stored as often as they are named."""
    left = list(failing)

    def outcome(task: Task) -> Report:
        if task.audio in left:
            left.remove(task.audio)
            return _not_stored(task)
        return Report(task, 0, "done")

    return Said(1, outcome)


def test_labels_that_were_not_stored_stop_no_job_that_stores_others() -> None:
    crew = _stored_but("ac")
    outcomes = [(one.audio, one.reason) for one in Foreman(crew).run("abcd")]
    assert crew.begun == ["a", "b", "c", "d", "a", "c"]
    assert outcomes == [(audio, "") for audio in "bdac"]


def test_a_shard_that_is_not_stored_twice_leaves_the_others_their_second_time() -> None:
    crew = _stored_but("aace")
    outcomes = [(one.audio, one.reason) for one in Foreman(crew).run("abcdef")]
    assert crew.begun == list("abcdeface")
    assert outcomes == [("b", ""), ("d", ""), ("f", ""), ("a", "not stored"), ("c", ""), ("e", "")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_that_takes_no_labels_stops_the_job(workers: int) -> None:
    """Once more shards in a row were not stored than there are workers, who may all fail at once."""
    crew = Said(workers, _not_stored)
    outcomes = [(one.audio, one.reason) for one in Foreman(crew).run("abcdefgh")]
    stopped_by = "abc"[workers]
    assert outcomes[0] == (stopped_by, "not stored")
    # What was under way comes to its end, and nothing else is begun.
    assert crew.begun == list("abcdefgh"[: 2 * workers])


def test_a_shard_that_kills_and_cannot_be_searched_is_one_failed_shard(tmp_path: Path) -> None:
    one, two = (str(path) for path in make_audio(tmp_path, 4, per_shard=2))
    Path(one).with_suffix(".json").write_text("{")

    def outcome(task: Task) -> Report:
        return (
            Report(task, 0, "died", reason="exit status -9") if task.audio == one else Report(task, 0, "done")
        )

    outcomes = {found.audio: found.reason for found in Foreman(Said(1, outcome)).run([one, two])}
    assert outcomes[two] == ""
    assert outcomes[one].startswith("exit status -9; ") and "the manifest is invalid" in outcomes[one]


def test_the_threads_of_a_label_job_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_audio(tmp_path / "audio", 3)
    given: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    label(
        teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels", settings=Settings(threads=1)
    )
    assert given == [1, 3]
