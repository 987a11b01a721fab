"""The comparison of students is done run by run: what is there is not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import soft_label_students as students

WERS = {("full", 1): 8.0, ("full", 2): 9.0, ("top_k_2_1", 1): 10.0, ("top_k_2_1", 2): 10.0}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The runs that were really done, which give a word error rate by `WERS`."""
    done: list[tuple[str, int]] = []

    def measure(options: Any, name: str, seed: int, settings: Any) -> dict[str, Any]:
        done.append((name, seed))
        return {"wer": WERS[name, seed], "bytes_per_frame": 2.0, "delay_frames": 1, "minutes": 0.0}

    monkeypatch.setattr(students, "_measure", measure)
    monkeypatch.setattr(students, "read_card", lambda folder: {"weights_sha256": "0" * 64})
    return done


def test_finished_runs_are_not_done_again_unless_something_else_is_asked_for(
    tmp_path: Path, measured: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--work-dir", str(tmp_path), "--codecs", "full", "top_k_2_1"]
    assert len(students.main([*arguments, "--seeds", "1"])) == 2
    assert len(students.main([*arguments, "--seeds", "1", "2"])) == 4
    assert measured == [("full", 1), ("top_k_2_1", 1), ("full", 2), ("top_k_2_1", 2)]
    table = capsys.readouterr().out
    assert "8.50" in table and "+1.50 ± 0.50" in table
    found = students.main([*arguments, "--seeds", "1", "--steps", "4", "--set", "batch_seconds=20"])
    assert len(measured) == 6
    assert [run["settings"] for run in found] == [{"batch_seconds": 20, "optimisation.steps": 4}] * 2


def test_a_run_that_was_interrupted_is_done_again(
    tmp_path: Path, measured: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--work-dir", str(tmp_path), "--codecs", "full", "--seeds", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(students, "_measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            students.main(arguments)
    assert [run["wer"] for run in students.main(arguments)] == [8.0]
    assert measured == [("full", 1)]
