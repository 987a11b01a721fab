"""What a place is, and the error of storing things there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from kdasr.errors import KdasrError

Place = Path | str


class StorageError(KdasrError):
    """Bytes could not be stored or did not come back as they were written."""


class Location(Protocol):
    """A file or folder somewhere.

    What goes wrong in a remote store is tried again, and then becomes a StorageError.
    """

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


def compare(found: bytes, wanted: bytes, where: str, what: str | None = None) -> None:
    """Raise StorageError unless what was read back is what was written."""
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
