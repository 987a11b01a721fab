"""Write the utterances of one split to its folder; finished parts are not made again."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.support.ahead import Readers
from data_prep.support.dropped import AVERAGED, Dropped, letters_hint
from data_prep.support.files import files_below
from data_prep.support.listed import PARTS, Reading
from kdasr.errors import ConfigError, CorpusError, ShardError, printable
from kdasr.interfaces import Utterance
from kdasr.manifest import PREPARED, PREPARING, sha256_of
from kdasr.reasons import counted, duration, lines_of
from kdasr.shards import Encoded, Shard, complete_shards, encode, open_shard, write_shards
from kdasr.storage import commit_bytes, locked, remove_leftovers

FORMAT = "kdasr-prepared"
DROPPED = "dropped.json"


def prepare_split(
    utterances: Callable[..., Iterable[Utterance]],
    folder: Path,
    source: dict[str, Any],
    *,
    max_utterances: int,
    letters: set[str],
    earlier: Earlier | None = None,
    readers: Readers | None = None,
) -> list[Path]:
    """Write `utterances(dropped=..., done=...)` to `folder`, unless it holds them already; returns the tars.

    Complete shards left by a killed call with the same source are kept.

    Args:
        source: JSON that identifies what the utterances are made from: same source, same bytes. Its
            `generation` distinguishes releases that make other audio from the same settings.
        letters: receives the letters that transcripts lost or lacked, see `Dropped`.
        earlier: the release whose finished folder of the same source is also accepted.
        readers: read the audio; None: this process does.

    Raises:
        ConfigError: the folder was made from another source, or by something else.
        ShardError: the folder cannot be written.
    """
    if any(place.is_file() for place in (folder, folder.parent)):
        raise ConfigError(
            "shards need a folder, but a file is in its place", where=folder, fix="Check --out."
        )
    busy = ConfigError(
        "another `kdasr prepare` is writing to this folder",
        where=folder,
        fix="Wait until it has finished, or choose another folder with --out.",
    )
    try:
        # If all is done, nothing is written, and no lock is needed.
        if finished := _finished(folder, source, earlier):
            (folder / PREPARING).unlink(missing_ok=True)
            return finished
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, busy=busy):
            return _prepare_split(utterances, folder, source, max_utterances, letters, readers)
    except OSError as error:
        fix = (
            "Free disk space or check the permissions, then run the same again: it resumes where it stopped."
        )
        raise ShardError("the split cannot be written", where=folder, got=error, fix=fix) from error


def _prepare_split(
    utterances: Callable[..., Iterable[Utterance]],
    folder: Path,
    source: dict[str, Any],
    max_utterances: int,
    letters: set[str],
    readers: Readers | None,
) -> list[Path]:
    remove_leftovers(folder)
    _clear_unfinished(folder, source)
    _commit(folder / PREPARING, {"source": source})
    kept, done = _kept(folder)
    if kept:
        say(f"{folder}: {counted(len(done), 'utterance')} in {counted(len(kept), 'complete shard')} kept")
    dropped = Dropped(letters=letters)
    clipped = Counter[str]()
    found = utterances(dropped=dropped, done=done)
    read = readers.read(found) if readers and isinstance(found, Reading) else found
    following = _clips_counted(_following(read, done), clipped)
    paths = write_shards(
        following if kept else _some(following, folder, dropped, source["settings"]),
        folder,
        max_utterances=max_utterances,
        description=f"{source['corpus']} {source['split']}",
        kept=kept,
    )
    shards = [_without_entries(open_shard(path)) for path in paths]
    _commit(folder / DROPPED, dropped.as_json())
    _commit(folder / PREPARED, _summary(source, shards, dropped))
    (folder / PREPARING).unlink(missing_ok=True)  # another call may have seen that all is done
    _tell(folder, shards, dropped, clipped)
    return paths


def _kept(folder: Path) -> tuple[list[Shard], dict[str, int]]:
    """The complete shards at the start of a folder, without their entries, and the number of samples of each
    utterance in them by key; `_following` skips these keys."""
    kept, done = list[Shard](), dict[str, int]()
    # If the folder was complete before, a shard may since have been replaced by another of the same name.
    if not (folder / PREPARED).exists():
        for shard in complete_shards(folder):
            done |= {entry.key: entry.num_samples for entry in shard.entries}
            kept.append(_without_entries(shard))
    return kept, done


def _without_entries(shard: Shard) -> Shard:
    """The shard without entries: those of a whole split are too many for the memory of a small machine."""
    return replace(shard, entries=())


class Earlier(NamedTuple):
    """An earlier release that made the same audio, perhaps in another order, so that what it finished stays.

    Attributes:
        generation: its GENERATION of the corpus.
        averaged: whether the audio is the same even where it averaged channels.
    """

    generation: int
    averaged: bool


class Files(NamedTuple):
    """The files that a split depends on, if not simply all files of a folder.

    Attributes:
        read: files that matter by content, such as a list.
        sized: names and paths of files that matter by size, such as the audio that the list names.
        generation: an earlier GENERATION of the corpus if it made the same of these files; None: the current.
        earlier: the earlier release whose finished folders are as good; None: there is none.
        unused: settings that change nothing here, and are not recorded.
    """

    read: tuple[Path, ...]
    sized: Mapping[str, Path]
    generation: int | None = None
    earlier: Earlier | None = None
    unused: tuple[str, ...] = ()


def fingerprint_of(files: Path | Files | None, *, without: Path) -> dict[str, Any] | None:
    """Count, total size and a hash of the names and sizes of all files below a folder, without reading them;
    or of `Files`, including the content of their lists.

    The folder `without` is left out: shards may be written into the corpus itself.
    """
    if files is None:
        return None
    digest, count, num_bytes = hashlib.sha256(), 0, 0
    if isinstance(files, Files):
        for path in files.read:
            digest.update(f"{path.name}\0{sha256_of(path)}\n".encode(errors="surrogateescape"))
    for name, path in files.sized.items() if isinstance(files, Files) else _named(files, without):
        size = _size_of(path)
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
        count, num_bytes = count + 1, num_bytes + max(size, 0)
    return {"count": count, "bytes": num_bytes, "sha256": digest.hexdigest()}


def _named(corpus: Path, without: Path) -> Iterator[tuple[str, Path]]:
    return ((str(path.relative_to(corpus)), path) for path in files_below(corpus, without=without))


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # missing, or not a valid file name
        return -1


def _following(
    utterances: Iterable[Utterance | Encoded], done: Mapping[str, int]
) -> Iterator[Utterance | Encoded]:
    """The utterances that are not written yet; a file may be written in part, since it can span shards."""
    return (utterance for utterance in utterances if utterance.key not in done)


def _clips_counted(utterances: Iterator[Utterance | Encoded], clipped: Counter[str]) -> Iterator[Encoded]:
    """The utterances as they will be stored, counting those beyond the 16-bit range, as decoded from
    full-scale mp3. The count is printed and not recorded, since it is unknown for kept shards."""
    for encoded in map(encode, utterances):
        if encoded.is_clipped:
            clipped["clipped at full scale"] += 1
        yield encoded


def _some(
    utterances: Iterator[Encoded], folder: Path, dropped: Dropped, settings: Mapping[str, Any]
) -> Iterator[Encoded]:
    """All utterances; raises CorpusError if there are none."""
    first = next(utterances, None)
    if first is None:
        _commit(folder / DROPPED, dropped.as_json())
        advice = "Check --corpus" + (
            ", and --audio_folder if a list names the files." if "audio_folder" in settings else "."
        )
        if settings.get("held_out_share") and folder.name.endswith(PARTS[1:]):
            advice = "Fix what was left out, or hold out a larger share and write to another --out."
        kinds = dropped.kinds()
        hint = letters_hint(dropped.letters, settings.get("letters", ""))
        more = [line[0].upper() + line[1:] for line in (hint, *dropped.advice()) if line]
        reasons = "; ".join(lines_of(kinds[:3], f"{len(dropped.items)} left out")) + (
            "; …" if kinds[3:] else ""
        )
        raise CorpusError(
            "no utterance can be used",
            where=folder.name,
            got=reasons or "an empty corpus",
            fix=" ".join([f"{advice} Everything that was left out is listed in {folder / DROPPED}.", *more]),
        )
    yield first
    yield from utterances


def _finished(folder: Path, source: dict[str, Any], earlier: Earlier | None) -> list[Path]:
    """The tars of a folder that is complete; none if it must be made (again)."""
    record = _read(folder / PREPARED)
    if record is None:
        return []
    if record.get("source") != source and not _is_as_good(record, source, earlier):
        raise _made_otherwise(folder, record.get("source") or {}, source)
    paths = [folder / shard["name"] for shard in record["shards"]]
    try:
        hashes = [open_shard(path).sha256 for path in paths]
    except ShardError:
        return []
    return paths if hashes == [shard["sha256"] for shard in record["shards"]] else []


def _is_as_good(record: dict[str, Any], source: dict[str, Any], earlier: Earlier | None) -> bool:
    if earlier is None or record.get("source") != {**source, "generation": earlier.generation}:
        return False
    return earlier.averaged or not any(note.startswith(AVERAGED) for note in record.get("notes", {}))


def _clear_unfinished(folder: Path, source: dict[str, Any]) -> None:
    """Keep unfinished shards of the same source, and remove those of another one."""
    leftovers = [path for path in folder.glob("shard-*") if path.suffix in (".tar", ".json", ".tmp")]
    if not leftovers or (folder / PREPARED).exists():
        return
    record = _read(folder / PREPARING)
    if record is None:
        raise ConfigError(
            "the folder holds shards that were not written by `kdasr prepare`",
            where=folder,
            expected="an empty folder",
            fix="Choose another folder with --out.",
        )
    if record.get("source") == source:
        return
    if count := sum(path.suffix == ".tar" and path.with_suffix(".json") in leftovers for path in leftovers):
        changed = _changed(_flat(record.get("source") or {}), _flat(source))
        why = f"because the interrupted run differed in {', '.join(changed)}"
        say(f"{folder}: {counted(count, 'finished shard')} replaced, {why}")
    for path in leftovers:
        path.unlink()


def _summary(source: dict[str, Any], shards: list[Shard], dropped: Dropped) -> dict[str, Any]:
    rows = [
        {"name": shard.path.name, "count": shard.count, "seconds": shard.seconds, "sha256": shard.sha256}
        for shard in shards
    ]
    return {
        "format": FORMAT,
        "source": source,
        "count": sum(shard.count for shard in shards),
        "seconds": sum(shard.seconds for shard in shards),
        "dropped": len(dropped.items),
        "notes": dict(sorted(dropped.notes.items())),
        "shards": rows,
    }


def _tell(folder: Path, shards: list[Shard], dropped: Dropped, clipped: Counter[str]) -> None:
    """Print a line on stderr for the split, and one for each reason why something was left out."""
    count, audio = sum(shard.count for shard in shards), duration(sum(shard.seconds for shard in shards))
    parts = [f"{folder}: {counted(count, 'utterance')}, {audio}, {counted(len(shards), 'shard')}"]
    if dropped.items:
        parts.append(f"{len(dropped.items)} left out (see {DROPPED})")
    parts += [f"{number} {note}" for note, number in sorted((dropped.notes + clipped).items())]
    say("; ".join(parts))
    for line in lines_of(dropped.kinds(), "  left out", f"{DROPPED} lists all of them"):
        say(line)
    for line in dropped.advice():
        say(f"  {line}")


def say(line: str) -> None:
    """Print a message on stderr."""
    print(printable(line), file=sys.stderr)


def _made_otherwise(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> ConfigError:
    before, after = _flat(old), _flat(new)
    changed = _changed(before, after)
    if changed == ["files"] and before["files"] and after["files"]:
        return _of_changed_corpus(folder, before["files"], after["files"])
    if changed == ["generation"]:
        return ConfigError(
            "an older release prepared the folder and may have made different audio from the same settings",
            where=folder,
            expected=f"generation {after['generation']} of {after['corpus']}",
            got=f"generation {before.get('generation')}",
            fix="Delete this folder, or choose another with --out; then prepare and train again.",
        )
    return ConfigError(
        "the folder was prepared from other data or with other settings",
        where=folder,
        expected=", ".join(f"{name}={after.get(name)}" for name in changed),
        got=", ".join(f"{name}={before.get(name)}" for name in changed),
        fix="Choose another folder with --out, or delete this one.",
    )


def _of_changed_corpus(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> ConfigError:
    """The error for a changed corpus, of which only the former count, bytes and hash are known."""
    was, now = (f"{files['count']:,} files of {files['bytes']:,} bytes" for files in (old, new))
    differs = (
        "a list, a transcript or a file name differs"
        if was == now
        else f"{was} then, {now} now; a list or transcript may differ, too"
    )
    return ConfigError(
        f"the corpus has changed since this folder was prepared: {differs}",
        where=folder,
        fix="Prepare the current corpus into another folder with --out, or delete this one.",
    )


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The keys in which two flattened sources differ."""
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def _flat(source: dict[str, Any]) -> dict[str, Any]:
    return {**source, "settings": None, **source.get("settings", {})}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _commit(path: Path, fields: dict[str, Any]) -> None:
    commit_bytes(path, json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")
