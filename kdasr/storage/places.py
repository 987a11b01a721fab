"""What a place is, and the error of storing things there."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from kdasr.errors import KdasrError
from kdasr.reasons import duration

Place = Path | str
_T = TypeVar("_T")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 30.0
# What people may wait for without a word.
_SILENT_S = 10.0


class StorageError(KdasrError):
    """Bytes could not be stored or did not come back as they were written."""


class Location(Protocol):
    """A file or folder somewhere.

    Listing, reading and committing are tried again while a store or a mount is gone; what does not pass is a
    StorageError. What is wrong with a request of a local path is its OSError.
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
        """Up to `num_bytes` bytes from `start`; fewer at the end.

        Raises:
            StorageError: there is no such file, or it cannot be read.
        """
        ...

    def read_all(self) -> bytes:
        """The whole file. FileNotFoundError if there is none."""
        ...

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


def commit_changed(place: Location, data: bytes) -> None:
    """Put `data` at `place` unless it is there: a store refuses many jobs that write one object at once."""
    try:
        if place.read_all() == data:
            return
    except FileNotFoundError:
        pass
    place.commit(data)


def patiently(
    action: Callable[[], _T], may_pass: Callable[[Exception], bool], patience_s: float, who: str
) -> _T:
    """What `action` gives. While its errors may pass it is tried again, after pauses that double; people are
    told if that takes long.

    Args:
        action: must do no harm when it is done twice.
        may_pass: whether what an error says may be over soon.
        patience_s: how long it is tried, in seconds.
        who: does not answer meanwhile; for people.

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
                print(
                    f"{who} does not answer ({said(error)}): trying again for {duration(left_s)} more",
                    file=sys.stderr,
                )
                is_told = True
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def said(error: Exception) -> str:
    """What an error says, in one line; some, such as those of time-outs, have a name only."""
    return " ".join(str(error).split()) or type(error).__name__


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
