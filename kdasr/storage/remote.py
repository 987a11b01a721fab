"""Objects in stores that fsspec supports: requests are retried, and written bytes are read back."""

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

# How long to retry while a store is down: longer than a restart, or than a network takes to reroute.
_PATIENCE_S = 300.0
# Errors about invalid credentials and names, which retrying cannot solve. By name, since the stores' clients
# (botocore, google-auth, azure-core) need not be installed. A plain ValueError is about an address; its
# subclasses may be about a broken response.
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
# The errno that s3fs uses for a redirect to another region.
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
# The HTTP 4xx status codes after which a retry may succeed.
_LATER = ("408", "409", "429")


@dataclass(frozen=True)
class RemoteLocation:
    """A path in a store that fsspec supports, where a PUT is atomic."""

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
            # Cached listings would hide changes by other writers.
            fs, path = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingDependencyError(f"fsspec with {url.split('://')[0]} support", "cloud") from error
        except ValueError as error:
            raise StorageError(f"unsupported kind of URL: {error}", where=url) from error
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
            raise StorageError("the object does not exist", where=self.url) from error

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
            raise StorageError("the bucket does not exist", where=self.url, fix="Create it first.") from error
        what = "another writer has already stored different bytes there" if create_only else None
        compare(self.read_all(), data, self.url, what)

    def _create(self, data: bytes) -> None:
        """PUT unless the object exists: If-None-Match on S3, the equivalent elsewhere.

        If it exists, the caller compares its content.
        """
        try:
            with contextlib.suppress(FileExistsError):
                self.fs.pipe_file(self.path, data, mode="create")
        except (TypeError, ValueError, NotImplementedError):
            # This store has no conditional PUT. Check first; another writer may still come in between.
            if not self.fs.exists(self.path):
                self.fs.pipe_file(self.path, data)

    def _patiently(self, action: Callable[[], _T]) -> _T:
        """The result of an idempotent `action`, which is retried while the store is down."""
        try:
            return patiently(action, _may_pass, _PATIENCE_S, f"{self.url}: the store")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StorageError(
                f"the store failed: {said(error)}",
                where=self.url,
                fix="Check the address, the credentials and the network, then run it again.",
            ) from error


def _may_pass(error: Exception) -> bool:
    """Whether a retry may succeed.

    This is not limited to OSErrors: the stores' clients have their own classes for unreachable servers.
    """
    if isinstance(error, FileNotFoundError | PermissionError | NotImplementedError):
        return False
    if isinstance(error, OSError) and error.errno in _NEVER:
        return False
    code = str(getattr(error, "status", getattr(error, "code", "")))
    is_wrong = len(code) == 3 and code.startswith("4") and code not in _LATER
    # Google's client marks what is forbidden only by this word in the message.
    return not (is_wrong or str(error).startswith("Forbidden") or type(error).__name__ in _HOPELESS)
