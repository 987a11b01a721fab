"""The benchmark of labelling compares with the very batches that labelling makes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import labelling
from benchmarks.gpu import scales
from kdasr.labelling import Settings, Teacher, label_shard
from kdasr.shards import open_shard
from tests.labelling.tiny import TinySource, make_audio


def test_the_bare_pass_sees_what_the_teacher_sees_when_labelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = make_audio(tmp_path / "audio", 6, per_shard=6)
    teacher, settings = TinySource().load("cpu"), Settings(batch_seconds=3.0)
    seen: list[torch.Tensor] = []
    offline = teacher.model.offline
    monkeypatch.setattr(
        teacher.model, "offline", lambda x, lengths: (seen.append(x.clone()), offline(x, lengths))[1]
    )
    _, prepared = labelling._prepare(teacher, [shard], settings)
    labelling._forward(teacher, prepared, settings)
    bare, seen = seen, []
    label_shard(teacher, shard, tmp_path / "labels", settings)
    assert len(bare) == len(seen) > 1
    assert all(torch.equal(one, other) for one, other in zip(bare, seen, strict=True))


def test_the_figures_of_a_run_belong_together(tmp_path: Path) -> None:
    shards = make_audio(tmp_path / "audio", 4, per_shard=2)
    found = labelling.measure(TinySource(pause_s=0.01).load("cpu"), shards, 1, Settings(threads=1))
    assert found["audio_minutes"] * 60 == pytest.approx(sum(open_shard(path).seconds for path in shards))
    ratio = found["bare_forward_times_real_time"] / found["labelling_times_real_time"]
    assert ratio == pytest.approx(1 + found["overhead_wall_percent"] / 100)
    assert found["overhead_cpu_percent"] > 0


def test_a_teacher_that_nobody_trained_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = scales()["tiny"]
    monkeypatch.setattr(labelling, "scales", lambda: {"full": tiny})
    make_audio(tmp_path / "audio", 4, per_shard=4)
    paths = ["--work-dir", str(tmp_path), "--audio", str(tmp_path / "audio")]
    sizes = ["--shards", "1", "--rounds", "1", "--decoders", "2"]
    found = labelling.main([*paths, "--untrained", "teacher", "--precision", "bfloat16", *sizes])
    assert found["labelling_times_real_time"] > 0
    assert found["decode_times_real_time_2_threads"] > 0
    assert found["decode_and_log_mel_times_real_time_2_threads"] > 0


@pytest.mark.slow
def test_several_workers_label_all_they_are_given(tmp_path: Path) -> None:
    shards = make_audio(tmp_path / "audio", 4, per_shard=2)
    seconds = sum(open_shard(path).seconds for path in shards)
    found = labelling.labelled_at_once(
        partial(TinySource(pause_s=0.2).load, "cpu"), shards, Settings(threads=1), workers=2
    )
    # Each of them waits 0.2 s at least for either shard; a worker checks itself that it labelled all of them.
    assert 0 < found < 2 * seconds / 0.4


def _no_teacher() -> Teacher:
    raise SystemExit(3)


@pytest.mark.slow
def test_a_worker_that_ends_too_early_is_not_waited_for(tmp_path: Path) -> None:
    shards = make_audio(tmp_path / "audio", 2, per_shard=2)
    with pytest.raises(RuntimeError, match="a worker ended before it had finished"):
        labelling.labelled_at_once(_no_teacher, shards, Settings(threads=1), workers=2)
