"""Bytes at a path, read in ranges and committed so that nobody ever sees half of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

from kdasr.errors import KdasrError


class StorageError(KdasrError):
    """Bytes could not be stored or did not come back as they were written."""


def read_range(path: Path, start: int, num_bytes: int) -> bytes:
    """Up to `num_bytes` bytes of a file from `start`; fewer at its end."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(num_bytes)


def commit_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, surviving a crash at any moment.

    A temporary name of its own for every attempt, write, flush, fsync, read back and compare,
    rename, fsync the folder. Two writers of the same bytes do each other no harm.

    Raises:
        StorageError: the disk gave back other bytes than were written.
        OSError: the disk is full, the folder is not writable, …; no file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")
    try:
        _write_through(attempt, data)
        if hashlib.sha256(attempt.read_bytes()).digest() != hashlib.sha256(data).digest():
            raise StorageError(
                "the disk gave back other bytes than were written", where=attempt, fix="Check the disk."
            )
        attempt.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            attempt.unlink()
        raise
    _sync_folder(path.parent)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
