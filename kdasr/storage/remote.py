"""Objects in a store that fsspec reaches: asked again, compared, and created only once where asked."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from kdasr.errors import MissingDependencyError
from kdasr.storage.places import StorageError, compare, patiently, said

_T = TypeVar("_T")

# How long a store may be down: longer than it takes to start anew, or a network to find another way.
_PATIENCE_S = 300.0
# Of credentials and names that are none. By name, since the clients of stores (botocore, google-auth,
# azure-core) need not be installed. A plain ValueError is of an address; its heirs may be of a broken answer.
_HOPELESS = (
    "NoCredentialsError",
    "NoRegionError",
    "InvalidRegionError",
    "ConfigNotFound",
    "UnauthorizedSSOTokenError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "ParamValidationError",
    "ValueError",
)
# What s3fs makes of a redirect to another region, and of names that cannot be.
_OTHER_REGION = 78
_NEVER = (
    _OTHER_REGION,
    errno.EINVAL,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
# Answers of HTTP that ask for patience, among those that say that the request is wrong.
_LATER = ("408", "409", "429")


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

        return self._patiently(listing)

    def size(self) -> int | None:
        def info() -> int | None:
            try:
                return int(self.fs.info(self.path)["size"])
            except FileNotFoundError:
                return None

        return self._patiently(info)

    def read_range(self, start: int, num_bytes: int) -> bytes:
        if num_bytes == 0:
            return b""
        try:
            return bytes(
                self._patiently(lambda: self.fs.cat_file(self.path, start=start, end=start + num_bytes))
            )
        except FileNotFoundError as error:
            raise StorageError("there is no such object", where=self.url) from error

    def read_all(self) -> bytes:
        return bytes(self._patiently(lambda: self.fs.cat_file(self.path)))

    def remove(self) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.path)

        self._patiently(remove)

    def commit(self, data: bytes, *, create_only: bool = False) -> None:
        put = self._create if create_only else partial(self.fs.pipe_file, self.path)
        try:
            self._patiently(lambda: put(data))
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

    def _patiently(self, action: Callable[[], _T]) -> _T:
        """`action`, tried again while the store is down: every action is idempotent."""
        try:
            return patiently(action, _may_pass, _PATIENCE_S, f"{self.url}: the store")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StorageError(
                f"the store failed: {said(error)}",
                where=self.url,
                fix="Check the address, the credentials and the network; then run it again.",
            ) from error


def _may_pass(error: Exception) -> bool:
    """Whether a store that is asked again may answer otherwise.

    Not only OSErrors may: the clients of the stores have classes of their own for a server that is gone.
    """
    if isinstance(error, FileNotFoundError | PermissionError | NotImplementedError):
        return False
    if isinstance(error, OSError) and error.errno in _NEVER:
        return False
    code = str(getattr(error, "status", getattr(error, "code", "")))
    is_wrong = len(code) == 3 and code.startswith("4") and code not in _LATER
    # Google's client says so of what is forbidden, and no more.
    return not (is_wrong or str(error).startswith("Forbidden") or type(error).__name__ in _HOPELESS)
