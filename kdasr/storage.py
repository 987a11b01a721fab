"""Bytes at a place (a local path or an fsspec URL), committed so that nobody ever sees half of them.

A place is given as a `Path` or a string; `s3://…`, `gs://…`, `memory://…` and every other URL that
fsspec knows work like a local path, which needs no fsspec and stays the fast way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kdasr.errors import KdasrError, MissingDependencyError

Place = Path | str
_T = TypeVar("_T")

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.2
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"
_LEFTOVER = re.compile(r"\.(?P<host>[A-Za-z0-9]+)-(?P<pid>\d+)-[0-9a-f]{12}\.tmp$")


class StorageError(KdasrError):
    """Bytes could not be stored or did not come back as they were written."""


class Location(Protocol):
    """A file or folder somewhere. OSErrors of a remote store are retried, then become StorageError."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    def child(self, name: str) -> Location: ...

    def sibling(self, name: str) -> Location: ...

    def is_folder(self) -> bool: ...

    def names(self) -> list[str]:
        """What lies in this folder, sorted; empty if there is no such folder."""
        ...

    def size(self) -> int | None:
        """Bytes of the file; None if there is none."""
        ...

    def read_range(self, start: int, num_bytes: int) -> bytes:
        """Up to `num_bytes` bytes from `start`; fewer at the end. FileNotFoundError if there is none."""
        ...

    def read_all(self) -> bytes: ...

    def commit(self, data: bytes, *, create_only: bool = False) -> None:
        """Put `data` here, whole or not at all, and read it back.

        With `create_only`, a store that can refuse to overwrite does so; finding the same bytes
        there already is success.

        Raises:
            StorageError: other bytes came back, or (`create_only`) others were there first.
        """
        ...

    def remove(self) -> None:
        """Remove the file if there is one."""
        ...


def locate(place: Place | Location) -> Location:
    """The location that a path or URL names."""
    if isinstance(place, str):
        return RemoteLocation.at(place) if is_url(place) else LocalLocation(Path(place))
    return LocalLocation(place) if isinstance(place, Path) else place


def is_url(place: Place | Location) -> bool:
    """Whether a place is a URL rather than a local path."""
    return isinstance(place, RemoteLocation) or (isinstance(place, str) and "://" in place)


def commit_bytes(path: Path, data: bytes) -> None:
    """Put `data` at a local `path`, whole or not at all, surviving a crash at any moment.

    A temporary name of its own for every attempt, write, flush, fsync, read back and compare,
    rename, fsync the folder. Two writers of the same bytes do each other no harm.

    Raises:
        StorageError: the disk gave back other bytes than were written.
        OSError: the disk is full, the folder is not writable, …; no file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")
    try:
        _write_through(attempt, data)
        _compare(attempt.read_bytes(), data, str(attempt))
        attempt.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            attempt.unlink()
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers of this machine left in a folder: their temporary files."""
    for path in folder.glob(".*.tmp"):
        found = _LEFTOVER.search(path.name)
        if found and found["host"] == _HOST and not Path(f"/proc/{found['pid']}").exists():
            path.unlink(missing_ok=True)


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


@dataclass(frozen=True)
class RemoteLocation:
    """A path in a store that fsspec reaches. A PUT there is atomic."""

    fs: Any
    path: str
    url: str

    @classmethod
    def at(cls, url: str) -> RemoteLocation:
        """The location of a URL.

        Raises:
            MissingDependencyError: fsspec or the package for this kind of URL is not installed.
        """
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingDependencyError("fsspec", "cloud") from error
        try:
            # Cached listings would hide what other writers have done.
            fs, path = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingDependencyError(f"fsspec's support for {url.split('://')[0]}", "cloud") from error
        except ValueError as error:
            raise StorageError(f"unknown kind of URL: {error}", where=url) from error
        return cls(fs, path.rstrip("/"), url.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def child(self, name: str) -> RemoteLocation:
        return RemoteLocation(self.fs, f"{self.path}/{name}", f"{self.url}/{name}")

    def sibling(self, name: str) -> RemoteLocation:
        return RemoteLocation(
            self.fs, f"{self.path.rsplit('/', 1)[0]}/{name}", f"{self.url.rsplit('/', 1)[0]}/{name}"
        )

    def is_folder(self) -> bool:
        return bool(self.names())

    def names(self) -> list[str]:
        def listing() -> list[str]:
            try:
                return sorted(
                    path.rstrip("/").rsplit("/", 1)[-1] for path in self.fs.ls(self.path, detail=False)
                )
            except FileNotFoundError:
                return []

        return self._retried(listing)

    def size(self) -> int | None:
        def info() -> int | None:
            try:
                return int(self.fs.info(self.path)["size"])
            except FileNotFoundError:
                return None

        return self._retried(info)

    def read_range(self, start: int, num_bytes: int) -> bytes:
        if num_bytes == 0:
            return b""
        return bytes(self._retried(lambda: self.fs.cat_file(self.path, start=start, end=start + num_bytes)))

    def read_all(self) -> bytes:
        return bytes(self._retried(lambda: self.fs.cat_file(self.path)))

    def remove(self) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.path)

        self._retried(remove)

    def commit(self, data: bytes, *, create_only: bool = False) -> None:
        if create_only:
            self._retried(lambda: self._create(data))
        else:
            self._retried(lambda: self.fs.pipe_file(self.path, data))
        what = "another writer put other bytes there first" if create_only else None
        _compare(self.read_all(), data, self.url, what)

    def _create(self, data: bytes) -> None:
        """PUT unless something is there: If-None-Match on S3, its like elsewhere.

        What is there, if anything, is compared by the caller.
        """
        try:
            with contextlib.suppress(FileExistsError):
                self.fs.pipe_file(self.path, data, mode="create")
        except (TypeError, ValueError, NotImplementedError):
            # This store knows no conditional PUT: the nearest thing, with a gap between the steps.
            if not self.fs.exists(self.path):
                self.fs.pipe_file(self.path, data)

    def _retried(self, action: Callable[[], _T]) -> _T:
        """`action` with a few attempts: stores fail now and then, and every action is idempotent."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError as error:
                if isinstance(error, PermissionError) or attempt == _ATTEMPTS:
                    raise StorageError(
                        f"the store failed {attempt} times: {error}",
                        where=self.url,
                        fix="Check the address, the credentials and the network; then run it again.",
                    ) from error
                time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")


def _compare(found: bytes, wanted: bytes, where: str, what: str | None = None) -> None:
    if hashlib.sha256(found).digest() != hashlib.sha256(wanted).digest():
        raise StorageError(
            what or "the store gave back other bytes than were written",
            where=where,
            expected=f"{len(wanted)} bytes",
            got=f"{len(found)} bytes",
            fix="Two jobs with different settings? Give each a folder of its own."
            if what
            else "Check the disk.",
        )


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
