"""Local paths: files are written atomically."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdasr.errors import ConfigError
from kdasr.storage.places import StorageError, compare, patiently

_T = TypeVar("_T")

# How long to retry while a disk, or the server behind a mount, fails.
_PATIENCE_S = 60.0
_MAY_PASS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, getattr(errno, "EREMOTEIO", errno.EIO))
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"
# Names from older releases lack the PID namespace ("space").
_LEFTOVER = re.compile(r"\.(?P<host>[A-Za-z0-9]+)-((?P<space>\d+)-)?(?P<pid>\d+)-[0-9a-f]{12}\.tmp")
_LONG_AGO_S = 24 * 3600
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def commit_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a local `path` atomically, even if there is a crash at any moment.

    Each attempt writes to a temporary name of its own, flushes, calls fsync, reads back and compares,
    renames, and calls fsync on the folder. Two writers of the same bytes do not disturb each other. If the
    disk or mount fails, this is tried again.

    Raises:
        StorageError: the disk returned other bytes than were written, or keeps failing.
        OSError: the disk is full, the folder is not writable, …; no file is left behind.
    """
    _stored(path, "the file cannot be written", lambda: _commit_once(path, data))


def _commit_once(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = temporary_name(path)
    try:
        _write_through(attempt, data)
        compare(attempt.read_bytes(), data, str(attempt))
        attempt.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            attempt.unlink()
        raise
    sync_path(path.parent)


def with_patience(path: Path, action: Callable[[], _T]) -> _T:
    """The result of `action`, which reads or writes `path`; it is retried while the disk or its mount fails.

    Raises:
        OSError, or others: what `action` raised last.
    """

    def may_pass(error: Exception) -> bool:
        return isinstance(error, OSError) and error.errno in _MAY_PASS

    return patiently(action, may_pass, _PATIENCE_S, f"{path}: the disk")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError without a file, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _stored(path: Path, what: str, action: Callable[[], _T]) -> _T:
    """As `with_patience`, but raises StorageError if the disk or its mount keeps failing. Other errors name
    the file."""
    try:
        return with_patience(path, action)
    except OSError as error:
        if error.errno not in _MAY_PASS:
            with naming(path):
                raise
        raise _storage_error(path, what, error) from error


def _storage_error(path: Path, what: str, error: OSError) -> StorageError:
    fix = "Check the disk or its mount, then run it again."
    return StorageError(what, where=path, got=error, fix=fix)


def commit_json(path: Path, content: Any) -> None:
    """`commit_bytes` of `content` as indented JSON."""
    commit_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def temporary_name(path: Path) -> Path:
    """Where to write `path` until it is complete and checked: a hidden, unique name in the same folder.
    `remove_leftovers` recognises it, also with something appended."""
    return path.with_name(f".{path.name}.{_HOST}-{_pid_space()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")


def commit_file(temporary: Path, path: Path) -> None:
    """Atomically give a complete and checked file its final name: for files that something other than
    `commit_bytes` wrote to their `temporary_name`."""
    sync_path(temporary)
    temporary.replace(path)
    sync_path(path.parent)


@contextlib.contextmanager
def locked(folder: Path, *, busy: Exception | None = None) -> Iterator[None]:
    """Let one process of this machine in at a time: others wait, or raise `busy`. The lock is on the folder
    itself, so that no file is left behind. On a file system without locks, all processes get in."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            take_lock(descriptor, folder, wait=busy is None)
        except BlockingIOError:
            assert busy is not None
            raise busy from None
        yield
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, folder: Path, *, wait: bool) -> None:
    """Lock an open folder, or an open file in it; if the file system has no locks, say so and continue.

    Raises:
        BlockingIOError: another process has the lock and `wait` is False.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _tell_of_no_locks(folder, error.strerror)


@functools.cache  # once for each folder
def _tell_of_no_locks(folder: Path, why: str) -> None:
    print(
        f"{folder}: the file system has no locks ({why}): make sure that nothing else writes there",
        file=sys.stderr,
    )


def refuse_file(folder: Path, what: str) -> None:
    """Raise ConfigError if `folder` or one of its parents is a file; `what` says what belongs there."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if there.exists() and not there.is_dir():
        raise ConfigError(f"{what}, but this is a file", where=there, fix="Choose another --out.")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove files with a `temporary_name` that killed writers of this machine left in `folder`, which need
    not exist; if a `name` is given, only those of this name, but folders too: one may hold the only model."""
    space = str(_pid_space())
    for path in folder.glob(".*.tmp*"):
        found = _LEFTOVER.search(path.name)
        if not found or found["host"] != _HOST or name not in (None, path.name[1 : found.start()]):
            continue
        # Whether a process on another machine or in another container is running cannot be found out here,
        # so go by age.
        is_dead = not is_running(int(found["pid"])) if found["space"] == space else _is_old(path)
        if is_dead and not path.is_dir():
            with contextlib.suppress(OSError):  # another user's, for example
                path.unlink()
        elif is_dead and name is not None:
            shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _pid_space() -> int:
    """Identifies this process's PID namespace, on this machine, since it was started: machines and containers
    with the same host name may use the same PID for different processes, and the first namespace of every
    machine has the same number. 0 if the system has no namespaces."""
    try:
        space, boot = Path("/proc/self/ns/pid").stat().st_ino, _BOOT_ID.read_bytes()
    except OSError:
        return 0
    return int.from_bytes(hashlib.sha256(b"%d %b" % (space, boot)).digest()[:5])


def _is_old(path: Path) -> bool:
    """Whether a file has not been written to for a day."""
    try:
        return time.time() - path.stat().st_mtime > _LONG_AGO_S
    except FileNotFoundError:
        return False


def is_running(pid: int) -> bool:
    """Whether a process with this PID is running on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


@dataclass(frozen=True)
class LocalLocation:
    """A local path."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def child(self, name: str) -> LocalLocation:
        return LocalLocation(self.path / name)

    def sibling(self, name: str) -> LocalLocation:
        return LocalLocation(self.path.with_name(name))

    def is_folder(self) -> bool:
        return self.path.is_dir()

    def names(self) -> list[str]:
        if not self.is_folder():
            return []
        entries = _stored(self.path, "the folder cannot be read", lambda: list(self.path.iterdir()))
        return sorted(entry.name for entry in entries)

    def size(self) -> int | None:
        try:
            return _stored(self.path, "the file cannot be read", self.path.stat).st_size
        except FileNotFoundError:
            return None

    def read_range(self, start: int, num_bytes: int) -> bytes:
        def read() -> bytes:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(num_bytes)

        try:
            return with_patience(self.path, read)
        except OSError as error:
            raise _storage_error(self.path, "the file cannot be read", error) from error

    def read_all(self) -> bytes:
        return _stored(self.path, "the file cannot be read", self.path.read_bytes)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def commit(self, data: bytes, *, create_only: bool = False) -> None:
        # `create_only` makes no difference for local files: the last of two writers wins, atomically.
        commit_bytes(self.path, data)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Call fsync on a file or folder, so that its content or its list of names survives a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
