"""What a place is, the error for storage there, and retrying."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from kdasr.errors import KdasrError, without_passwords
from kdasr.reasons import duration

Place = Path | str
_T = TypeVar("_T")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 30.0
# Longer waits are announced.
_SILENT_S = 10.0


class StorageError(KdasrError):
    """Bytes could not be stored or read, or were not the same when read back."""


class Location(Protocol):
    """A file or folder somewhere.

    Listing, reading and committing are retried while a store or mount is out of reach, and raise StorageError
    if it stays so. Other errors with a local path are raised as OSError.
    """

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    def child(self, name: str) -> Location: ...

    def sibling(self, name: str) -> Location: ...

    def is_folder(self) -> bool: ...

    def names(self) -> list[str]:
        """The names in this folder, sorted; empty if there is no such folder."""
        ...

    def size(self) -> int | None:
        """Size of the file in bytes; None if there is none."""
        ...

    def read_range(self, start: int, num_bytes: int) -> bytes:
        """Up to `num_bytes` bytes from `start`; fewer at the end.

        Raises:
            StorageError: there is no such file, or it cannot be read.
        """
        ...

    def read_all(self) -> bytes:
        """The whole file. FileNotFoundError if there is none."""
        ...

    def commit(self, data: bytes, *, create_only: bool = False) -> None:
        """Write `data` here atomically, and read it back.

        With `create_only`, stores that can refuse to overwrite an object do so; if it has the same
        bytes already, that is a success.

        Raises:
            StorageError: other bytes were read back, or (`create_only`) existed before.
        """
        ...

    def remove(self) -> None:
        """Remove the file if there is one."""
        ...


def commit_changed(place: Location, data: bytes) -> None:
    """Write `data` to `place` if it changed: stores reject writes of one object by many jobs at once."""
    try:
        if place.read_all() == data:
            return
    except FileNotFoundError:
        pass
    place.commit(data)


def patiently(
    action: Callable[[], _T], may_pass: Callable[[Exception], bool], patience_s: float, who: str
) -> _T:
    """The result of `action`, which is retried while its errors may be temporary, with pauses that double; a
    message says so if it takes long.

    Args:
        action: must be idempotent.
        may_pass: whether an error may be temporary.
        patience_s: how long to retry, in seconds.
        who: what does not answer, for the message.

    Raises:
        Exception: what `action` raised last.
    """
    began, pause_s, is_told = time.monotonic(), _FIRST_PAUSE_S, False
    while True:
        try:
            return action()
        except Exception as error:
            waited_s = time.monotonic() - began
            left_s = patience_s - waited_s
            if left_s <= 0 or not may_pass(error):
                raise
            pause_s = min(pause_s, left_s)
            if not is_told and waited_s + pause_s > _SILENT_S:
                told = f"{who} does not respond ({said(error)}): retrying for another {duration(left_s)}"
                print(without_passwords(told), file=sys.stderr)
                is_told = True
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def said(error: Exception) -> str:
    """An error's message in one line; its class name if the message is empty, as with some time-outs."""
    return " ".join(str(error).split()) or type(error).__name__


def compare(found: bytes, wanted: bytes, where: str, what: str | None = None) -> None:
    """Raise StorageError unless the bytes read back equal those written."""
    if hashlib.sha256(found).digest() != hashlib.sha256(wanted).digest():
        raise StorageError(
            what or "the bytes read back differ from those written",
            where=where,
            expected=f"{len(wanted)} bytes",
            got=f"{len(found)} bytes",
            fix="Are these two jobs with different settings? Give each its own folder."
            if what
            else "Check the disk.",
        )
