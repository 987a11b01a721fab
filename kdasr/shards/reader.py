"""Read utterances from a folder of audio shards; damage is detected and reported."""

from __future__ import annotations

import itertools
import json
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from kdasr import audio
from kdasr.errors import AudioError, DamagedShardError, ManifestError, ShardError
from kdasr.manifest import (
    PREPARED,
    PREPARING,
    Shard,
    ShardEntry,
    bad_manifest,
    damaged,
    manifest_path,
    missing_manifest,
    read_manifest,
    read_members,
    sha256_of,
    shard_path,
    unreadable,
)
from kdasr.reasons import listed
from kdasr.shards.writer import Placed
from kdasr.storage import locate, with_patience

_T = TypeVar("_T")

# What an utterance's JSON may have besides its key, if it is not null.
_KINDS = {
    "text": (str,),
    "speaker": (str, int),
    "language": (str,),
    "source": (str,),
    "offset": (float, int),
    "channel": (int,),
}
SHARD_PATTERN = re.compile(r"shard-\d{6,}\.tar")


def list_shards(folder: Path) -> list[Path]:
    """The tars of a folder, sorted.

    Raises:
        ShardError: there is no such folder, it holds no shards or some with other names than numbers, or
            `kdasr prepare` has not finished it.
        ManifestError: a tar has no manifest, a manifest has no tar, or the shards are not those that
            `kdasr prepare` recorded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        fix = "Check the name, or run `kdasr prepare` first."
        raise ShardError("there is no such folder of audio shards", where=folder, fix=fix)
    names = locate(folder).names()
    return [folder / name for name in complete_tars(str(folder), names, locate(folder / PREPARED).read_all)]


def complete_tars(folder: str, names: Collection[str], read_record: Callable[[], bytes]) -> list[str]:
    """The tars among the `names` in a folder at a path or a URL, sorted.

    Args:
        read_record: returns the record of `kdasr prepare`; raises FileNotFoundError if there is none.

    Raises:
        ShardError, ManifestError: as `list_shards`.
    """
    names = set(names)  # for fast look-ups: there may be a million
    for problem in folder_problems(folder, names, read_record):
        raise problem
    tars = [f"{stem}.tar" for stem in shard_stems(names)]
    for tar in tars:
        if tar not in names:
            raise ManifestError(
                "the shard of this manifest is missing",
                where=f"{folder}/{manifest_path(Path(tar))}",
                expected=tar,
                fix="Copy the shard again, or prepare the corpus again.",
            )
    return tars


def folder_problems(
    folder: str, names: Collection[str], read_record: Callable[[], bytes]
) -> list[ShardError]:
    """What is wrong with a folder of shards as a whole, by its names and its record, but not which manifests
    lack their tars; the arguments are those of `complete_tars`."""
    problems: list[ShardError] = []
    if PREPARING in names:
        fix = "Run the same `kdasr prepare` command again to finish it."
        problems.append(ShardError("the corpus is not completely prepared", where=folder, fix=fix))
    stems = shard_stems(names)
    if odd := [tar for stem in stems if (tar := f"{stem}.tar") in names and not SHARD_PATTERN.fullmatch(tar)]:
        problems.append(
            ShardError(
                "the names of some shards are not `shard-` and six or more digits",
                where=folder,
                expected="shard-000000.tar, ...",
                got=listed(odd),
                fix="Rename each with its manifest, or move them to another folder.",
            )
        )
    problems += [missing_manifest(f"{folder}/{stem}.tar") for stem in stems if f"{stem}.json" not in names]
    if not stems:
        problems.append(
            ShardError(
                "the folder holds no audio shards",
                where=folder,
                expected="shard-000000.tar, ...",
                fix="Run `kdasr prepare` first, or name the folder of one split.",
            )
        )
    if problem := _differs_from_record(names, read_record):
        fix = "Copy all shards, or prepare again."
        problems.append(ManifestError(problem, where=f"{folder}/{PREPARED}", fix=fix))
    return problems


def shard_stems(names: Iterable[str]) -> list[str]:
    """The names, without extensions, of shards with a tar or a manifest, by number, which has more than six
    digits after 999999."""
    found = {match[1] for name in names if (match := re.fullmatch(r"(shard-.*)\.(tar|json)", name))}
    return sorted(found, key=lambda stem: (len(stem), stem))


def _differs_from_record(names: Collection[str], read_record: Callable[[], bytes]) -> str:
    """A description of how the folder differs from the record of `kdasr prepare`; empty if it does not. A tar
    that is missing beside its manifest is no difference."""
    try:
        record = json.loads(read_record())
        recorded = {str(shard["name"]) for shard in record["shards"]}
    except FileNotFoundError:
        return ""  # the folder was not written by `kdasr prepare`
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"the record of `kdasr prepare` cannot be read ({error!r})"
    tars = {f"{stem}.tar" for stem in shard_stems(names)}
    missing, more = sorted(recorded - tars), sorted((tars & set(names)) - recorded)
    parts = [f"{listed(missing)} missing"] * bool(missing) + [f"{listed(more)} unknown"] * bool(more)
    return f"the shards are not those that were prepared: {'; '.join(parts)}" if parts else ""


def left_out_by_prepare(folders: Iterable[Path]) -> tuple[int, int]:
    """The number of utterances that `kdasr prepare` left out of these folders of shards, and the number that
    were listed for them. Folders that it did not write are not counted.

    Raises:
        ManifestError: the record of `kdasr prepare` in one of them is damaged.
    """
    left_out = listed_for = 0
    for folder in folders:
        try:
            record = json.loads(locate(folder / PREPARED).read_all())
            dropped, count = operator.index(record["dropped"]), operator.index(record["count"])
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ManifestError(
                "the record of `kdasr prepare` cannot be read",
                where=folder / PREPARED,
                expected="the numbers `dropped` and `count`",
                got=repr(error),
                fix="Copy the file again, or prepare again.",
            ) from error
        left_out += dropped
        listed_for += dropped + count
    return left_out, listed_for


def open_shard(path: Path, *, verify: bool = False) -> Shard:
    """Read the manifest of the shard at `path` and check the tar against it.

    The size is always compared; `verify=True` reads the whole tar and compares its sha256 too.

    Raises:
        ManifestError: the manifest is missing, unreadable or inconsistent.
        DamagedShardError: the tar is missing or not the one that the manifest describes.
        ShardError: the disk or its mount fails.
    """
    path = Path(path)
    return _from_disk(path, lambda: _checked(path, verify))


def _checked(path: Path, verify: bool) -> Shard:
    shard = read_manifest(path)
    # A wrong number of samples is found when the audio is read, but if it is too large or too small for the
    # audio to be used at all, nothing reads it.
    samples = sum(entry.num_samples for entry in shard.entries)
    if not abs(shard.seconds * audio.SAMPLE_RATE_HZ - samples) < 1:
        expected = f"{samples / audio.SAMPLE_RATE_HZ} s, which its utterances have together"
        raise bad_manifest(manifest_path(path), expected, f"{shard.seconds} s")
    if not path.is_file():
        raise DamagedShardError("the audio shard is missing", where=path)
    if path.stat().st_size != shard.bytes:
        raise damaged(path, f"{shard.bytes} bytes", f"{path.stat().st_size} bytes")
    if verify and (found := sha256_of(path)) != shard.sha256:
        raise damaged(path, f"sha256 {shard.sha256}", found)
    return shard


def complete_shards(folder: Path) -> Iterator[Shard]:
    """The first shards of an unfinished folder, up to one that is missing, unfinished or damaged; each is
    read and hashed."""
    for number in itertools.count():
        try:
            yield open_shard(shard_path(folder, number), verify=True)
        except ShardError:
            return


def read_utterance(shard: Shard, entry: ShardEntry) -> Placed:
    """Read and decode one utterance, with its place in its recording.

    Raises:
        DamagedShardError: the tar is missing, or the utterance's bytes are not those that were written.
        ShardError: the disk or its mount fails.
    """

    def read() -> Placed:
        with shard.path.open("rb") as file:
            return _read_entry(file, shard.path, entry)

    return _from_disk(shard.path, read)


def read_flac(shard: Shard, entry: ShardEntry) -> bytes:
    """Read the audio of one utterance without decoding it.

    Raises:
        DamagedShardError, ShardError: as `read_utterance`.
    """

    def read() -> bytes:
        with shard.path.open("rb") as file:
            return read_members(file, shard.path, entry)[0]

    return _from_disk(shard.path, read)


def _from_disk(path: Path, read: Callable[[], _T]) -> _T:
    """The result of `read`, which reads the shard at `path`; it is retried while the disk or its mount fails.

    If it keeps failing, this raises ShardError, not StorageError, which would end a labelling job.
    """
    try:
        return with_patience(path, read)
    except FileNotFoundError as error:
        raise DamagedShardError("the audio shard cannot be read", where=path, got=error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def read_shard(path: Path) -> Iterator[Placed]:
    """All utterances of the shard at `path`, in order; its hash is checked first.

    Raises:
        ManifestError, DamagedShardError, ShardError: as `open_shard` and `read_utterance`.
    """
    shard = open_shard(path, verify=True)
    for entry in shard.entries:
        yield read_utterance(shard, entry)


def read_metas(shard: Shard, *, verify: bool = False) -> list[dict[str, Any]]:
    """The metadata of each utterance of an open shard (see `kdasr.shards`).

    No audio is read, so a wrong letter in a transcript goes unnoticed until the utterance is read;
    `verify=True` reads the audio too, as the checksum is of both: 70 MB and 50 ms for an hour.

    Raises:
        DamagedShardError: metadata is damaged or of another utterance.
        ShardError: the disk or its mount fails.
    """

    def read() -> list[dict[str, Any]]:
        with shard.path.open("rb") as file:
            return [_meta(file, shard.path, entry, verify) for entry in shard.entries]

    return _from_disk(shard.path, read)


def read_texts(shard: Shard, *, verify: bool = False) -> list[str | None]:
    """The transcript of each utterance of an open shard, or None; arguments and errors are those of
    `read_metas`."""
    return [meta.get("text") for meta in read_metas(shard, verify=verify)]


def _meta(file: BinaryIO, path: Path, entry: ShardEntry, verify: bool) -> dict[str, Any]:
    if verify:
        return _parse_meta(read_members(file, path, entry)[1], path, entry.key)
    file.seek(entry.json_offset)
    return _parse_meta(file.read(entry.json_bytes), path, entry.key)


def _parse_meta(meta_json: bytes, path: Path, key: str) -> dict[str, Any]:
    """Parse an utterance's JSON, which must have its key; of what else it may have, each must be of its kind,
    whoever wrote it."""
    try:
        meta: dict[str, Any] = json.loads(meta_json)
        found = meta["key"]
        for name, kinds in _KINDS.items():
            value = meta.get(name)
            if value is not None and type(value) not in kinds:
                raise TypeError(f"a `{name}` that is {value!r:.80}")
            if type(value) is str:
                value.encode()  # surrogates could not be written again
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedShardError(f"{key} cannot be decoded", where=path, got=error) from error
    if found != key:
        raise damaged(path, f"the metadata of {key}", f"that of {found}")
    return meta


def _read_entry(file: BinaryIO, path: Path, entry: ShardEntry) -> Placed:
    flac, meta_json = read_members(file, path, entry)
    try:
        samples = audio.decode(flac, f"{path}:{entry.key}.flac", entry.num_samples)
    except AudioError as error:
        raise DamagedShardError(f"{entry.key} cannot be decoded", where=path, got=error) from error
    meta = _parse_meta(meta_json, path, entry.key)
    if len(samples) != entry.num_samples:
        found = f"{'at least ' * (len(samples) > entry.num_samples)}{len(samples)} samples"
        raise damaged(path, f"{entry.key} with {entry.num_samples} samples", found)
    facts = (entry.key, samples, meta.get("text"), meta.get("speaker"), meta.get("language"))
    source, offset, channel = (meta.get(name) for name in ("source", "offset", "channel"))
    return Placed(*facts, source=source, offset=offset, channel=channel)
