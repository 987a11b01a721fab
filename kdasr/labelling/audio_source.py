"""Audio shards at a local path or a URL: list them, verify them, fetch one to this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdasr.errors import ShardError
from kdasr.manifest import PREPARED, manifest_path
from kdasr.reasons import listed
from kdasr.shards import complete_tars, folder_problems, list_shards, open_shard, read_metas, shard_stems
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
    """Read every audio shard in a folder in full and list all problems found.

    This also finds missing manifests and tars, gaps in the numbering, keys that occur in two shards, and
    temporary files that a killed writer left.
    """
    place = locate(folder)
    if not is_url(folder) and not place.is_folder():
        return [f"{place}: there is no such folder"]
    names = set(place.names())
    leftovers = sorted(name for name in names if name.endswith(".tmp"))
    problems = [f"{place.child(name)}: left over from a killed writer" for name in leftovers]
    stems = shard_stems(names)
    if missing := sorted({f"shard-{number:06d}" for number in range(len(stems))} - set(stems)):
        problems.append(f"{place}: the numbering has gaps; missing {listed(missing)}")
    problems += map(str, folder_problems(str(place), names, place.child(PREPARED).read_all))
    seen: dict[str, str] = {}
    for tar in (f"{stem}.tar" for stem in stems if f"{stem}.json" in names):
        try:
            with local_copy(str(place.child(tar)), manifest_only=tar not in names) as path:
                shard = open_shard(path, verify=True)
                read_metas(shard, verify=True)  # the tar may be whole, and its manifest damaged
        except ShardError as error:
            # The path may be that of a copy.
            where = place.child(Path(error.where or tar).name)
            problems.append(str(error.told_of(str(where))))
            continue
        problems += [
            f"{place.child(tar)}: the key {entry.key} is also in {other}"
            for entry in shard.entries
            if (other := seen.setdefault(entry.key, tar)) != tar
        ]
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
