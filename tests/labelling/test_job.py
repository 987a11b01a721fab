"""The job: what is done is not done again, what is damaged is, and everything is accounted for."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr.errors import ConfigError, LabelMismatchError, ShardError
from kdasr.labelling import (
    DurationLimits,
    Settings,
    engines,
    label,
    progress,
    sharing_ranks,
    summary_text,
    verify_audio,
    verify_labels,
)
from kdasr.labelling import job as job_module
from kdasr.ranks import Ranks
from kdasr.shards import open_shard
from kdasr.soft_labels import TopK, TopP, open_label_shard
from kdasr.storage import temporary_name
from tests.labelling.tiny import TinySource, TinyTeacher, make_audio


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    make_audio(tmp_path / "audio", 12, per_shard=4)
    return tmp_path / "audio"


def run(audio: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return label(**{"teacher": TinySource(), "audio": audio, "out": out, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def test_a_job_labels_everything_and_sums_it_up(audio: Path, tmp_path: Path) -> None:
    summary = run(audio, tmp_path / "labels")
    assert (summary["shards"], summary["shards_labelled"], summary["labelled"]) == (3, 3, 12)
    assert summary["failed"] == {} and summary["shards_failed"] == {} and summary["shards_not_tried"] == []
    sizes = [path.stat().st_size for path in (tmp_path / "labels").glob("*.kdsl")]
    assert summary["bytes"] == sum(sizes)
    assert summary["bytes_per_frame"] == pytest.approx(sum(sizes) / summary["frames"], abs=1e-3)
    assert 0 < summary["teacher_share"] < 1 and summary["times_real_time"] > 1
    assert summary["padding"] <= 0.05
    assert "3 shards labelled" in summary_text(summary)
    assert verify_labels(audio, tmp_path / "labels") == []


def test_the_log_has_a_line_for_every_shard(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "labels")
    lines = [json.loads(line) for line in (tmp_path / "labels" / "log.jsonl").read_text().splitlines()]
    assert [Path(line["audio"]).name for line in lines] == [f"shard-{i:06d}.tar" for i in range(3)]
    assert all(line["event"] == "labelled" and line["labelled"] == 4 for line in lines)


def test_a_second_run_does_nothing_and_says_the_same(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(audio, tmp_path / "labels")
    before = files(tmp_path / "labels")

    def refuse(*_: Any) -> None:
        raise AssertionError("nothing is to do")

    monkeypatch.setattr(job_module, "_crew", refuse)
    second = run(audio, tmp_path / "labels", verify=True)
    assert files(tmp_path / "labels") == before
    assert second["shards_done_before"] == 3 and second["shards_labelled"] == 0
    for name in ("labelled", "frames", "bytes", "bytes_per_frame", "failed"):
        assert second[name] == first[name]


@pytest.mark.parametrize("damage", ["cut", "bit", "no manifest", "empty manifest", "no file", "other audio"])
def test_only_what_is_damaged_is_done_again(audio: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "labels"
    run(audio, out)
    before = files(out)
    path, manifest = out / "shard-000001.kdsl", out / "shard-000001.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "bit":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "empty manifest":
        manifest.write_bytes(b"")
    elif damage == "no file":
        path.unlink()
    else:
        text = manifest.read_text()
        sha256 = json.loads(text)["header"]["audio_sha256"]
        manifest.write_text(text.replace(sha256, "0" * 64))
    assert len(verify_labels(audio, out)) == 1
    summary = run(audio, out, verify=damage == "bit")
    assert (summary["shards_labelled"], summary["shards_done_before"]) == (1, 2)
    assert files(out) == before
    assert verify_labels(audio, out) == []


def test_changed_audio_is_labelled_again(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "labels")
    for path in audio.iterdir():
        path.unlink()
    make_audio(audio, 12, per_shard=4, seed=1)
    assert len(verify_labels(audio, tmp_path / "labels")) == 3
    assert run(audio, tmp_path / "labels")["shards_labelled"] == 3
    assert verify_labels(audio, tmp_path / "labels") == []


def test_audio_that_has_some_of_the_utterances_is_labelled_in_their_place(tmp_path: Path) -> None:
    """Three to a shard instead of four: of the third shard one utterance was in the labels of that name."""
    make_audio(tmp_path / "before", 12, per_shard=4)
    make_audio(tmp_path / "anew", 9, per_shard=3, seed=1)
    run(tmp_path / "before", tmp_path / "labels")
    assert run(tmp_path / "anew", tmp_path / "labels")["shards_labelled"] == 3
    assert verify_labels(tmp_path / "anew", tmp_path / "labels") == []


def test_labels_of_other_audio_are_not_replaced_unasked(audio: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "labels", tmp_path / "other"
    # Utterances without labels are utterances of the shard, too.
    short = Settings(filters=(DurationLimits(min_seconds=100),))
    make_audio(other, 8, per_shard=4, name="other")
    for settings in (Settings(), short):
        run(audio, out, settings=settings, overwrite=True)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(LabelMismatchError, match="of other audio") as caught:
            run(other, out, settings=settings)
        assert "shard-000000.kdsl" in str(caught.value) and "--overwrite true" in str(caught.value)
        assert "such as other-000, other-001; got utt-000, utt-001." in str(caught.value)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(other, out, settings=short, overwrite=True)["shards_labelled"] == 2
    assert verify_labels(other, out) == []


def test_labels_that_cannot_be_read_are_of_no_other_audio(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "labels")
    for path in (tmp_path / "labels").glob("*.kdsl"):
        path.write_bytes(path.read_bytes()[:-3])
    make_audio(tmp_path / "other", 12, per_shard=4, name="other")
    assert run(tmp_path / "other", tmp_path / "labels")["shards_labelled"] == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"teacher": TinySource(seed=1)}, "teacher_hash"),
        ({"settings": Settings(codec=TopP(mass=0.9))}, "codec_params"),
        ({"settings": Settings(codec=TopK())}, "codec"),
        ({"settings": Settings(window_seconds=30)}, "settings"),
    ],
)
def test_labels_of_another_configuration_are_not_replaced_unasked(
    audio: Path, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    run(audio, tmp_path / "labels")
    before = files(tmp_path / "labels")
    with pytest.raises(LabelMismatchError, match=field) as caught:
        run(audio, tmp_path / "labels", **change)
    assert "overwrite" in str(caught.value)
    assert files(tmp_path / "labels") == before
    assert run(audio, tmp_path / "labels", overwrite=True, **change)["shards_labelled"] == 3
    assert files(tmp_path / "labels") != before


def test_of_two_configurations_only_what_differs_is_told(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "labels")
    changed = Settings(codec=TopP(mass=0.9), window_seconds=30, filters=(DurationLimits(max_seconds=9),))
    with pytest.raises(LabelMismatchError) as caught:
        run(audio, tmp_path / "labels", settings=changed)
    names = "codec_params.mass, settings.window_seconds, settings.filters"
    filters = "[['duration', {'min_seconds': 0.0, 'max_seconds': 9}]]"
    assert caught.value.what == f"this folder holds labels with a different configuration: {names}"
    assert caught.value.expected == (
        f"codec_params.mass 0.9, settings.window_seconds 30, settings.filters {filters}"
    )
    assert caught.value.got == "codec_params.mass 0.99, settings.window_seconds 40.0, settings.filters []"
    with pytest.raises(LabelMismatchError) as caught:
        run(audio, tmp_path / "labels", settings=Settings(codec=TopK(k=3)))
    for said, values in (
        (caught.value.expected, ("3", "not given")),
        (caught.value.got, ("not given", "0.99")),
    ):
        assert f"codec_params.k {values[0]}, " in str(said)
        assert str(said).endswith(f", codec_params.mass {values[1]}")


def test_batch_size_is_no_part_of_the_configuration(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "labels")
    assert run(audio, tmp_path / "labels", settings=Settings(batch_seconds=5))["shards_done_before"] == 3


def test_an_array_of_jobs_labels_every_shard_once(audio: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run(audio, whole)
    parts = [run(audio, tmp_path / "parts", shard_index=i, num_shards=2) for i in range(2)]
    assert [part["shards_labelled"] for part in parts] == [2, 1]
    assert files(tmp_path / "parts") == files(whole)
    assert (tmp_path / "parts" / "log-1-of-2.jsonl").exists()


def test_a_damaged_audio_shard_is_reported_and_the_others_are_labelled(audio: Path, tmp_path: Path) -> None:
    damaged = audio / "shard-000001.tar"
    data = bytearray(damaged.read_bytes())
    data[3000] ^= 1
    damaged.write_bytes(data)
    summary = run(audio, tmp_path / "labels")
    assert summary["shards_labelled"] == 2
    (reason,) = summary["shards_failed"].values()
    assert "shard-000001.tar" in reason and "sha256" in reason
    assert "shard failed" in summary_text(summary)
    with pytest.raises(Exception, match="not labelled"):
        open_label_shard(tmp_path / "labels" / "shard-000001.kdsl")


def test_leftovers_of_a_killed_job_are_removed_and_those_of_a_living_one_are_not(
    audio: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    out.mkdir()
    alive = temporary_name(out / "shard-000000.kdsl")
    dead = alive.with_name(alive.name.replace(f"-{os.getpid()}-", "-4194000-"))
    for path in (dead, alive):
        path.write_bytes(b"half")
    run(audio, out)
    assert not dead.exists() and alive.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "magic"}, "magic"),
        ({"workers": 0}, "workers"),
        ({"workers": 2}, "one worker"),
        ({"shard_index": 2, "num_shards": 2}, "shard_index"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    audio: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(audio, tmp_path / "labels", **change)


def test_labels_cannot_lie_in_a_folder_of_audio(audio: Path, tmp_path: Path) -> None:
    before = files(audio)
    make_audio(tmp_path / "other", 4)
    for folder in (audio / ".." / audio.name, f"{audio}/", tmp_path / "other"):
        with pytest.raises(ConfigError, match="folder of audio"):
            run(audio, folder, overwrite=True)  # type: ignore[arg-type]
    assert files(audio) == before


def test_a_teacher_that_fails_on_everything_leaves_no_shard_of_placeholders(
    audio: Path, tmp_path: Path
) -> None:
    make_audio(tmp_path / "loud", 4, loud=(0, 1, 2, 3))
    summary = run(tmp_path / "loud", tmp_path / "labels", teacher=TinySource(poison="raise"))
    (reason,) = summary["shards_failed"].values()
    assert "the teacher failed on all 4 utterances" in reason and "a poison utterance" in reason
    assert files(tmp_path / "labels") == {}
    # The same audio with a teacher that works: nothing is in the way.
    assert run(tmp_path / "loud", tmp_path / "labels")["labelled"] == 4


def test_an_accelerator_that_fails_stops_the_job_and_no_utterance_is_blamed(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(TinyTeacher, "offline", fail)
    summary = run(audio, tmp_path / "labels")
    (reason,) = summary["shards_failed"].values()
    assert "illegal memory access" in reason
    assert len(summary["shards_not_tried"]) == 2 and files(tmp_path / "labels") == {}


def test_an_utterance_for_which_the_memory_was_too_small_is_not_blamed_either(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline, calls = TinyTeacher.offline, []

    def fail(self: TinyTeacher, features_btf: torch.Tensor, lengths_b: torch.Tensor) -> Any:
        calls.append(len(features_btf))
        # The first batch is too large, which smaller ones cure; later even one utterance is.
        if len(calls) == 1 or len(calls) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return offline(self, features_btf, lengths_b)

    monkeypatch.setattr(TinyTeacher, "offline", fail)
    summary = run(audio, tmp_path / "labels", settings=Settings(batch_seconds=100))
    assert summary["failed"] == {} and summary["labelled"] >= 4
    assert all("out of memory" in reason for reason in summary["shards_failed"].values())
    assert len(summary["shards_failed"]) + summary["shards_labelled"] == 3
    assert len(files(tmp_path / "labels")) == 2 * summary["shards_labelled"]


def test_that_batches_are_halved_is_said_once_and_counted(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offline, tried = TinyTeacher.offline, []

    def fail_twice(self: TinyTeacher, features_btf: torch.Tensor, lengths_b: torch.Tensor) -> Any:
        tried.append(len(features_btf))
        if len(features_btf) > 1 and sum(size > 1 for size in tried) <= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return offline(self, features_btf, lengths_b)

    monkeypatch.setattr(TinyTeacher, "offline", fail_twice)
    make_audio(tmp_path / "many", 24, per_shard=12)
    summary = run(tmp_path / "many", tmp_path / "labels")
    assert summary["labelled"] == 24 and summary["halved_batches"] == 2
    assert capsys.readouterr().err.count("not enough memory for the requested batch size") == 1
    assert "2 batches did not fit into memory" in summary_text(summary)
    lines = [json.loads(line) for line in (tmp_path / "labels" / "log.jsonl").read_text().splitlines()]
    assert sum(line["halved_batches"] for line in lines) == 2


def test_workers_take_the_gpus_of_a_machine_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [engines._device_of("cuda", worker) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert engines._device_of("cuda:1", 0) == "cuda:1" and engines._device_of("cpu", 1) == "cpu"


def test_a_gpu_that_is_not_there_is_refused(audio: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the device cannot be used; got cuda:99"):
        run(audio, tmp_path / "labels", device="cuda:99")


def test_of_many_failures_some_are_named_and_all_are_counted(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MOST_NAMED", 5)
    limits = Settings(filters=(DurationLimits(min_seconds=100),))
    for _ in range(2):  # labelled, then counted from the manifests
        summary = run(audio, tmp_path / "labels", settings=limits)
        assert summary["num_failed"] == 12 and len(summary["failed"]) == 5
        text = summary_text(summary)
        assert text.count("not labelled: ") == 1 and " and 11 more: filtered: " in text


def test_the_summary_tells_what_has_labels_and_the_speed_what_was_heard(audio: Path, tmp_path: Path) -> None:
    entries = [entry for path in sorted(audio.glob("*.tar")) for entry in open_shard(path).entries]
    in_all_s = sum(entry.num_samples for entry in entries) / 16_000
    short_s = sum(entry.num_samples for entry in entries if entry.num_samples <= 16_000) / 16_000
    short = sum(entry.num_samples <= 16_000 for entry in entries)
    assert 0 < short < 12
    settings, out = Settings(filters=(DurationLimits(max_seconds=1.0),)), tmp_path / "labels"
    summary = run(audio, out, settings=settings)
    hours = [summary[name] * 3600 for name in ("hours", "hours_labelled", "hours_heard")]
    assert hours == pytest.approx([in_all_s, short_s, short_s])
    assert summary["times_real_time"] == pytest.approx(short_s / summary["wall_s"], rel=0.02, abs=0.1)
    said = f"; {short} of 12 utterances have labels, 2.4 s of 11.6 s"
    first, _, speed = summary_text(summary).splitlines()[:3]
    assert first == f"3 shards labelled, 0 already done{said}" and "real time over 2.4 s processed" in speed
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(line["labelled_seconds"] for line in lines) == pytest.approx(short_s, abs=0.01)
    assert sum(line["heard_seconds"] for line in lines) == pytest.approx(short_s, abs=0.01)
    # Nothing to do: what there is stands in the manifests, those of older releases too.
    manifest = json.loads((out / "shard-000000.json").read_text())
    del manifest["seconds"]
    (out / "shard-000000.json").write_text(json.dumps(manifest))
    again = run(audio, out, settings=settings)
    assert [again[name] * 3600 for name in ("hours", "hours_labelled")] == pytest.approx(hours[:2])
    assert summary_text(again).splitlines()[0] == f"0 shards labelled, 3 already done{said}"
    assert "real time" not in summary_text(again)


def test_what_was_heard_in_vain_counts_as_heard(tmp_path: Path) -> None:
    make_audio(tmp_path / "audio", 4, loud=(1,))
    summary = run(tmp_path / "audio", tmp_path / "labels", teacher=TinySource(poison="raise"))
    assert summary["num_failed"] == 1 and summary["hours_labelled"] < summary["hours"]
    assert summary["hours_heard"] == pytest.approx(summary["hours"])


def test_a_job_whose_teacher_heard_nothing_says_so(audio: Path, tmp_path: Path) -> None:
    summary = run(audio, tmp_path / "labels", settings=Settings(filters=(DurationLimits(min_seconds=100),)))
    assert "the teacher processed no audio; teacher 0% of the time" in summary_text(summary)
    assert "0 of 12 utterances have labels" in summary_text(summary)
    assert summary["bytes_per_frame"] == 0.0 and f"\n{summary['bytes']:,} bytes\n" in summary_text(summary)


def test_the_time_left_is_that_of_the_audio_left() -> None:
    totals = progress.Totals(
        4, 0, seconds=3600.0, heard_seconds=1800.0, wall_s=40.0, bytes=180_000, frames=90_000
    )
    text = progress.progress_text(totals, seconds=14_400)
    assert text == "1.00 h of 4.00 h, 45 × real time, 0:02:00 left"
    assert progress.progress_text(progress.Totals(4, 0), 14_400) == "0.0 s of 4.00 h, 0 × real time"


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match="no audio shards"):
        run(tmp_path / "empty", tmp_path / "labels")


def test_audio_and_labels_may_both_lie_in_a_store_of_objects(audio: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in audio.iterdir():
        memory.pipe_file(f"/job-test/audio/{path.name}", path.read_bytes())
    run(audio, tmp_path / "local")
    summary = run("memory://job-test/audio", "memory://job-test/labels")  # type: ignore[arg-type]
    assert summary["shards_labelled"] == 3
    for name, data in files(tmp_path / "local").items():
        assert memory.cat_file(f"/job-test/labels/{name}") == data
    again = run("memory://job-test/audio", "memory://job-test/labels", verify=True)  # type: ignore[arg-type]
    assert again["shards_done_before"] == 3
    assert verify_labels("memory://job-test/audio", "memory://job-test/labels") == []


def test_two_jobs_with_other_settings_do_not_replace_each_others_labels(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked at the empty folder before either writes."""
    look = job_module.find_work

    def look_then_lose_the_race(*args: Any, **kwargs: Any) -> Any:
        plan = look(*args, **kwargs)
        monkeypatch.setattr(job_module, "find_work", look)
        run(audio, tmp_path / "labels", settings=Settings(codec=TopK(k=3)))
        return plan

    monkeypatch.setattr(job_module, "find_work", look_then_lose_the_race)
    summary = run(audio, tmp_path / "labels", settings=Settings(codec=TopP(mass=0.5)))
    assert summary["shards_labelled"] == 0 and len(summary["shards_failed"]) == 3
    assert all("a different configuration: codec" in why for why in summary["shards_failed"].values())
    for path in (tmp_path / "labels").glob("*.kdsl"):
        assert open_label_shard(path, verify=True).header.codec == "top_k"
    assert verify_labels(audio, tmp_path / "labels") == []


def test_two_jobs_of_other_audio_do_not_replace_each_others_labels(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked at the empty folder before either writes."""
    look = job_module.find_work
    make_audio(tmp_path / "other", 12, per_shard=4, name="other")

    def look_then_lose_the_race(*args: Any, **kwargs: Any) -> Any:
        plan = look(*args, **kwargs)
        monkeypatch.setattr(job_module, "find_work", look)
        run(tmp_path / "other", tmp_path / "labels")
        return plan

    monkeypatch.setattr(job_module, "find_work", look_then_lose_the_race)
    summary = run(audio, tmp_path / "labels")
    assert summary["shards_labelled"] == 0 and len(summary["shards_failed"]) == 3
    assert all("labels of other audio" in why for why in summary["shards_failed"].values())
    assert verify_labels(tmp_path / "other", tmp_path / "labels") == []


def test_labels_of_two_configurations_in_one_folder_are_told_of(audio: Path, tmp_path: Path) -> None:
    for name, mass in (("labels", 0.9), ("others", 0.5)):
        run(audio, tmp_path / name, settings=Settings(codec=TopP(mass=mass)))
    for suffix in (".kdsl", ".json"):
        other = (tmp_path / "others/shard-000001").with_suffix(suffix)
        (tmp_path / "labels" / other.name).write_bytes(other.read_bytes())
    (problem,) = verify_labels(audio, tmp_path / "labels")
    assert "labels with several configurations: shard-00000" in problem


def test_verifying_labels_of_incomplete_audio_says_what_is_missing(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "labels")
    (audio / "shard-000001.tar").unlink()
    (problem,) = verify_labels(audio, tmp_path / "labels")
    assert "shard-000001" in problem and "missing" in problem


def test_a_key_in_two_shards_of_a_store_is_found(audio: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("shard-000000", "shard-000001"):
        for suffix in (".tar", ".json"):
            memory.pipe_file(f"/twice/{name}{suffix}", (audio / f"shard-000000{suffix}").read_bytes())
    problems = verify_audio("memory://twice")
    keys = [entry.key for entry in open_shard(audio / "shard-000000.tar").entries]
    assert len(problems) == len(keys)
    assert all(f"the key {key} is also in shard-000000.tar" in " ".join(problems) for key in keys)


@pytest.mark.parametrize("lack", ["a shard", "a tar", "the end"])
def test_audio_in_a_store_is_used_whole_or_not_at_all(audio: Path, tmp_path: Path, lack: str) -> None:
    import fsspec

    memory, folder = fsspec.filesystem("memory"), f"/store-{lack.replace(' ', '-')}"
    for path in audio.iterdir():
        memory.pipe_file(f"{folder}/{path.name}", path.read_bytes())
    names = [{"name": path.name} for path in audio.glob("*.tar")]
    memory.pipe_file(f"{folder}/prepared.json", json.dumps({"shards": names}).encode())
    assert verify_audio(f"memory:/{folder}") == []
    if lack == "the end":
        memory.pipe_file(f"{folder}/preparing.json", b"{}")
    else:
        memory.rm(f"{folder}/shard-000002.tar")
        memory.rm(f"{folder}/shard-000002.json") if lack == "a shard" else None
    message = "not completely prepared" if lack == "the end" else r"shard-000002\.(tar|json).* missing"
    with pytest.raises(ShardError, match=message):
        run(f"memory:/{folder}", tmp_path / "labels")  # type: ignore[arg-type]
    (problem,) = verify_audio(f"memory:/{folder}")
    assert re.search(message, problem)


@pytest.mark.parametrize("given", [{"engine": "processes"}, {"num_shards": 2}])
def test_ranks_share_the_shards_of_whole_jobs_without_other_workers(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "ranks", lambda: Ranks(rank=1, count=2))
    assert sharing_ranks(engine="inline", num_shards=1) == sharing_ranks() == Ranks(rank=1, count=2)
    assert sharing_ranks(**given).alone
