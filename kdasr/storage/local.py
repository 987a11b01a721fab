"""Paths of this machine: files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdasr.errors import ConfigError
from kdasr.storage.places import compare

_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"
_LEFTOVER = re.compile(r"\.(?P<host>[A-Za-z0-9]+)-(?P<pid>\d+)-[0-9a-f]{12}\.tmp")


def commit_bytes(path: Path, data: bytes) -> None:
    """Put `data` at a local `path`, whole or not at all, surviving a crash at any moment.

    A temporary name of its own for every attempt, write, flush, fsync, read back and compare,
    rename, fsync the folder. Two writers of the same bytes do each other no harm.

    Raises:
        StorageError: the disk gave back other bytes than were written.
        OSError: the disk is full, the folder is not writable, …; no file is left behind.
    """
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


def commit_json(path: Path, content: Any) -> None:
    """`commit_bytes` of what people may want to read."""
    commit_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def temporary_name(path: Path) -> Path:
    """Where to write `path` until it is whole and checked: hidden, in the same folder, another name for
    every attempt. `remove_leftovers` knows it, and whatever has a longer name that begins with it."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")


def commit_file(temporary: Path, path: Path) -> None:
    """Give a complete and checked file its final name, surviving a crash at any moment: for files that
    something else than `commit_bytes` wrote, under their `temporary_name`."""
    sync_path(temporary)
    temporary.replace(path)
    sync_path(path.parent)


@contextlib.contextmanager
def locked(folder: Path, *, busy: Exception | None = None) -> Iterator[None]:
    """One process of this machine at a time: others wait, or raise `busy`. The folder itself is the lock, so
    that no file is left behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            assert busy is not None
            raise busy from None
        yield
    finally:
        os.close(descriptor)


def refuse_file(folder: Path, what: str) -> None:
    """Raise ConfigError where a file is in the place of a folder, or of one above it; `what` says what
    belongs there."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if there.exists() and not there.is_dir():
        raise ConfigError(f"{what}, and this is a file", where=there, fix="Choose another --out.")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers of this machine left in a folder under a `temporary_name`."""
    for path in folder.glob(".*.tmp*"):
        found = _LEFTOVER.search(path.name)
        if found and found["host"] == _HOST and not is_running(int(found["pid"])):
            path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


@dataclass(frozen=True)
class LocalLocation:
    """A path of this machine."""

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
        return sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []

    def size(self) -> int | None:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return None

    def read_range(self, start: int, num_bytes: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(num_bytes)

    def read_all(self) -> bytes:
        return self.path.read_bytes()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def commit(self, data: bytes, *, create_only: bool = False) -> None:
        # Locally `create_only` needs nothing more: the last of two writers wins, whole.
        commit_bytes(self.path, data)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's names, whatever happens next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
