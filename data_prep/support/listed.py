"""Read the utterances that a list names (a file or a cut of it, text, speaker) as audio and normalised text.

Unusable ones are recorded in `Dropped`, and the others are still read. Audio with transcripts is used as a
whole or not at all; audio without may be cut into segments.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from data_prep.support.dropped import Dropped, letters_of
from kdasr.audio import SAMPLE_RATE_HZ, WHOLE, AudioReader, Cut, Decoded
from kdasr.batches import change_speed
from kdasr.errors import AudioError, CorpusError, UnitsError
from kdasr.interfaces import Utterance
from kdasr.manifest import KEY_PATTERN
from kdasr.shards import Placed
from kdasr.text import normalise

# The suffixes of the splits of a list, of which the last two are held out.
PARTS = ("", "-dev", "-test")
_MAX_NAME = 150
# The replacement of bytes that are not UTF-8, from errors="replace".
_NOT_DECODED = "\ufffd"


@dataclass(frozen=True, slots=True)
class Listed:
    """One utterance as described in its list.

    Attributes:
        name: its name in dropped.json.
        key: the key of the utterance; keys of segments begin with it.
        path: the audio file.
        recording: the name of the audio in the list.
        text: the transcript as written; None: there is none.
        speaker, language: as in `Utterance`.
        cut: its part of the audio.
    """

    name: str
    key: str
    path: Path
    recording: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    cut: Cut = WHOLE


# Reads the utterances of a file, and records in a `Dropped` which of them are unusable.
ReadFile = Callable[[Dropped], Iterator[Utterance]]


@dataclass(frozen=True, slots=True)
class Limits:
    """The allowed durations of an utterance; `max_seconds` None: no upper limit."""

    min_seconds: float = 0.0
    max_seconds: float | None = None


class Reading:
    """The utterances of a list, in its order, read file by file while one iterates over this, once.

    Attributes:
        files: each file, with a function that reads its utterances and records in a `Dropped` which of them
            are unusable; it can be pickled, so that another process may call it.
        dropped: where `files` itself records what the list leaves out.
    """

    def __init__(self, files: Iterator[tuple[Path, ReadFile]], dropped: Dropped) -> None:
        self.files, self.dropped = files, dropped

    def __iter__(self) -> Iterator[Utterance]:
        for _, read in self.files:
            yield from read(self.dropped)


def whole_utterances(
    listed: Iterable[Listed],
    dropped: Dropped,
    limits: Limits,
    *,
    labelled: bool,
    done: Container[str],
    letters: str | None = None,
    spoken: Callable[[str], str] | None = None,
    speeds: tuple[float, ...] = (1.0,),
) -> Reading:
    """One utterance for each usable entry and each of the `speeds`, in order; texts are used only if
    `labelled`, and keep the language's `letters` beyond a-z and what `spoken` rewrites (None: the corpus has
    no such setting).

    For files whose utterances are all `done`, only the header is read and nothing is yielded.
    """

    def files() -> Iterator[tuple[Path, ReadFile]]:
        seen: set[str] = set()
        for path, group in _by_file(listed, seen, dropped):
            texts: list[tuple[Listed, str | None]] = [(one, None) for one in group]
            if labelled:
                texts = _texts_of(group, dropped, letters, spoken)
            seen |= {one.key for one, _ in texts}
            # All cuts of a file or none: the last bits of a cut may depend on which were decoded before it.
            all_done = all(key_at(one.key, speed) in done for one, _ in texts for speed in speeds)
            yield path, functools.partial(_read_whole, path, texts, limits, () if all_done else speeds)

    return Reading(files(), dropped)


def _read_whole(
    path: Path,
    texts: list[tuple[Listed, str | None]],
    limits: Limits,
    speeds: tuple[float, ...],
    dropped: Dropped,
) -> Iterator[Utterance]:
    """The utterances of a file; without `speeds`, only its header is read."""
    with AudioReader(path) as reader:
        for one, text in texts:
            try:
                audio = _audio_of(one, reader, limits) if speeds else None
                rate_hz = audio.source_rate_hz if audio else reader.promised().source_rate_hz
            except (AudioError, CorpusError) as error:
                dropped.add_error(one.name, error)
                continue
            _note(one, reader, rate_hz, dropped)
            offset = None if one.cut == WHOLE else one.cut.start_seconds
            if audio is None:
                continue
            for speed in speeds:
                samples = change_speed(audio.samples, speed)
                yield _placed(one, key_at(one.key, speed), samples, text, offset)


def key_at(key: str, speed: float) -> str:
    """The key of an utterance at a speed."""
    return key if speed == 1.0 else f"{key}-sp{round(100 * speed)}"


def segments(listed: Iterable[Listed], dropped: Dropped, limits: Limits, done: Mapping[str, int]) -> Reading:
    """Utterances without text: each of `listed` in segments of at most `limits.max_seconds`.

    Their keys end in -0000, -0001, …. Only one segment is in memory at a time.
    """

    def files() -> Iterator[tuple[Path, ReadFile]]:
        seen: set[str] = set()
        for path, group in _by_file(listed, seen, dropped):
            seen |= {one.key for one in group}
            if not _is_written(path, group, dropped, limits, done):
                yield path, functools.partial(_read_segments, path, group, limits)

    return Reading(files(), dropped)


def _is_written(
    path: Path, group: list[Listed], dropped: Dropped, limits: Limits, done: Mapping[str, int]
) -> bool:
    """Whether all that the header of a file promises is already written."""
    with AudioReader(path) as reader:
        rates = [rate_hz for one in group if (rate_hz := _written_rate(one, reader, limits, done))]
        if len(rates) < len(group):
            return False
        for one, rate_hz in zip(group, rates, strict=True):
            _note(one, reader, rate_hz, dropped)
        return True


def _read_segments(path: Path, group: list[Listed], limits: Limits, dropped: Dropped) -> Iterator[Utterance]:
    with AudioReader(path) as reader:
        for one in group:
            yield from _segments_of(one, reader, dropped, limits)


def in_order(listed: list[Listed]) -> list[Listed]:
    """The cuts of each file together, by where they begin, in the place of the first of them: so a file is
    opened once and read forward. Whole files stay where they are."""
    first: dict[str, int] = {}
    places = []
    for number, one in enumerate(listed):
        whole = one.cut._replace(channel=None) == WHOLE
        places.append((number if whole else first.setdefault(one.recording, number), one.cut.start_seconds))
    return [listed[number] for number in sorted(range(len(listed)), key=places.__getitem__)]


def channels_in(path: Path) -> int:
    """How many channels an audio file has; 0: it cannot be read, which is told where it is."""
    with AudioReader(path) as reader:
        with contextlib.suppress(AudioError):
            reader.promised()
        return reader.channels


def _by_file(
    listed: Iterable[Listed], seen: set[str], dropped: Dropped
) -> Iterator[tuple[Path, list[Listed]]]:
    """Groups of consecutive cuts of the same file, without those with unusable keys."""
    group: dict[str, Listed] = {}
    for one in listed:
        if group and one.path != next(iter(group.values())).path:
            yield _of_one_file(group)
            group = {}
        try:
            _check_key(one.key, seen, group)
        except CorpusError as error:
            dropped.add_error(one.name, error)
            continue
        group[one.key] = one
        # Yielded before the next is requested: the corpus may record something in between.
        if one.cut == WHOLE:
            yield _of_one_file(group)
            group = {}
    if group:
        yield _of_one_file(group)


def _of_one_file(group: dict[str, Listed]) -> tuple[Path, list[Listed]]:
    listed = list(group.values())
    return listed[0].path, listed


def _texts_of(
    listed: list[Listed], dropped: Dropped, letters: str | None, spoken: Callable[[str], str] | None
) -> list[tuple[Listed, str | None]]:
    """The entries with usable transcripts, each with its normalised text."""
    good: list[tuple[Listed, str | None]] = []
    for one in listed:
        said, text = spoken(one.text) if spoken and one.text else one.text, ""
        try:
            text = _usable(said, letters or "")
            good.append((one, text))
            dropped.note_accents(said or "", text)
            dropped.note_tags(one.name, said or "")
            dropped.note_spoken(one.name, one.text or "", said or "")
        except (UnitsError, CorpusError) as error:
            dropped.add_error(one.name, error)
            if letters is not None:  # a corpus with settings for digits
                dropped.note_digits(said or "")
        if letters is not None:
            dropped.letters |= letters_of(said or "") - {*text}
    return good


def _written_rate(one: Listed, reader: AudioReader, limits: Limits, done: Mapping[str, int]) -> int | None:
    """The rate of the file if all that its header promises is already written, else None."""
    if _segment_key(one, 0) not in done:
        return None
    try:
        promised = reader.promised(one.cut, limits.max_seconds or math.inf)
    except AudioError:
        return None
    # A truncated or damaged file is read again, so that it is recorded again.
    written = [done.get(_segment_key(one, number), 0) for number in range(promised.num_segments)]
    # Each segment is resampled by itself, and rounded up.
    whole = all(written) and 0 <= sum(written) - promised.samples < max(1, len(written))
    return promised.source_rate_hz if written and whole else None


def _segments_of(one: Listed, reader: AudioReader, dropped: Dropped, limits: Limits) -> Iterator[Utterance]:
    kept, longest, offset = 0, limits.max_seconds or math.inf, one.cut.start_seconds
    try:
        # The equal parts of a long file may be shorter than min_seconds.
        least = limits.min_seconds if reader.promised(one.cut, longest).num_segments < 2 else 0.0
        for samples, rate_hz, _ in reader.segments(longest, one.cut):
            if kept == 0:
                _check_not_short(len(samples), least)
                _note(one, reader, rate_hz, dropped)
            yield _placed(one, _segment_key(one, kept), samples, None, offset)
            kept, offset = kept + 1, offset + len(samples) / SAMPLE_RATE_HZ
    except CorpusError as error:
        dropped.add_error(one.name, error)
    except AudioError as error:
        dropped.add_error(one.name, error, f"; segments kept before that: {kept}" if kept else "")


def _note(one: Listed, reader: AudioReader, rate_hz: int, dropped: Dropped) -> None:
    """Count what was resampled, and what was averaged."""
    dropped.note_rate(rate_hz, SAMPLE_RATE_HZ)
    if one.cut.channel is None:
        dropped.note_channels(reader.channels)


def _placed(
    one: Listed, key: str, samples: NDArray[np.float32], text: str | None, offset: float | None
) -> Placed:
    # File names need not be UTF-8, but shards must be.
    source = one.recording.encode("utf-8", "replace").decode()
    # No finer: segments are rounded up to whole samples, which adds up over an hour.
    offset = None if offset is None else round(offset, 3)
    channel = one.cut.channel
    return Placed(
        key, samples, text, one.speaker, one.language, source=source, offset=offset, channel=channel
    )


def _segment_key(one: Listed, number: int) -> str:
    return f"{one.key}-{number:04d}"


def _audio_of(one: Listed, reader: AudioReader, limits: Limits) -> Decoded:
    """The whole utterance, checked against the limits; not decoded if its header shows it is too long."""
    if limits.max_seconds is not None:
        _check_not_long(reader.promised(one.cut).samples, limits.max_seconds)
    audio = reader.load(one.cut)
    _check_not_short(len(audio.samples), limits.min_seconds)
    if limits.max_seconds is not None:
        _check_not_long(len(audio.samples), limits.max_seconds)
    return audio


def _check_not_short(num_samples: int, min_seconds: float) -> None:
    if num_samples / SAMPLE_RATE_HZ < min_seconds:
        raise CorpusError(f"{num_samples / SAMPLE_RATE_HZ:.3f} s is shorter than min_seconds")


def _check_not_long(num_samples: int, max_seconds: float) -> None:
    # The ends of a cut are rounded to samples.
    if round(num_samples / SAMPLE_RATE_HZ, 3) > max_seconds:
        raise CorpusError(f"{num_samples / SAMPLE_RATE_HZ:.3f} s is longer than max_seconds")


def _check_key(key: str, *seen: Container[str]) -> None:
    if any(key in keys for keys in seen):
        raise CorpusError("the key is a duplicate of an earlier one")
    if not KEY_PATTERN.fullmatch(key):
        raise CorpusError("the name is not a valid key", expected=KEY_PATTERN.pattern)


def _usable(text: str | None, letters: str) -> str:
    """The normalised transcript; raises an error if it is unusable."""
    if text is None:
        raise CorpusError("audio without transcript")
    if _NOT_DECODED in text:
        raise CorpusError(
            "the text is not UTF-8, or letters in it were lost (U+FFFD)",
            expected="UTF-8: convert the file with `iconv -f ENCODING -t utf-8`, with an ENCODING such as "
            "cp1252 (Western), cp1250 (Polish, Czech), cp1254 (Turkish) or cp1251 (Russian)",
        )
    if not (normal_text := normalise(text, letters)):
        raise CorpusError("the transcript is empty after normalisation")
    return normal_text


def key_of(name: PurePath | str, cut: Cut = WHOLE) -> str:
    """A readable key for the file `name` or a cut of it, different for different names.

    Characters not allowed in keys become `_`; a hash of the original name follows and, for a cut, its channel
    and its start and end in milliseconds.
    """
    key = _readable_key(os.path.splitext(name)[0], str(name))  # noqa: PTH122
    if cut.channel is not None:
        key += f"-c{cut.channel}"
    if cut._replace(channel=None) == WHOLE:
        return key
    ends = (cut.start_seconds, None if cut.seconds is None else cut.start_seconds + cut.seconds)
    return key + "".join(f"-{round(1000 * end):07d}" if end is not None else "-end" for end in ends)


def key_of_id(name: str) -> str:
    """The key of an utterance with a name: the name, or a similar key if the name cannot be one."""
    return name if KEY_PATTERN.fullmatch(name) else _readable_key(name, name)


def _readable_key(readable: str, name: str) -> str:
    shown = re.sub(r"[^A-Za-z0-9_-]+", "_", readable)[-_MAX_NAME:]
    return f"{shown}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def part_of(one: Listed, share: float) -> str:
    """The one of `PARTS` an utterance belongs to: a `share` of the speakers each go to the second and third.

    A hash of the speaker's name decides, or of the recording's if no speaker is named, so that adding others
    moves none to another part, and a larger share only moves some out of the first part.
    """
    place = _place_of(one)
    return PARTS[1] if place < share else PARTS[2] if place >= 1 - share else PARTS[0]


def of_part(listed: Iterable[Listed], share: float, part: str) -> Iterator[Listed]:
    """The utterances of one of `PARTS`; all if nothing is held out."""
    return (one for one in listed if not share or part_of(one, share) == part)


def sides_of(listed: Iterable[Listed], share: float) -> dict[str, Counter[str]]:
    """For each of `PARTS`, its speakers (or recordings if no speakers are named) with their numbers of
    utterances."""
    sides = {part: Counter[str]() for part in PARTS}
    for one in listed:
        sides[part_of(one, share)][one.speaker or one.recording] += 1
    return sides


def least_share(listed: Iterable[Listed]) -> float:
    """The smallest share, in hundredths, for which neither held-out part is empty."""
    places = [_place_of(one) for one in listed]
    return (math.floor(100 * max(min(places), 1 - max(places))) + 1) / 100


def _place_of(one: Listed) -> float:
    digest = hashlib.sha256((one.speaker or one.recording).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def key_lines(path: Path, name: str, what: str, found: dict[str, str], dropped: Dropped) -> None:
    """Read lines of KEY REST into `found`; a second `what` for a key is a dropped line of `name`."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        key, *rest = line.decode("utf-8-sig", errors="replace").split(maxsplit=1) or [""]
        if key in found:
            dropped.add(f"{name}:{number}", f"a second {what} for {key}")
        elif key:
            found[key] = rest[0].strip() if rest else ""
