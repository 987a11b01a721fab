"""Audio shards at a local path or a URL: list them, verify them, fetch one to this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdasr.errors import ShardError
from kdasr.manifest import PREPARED, manifest_path
from kdasr.shards import complete_tars, list_shards, open_shard, repeated_keys, verify_folder
from kdasr.storage import Location, Place, StorageError, is_url, locate


def list_audio(folder: Place) -> list[str]:
    """The audio shards in a folder, sorted.

    Raises:
        ShardError: there is no such folder, it holds no shards or not all that were prepared, or a shard has
            no manifest.
    """
    if not is_url(folder):
        return [str(path) for path in list_shards(Path(folder))]
    place = locate(folder)
    tars = complete_tars(str(place), place.names(), place.child(PREPARED).read_all)
    return [str(place.child(tar)) for tar in tars]


def verify_audio(folder: Place) -> list[str]:
    """Read every audio shard in a folder in full and list all problems found."""
    if not is_url(folder):
        return verify_folder(Path(folder))
    problems: list[str] = []
    seen: dict[str, str] = {}
    try:
        for shard in list_audio(folder):
            try:
                with local_copy(shard) as path:
                    opened = open_shard(path, verify=True)
                problems += [f"{shard}: {problem}" for problem in repeated_keys(opened, seen)]
            except ShardError as error:
                problems.append(f"{shard}: {error.what}")
    except ShardError as error:
        problems.append(str(error))
    return problems


@contextmanager
def local_copy(audio: Place, *, manifest_only: bool = False) -> Iterator[Path]:
    """A local path to the audio shard: its own, or that of a copy that is deleted after the `with` block."""
    if not is_url(audio):
        yield Path(audio)
        return
    source = locate(audio)
    with tempfile.TemporaryDirectory(prefix="kdasr-audio-") as folder:
        path = Path(folder) / source.name
        if not manifest_only:
            path.write_bytes(_fetch(source))
        manifest = manifest_path(path)
        manifest.write_bytes(_fetch(source.sibling(manifest.name)))
        yield path


def _fetch(source: Location) -> bytes:
    try:
        return source.read_all()
    except FileNotFoundError as error:
        raise ShardError(
            "the object does not exist", where=str(source), fix="Copy it there again."
        ) from error
    except StorageError as error:
        raise ShardError(f"cannot be fetched: {error}") from error
