"""Kill the labelling job at every step and at random moments: nothing is lost, nothing is wrong.

Importing torch takes seconds, so the victims are forked from a small server process that has it
already; each kill is a SIGKILL of a whole process all the same.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kdasr.errors import ConfigError
from kdasr.labelling import verify_labels
from tests.faults import label_victim
from tests.faults.label_job import (
    NUM_SHARDS,
    children_of,
    driver_at_work,
    finished,
    label_files,
    log_lines,
    run,
)
from tests.labelling.tiny import TinySource, make_audio

RANDOM_KILLS = 24


def victim(context: Any, audio: Path, out: Path, step: str = "write", count: int = 0) -> Any:
    process = context.Process(target=label_victim.label_and_die, args=(audio, out, step, count))
    process.start()
    return process


CASES = [(step, count) for step in [*label_victim.STEPS, "half-write"] for count in (1, 2, 3, 4)]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "count"), CASES, ids=[f"{step}-{count}" for step, count in CASES])
def test_killed_at_a_step_of_the_protocol_it_goes_on_where_it_was(
    forkserver: Any, audio: Path, wanted: dict[str, bytes], tmp_path: Path, step: str, count: int
) -> None:
    out = tmp_path / "labels"
    if step == "forget-manifest":  # there must be labels of another teacher to replace
        run(audio, out, teacher=TinySource(seed=1))
    process = victim(forkserver, audio, out, step, count)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    done = {name for name in finished(out) if (out / name).read_bytes() == wanted[name]}
    assert len(done) < NUM_SHARDS
    # Whatever has a manifest is whole; whatever has none is done now, and nothing else.
    summary = run(audio, out, overwrite=True)
    assert summary["shards_done_before"] == len(done)
    assert label_files(out) == wanted
    assert verify_labels(audio, out) == []


@pytest.mark.slow
def test_killed_again_and_again_at_random_it_ends_with_the_same_bytes(
    forkserver: Any, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out, rng, kills = tmp_path / "labels", random.Random(0), 0
    while kills < RANDOM_KILLS:
        if len(finished(out)) == NUM_SHARDS:
            # Give it something to do again: lose a random shard.
            lost = rng.randrange(NUM_SHARDS)
            (out / f"shard-{lost:06d}.{rng.choice(['json', 'kdsl'])}").unlink(missing_ok=True)
        process = victim(forkserver, audio, out)
        time.sleep(rng.uniform(0.0, 0.08))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
        for path in out.glob("shard-*.kdsl"):
            assert path.read_bytes() == wanted[path.name]
    run(audio, out)
    assert label_files(out) == wanted
    assert len(CASES) + kills >= 50  # in all, with those at the steps


@pytest.mark.slow
def test_only_work_in_flight_is_repeated(forkserver: Any, audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    for count in (3, 3, 1):
        victim(forkserver, audio, out, "rename", count).join(60)
    run(audio, out)
    labelled = [Path(line["audio"]).name for line in log_lines(out)]
    assert sorted(labelled) == [f"shard-{number:06d}.tar" for number in range(NUM_SHARDS)]


@pytest.mark.slow
def test_several_writers_on_the_same_shards_do_each_other_no_harm(
    forkserver: Any, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    for _ in range(5):
        writers = [victim(forkserver, audio, out) for _ in range(3)]
        for process in writers:
            process.join(120)
        assert [process.exitcode for process in writers] == [0, 0, 0]
        assert label_files(out) == wanted
        for path in out.glob("shard-*"):
            path.unlink()


@pytest.mark.slow
def test_a_killed_worker_process_is_replaced_and_its_shard_done_again(
    audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    source = TinySource(die_once=str(tmp_path / "died"))
    summary = run(audio, out, teacher=source, engine="processes", workers=2)
    assert (tmp_path / "died").exists()
    assert summary["shards_labelled"] == NUM_SHARDS
    assert sum(line["attempts"] for line in log_lines(out)) == NUM_SHARDS + 1
    assert label_files(out) == wanted


@pytest.mark.slow
def test_the_workers_of_a_killed_driver_die_with_it(
    audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    driver = driver_at_work(audio, out, engine="processes")
    workers = children_of(driver.pid)
    assert len(workers) >= 2
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its driver"
        time.sleep(0.02)
    left = label_files(out)
    time.sleep(1.5)  # longer than a worker takes for a shard
    assert label_files(out) == left
    done = finished(out)
    assert 0 < len(done) < NUM_SHARDS
    summary = run(audio, out, engine="processes", workers=2)
    assert summary["shards_done_before"] == len(done)
    assert label_files(out) == wanted
    assert verify_labels(audio, out) == []


@pytest.mark.slow
@pytest.mark.parametrize("poison", ["kill", "device"])
def test_an_utterance_that_kills_the_process_is_found_and_named(tmp_path: Path, poison: str) -> None:
    make_audio(tmp_path / "audio", 9, per_shard=3, loud=(4,))
    out = tmp_path / "labels"
    summary = run(tmp_path / "audio", out, teacher=TinySource(poison=poison), engine="processes", workers=2)
    assert list(summary["failed"]) == ["utt-004"]
    assert "kills the process" in summary["failed"]["utt-004"]
    assert summary["labelled"] == 8 and summary["shards_failed"] == {}
    assert verify_labels(tmp_path / "audio", out) == []


@pytest.mark.slow
def test_a_teacher_that_cannot_start_stops_the_job_with_its_reason(audio: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such device"):
        source = TinySource(driver_pid=os.getpid())
        run(audio, tmp_path / "labels", teacher=source, engine="processes", workers=2)
