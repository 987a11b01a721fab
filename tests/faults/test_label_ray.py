"""Labelling on a real local Ray cluster: actors and drivers are killed, the bytes stay the same."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdasr.errors import ConfigError
from kdasr.labelling import verify_labels
from tests.faults.label_job import NUM_SHARDS, driver_at_work, finished, label_files, log_lines, run
from tests.labelling.tiny import TinySource, make_audio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two CPUs on this machine."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def run_ray(audio: Path, out: Path, workers: int = 2, **source: Any) -> dict[str, Any]:
    return run(audio, out, teacher=TinySource(**source), engine="ray", workers=workers)


def test_actors_label_what_one_process_labels(
    cluster: str, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    summary = run_ray(audio, tmp_path / "labels")
    assert summary["shards_labelled"] == NUM_SHARDS and summary["shards_failed"] == {}
    assert label_files(tmp_path / "labels") == wanted


def test_a_killed_actor_is_replaced_and_only_its_shard_is_done_again(
    cluster: str, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    summary = run_ray(audio, out, die_once=str(tmp_path / "died"))
    assert (tmp_path / "died").exists()
    assert summary["shards_labelled"] == NUM_SHARDS
    assert sum(line["attempts"] for line in log_lines(out)) == NUM_SHARDS + 1
    assert label_files(out) == wanted


def test_a_killed_driver_leaves_work_that_the_next_one_finishes(
    cluster: str, audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    driver = driver_at_work(audio, out, engine="ray", ray_address=cluster)
    driver.kill()
    driver.wait()
    time.sleep(3)  # Ray notices, and kills the actors of a driver that is gone
    left = label_files(out)
    time.sleep(1.5)  # longer than an actor takes for a shard
    assert label_files(out) == left
    done = finished(out)
    assert 0 < len(done) < NUM_SHARDS
    summary = run_ray(audio, out)
    assert summary["shards_done_before"] == len(done)
    assert summary["shards_labelled"] == NUM_SHARDS - len(done)
    assert label_files(out) == wanted
    assert verify_labels(audio, out) == []


def test_a_poison_utterance_that_kills_its_actor_is_named_and_the_rest_is_labelled(
    cluster: str, tmp_path: Path
) -> None:
    make_audio(tmp_path / "audio", 6, per_shard=2, loud=(3,))
    summary = run_ray(tmp_path / "audio", tmp_path / "labels", poison="kill")
    assert list(summary["failed"]) == ["utt-003"]
    assert summary["labelled"] == 5 and summary["shards_failed"] == {}


def test_relative_paths_mean_the_same_to_actors(
    cluster: str, audio: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audio").symlink_to(audio)
    monkeypatch.chdir(tmp_path)
    summary = run_ray(Path("audio"), Path("labels"), workers=1)
    assert summary["shards_failed"] == {}
    assert label_files(tmp_path / "labels") == wanted


def test_more_workers_than_the_cluster_has_room_for_are_refused(
    cluster: str, audio: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no room for 3 workers"):
        run(audio, tmp_path / "labels", engine="ray", workers=3)


def test_a_teacher_that_cannot_start_in_an_actor_stops_the_job(
    cluster: str, audio: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no such device"):
        run_ray(audio, tmp_path / "labels", workers=1, driver_pid=os.getpid())
