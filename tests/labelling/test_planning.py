"""Plans: the arithmetic by hand, and a prediction that the job itself confirms."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr.errors import ConfigError, ManifestError
from kdasr.labelling import (
    Prediction,
    Settings,
    ShardResult,
    compare,
    engines,
    label,
    plan,
    plan_text,
    planning,
    summary_text,
)
from kdasr.labelling.audio_source import local_copy
from kdasr.labelling.planning import _extrapolate, _size
from tests.labelling.tiny import TinySource, make_audio


def result(
    seconds: float, wall_s: float, frames: int, num_bytes: int, heard_share: float = 1.0
) -> ShardResult:
    heard = heard_share * seconds
    return ShardResult("shard", {"frames": frames, "bytes": num_bytes}, seconds, heard, heard, wall_s)


def test_the_arithmetic_is_hand_computable() -> None:
    results = [result(1800, 18, 45_000, 200_000), result(5400, 54, 135_000, 700_000)]
    found = _extrapolate(results, seconds=72_000, shards=20, workers=8, price=3.0)
    assert found.times_real_time == pytest.approx(100)
    assert found.worker_hours == pytest.approx(0.2)
    assert found.cost == pytest.approx(0.6)
    assert found.frames == 1_800_000
    assert found.bytes_per_frame == pytest.approx(5.0)
    assert found.bytes == pytest.approx(9_000_000, rel=1e-3)
    # 20 shards on 8 workers take three rounds of a twentieth of the work each.
    assert found.wall_hours == pytest.approx(0.2 / 20 * 3)
    assert found.spread == 0.0
    text = plan_text(found)
    assert "20 shards, 20.00 h" in text and "9.001 MB" in text and "cost: 0.60" in text


def test_bytes_and_frames_come_true_when_every_shard_was_sampled(tmp_path: Path) -> None:
    make_audio(tmp_path / "audio", 12, per_shard=3)
    out = tmp_path / "labels"
    found = plan(
        teacher=TinySource(),
        audio=tmp_path / "audio",
        out=out,
        sample_shards=9,
        price_per_worker_hour=2.5,
    )
    assert (found.shards, found.sampled_shards) == (4, 4)
    assert json.loads((out / "plan.json").read_text())["frames"] == found.frames
    summary = label(teacher=TinySource(), audio=tmp_path / "audio", out=out)
    assert summary["frames"] == found.frames
    assert summary["bytes_per_frame"] == pytest.approx(found.bytes_per_frame, abs=1e-3)
    size = sum(path.stat().st_size for path in out.glob("shard-*"))
    assert found.bytes == pytest.approx(size, rel=0.2)
    verdict = summary["compared_with_plan"]
    assert verdict == compare(out, summary) and verdict in summary_text(summary)
    assert verdict is not None
    said = dict(
        re.findall(r"(?:: |, )([^,:]+?) [\d.,e-]+[^(]* \(predicted [\d.,e-]+[^:]*: ([+-]\d+)%\)", verdict)
    )
    assert said["bytes/frame"] == said["audio"] == said["labels"] == "+0"
    assert {"× real time", "worker time", "cost"} <= set(said)


def test_workers_are_paid_for_while_they_fetch_each_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    @contextmanager
    def slow(audio: Any, *, manifest_only: bool = False) -> Iterator[Path]:
        time.sleep(0.2)
        fetched.append(str(audio))
        with local_copy(audio, manifest_only=manifest_only) as path:
            yield path

    monkeypatch.setattr(engines, "local_copy", slow)
    make_audio(tmp_path / "one", 2, per_shard=2)
    found = plan(teacher=TinySource(), audio=tmp_path / "one")
    assert found.worker_hours * 3600 >= 0.2 and len(fetched) == 2  # once to warm up
    two, out = make_audio(tmp_path / "two", 4, per_shard=2), tmp_path / "labels"
    found = plan(teacher=TinySource(), audio=tmp_path / "two", out=out, price_per_worker_hour=3.0)
    assert found.worker_hours * 3600 >= 0.4
    assert fetched[2:] == [str(two[0]), str(two[0]), str(two[1])]
    summary = label(teacher=TinySource(), audio=tmp_path / "two", out=out)
    worker_s = summary["worker_hours"] * 3600
    assert worker_s >= 0.4 and round(0.4 / worker_s, 4) <= summary["fetch_share"] < 1
    assert f"fetching audio {summary['fetch_share']:.0%}" in summary_text(summary)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(line["wall_s"] > line["fetch_s"] >= 0.2 for line in lines)


def test_one_shard_says_nothing_of_the_spread() -> None:
    one, two = result(1800, 18, 45_000, 200_000), result(1800, 22, 45_000, 200_000)
    text = plan_text(_extrapolate([one], seconds=7200, shards=4, workers=1, price=0.0))
    assert "speed per worker: 100 × real time\nworker time: 1.2 min, 1.2 min with" in text
    # 100 and 81.8 ×: a standard error of 9.09 around 90.9.
    text = plan_text(_extrapolate([one, two], seconds=7200, shards=4, workers=1, price=0.0))
    assert "speed per worker: 90 × real time\nworker time: 1.3 min (± 10%), 1.3 min with" in text


def test_the_speed_is_over_what_the_teacher_hears_and_the_time_over_all_shards() -> None:
    found = _extrapolate(
        [result(1800, 10, 9_000, 40_000, heard_share=0.2), result(1800, 8, 9_000, 40_000, heard_share=0.1)],
        seconds=7200,
        shards=4,
        workers=1,
        price=0.0,
    )
    # 540 s heard in 18 s, and as much of the 7,200.
    assert found.times_real_time == pytest.approx(30)
    assert found.hours_heard == pytest.approx(0.3)
    assert found.worker_hours == pytest.approx(36 / 3600)
    text = plan_text(found)
    assert (
        "2.00 h of audio, of which the teacher processes 18.0 min (2" in text and "30 × real time\n" in text
    )
    nothing = _extrapolate([result(1800, 10, 0, 500, heard_share=0.0)], 7200, 4, 1, 0.0)
    assert "speed per worker: unknown, since the teacher processed no audio\n" in plan_text(nothing)


def test_facts_are_compared_by_hand_computable_figures(tmp_path: Path) -> None:
    plan_of = _extrapolate([result(1800, 18, 45_000, 90_000)], seconds=7200, shards=4, workers=2, price=3.0)
    (tmp_path / "plan.json").write_text(json.dumps(asdict(plan_of)))
    facts = {"bytes_per_frame": 2.2, "shards_labelled": 4, "hours": 2.0, "bytes": 396_000}
    facts |= {"times_real_time": 100.0, "worker_hours": 0.04}
    verdict = compare(tmp_path, facts)
    assert verdict is not None
    assert "bytes/frame 2.2 (predicted 2: +10%)" in verdict
    assert "× real time 100 (predicted 200: -50%)" in verdict
    assert "worker time 2.4 min (predicted 1.2 min: +100%)" in verdict
    assert "cost 0.12 (predicted 0.06: +100%)" in verdict
    assert "cost" not in str(compare(tmp_path, {**facts, "shards_labelled": 3}))
    # What was labelled before has cost this run nothing.
    (tmp_path / "plan.json").write_text(json.dumps({**asdict(plan_of), "shards_done": 1}))
    assert "cost" not in str(compare(tmp_path, {**facts, "shards_labelled": 3}))


def test_a_plan_says_how_much_is_labelled_already(tmp_path: Path) -> None:
    def planned(out: Path | None) -> Prediction:
        return plan(teacher=TinySource(), audio=audio, out=out, sample_shards=1)

    audio, out = tmp_path / "audio", tmp_path / "labels"
    make_audio(audio, 6, per_shard=2)
    before = planned(out)
    assert before.shards_done == 0 and "already" not in plan_text(before)
    label(teacher=TinySource(), audio=audio, out=out, shard_index=0, num_shards=2)
    half = planned(out)
    assert half.shards_done == 2 and half.frames == before.frames and half.shards == 3
    assert plan_text(half).startswith(
        "2 of 3 shards already labelled; estimates for all of them:\n3 shards, "
    )
    label(teacher=TinySource(), audio=audio, out=out)
    assert plan_text(planned(out)).startswith("3 of 3 shards already labelled; estimates")
    assert planned(None).shards_done == 0
    other = plan(teacher=TinySource(seed=1), audio=audio, out=out, sample_shards=1)
    assert other.shards_done == 0


def test_a_shard_whose_manifest_is_damaged_is_planned_without(tmp_path: Path) -> None:
    one, two, _ = make_audio(tmp_path / "audio", 6, per_shard=2)
    out = tmp_path / "labels"
    label(teacher=TinySource(), audio=tmp_path / "audio", out=out, shard_index=2, num_shards=3)
    whole = plan(teacher=TinySource(), audio=tmp_path / "audio", sample_shards=1)
    lost_s = json.loads(two.with_suffix(".json").read_text())["seconds"]
    two.with_suffix(".json").write_text("{")
    for folder, done in ((None, 0), (out, 1)):
        found = plan(teacher=TinySource(), audio=tmp_path / "audio", out=folder, sample_shards=1)
        assert 3600 * found.hours == pytest.approx(3600 * whole.hours - lost_s)
        assert (found.shards, found.shards_done) == (3, done)
    one.with_suffix(".json").write_text("{")
    with pytest.raises(ManifestError, match="shard-000000"):  # a sample has to be labelled
        plan(teacher=TinySource(), audio=tmp_path / "audio", sample_shards=1)


def test_a_sample_predicts_the_hours_of_all(tmp_path: Path) -> None:
    make_audio(tmp_path / "audio", 20, per_shard=2)
    found = plan(teacher=TinySource(), audio=tmp_path / "audio", sample_shards=3, workers=2)
    assert (found.shards, found.sampled_shards, found.workers) == (10, 3, 2)
    assert 0.5 < found.hours * 3600 / 20 < 1.5
    assert found.wall_hours == pytest.approx(found.worker_hours / 2)
    assert found.frames == pytest.approx(found.hours * 3600 * 25, rel=0.05)


def test_a_sample_without_labels_leaves_nothing_to_divide_by(tmp_path: Path) -> None:
    nothing = _extrapolate([result(1800, 18, 0, 500)], seconds=1800, shards=1, workers=1, price=0.0)
    (tmp_path / "plan.json").write_text(json.dumps(asdict(nothing)))
    assert "\nlabels: none: no utterance of the sample got any\n" in plan_text(nothing)
    facts = {"bytes_per_frame": 0.0, "shards_labelled": 1, "hours": 0.5, "bytes": 500}
    verdict = compare(tmp_path, {**facts, "times_real_time": 100.0, "worker_hours": 0.005})
    assert verdict is not None
    assert "audio 30.0 min" in verdict and "labels" not in verdict and "cost" not in verdict
    assert "bytes/frame" not in verdict
    assert compare(tmp_path, {**facts, "shards_labelled": 0}) is None


def test_a_plan_of_another_release_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"hours": 1}')
    assert compare(tmp_path, {}) is None


def test_without_a_plan_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert compare(tmp_path, {}) is None


def test_a_plan_without_a_sample_is_refused(tmp_path: Path) -> None:
    make_audio(tmp_path / "audio", 2)
    with pytest.raises(ConfigError, match="sample"):
        plan(teacher=TinySource(), audio=tmp_path / "audio", sample_shards=0)
    with pytest.raises(ConfigError, match="workers: .*1 or more; got 0"):
        plan(teacher=TinySource(), audio=tmp_path / "audio", workers=0)


def test_a_sample_is_spread_over_all_and_labelled_as_the_job_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [str(path) for path in make_audio(tmp_path / "audio", 5, per_shard=1)]
    labelled: list[tuple[str, int | None]] = []

    def noted(teacher: Any, shard: str, folder: Path, settings: Settings) -> ShardResult:
        labelled.append((shard, settings.threads))
        return result(1.0, 1.0, 25, 100)

    monkeypatch.setattr(planning, "fetch_and_label", noted)
    monkeypatch.setattr(planning, "set_threads", lambda settings: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    plan(teacher=TinySource(), audio=tmp_path / "audio", sample_shards=3, workers=2)
    # The first of them once more, to warm up; of six threads each of two workers has three.
    assert labelled == [(shards[number], 3) for number in (0, 0, 2, 4)]


def test_sizes_are_told_in_units_of_a_thousand() -> None:
    sizes = {0: "0 B", 999: "999 B", 1234.5e3: "1.234 MB", 2e15: "2 PB", 5e18: "5000 PB"}
    assert {size: _size(size) for size in sizes} == sizes
