"""Kill the labelling job at every step and at random moments: nothing is lost, nothing is wrong.

Importing torch takes seconds, so the victims are forked from a small server process that has it
already; each kill is a SIGKILL of a whole process all the same.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kdasr.errors import ConfigError
from kdasr.labelling import label, verify_labels
from tests.faults import label_victim
from tests.labelling.tiny import TinySource, make_audio

NUM_SHARDS = 6


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    make_audio(folder, NUM_SHARDS * 2, per_shard=2)
    return folder


@pytest.fixture(scope="module")
def wanted(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a job that nobody disturbs."""
    out = tmp_path_factory.mktemp("wanted")
    label(teacher=TinySource(), audio=audio, out=out, quiet=True)
    return files(out)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a label folder but the log."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith("log")}


@pytest.fixture(scope="module")
def forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.label_victim"])
    return context


def victim(context: Any, audio: Path, out: Path, step: str = "write", count: int = 0) -> Any:
    process = context.Process(target=label_victim.label_and_die, args=(audio, out, step, count))
    process.start()
    return process


def finished(out: Path) -> set[str]:
    return {p.name for p in out.glob("shard-*.json")} if out.exists() else set()


def times_labelled(out: Path) -> dict[str, int]:
    """How often each shard was labelled to the end, by the log."""
    counts: dict[str, int] = {}
    for line in (out / "log.jsonl").read_text().splitlines():
        name = Path(json.loads(line)["audio"]).name
        counts[name] = counts.get(name, 0) + 1
    return counts


CASES = [(step, count) for step in [*label_victim.STEPS, "half-write"] for count in (1, 2, 3, 4)]


@pytest.mark.parametrize(("step", "count"), CASES, ids=[f"{step}-{count}" for step, count in CASES])
def test_killed_at_a_step_of_the_protocol_it_goes_on_where_it_was(
    forkserver: Any, audio: Path, wanted: dict[str, bytes], tmp_path: Path, step: str, count: int
) -> None:
    out = tmp_path / "labels"
    if step == "forget-manifest":  # there must be labels of another teacher to replace
        label(teacher=TinySource(seed=1), audio=audio, out=out, quiet=True)
    process = victim(forkserver, audio, out, step, count)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    done = {name for name in finished(out) if (out / name).read_bytes() == wanted[name]}
    assert len(done) < NUM_SHARDS
    # Whatever has a manifest is whole; whatever has none is done now, and nothing else.
    summary = label(teacher=TinySource(), audio=audio, out=out, overwrite=True, quiet=True)
    assert summary["shards_done_before"] == len(done)
    assert files(out) == wanted
    assert verify_labels(audio, out) == []


def test_killed_again_and_again_at_random_it_ends_with_the_same_bytes(
    forkserver: Any, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out, rng, kills = tmp_path / "labels", random.Random(0), 0
    while kills < 24:
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
    label(teacher=TinySource(), audio=audio, out=out, quiet=True)
    assert files(out) == wanted


def test_only_work_in_flight_is_repeated(forkserver: Any, audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    for count in (3, 3, 1):
        victim(forkserver, audio, out, "rename", count).join(60)
    label(teacher=TinySource(), audio=audio, out=out, quiet=True)
    assert times_labelled(out) == {f"shard-{i:06d}.tar": 1 for i in range(NUM_SHARDS)}


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
        assert files(out) == wanted
        for path in out.glob("shard-*"):
            path.unlink()


@pytest.mark.slow
def test_a_killed_worker_process_is_replaced_and_its_shard_done_again(
    audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    source = TinySource(die_once=str(tmp_path / "died"))
    summary = label(teacher=source, audio=audio, out=out, engine="processes", workers=2, quiet=True)
    assert (tmp_path / "died").exists()
    assert summary["shards_labelled"] == NUM_SHARDS
    attempts = [json.loads(line)["attempts"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(attempts) == NUM_SHARDS + 1
    assert files(out) == wanted


@pytest.mark.slow
def test_an_utterance_that_kills_the_process_is_found_and_named(tmp_path: Path) -> None:
    make_audio(tmp_path / "audio", 9, per_shard=3, loud=(4,))
    out = tmp_path / "labels"
    summary = label(
        teacher=TinySource(poison="kill"),
        audio=tmp_path / "audio",
        out=out,
        engine="processes",
        workers=2,
        quiet=True,
    )
    assert list(summary["failed"]) == ["utt-004"]
    assert "kills the process" in summary["failed"]["utt-004"]
    assert summary["labelled"] == 8 and summary["shards_failed"] == {}
    assert verify_labels(tmp_path / "audio", out) == []


@pytest.mark.slow
def test_a_teacher_that_cannot_start_stops_the_job_with_its_reason(audio: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such device"):
        label(
            teacher=TinySource(driver_pid=os.getpid()),
            audio=audio,
            out=tmp_path / "labels",
            engine="processes",
            workers=2,
            quiet=True,
        )
