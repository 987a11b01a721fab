"""Objects in a store that fsspec reaches: retried, compared, and created only once where asked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from kdasr.errors import MissingDependencyError
from kdasr.storage.places import StorageError, compare

_T = TypeVar("_T")

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.2


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
            MissingDependencyError: the package for this kind of URL is not installed.
        """
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

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
        put = self._create if create_only else partial(self.fs.pipe_file, self.path)
        try:
            self._retried(lambda: put(data))
        except FileNotFoundError as error:
            raise StorageError("there is no such bucket", where=self.url, fix="Make it first.") from error
        what = "another writer put other bytes there first" if create_only else None
        compare(self.read_all(), data, self.url, what)

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
            except Exception as error:
                # Not only OSErrors: the clients of the stores (botocore, aiohttp, google-auth) have
                # classes of their own for a server that is gone or credentials that are missing.
                if isinstance(error, PermissionError) or attempt == _ATTEMPTS:
                    raise StorageError(
                        f"the store failed {attempt} times: {error}",
                        where=self.url,
                        fix="Check the address, the credentials and the network; then run it again.",
                    ) from error
                time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")
