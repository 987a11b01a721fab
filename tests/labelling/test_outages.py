"""A store that is out of reach for longer than it is waited for, in the middle of a job."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from kdasr.labelling import label, shard_job, verify_labels
from kdasr.storage import remote
from tests.labelling.tiny import TinySource, make_audio

AUDIO, LABELS = "memory://outages/audio", "memory://outages/labels"


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes requests of a kind fail for an object, the first `times` times; three shards of
    audio are in the store."""
    memory = fsspec.filesystem("memory")
    if memory.exists("/outages"):
        memory.rm("/outages", recursive=True)
    make_audio(tmp_path / "audio", 12, per_shard=4)
    for path in (tmp_path / "audio").iterdir():
        memory.pipe_file(f"/outages/audio/{path.name}", path.read_bytes())
    monkeypatch.setattr(remote, "_PATIENCE_S", 0.0)

    def refuse(kind: str, name: str, error: Exception, times: int = 1) -> None:
        original, left = getattr(type(memory), kind), [times]

        def request(self: Any, path: str, *rest: Any, **options: Any) -> Any:
            if path.endswith(name) and left[0]:
                left[0] -= 1
                raise error
            return original(self, path, *rest, **options)

        monkeypatch.setattr(type(memory), kind, request)

    return refuse


def run(tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    """The summary of a job, and from its log each shard with what became of it at which attempt."""
    log = tmp_path / "log.jsonl"
    summary = label(teacher=TinySource(), audio=AUDIO, out=LABELS, log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return summary, [f"{line['audio'][-8:-4]} {line['event']} {line['attempts']}" for line in lines]


def test_audio_that_cannot_be_fetched_is_fetched_once_more_at_the_end(
    refuse: Callable[..., None], tmp_path: Path
) -> None:
    refuse("cat_file", "shard-000000.tar", ConnectionError("no route"), times=1)
    refuse("cat_file", "shard-000001.tar", ConnectionError("no route"), times=2)
    summary, lines = run(tmp_path)
    assert lines == ["0002 labelled 1", "0000 labelled 2", "0001 failed 2"]
    ((name, reason),) = summary["shards_failed"].items()
    assert name == f"{AUDIO}/shard-000001.tar" and "cannot be fetched" in reason and "no route" in reason


def test_a_manifest_that_cannot_be_fetched_when_the_job_begins_is_fetched_later(
    refuse: Callable[..., None], tmp_path: Path
) -> None:
    refuse("cat_file", "audio/shard-000000.json", ConnectionError("no route"))
    summary, lines = run(tmp_path)
    assert lines == [f"000{n} labelled 1" for n in range(3)]
    assert summary["labelled"] == 12 and verify_labels(AUDIO, LABELS) == []


def test_audio_behind_a_mount_that_fails_is_read_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_audio(tmp_path / "audio", 6, per_shard=2)
    read, errors = shard_job.open_shard, [OSError(errno.EIO, "Input/output error")]

    def fail_once(path: Path, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return read(path, **options)

    monkeypatch.setattr(shard_job, "open_shard", fail_once)
    label(teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels")
    lines = [json.loads(line) for line in (tmp_path / "labels/log.jsonl").read_text().splitlines()]
    assert [(line["audio"][-8:-4], line["attempts"]) for line in lines] == [
        ("0001", 1),
        ("0002", 1),
        ("0000", 2),
    ]


@pytest.mark.parametrize("kind", ["pipe_file", "cat_file"])
def test_labels_that_cannot_be_stored_once_do_not_end_the_job(
    refuse: Callable[..., None], tmp_path: Path, kind: str
) -> None:
    refuse(kind, "labels/shard-000000.kdsl", ConnectionError("no route"))
    summary, lines = run(tmp_path)
    assert lines == ["0001 labelled 1", "0002 labelled 1", "0000 labelled 2"]
    assert summary["shards_failed"] == {} and verify_labels(AUDIO, LABELS) == []


@pytest.mark.parametrize(
    ("error", "tried"), [(ConnectionError("no route"), 2), (PermissionError("not allowed"), 1)]
)
def test_a_store_that_takes_no_labels_ends_the_job(
    refuse: Callable[..., None], tmp_path: Path, error: Exception, tried: int
) -> None:
    refuse("pipe_file", ".kdsl", error, times=100)
    summary, lines = run(tmp_path)
    assert lines == [f"000{tried - 1} failed 1"]
    assert str(error) in next(iter(summary["shards_failed"].values()))
    # The one that was put off is to do, as those that were not begun.
    assert len(summary["shards_not_tried"]) == 2
