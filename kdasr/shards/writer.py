"""Write utterances to a folder of audio shards: atomically, checked, and with reproducible bytes."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kdasr import audio
from kdasr.errors import AudioError, DamagedShardError, ManifestError, ShardError
from kdasr.interfaces import Utterance
from kdasr.manifest import (
    KEY_PATTERN,
    Shard,
    ShardEntry,
    damaged,
    manifest_path,
    manifest_text,
    read_manifest,
    read_members,
    sha256_of,
    shard_path,
)
from kdasr.reasons import duration
from kdasr.storage import commit_bytes, commit_file, sync_path


@dataclass(frozen=True, slots=True)
class Placed(Utterance):
    """An utterance with its place in the corpus, so that people can listen to the audio around it.

    Attributes:
        source: the audio file as named in the corpus, or None if unknown.
        offset: seconds of that file before the utterance; None if it is the whole file.
        channel: the channel of that file, counted from 0; None: all channels, averaged.
    """

    source: str | None = None
    offset: float | None = None
    channel: int | None = None


class Encoded(NamedTuple):
    """An utterance as it will be stored.

    Attributes:
        flac, meta: the contents of its two files.
        is_clipped: whether it had samples beyond the 16-bit range.
    """

    key: str
    num_samples: int
    flac: bytes
    meta: bytes
    is_clipped: bool = False


def write_shards(
    utterances: Iterable[Utterance | Encoded],
    out_dir: Path,
    *,
    max_utterances: int = 500,
    max_seconds: float = 3600.0,
    description: str = "",
    kept: Sequence[Shard] = (),
) -> list[Path]:
    """Write utterances to `out_dir/shard-*.tar` with manifests and return the paths of the tars in order.

    The same utterances give the same bytes. A shard is closed once it holds `max_utterances` or
    `max_seconds`. It gets its final name only after all its bytes are on disk and were read back,
    so a killed writer leaves at most `*.tmp` and a tar without manifest; repeating the call finishes
    the work. Shards of different content are never mixed: if the folder already holds a complete
    shard with other bytes, the call fails and leaves that shard unchanged.

    `kept` are the folder's first shards, complete already (see `complete_shards`): they are not changed,
    and `utterances` are those that follow theirs.

    Raises:
        ShardError: there are no utterances, a key is invalid or repeated, the folder holds other shards,
            or the disk is full or not writable.
        AudioError: an utterance has no samples, NaN or infinite ones, or other than floating point, mono
            samples in [-1, 1].
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = [shard.path for shard in kept]
    with _progress(description or out_dir.name, kept) as advance:
        source = _checked(utterances, advance, kept)
        for first in source:
            path = shard_path(out_dir, len(paths))
            one_shard = _up_to(first, source, max_utterances, max_seconds)
            _write_shard(one_shard, path, description)
            paths.append(path)
    if not paths:
        raise ShardError("there are no utterances to write", where=out_dir)
    _refuse_others(out_dir, paths)
    return paths


def _checked(
    utterances: Iterable[Utterance | Encoded], advance: Callable[[float], None], kept: Sequence[Shard]
) -> Iterator[Encoded]:
    seen = {entry.key for shard in kept for entry in shard.entries}
    for utterance in utterances:
        key = utterance.key
        if not KEY_PATTERN.fullmatch(key):
            fix = "Use 1 to 200 letters, digits, `-` and `_`: keys become file names in the tar."
            raise ShardError("invalid key", where=repr(key), fix=fix)
        if key in seen:
            raise ShardError("two utterances have the same key", where=key, expected="each key once")
        seen.add(key)
        encoded = encode(utterance)
        yield encoded
        advance(encoded.num_samples / audio.SAMPLE_RATE_HZ)


def _up_to(
    first: Encoded, source: Iterator[Encoded], max_utterances: int, max_seconds: float
) -> Iterator[Encoded]:
    """`first` and the utterances after it, until the shard is full."""
    count, seconds, utterance = 0, 0.0, first
    while True:
        yield utterance
        count, seconds = count + 1, seconds + utterance.num_samples / audio.SAMPLE_RATE_HZ
        if count >= max_utterances or seconds >= max_seconds:
            return
        following = next(source, None)
        if following is None:
            return
        utterance = following


def _write_shard(utterances: Iterable[Encoded], path: Path, description: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            written = _write_tar(utterances, file)
        sync_path(temporary)  # before reading it back, in case the disk stores other bytes
        shard = _describe(temporary, path, written, description)
        if _holds_other(path, shard):
            raise _other_shard(path)
        commit_file(temporary, path)
        commit_bytes(manifest_path(path), manifest_text(shard).encode())
    except OSError as error:
        fix = "No partial shard is left: free some space or choose another folder, then run it again."
        raise ShardError("the audio shard cannot be written", where=path, got=error, fix=fix) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _holds_other(path: Path, shard: Shard) -> bool:
    """Whether a complete shard with other bytes already exists at `path`."""
    try:
        return path.exists() and read_manifest(path).sha256 != shard.sha256
    except ManifestError:
        return False


class _Written(NamedTuple):
    key: str
    num_samples: int
    crc32: int


def _write_tar(utterances: Iterable[Encoded], file: BinaryIO) -> list[_Written]:
    written: list[_Written] = []
    # GNU format: keys may be longer than the 100 characters of a plain header.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for utterance in utterances:
            _add(tar, f"{utterance.key}.flac", utterance.flac)
            _add(tar, f"{utterance.key}.json", utterance.meta)
            crc32 = zlib.crc32(utterance.meta, zlib.crc32(utterance.flac))
            written.append(_Written(utterance.key, utterance.num_samples, crc32))
    return written


def encode(utterance: Utterance | Encoded) -> Encoded:
    """The utterance as it will be stored: its samples as 16-bit FLAC, all else as JSON; unchanged if it is
    encoded already.

    Raises:
        AudioError: as `write_shards`.
    """
    if isinstance(utterance, Encoded):
        return utterance
    try:
        flac = audio.encode_flac(utterance.samples)
    except AudioError as error:
        raise error.told_of(utterance.key) from error
    num_samples = len(utterance.samples)
    meta: dict[str, object] = {
        "key": utterance.key,
        "duration": num_samples / audio.SAMPLE_RATE_HZ,
        "num_samples": num_samples,
        "sample_rate": audio.SAMPLE_RATE_HZ,
        "speaker": utterance.speaker,
    }
    if utterance.text is not None:
        meta["text"] = utterance.text
    if utterance.language is not None:
        meta["language"] = utterance.language
    if isinstance(utterance, Placed):
        places = {"source": utterance.source, "offset": utterance.offset, "channel": utterance.channel}
        meta.update({name: value for name, value in places.items() if value is not None})
    stored = json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()
    is_clipped = bool(np.abs(utterance.samples).max() > 1)
    return Encoded(utterance.key, num_samples, flac, stored, is_clipped)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner, group and time keep their zero defaults: reproducible bytes
    info.size, info.mode = len(data), 0o444
    tar.addfile(info, io.BytesIO(data))


def _describe(temporary: Path, final: Path, written: list[_Written], description: str) -> Shard:
    """The manifest of a tar just written, from what is read back from disk."""
    members = _members_of(temporary)
    expected_names = [f"{item.key}.{kind}" for item in written for kind in ("flac", "json")]
    if [member.name for member in members] != expected_names:
        raise damaged(temporary, f"{len(expected_names)} members in order", f"{len(members)} members")
    entries = []
    with temporary.open("rb") as file:
        for item, flac, meta in zip(written, members[::2], members[1::2], strict=True):
            place = (flac.offset_data, flac.size, meta.offset_data, meta.size)
            entry = ShardEntry(item.key, item.num_samples, *place, item.crc32)
            read_members(file, temporary, entry)
            entries.append(entry)
    num_samples = sum(entry.num_samples for entry in entries)
    return Shard(
        path=final,
        count=len(entries),
        seconds=num_samples / audio.SAMPLE_RATE_HZ,
        sha256=sha256_of(temporary),
        bytes=temporary.stat().st_size,
        entries=tuple(entries),
        description=description,
    )


def _members_of(path: Path) -> list[tarfile.TarInfo]:
    """The members of a tar, read strictly up to its end.

    Raises:
        DamagedShardError: a header is damaged or the file is truncated.
    """
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            return tar.getmembers()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DamagedShardError("the tar cannot be read", where=path, got=error) from error


def _refuse_others(out_dir: Path, paths: list[Path]) -> None:
    mine = {path.stem for path in paths}
    for path in sorted(out_dir.glob("shard-*.*")):
        if path.stem not in mine and path.suffix in (".tar", ".json"):
            raise _other_shard(path)


def _other_shard(path: Path) -> ShardError:
    return ShardError(
        "the folder already holds a shard with different content",
        where=path,
        expected="an empty folder, or the same shards",
        fix="Choose another folder, or delete this one.",
    )


@contextmanager
def _progress(description: str, kept: Sequence[Shard]) -> Iterator[Callable[[float], None]]:
    """Show the count of utterances and hours on stderr if it is a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} utterances, {task.fields[audio]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        count, seconds = sum(shard.count for shard in kept), sum(shard.seconds for shard in kept)
        task = progress.add_task(description, total=None, completed=count, audio=duration(seconds))

        def advance(more_seconds: float) -> None:
            nonlocal seconds
            seconds += more_seconds
            progress.update(task, advance=1, audio=duration(seconds))

        yield advance
