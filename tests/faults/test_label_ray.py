"""Labelling on a real local Ray cluster: actors and drivers are killed, the bytes stay the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdasr.errors import ConfigError
from kdasr.labelling import label, verify_labels
from tests.labelling.tiny import TinySource, make_audio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

NUM_SHARDS = 5
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two CPUs on this machine."""
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    make_audio(folder, NUM_SHARDS * 2, per_shard=2)
    return folder


@pytest.fixture(scope="module")
def wanted(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("wanted")
    label(teacher=TinySource(), audio=audio, out=out, quiet=True)
    return files(out)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith("log")}


def run(audio: Path, out: Path, **source: Any) -> dict[str, Any]:
    return label(teacher=TinySource(**source), audio=audio, out=out, engine="ray", workers=2, quiet=True)


def test_actors_label_what_one_process_labels(
    cluster: str, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    summary = run(audio, tmp_path / "labels")
    assert summary["shards_labelled"] == NUM_SHARDS and summary["shards_failed"] == {}
    assert files(tmp_path / "labels") == wanted


def test_a_killed_actor_is_replaced_and_only_its_shard_is_done_again(
    cluster: str, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    summary = run(audio, out, die_once=str(tmp_path / "died"))
    assert (tmp_path / "died").exists()
    assert summary["shards_labelled"] == NUM_SHARDS
    attempts = [json.loads(line)["attempts"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(attempts) == NUM_SHARDS + 1
    assert files(out) == wanted


def test_a_killed_driver_leaves_work_that_the_next_one_finishes(
    cluster: str, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    script = (
        "from pathlib import Path\n"
        "from tests.labelling.tiny import TinySource\n"
        "from kdasr.labelling import label\n"
        f"label(teacher=TinySource(pause_s=0.5), audio=Path({str(audio)!r}), out=Path({str(out)!r}), "
        f"engine='ray', workers=2, ray_address={cluster!r}, quiet=True)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 90
    while not list(out.glob("shard-*.json")):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(list(out.glob("shard-*.json"))) < NUM_SHARDS
    summary = run(audio, out)
    assert summary["shards_done_before"] >= 1
    assert summary["shards_done_before"] + summary["shards_labelled"] == NUM_SHARDS
    assert {name: data for name, data in files(out).items() if name.startswith("shard-")} == wanted
    assert verify_labels(audio, out) == []


def test_a_poison_utterance_that_kills_its_actor_is_named_and_the_rest_is_labelled(
    cluster: str, tmp_path: Path
) -> None:
    make_audio(tmp_path / "audio", 6, per_shard=2, loud=(3,))
    summary = run(tmp_path / "audio", tmp_path / "labels", poison="kill")
    assert list(summary["failed"]) == ["utt-003"]
    assert summary["labelled"] == 5 and summary["shards_failed"] == {}


def test_a_teacher_that_cannot_start_in_an_actor_stops_the_job(
    cluster: str, audio: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no such device"):
        run(audio, tmp_path / "labels", driver_pid=os.getpid())
