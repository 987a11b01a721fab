"""Gives shards to a crew and handles the death of workers and stores that are out of reach.

A shard whose worker dies is labelled again from its beginning. After it has killed `_MAX_DEATHS`
workers, each of its utterances is tried alone, and the shard is labelled without those that kill. If none
does, or all do, the shard is put aside and reported. If a store was out of reach, the shard is tried once
more after all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kdasr.errors import ShardError
from kdasr.labelling.audio_source import local_copy
from kdasr.labelling.engines import Crew, Report, Task
from kdasr.labelling.settings import ShardResult
from kdasr.manifest import read_manifest

_MAX_DEATHS = 3
_PROBE_DEATHS = 2


@dataclass(frozen=True)
class Outcome:
    """The final outcome of one shard.

    Attributes:
        audio: the audio shard.
        result: what was labelled, or None.
        reason: why there is no result.
        attempts: how often its labelling was started.
    """

    audio: str
    result: ShardResult | None
    reason: str = ""
    attempts: int = 1


@dataclass
class _Case:
    """What is known about one shard."""

    attempts: int = 0
    deaths: int = 0
    last_death: str = ""
    num_keys: int = 0
    probes_left: int = 0
    probe_deaths: dict[str, int] = field(default_factory=dict)
    culprits: dict[str, str] = field(default_factory=dict)
    searched: bool = False
    put_off: bool = False


class Foreman:
    """Runs shards through a crew; `run` yields the outcome of each shard as soon as it is known.

    After a failure that would affect every other shard too (a full disk; a store that rejects the labels
    of more shards in a row than there are workers), running tasks are finished and no more are started.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._queue: deque[Task] = deque()
        self._cases: dict[str, _Case] = {}
        self._is_stopped = False
        self._not_stored = 0  # shards whose labels could not be stored, since the last success

    def run(self, shards: Iterable[str]) -> Iterator[Outcome]:
        self._queue.extend(Task(audio) for audio in shards)
        self._cases = {task.audio: _Case() for task in self._queue}
        under_way = 0
        while self._queue or under_way:
            while self._queue and under_way < self._crew.size:
                self._begin(self._queue.popleft())
                under_way += 1
            report = self._crew.wait()
            under_way -= 1
            outcome = self._probed(report) if report.task.probe_key is not None else self._labelled(report)
            if self._is_stopped:
                self._queue.clear()
            if outcome is not None:
                yield outcome

    def _begin(self, task: Task) -> None:
        if task.probe_key is None:
            self._cases[task.audio].attempts += 1
        self._crew.submit(task)

    def _labelled(self, report: Report) -> Outcome | None:
        task, case = report.task, self._cases[report.task.audio]
        if report.kind != "died":
            if not self._is_stopped and self._is_put_off(report):
                self._queue.append(task)
                return None
            if report.fatal and (not report.may_pass or self._not_stored > self._crew.size):
                self._is_stopped = True
            return Outcome(task.audio, report.result, report.reason, case.attempts)
        case.deaths, case.last_death = case.deaths + 1, report.reason
        if case.deaths < _MAX_DEATHS:
            self._queue.append(task)
            return None
        if case.searched:
            return self._quarantined(task.audio)
        try:
            self._search(task.audio)
        except ShardError as error:  # damaged, or out of reach now
            return Outcome(task.audio, None, f"{report.reason}; {error}", case.attempts)
        return None

    def _is_put_off(self, report: Report) -> bool:
        """Whether to try a failed shard again after all others: at most once, and only if it may help."""
        case = self._cases[report.task.audio]
        self._not_stored = 0 if report.kind == "done" else self._not_stored + report.fatal
        if not report.may_pass or case.put_off or self._not_stored > self._crew.size:
            return False
        case.put_off = True
        return True

    def _search(self, audio: str) -> None:
        """Queue a probe of each utterance alone."""
        with local_copy(audio, manifest_only=True) as path:
            keys = [entry.key for entry in read_manifest(path).entries]
        case = self._cases[audio]
        case.searched, case.num_keys, case.probes_left = True, len(keys), len(keys)
        self._queue.extendleft(Task(audio, key) for key in reversed(keys))

    def _probed(self, report: Report) -> Outcome | None:
        task, case = report.task, self._cases[report.task.audio]
        key = task.probe_key
        assert key is not None
        if report.kind == "died":
            case.probe_deaths[key] = case.probe_deaths.get(key, 0) + 1
            if case.probe_deaths[key] < _PROBE_DEATHS:
                self._queue.appendleft(task)
                return None
            case.culprits[key] = f"kills the process that labels it: {report.reason}"
        case.probes_left -= 1
        if case.probes_left:
            return None
        # If every utterance kills, the cause is not in the audio but the machine, its memory or the teacher.
        if not case.culprits or 1 < len(case.culprits) == len(case.probe_deaths) == case.num_keys:
            return self._quarantined(task.audio)
        case.deaths = 0
        self._queue.append(Task(task.audio, exclude=dict(sorted(case.culprits.items()))))
        return None

    def _quarantined(self, audio: str) -> Outcome:
        case = self._cases[audio]
        alone = len(case.culprits)
        if not alone:
            search = "none of its utterances does so alone"
        elif alone == case.num_keys:
            search = "so does each of its utterances alone: look for the cause outside the audio"
        else:
            search = f"it still does without the {alone} that do so alone"
        why = f"skipped: it killed {case.deaths} workers, and {search}: {case.last_death}"
        return Outcome(audio, None, why, case.attempts)
