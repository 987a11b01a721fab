"""The manifest of an audio shard: what its tar must hold, and where each utterance is in it.

{"format": "kdasr-audio-shard", "version": 1, "count": 2, "seconds": 4.5, "bytes": 81920,
 "sha256": "...", "description": "...",
 "utterances": [[key, num_samples, flac_offset, flac_bytes, json_offset, json_bytes, crc32], ...]}
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kdasr.errors import DamagedShardError, ManifestError, ShardError
from kdasr.storage import with_patience

FORMAT = "kdasr-audio-shard"
VERSION = 1
# Files that `kdasr prepare` writes beside its shards: the first while it runs, the second when it is done.
PREPARING, PREPARED = "preparing.json", "prepared.json"
# More samples or bytes than 64 bits can count.
_TOO_MANY = 1 << 63
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """Where one utterance is in its tar: byte offsets of the member data, not of the headers.

    Attributes:
        crc32: zlib.crc32 of the flac bytes followed by the json bytes.
    """

    key: str
    num_samples: int
    flac_offset: int
    flac_bytes: int
    json_offset: int
    json_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as its manifest describes it.

    Attributes:
        path: the tar.
        count: number of utterances.
        seconds: total duration of the audio.
        sha256: of the tar, in hex.
        bytes: size of the tar.
        entries: one for each utterance, in the order of the tar.
        description: the writer's description of the audio.
    """

    path: Path
    count: int
    seconds: float
    sha256: str
    bytes: int
    entries: tuple[ShardEntry, ...]
    description: str = ""


def shard_path(folder: Path, number: int) -> Path:
    """The path in `folder` of the tar of shard `number`, counted from 0."""
    return folder / f"shard-{number:06d}.tar"


def manifest_path(shard_path: Path) -> Path:
    """The path of the manifest of the tar at `shard_path`."""
    return shard_path.with_suffix(".json")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path) -> Shard:
    """Read the manifest of the tar at `path` and check it for consistency; the tar itself is not opened.

    Raises:
        ManifestError: it is missing, not a manifest, or inconsistent.
        ShardError: the disk or its mount failed, also when retried.
    """
    manifest = manifest_path(path)
    try:
        text = with_patience(manifest, lambda: manifest.read_text(encoding="utf-8"))
        fields: dict[str, Any] = json.loads(text)
        found = (fields["format"], fields["version"])
    except FileNotFoundError:
        raise missing_manifest(path) from None
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise bad_manifest(manifest, "a JSON object with format and version", error) from error
    if found != (FORMAT, VERSION):
        raise bad_manifest(manifest, f"{FORMAT} version {VERSION}", f"{found[0]} version {found[1]}")
    try:
        entries = tuple(ShardEntry(*_typed(row)) for row in fields["utterances"])
        shard = Shard(
            path=path,
            count=int(fields["count"]),
            seconds=float(fields["seconds"]),
            sha256=str(fields["sha256"]),
            bytes=int(fields["bytes"]),
            entries=entries,
            description=str(fields.get("description", "")),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise bad_manifest(manifest, "count, seconds, bytes, sha256, utterances", error) from error
    _check_consistency(manifest, shard)
    return shard


def manifest_text(shard: Shard) -> str:
    """The JSON from which `read_manifest` restores `shard`; the same shard gives the same text."""
    rows = ",\n  ".join(json.dumps(astuple(entry)) for entry in shard.entries)
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "description": shard.description,
        "count": shard.count,
        "seconds": shard.seconds,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
    }
    head = json.dumps(fields, indent=1)[:-2]
    return f'{head},\n "utterances": [\n  {rows}\n ]\n}}\n'


def _typed(row: list[Any]) -> list[Any]:
    key, *numbers = row
    if not isinstance(key, str) or not all(type(one) is int and 0 <= one < _TOO_MANY for one in numbers):
        raise TypeError(f"an utterance that is not a key and non-negative whole numbers: {row!s:.200}")
    return row


def _check_consistency(manifest: Path, shard: Shard) -> None:
    if len(shard.entries) != shard.count:
        raise bad_manifest(manifest, f"{shard.count} utterances", len(shard.entries))
    if len({entry.key for entry in shard.entries}) != shard.count:
        raise bad_manifest(manifest, "each key once", "a key twice")
    for entry in shard.entries:
        if not KEY_PATTERN.fullmatch(entry.key):
            raise bad_manifest(manifest, f"keys that match {KEY_PATTERN.pattern}", repr(entry.key))
        if max(entry.flac_offset + entry.flac_bytes, entry.json_offset + entry.json_bytes) > shard.bytes:
            raise bad_manifest(manifest, f"members within {shard.bytes} bytes", entry.key)


def unreadable(path: Path, error: OSError) -> ShardError:
    """The error for a shard that cannot be read from the disk or its mount."""
    fix = "The shard may be intact: check the disk or its mount, then run it again."
    return ShardError("the audio shard cannot be read", where=path, got=error, fix=fix)


def bad_manifest(manifest: Path, expected: object, got: object) -> ManifestError:
    """The error for a manifest that cannot be true."""
    fix = "Prepare the corpus again, or copy shard and manifest again."
    return ManifestError("the manifest is invalid", where=manifest, expected=expected, got=got, fix=fix)


def missing_manifest(path: Path | str) -> ManifestError:
    """The error for a tar, at a path or a URL, without its manifest."""
    return ManifestError(
        "the manifest is missing, so the shard may be unfinished",
        where=path,
        expected=manifest_path(Path(path)).name,
        fix="Prepare the corpus again, or copy the manifest too.",
    )


def damaged(path: Path, expected: object, got: object) -> DamagedShardError:
    """The error for a tar that does not hold what its manifest says."""
    fix = "The shard is damaged or belongs to another manifest: copy or prepare it again."
    return DamagedShardError(
        "the shard does not match its manifest", where=path, expected=expected, got=got, fix=fix
    )


def read_members(file: BinaryIO, path: Path, entry: ShardEntry) -> tuple[bytes, bytes]:
    """The flac and the json bytes of one utterance from the open tar at `path`.

    Raises:
        DamagedShardError: their checksum is wrong.
    """
    file.seek(entry.flac_offset)
    flac = file.read(entry.flac_bytes)
    file.seek(entry.json_offset)
    meta_json = file.read(entry.json_bytes)
    crc32 = zlib.crc32(meta_json, zlib.crc32(flac))
    if crc32 != entry.crc32:
        raise damaged(path, f"crc32 {entry.crc32} for {entry.key}", crc32)
    return flac, meta_json
