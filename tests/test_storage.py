"""kdasr.storage: what may pass is waited for, what may not is told at once, and no writer harms another."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
)
from gcsfs.retry import HttpError
from s3fs.errors import translate_boto_error

from kdasr.results import append_result, read_results
from kdasr.storage import (
    RemoteLocation,
    StorageError,
    commit_bytes,
    local,
    locate,
    locked,
    places,
    remove_leftovers,
    temporary_name,
)
from kdasr.storage.places import patiently


class Clock:
    """Time that passes while one sleeps, and not else."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 3))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(places, "time", clock)
    return clock


def failing(number: int) -> OSError:
    return OSError(number, os.strerror(number))


# -- stores -----------------------------------------------------------------------------------------


def store(monkeypatch: pytest.MonkeyPatch, fails: Callable[[], Exception | None]) -> RemoteLocation:
    """An object in memory, `content`, of which reading and writing fail while `fails` gives an error."""
    place = locate("memory://storage-test/file")
    assert isinstance(place, RemoteLocation)
    place.commit(b"content")
    for name in ("cat_file", "pipe_file"):
        original = getattr(place.fs, name)

        def request(*args: Any, _original: Any = original, **settings: Any) -> Any:
            if error := fails():
                raise error
            return _original(*args, **settings)

        monkeypatch.setattr(place.fs, name, request)
    return place


def test_a_store_that_is_down_for_minutes_is_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = store(monkeypatch, lambda: ConnectionError("nobody\nthere") if clock.now < 200 else None)
    assert place.read_all() == b"content"
    assert 200 <= clock.now < 230
    assert capsys.readouterr().err == (
        "memory://storage-test/file: the store does not respond (nobody there): "
        "retrying for another 4.9 min\n"
    )
    clock.now = 0.0
    place.commit(b"other")
    assert (place.read_all(), place.read_range(1, 3)) == (b"other", b"the")


def test_a_password_is_not_told_while_a_store_is_waited_for(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        if clock.now < 20:
            raise ConnectionError("no answer from https://me:s3cr3t@host")

    patiently(action, lambda error: True, 300.0, "sftp://me:s3cr3t@host/a: the store")
    said = "sftp://me:***@host/a: the store does not respond (no answer from https://me:***@host)"
    assert capsys.readouterr().err.startswith(said)


def test_a_short_outage_is_not_worth_a_word(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = store(monkeypatch, lambda: TimeoutError() if clock.now < 5 else None)
    assert place.read_range(1, 3) == b"ont"
    assert clock.pauses == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (EndpointConnectionError(endpoint_url="http://nobody.there"), "nobody.there"),
        (OSError(errno.EBUSY, "Please reduce your request rate"), "reduce your request rate"),
        (json.JSONDecodeError("no JSON", "<html>", 0), "no JSON"),
        (HttpError({"code": 503, "message": "Backend"}), "Backend"),
        (HttpError({"code": 429, "message": "Too many"}), "Too many"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_store_that_stays_down_is_given_up_after_five_minutes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    place = store(monkeypatch, lambda: error)
    with pytest.raises(StorageError, match=rf"memory://storage-test/file: the store failed: .*{said}.*Check"):
        place.read_all()
    assert clock.pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, *[30.0] * 8, 9.0]


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Forbidden"),
        OSError("Forbidden: bucket/file"),  # as gcsfs says 403
        HttpError({"code": 401, "message": "Anonymous caller does not have access"}),
        HttpError({"code": 400, "message": "Invalid bucket name: 'A_b'"}),
        translate_boto_error(ClientError({"Error": {"Code": "InvalidBucketName"}}, "PutObject")),
        translate_boto_error(ClientError({"Error": {"Code": "PermanentRedirect"}}, "GetObject")),
        NoRegionError(),
        OSError(errno.EROFS, "Read-only file system"),
        NoCredentialsError(),
        ParamValidationError(report="Invalid bucket name"),
        ValueError("Invalid endpoint: nowhere"),
        NotImplementedError(),
    ],
)
def test_what_no_patience_helps_is_told_at_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    place = store(monkeypatch, lambda: error)
    with pytest.raises(StorageError, match="the store failed: .") as told:
        place.read_range(0, 4)
    assert told.value.__cause__ is error and clock.pauses == []


def test_an_object_that_is_not_there_is_not_waited_for(clock: Clock) -> None:
    place = locate("memory://storage-test/absent")
    with pytest.raises(FileNotFoundError):
        place.read_all()
    with pytest.raises(StorageError, match="memory://storage-test/absent: the object does not exist"):
        place.read_range(0, 4)
    assert place.size() is None and clock.pauses == []


# -- disks and mounts -------------------------------------------------------------------------------

PASSING = [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO]


def broken_writes(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> list[str]:
    """Let the first so many files be written half; the names they all had."""
    original, names = local._write_through, list[str]()

    def write(path: Path, data: bytes) -> None:
        names.append(path.name)
        if len(names) <= times:
            original(path, data[: len(data) // 2])
            raise failing(number)
        original(path, data)

    monkeypatch.setattr(local, "_write_through", write)
    return names


@pytest.mark.parametrize("number", PASSING)
def test_a_mount_that_fails_for_a_moment_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, number: int
) -> None:
    names = broken_writes(monkeypatch, number, times=3)
    commit_bytes(tmp_path / "new/file", b"content")
    assert clock.pauses == [0.2, 0.4, 0.8] and len(set(names)) == 4
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert (tmp_path / "new/file").read_bytes() == b"content"


def test_a_mount_that_stays_away_is_named_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_writes(monkeypatch, errno.ESTALE, times=10**6)
    with pytest.raises(
        StorageError, match=r"/file: the file cannot be written; got .* Stale file handle\. Check the disk"
    ):
        commit_bytes(tmp_path / "file", b"content")
    assert sum(clock.pauses) == pytest.approx(60) and list(tmp_path.iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/file: the disk does not respond ([Errno 116] Stale file handle): ")
    assert line.endswith("retrying for another 53.8 s")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_or_forbidden_disk_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, number: int
) -> None:
    names = broken_writes(monkeypatch, number, times=10**6)
    with pytest.raises(OSError, match=os.strerror(number)) as told:
        commit_bytes(tmp_path / "file", b"content")
    assert told.value.errno == number and told.value.__cause__ is None
    assert str(tmp_path / "file") in str(told.value)
    assert len(names) == 1 and clock.pauses == [] and list(tmp_path.iterdir()) == []


def broken_opens(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> None:
    """Let `Path.open` and `Path.stat` fail so many times."""
    left = [times]
    for name in ("open", "stat"):
        original = getattr(Path, name)

        def call(self: Path, *args: Any, _original: Any = original, **settings: Any) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise failing(number)
            return _original(self, *args, **settings)

        monkeypatch.setattr(Path, name, call)


READS: list[tuple[Callable[[Any], Any], object]] = [
    (lambda place: place.read_all(), b"content"),
    (lambda place: place.read_range(3, 2), b"te"),
    (lambda place: place.size(), 7),
]


@pytest.mark.parametrize(("read", "wanted"), READS)
@pytest.mark.parametrize("number", PASSING)
def test_a_mount_that_fails_for_a_moment_is_read_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    read: Callable[[Any], Any],
    wanted: object,
    number: int,
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    broken_opens(monkeypatch, number, times=2)
    assert read(locate(tmp_path / "file")) == wanted
    assert clock.pauses == [0.2, 0.4]


@pytest.mark.parametrize(("read", "wanted"), READS)
def test_what_cannot_be_read_is_named_after_a_minute(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    read: Callable[[Any], Any],
    wanted: object,
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with monkeypatch.context() as patched:
        broken_opens(patched, errno.EIO, times=10**6)
        with pytest.raises(StorageError, match=r"/file: the file cannot be read; got .*output error\. Check"):
            read(locate(tmp_path / "file"))
    assert sum(clock.pauses) == pytest.approx(60)
    assert read(locate(tmp_path / "file")) == wanted


def test_a_file_that_is_gone_or_forbidden_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    place = locate(tmp_path / "absent")
    assert place.size() is None
    with pytest.raises(FileNotFoundError):
        place.read_all()
    with pytest.raises(StorageError, match=r"/absent: the file cannot be read; got .* No such file"):
        place.read_range(0, 4)
    broken_opens(monkeypatch, errno.EACCES, times=1)
    with pytest.raises(StorageError, match=r"/absent: the file cannot be read; got .* Permission denied"):
        place.read_range(0, 4)
    assert clock.pauses == []


# -- locks ------------------------------------------------------------------------------------------

ROW = {
    "model": "student",
    "wer": 10.0,
    "cer": 5.0,
    "params": 1,
    "bytes": 4,
    "rtf": 0.1,
    "latency_ms": 40,
    "seed": 1,
    "train_steps": 10,
}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_once_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(*_: Any) -> None:
        raise failing(number)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, busy=RuntimeError("busy")), locked(tmp_path):
        pass
    append_result(tmp_path / "results.json", ROW)
    assert read_results(tmp_path / "results.json") == [ROW]
    assert capsys.readouterr().err == (
        f"{tmp_path}: the file system has no locks ({os.strerror(number)}): "
        "make sure that nothing else writes there\n"
    )


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        locked(tmp_path),
        pytest.raises(RuntimeError, match="busy"),
        locked(tmp_path, busy=RuntimeError("busy")),
    ):
        pass

    def flock(*_: Any) -> None:
        raise failing(errno.EIO)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path):
        pass


# -- what killed writers leave ------------------------------------------------------------------------


def test_only_what_nobody_can_be_writing_is_removed(tmp_path: Path) -> None:
    own = temporary_name(tmp_path / "shard-000001.kdsl")
    space, pid, host = local._pid_space(), os.getpid(), local._HOST
    assert own.name.startswith(f".shard-000001.kdsl.{host}-{space}-{pid}-")
    dead, start = 4_194_000, f".shard-000001.kdsl.{host}-"
    end = "-0123456789ab.tmp"
    names = {
        own.name: "kept",
        f"{own.name}.prepared": "kept",
        f"{start}{space}-{dead}{end}": "removed",
        f"{start}{space}-{dead}{end}.prepared": "removed",
        # Of another container: its processes have numbers of their own.
        f"{start}{space + 1}-{dead}{end}": "removed when old",
        f"{start}{space + 1}-{pid}{end}": "removed when old",
        # Of an older release.
        f"{start}{dead}{end}": "removed when old",
        f"{start}{pid}{end}": "removed when old",
        f".shard-000001.kdsl.other{host}-{space}-{dead}{end}": "kept",
        f".shard-000001.kdsl.other{host}-{dead}{end}": "kept",
        "mine.tmp": "kept",
    }
    for hours, gone in ((23, {"removed"}), (25, {"removed", "removed when old"})):
        for name in names:
            (tmp_path / name).write_bytes(b"half")
            os.utime(tmp_path / name, (time.time() - hours * 3600,) * 2)
        remove_leftovers(tmp_path)
        found = {path.name for path in tmp_path.iterdir()}
        assert found == {name for name, fate in names.items() if fate not in gone}


def test_what_a_machine_of_the_same_name_is_writing_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot_id").write_text("of the other machine")
    with monkeypatch.context() as there:
        there.setattr(local, "_BOOT_ID", tmp_path / "boot_id")
        there.setattr(local, "_pid_space", local._pid_space.__wrapped__)
        there.setattr(os, "getpid", lambda: 4_194_000)  # not running here
        writing = temporary_name(tmp_path / "shard-000001.kdsl")
    writing.write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert writing.exists()
    os.utime(writing, (time.time() - 25 * 3600,) * 2)
    remove_leftovers(tmp_path)
    assert not writing.exists()


def test_leftovers_that_are_folders_go_with_their_own_name_alone(tmp_path: Path) -> None:
    """One may hold the only model that there is."""
    names = ("model[1]", "model[1]", "model[1].v2", "model")
    left = [temporary_name(tmp_path / name).name for name in names]
    dead = [name.replace(f"-{os.getpid()}-", "-4194000-") for name in left]
    for name in [left[0], *dead[1:], f"{dead[1]}.old"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    remove_leftovers(tmp_path, "model[1]")
    assert {path.name for path in tmp_path.iterdir()} == {left[0], *dead[2:]}
    remove_leftovers(tmp_path / "nowhere")


def test_leftovers_that_may_not_be_removed_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = temporary_name(tmp_path / "labels").name.replace(f"-{os.getpid()}-", "-4194000-")
    (tmp_path / name).write_bytes(b"half")

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
