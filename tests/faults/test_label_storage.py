"""Full disks and failing object stores: an error that says so, nothing half done, and then it goes on."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from kdasr.interfaces import Batch
from kdasr.labelling import summary_text, verify_audio, verify_labels
from kdasr.loader import Stream
from kdasr.soft_labels import LabelFolder
from kdasr.storage import RemoteLocation, StorageError, commit_bytes, local, locate, places, remote
from kdasr.training.order import OneEpoch
from tests.faults.label_job import NUM_SHARDS, label_files, run
from tests.faults.object_stores import gs_bucket, s3_bucket


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder with room for 12 KiB, and a function that gives it more.

    A real tmpfs where this user may mount one; otherwise writes fail as a full disk's do.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    if mounted:
        yield (
            folder,
            lambda: subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True) and None,
        )
        subprocess.run(["umount", str(folder)], check=True)
        return
    original, room = local._write_through, [12 << 10]

    def write(path: Path, data: bytes) -> None:
        used = sum(p.stat().st_size for p in folder.iterdir())
        original(path, data[: max(0, room[0] - used)])
        if used + len(data) > room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(local, "_write_through", write)
    yield folder, lambda: room.__setitem__(0, 1 << 20)


def test_a_full_disk_stops_the_job_and_the_next_run_finishes_it(
    audio: Path, wanted: dict[str, bytes], small_disk: tuple[Path, Callable[[], None]]
) -> None:
    disk, enlarge = small_disk
    summary = run(audio, disk / ".")
    done = len(list(disk.glob("shard-*.json")))
    assert 0 < done < NUM_SHARDS
    (reason,) = summary["shards_failed"].values()
    assert "No space left on device" in reason
    assert len(summary["shards_not_tried"]) == NUM_SHARDS - done - 1
    assert "not attempted" in summary_text(summary)
    assert list(disk.glob("*.tmp")) == [] and list(disk.glob(".*.tmp")) == []
    enlarge()
    assert run(audio, disk)["shards_done_before"] == done
    assert label_files(disk) == wanted


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTCONN, errno.EIO])
def test_a_folder_that_may_not_or_cannot_be_written_stops_the_job(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """At its first shard: with each further one a teacher's time would be lost."""
    monkeypatch.setattr(local, "_PATIENCE_S", 0.05)
    original = local._write_through

    def refuse(path: Path, data: bytes) -> None:
        if "units.json" in path.name:  # it may be written when the job begins
            return original(path, data)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(local, "_write_through", refuse)
    summary = run(audio, tmp_path / "labels")
    assert len(summary["shards_not_tried"]) == NUM_SHARDS - 1
    assert os.strerror(number) in next(iter(summary["shards_failed"].values()))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_labels_that_a_mount_refuses_for_a_moment_are_stored(
    audio: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(places, "_FIRST_PAUSE_S", 0.0)
    original, refused = local._write_through, []

    def refuse(path: Path, data: bytes) -> None:
        if path.name.startswith(".shard") and len(refused) < 3:
            refused.append(path.name)
            raise OSError(number, os.strerror(number), str(path))
        original(path, data)

    monkeypatch.setattr(local, "_write_through", refuse)
    summary = run(audio, tmp_path / "labels")
    assert summary["shards_failed"] == {} and len(set(refused)) == 3
    assert label_files(tmp_path / "labels") == wanted


def broken_opens(monkeypatch: pytest.MonkeyPatch, file: str, after: int = 0) -> None:
    """Let the files of this name fail to open, but for so many times before."""
    original, count = Path.open, itertools.count()

    def opened(path: Path, *args: Any, **settings: Any) -> Any:
        if path.name == file and next(count) >= after:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return original(path, *args, **settings)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(local, "_PATIENCE_S", 0.05)


@pytest.mark.parametrize("after", [0, 1])  # when it is hashed, when an utterance is read
def test_one_audio_shard_that_cannot_be_read_does_not_stop_the_job(
    audio: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "labels"
    with monkeypatch.context() as patched:
        broken_opens(patched, "shard-000002.tar", after)
        summary = run(audio, out)
    ((name, reason),) = summary["shards_failed"].items()
    assert name.endswith("shard-000002.tar") and summary["shards_labelled"] == NUM_SHARDS - 1
    assert reason.startswith("ShardError: ") and "Stale file handle" in reason and "damage" not in reason
    assert run(audio, out)["shards_labelled"] == 1
    assert label_files(out) == wanted


def test_labels_that_cannot_be_read_are_told_to_a_training_in_one_line(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(audio, tmp_path / "labels")
    batches = OneEpoch(Stream([audio], 60.0, 1, labels=[LabelFolder(tmp_path / "labels")]))
    file = tmp_path / "labels/shard-000002.kdsl"
    with monkeypatch.context() as patched:
        broken_opens(patched, file.name)
        told = batches[0]
    assert isinstance(told, StorageError)
    assert str(told).startswith(f"{file}: the file cannot be read; got [Errno {errno.ESTALE}] Stale")
    assert isinstance(batches[0], Batch) and len(batches[0].keys) == 2 * NUM_SHARDS


def test_a_disk_that_gives_back_other_bytes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = local._write_through

    def corrupt(path: Path, data: bytes) -> None:
        original(path, data[:-1] + bytes([data[-1] ^ 1]))

    monkeypatch.setattr(local, "_write_through", corrupt)
    with pytest.raises(StorageError, match="the bytes read back differ from those written"):
        commit_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


# -- object stores --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    with gs_bucket() as url:
        yield url


# The server of the one takes seconds to start and to answer; the other stands for both in `make check`.
@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.slow), "gs"])
def bucket(request: pytest.FixtureRequest) -> str:
    """An empty bucket in each kind of store that is served here over HTTP."""
    return str(request.getfixturevalue(request.param))


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        locate(f"{url}/{path.name}").commit(path.read_bytes())


def remote_files(url: str) -> dict[str, bytes]:
    place = locate(url)
    return {name: place.child(name).read_all() for name in place.names()}


@pytest.mark.slow
def test_audio_in_a_bucket_and_labels_in_a_bucket(bucket: str, audio: Path, wanted: dict[str, bytes]) -> None:
    upload(audio, f"{bucket}/plain/audio")
    summary = run(f"{bucket}/plain/audio", f"{bucket}/plain/labels")
    assert summary["shards_labelled"] == NUM_SHARDS
    assert remote_files(f"{bucket}/plain/labels") == wanted
    assert run(f"{bucket}/plain/audio", f"{bucket}/plain/labels")["shards_done_before"] == NUM_SHARDS
    assert verify_labels(f"{bucket}/plain/audio", f"{bucket}/plain/labels") == []


@pytest.mark.slow
def test_damaged_labels_in_a_bucket_are_done_again(bucket: str, audio: Path) -> None:
    out = f"{bucket}/damaged"
    run(audio, out)
    before = remote_files(out)
    place = locate(f"{out}/shard-000002.kdsl")
    place.commit(b"rubbish")
    locate(f"{out}/shard-000003.json").remove()
    assert len(verify_labels(audio, out)) == 2
    assert run(audio, out)["shards_labelled"] == 2
    assert remote_files(out) == before


def test_two_writers_of_one_object_the_second_does_not_overwrite(bucket: str) -> None:
    place = locate(f"{bucket}/race/manifest.json")
    place.commit(b"first", create_only=True)
    place.commit(b"first", create_only=True)
    with pytest.raises(StorageError, match="another writer has already stored different bytes there"):
        place.commit(b"second", create_only=True)
    assert place.read_all() == b"first"


@pytest.mark.slow
def test_many_jobs_on_the_same_bucket_leave_one_set_of_labels(
    s3: str, audio: Path, wanted: dict[str, bytes]
) -> None:
    out, errors = f"{s3}/many", []

    def job() -> None:
        summary = run(audio, out)
        errors.extend(summary["shards_failed"].values())

    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert remote_files(out) == wanted


def flaky(fs: Any, monkeypatch: pytest.MonkeyPatch, every: int) -> list[str]:
    """Make every `every`-th request of each kind fail, before or after it was carried out."""
    failures: list[str] = []
    for name in ("pipe_file", "cat_file", "info", "ls", "rm_file"):
        original, calls = getattr(fs, name), [0]

        def request(*args: Any, _f: Any = original, _c: Any = calls, _n: str = name, **kwargs: Any) -> Any:
            _c[0] += 1
            fails = _c[0] % every == 0
            if fails and _c[0] % 2:
                failures.append(_n)
                # What botocore raises for a server that does not answer is no OSError.
                raise EndpointConnectionError(endpoint_url="injected: before")
            result = _f(*args, **kwargs)
            if fails:
                failures.append(_n)
                raise OSError(errno.ETIMEDOUT, "injected: after")
            return result

        monkeypatch.setattr(fs, name, request)
    return failures


@pytest.mark.slow
def test_a_store_that_fails_now_and_then_is_asked_again(
    s3: str, audio: Path, wanted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(audio, f"{s3}/flaky/audio")
    monkeypatch.setattr(places, "_FIRST_PAUSE_S", 0.001)
    fs = locate(s3)
    assert isinstance(fs, RemoteLocation)
    failures = flaky(fs.fs, monkeypatch, every=3)
    summary = run(f"{s3}/flaky/audio", f"{s3}/flaky/labels")
    assert summary["shards_failed"] == {} and summary["shards_labelled"] == NUM_SHARDS
    assert {"pipe_file", "cat_file"} <= set(failures)
    monkeypatch.undo()
    assert remote_files(f"{s3}/flaky/labels") == wanted


@pytest.mark.slow
def test_a_store_that_is_down_stops_the_job_with_the_address(
    s3: str, audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PATIENCE_S", 0.05)
    fs = locate(s3)
    assert isinstance(fs, RemoteLocation)

    original = fs.fs.pipe_file

    def down(path: str, *rest: Any, **options: Any) -> None:
        if path.endswith("units.json"):  # it is there still when the job begins
            return original(path, *rest, **options)
        raise EndpointConnectionError(endpoint_url="http://nobody.there")

    monkeypatch.setattr(fs.fs, "pipe_file", down)
    summary = run(audio, f"{s3}/down")
    # What the teacher says of the other shards would have nowhere to go either.
    (reason,) = summary["shards_failed"].values()
    assert "s3://labels-test/down/" in reason and "nobody.there" in reason
    assert len(summary["shards_not_tried"]) == NUM_SHARDS - 1


@pytest.mark.slow
def test_one_audio_shard_that_cannot_be_fetched_does_not_stop_the_job(
    s3: str, audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(audio, f"{s3}/unfetched/audio")
    fs = locate(s3)
    assert isinstance(fs, RemoteLocation)
    original = fs.fs.cat_file

    def refuse(path: str, **kwargs: Any) -> Any:
        if path.endswith("audio/shard-000002.tar"):
            raise PermissionError(errno.EACCES, "Forbidden")
        return original(path, **kwargs)

    monkeypatch.setattr(fs.fs, "cat_file", refuse)
    summary = run(f"{s3}/unfetched/audio", f"{s3}/unfetched/labels")
    ((name, reason),) = summary["shards_failed"].items()
    assert name.endswith("shard-000002.tar") and "cannot be fetched" in reason and "Forbidden" in reason
    assert summary["shards_labelled"] == NUM_SHARDS - 1
    monkeypatch.undo()
    assert verify_audio(f"{s3}/unfetched/audio") == []
    (problem,) = verify_labels(f"{s3}/unfetched/audio", f"{s3}/unfetched/labels")
    assert "shard-000002" in problem


def test_a_bucket_that_is_not_there_is_an_error_for_people(s3: str) -> None:
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/file: the bucket does not exist"):
        locate("s3://no-such-bucket/file").commit(b"labels")


def test_damaged_audio_in_a_bucket_is_named(s3: str, audio: Path) -> None:
    upload(audio, f"{s3}/cut")
    tar = locate(f"{s3}/cut/shard-000001.tar")
    tar.commit(tar.read_all()[:-1000])
    (problem,) = verify_audio(f"{s3}/cut")
    assert problem.startswith(f"{s3}/cut/shard-000001.tar: ")
    assert "no audio shards" in verify_audio(f"{s3}/empty")[0]


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(StorageError, match="unsupported kind of URL"):
        locate("nonsense://bucket/labels")


def test_a_log_that_cannot_be_written_does_not_stop_the_job(
    audio: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    summary = run(audio, tmp_path / "labels", log=Path("/dev/full"))
    assert summary["shards_labelled"] == NUM_SHARDS
    assert "the log is incomplete: [Errno 28] No space left on device" in summary_text(summary)
    assert label_files(tmp_path / "labels") == wanted
