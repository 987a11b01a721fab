"""Read and atomically write bytes at a place: a local path or an fsspec URL.

A place is a `Path` or a string. `s3://…`, `gs://…`, `memory://…` and all other URLs that fsspec
knows work like a local path; local paths do not need fsspec and are faster.
"""

from __future__ import annotations

from pathlib import Path

from kdasr.storage.local import (
    LocalLocation,
    commit_bytes,
    commit_file,
    commit_json,
    locked,
    naming,
    refuse_file,
    remove_leftovers,
    sync_path,
    take_lock,
    temporary_name,
    with_patience,
)
from kdasr.storage.places import Location, Place, StorageError, commit_changed
from kdasr.storage.remote import RemoteLocation

__all__ = [
    "Location",
    "Place",
    "RemoteLocation",
    "StorageError",
    "commit_bytes",
    "commit_changed",
    "commit_file",
    "commit_json",
    "is_url",
    "locate",
    "locked",
    "naming",
    "refuse_file",
    "remove_leftovers",
    "same_place",
    "sync_path",
    "take_lock",
    "temporary_name",
    "with_patience",
]


def locate(place: Place | Location) -> Location:
    """The location that a path or URL names."""
    if isinstance(place, str):
        return RemoteLocation.at(place) if is_url(place) else LocalLocation(Path(place))
    return LocalLocation(place) if isinstance(place, Path) else place


def same_place(one: Place, other: Place) -> bool:
    """Whether two paths or URLs mean the same place; symbolic links of local paths are resolved."""
    if is_url(one) or is_url(other):
        return str(locate(one)) == str(locate(other))
    return Path(one).resolve() == Path(other).resolve()


def is_url(place: Place | Location) -> bool:
    """Whether a place is a URL rather than a local path."""
    return isinstance(place, RemoteLocation) or (isinstance(place, str) and "://" in place)
