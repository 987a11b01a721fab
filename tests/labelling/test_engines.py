"""What a crew makes of the deaths of its processes, with processes that only send what they are told to."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdasr.errors import ConfigError
from kdasr.labelling import Settings
from kdasr.labelling.engines import MAX_STILLBORN, ProcessCrew, Report, Task, Work
from tests.labelling.tiny import TinySource

MakeCrew = Callable[[list[list[Any]]], ProcessCrew]


class Gone:
    """A process that has ended."""

    exitcode = -9

    def join(self, seconds: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return False


@pytest.fixture
def crew_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeCrew:
    """A crew of one: what each process that it starts in turn sends before it dies."""

    def make(sent: list[list[Any]]) -> ProcessCrew:
        def start(crew: ProcessCrew, number: int) -> tuple[Any, Any]:
            ours, theirs = multiprocessing.Pipe()
            for message in sent.pop(0):
                theirs.send(message)
            theirs.close()
            return Gone(), ours

        monkeypatch.setattr(ProcessCrew, "_start", start)
        return ProcessCrew(Work(TinySource(), tmp_path, Settings()), 1)

    return make


def test_workers_that_die_before_they_are_ready_end_the_job(crew_of: MakeCrew) -> None:
    left: list[list[Any]] = [[] for _ in range(MAX_STILLBORN + 2)]
    crew = crew_of(left)
    crew.submit(Task("a"))
    with pytest.raises(ConfigError, match=r"workers cannot start: .* ended with code -9\. .*--engine inline"):
        crew.wait()
    assert len(left) == 1, "the first, and a successor of each"


def test_a_worker_that_was_ready_and_dies_is_reported_and_deaths_are_counted_anew(crew_of: MakeCrew) -> None:
    task = Task("a")
    done = Report(task, 0, "done")
    stillborn: list[list[Any]] = [[] for _ in range(MAX_STILLBORN - 1)]
    crew = crew_of([*stillborn, ["ready"], *stillborn, ["ready", done], []])
    crew.submit(task)
    assert crew.wait() == Report(task, 0, "died", reason="the worker process ended with code -9")
    crew.submit(task)  # to be tried again: nobody has it now
    assert crew.wait() == done


def test_what_keeps_a_worker_from_starting_is_told(crew_of: MakeCrew) -> None:
    crew = crew_of([["DeviceError: no such device"], []])
    crew.submit(Task("a"))
    with pytest.raises(ConfigError, match="a worker cannot start: DeviceError: no such device"):
        crew.wait()
