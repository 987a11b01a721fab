"""Corpora that are lists of audio files: what `manifest`, `kaldi` and `table` have in common.

A list NAME becomes the split NAME, or NAME, NAME-dev and NAME-test. A split depends on the bytes of its list
and on the sizes of the audio files named there, and on nothing else in the corpus folder.
"""

from __future__ import annotations

import codecs
import dataclasses
import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from data_prep.support.dropped import Dropped
from data_prep.support.listed import (
    PARTS,
    Limits,
    Listed,
    Reading,
    in_order,
    least_share,
    of_part,
    segments,
    sides_of,
    whole_utterances,
)
from data_prep.support.prepared import Earlier, Files, say
from data_prep.support.settings import AudioSettings
from data_prep.support.spoken import spoken_form
from kdasr.errors import ConfigError, CorpusError

SettingsT = TypeVar("SettingsT", bound="ListSettings")
BY_FILE = "no speakers are named, so files are held out, and the same speaker may be in several parts"

_OWN_LISTS = "Put dev and test data into separate lists or folders"
_MOST_NAMED = 5
CHANNEL_KEY = "channel_key"
# The generation that did not put cuts in order, and knew no channels.
_AS_LISTED = 2


@dataclass(frozen=True, slots=True)
class ListSettings(AudioSettings):
    """The settings of every kind of list.

    Attributes:
        split: the lists to write, such as train; none: all that are found.
        unlabelled: those of them to write without transcripts, as is a list that has none at all.
        held_out_share: share of the speakers (or files, if no speakers are named) of a single list NAME
            that go to NAME-dev, and again to NAME-test. As the list grows, none moves to another part.
        audio_folder: folder, relative to the list, of relative audio paths; none: the folder of the list.
        min_seconds: shorter audio is left out.
        max_seconds: longer audio is left out if it has a transcript; none: no limit.
        segment_seconds: audio without transcripts is cut into segments of at most this, and of at most
            max_seconds; none: of max_seconds.
        language: language of the speech, such as en or pt-BR, for filters, if not in the list; none: unknown.
    """

    split: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    audio_folder: str | None = None
    max_seconds: float | None = 30.0
    segment_seconds: float | None = 20.0

    def __post_init__(self) -> None:
        AudioSettings.__post_init__(self)
        if self.split and (unknown := sorted(set(self.unlabelled) - set(self.split))):
            raise ConfigError(
                f"{', '.join(unknown)} is not among the chosen splits",
                where="unlabelled",
                expected=f"some of {', '.join(self.split)}",
            )


class AudioList(ABC):
    """One list of a corpus."""

    __slots__ = ()

    # Whether generation 2 averaged the channels of lines that select one; else it left them out.
    averaged_before: ClassVar[bool] = False

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files it is read from; the split depends on their bytes."""

    @property
    def channel_files(self) -> tuple[Path, ...]:
        """As `files`, where a channel is selected."""
        return ()

    def fault(self) -> CorpusError | None:
        """Why the file is not a list of audio, or None."""
        return None

    def names(self) -> tuple[str, Sequence[str]]:
        """What the fields of its lines are called, such as column, and all their names but the audio's."""
        return "", ()

    @abstractmethod
    def read(self, dropped: Dropped) -> list[Listed]:
        """Its utterances in order; lines that cannot be parsed are recorded as dropped."""


class ListCorpus(Generic[SettingsT]):
    """The functions of a module of `data_prep` for a corpus that consists of lists.

    Args:
        lists_in: from the settings and the corpus folder, gives the lists by name.
    """

    def __init__(self, lists_in: Callable[[SettingsT, Path], Mapping[str, AudioList]]) -> None:
        self._lists_in = lists_in

    def splits(self, settings: SettingsT, corpus: Path) -> tuple[str, ...]:
        """The splits to write. Files that are not lists of audio are skipped with a message.

        Raises:
            CorpusError: a requested list is missing or not a list of audio; or there is none.
            ConfigError: a part is to be held out of several lists, or a part would be empty.
        """
        lists = self._lists_in(settings, corpus)
        if unknown := sorted({*settings.split, *settings.unlabelled} - set(lists)):
            raise CorpusError(
                f"there is no list {', '.join(unknown)}", where=corpus, expected=f"some of {', '.join(lists)}"
            )
        names = settings.split or tuple(lists)
        faults = {name: fault for name in names if (fault := lists[name].fault()) is not None}
        if faults and (settings.split or len(faults) == len(names)):
            raise _joined(corpus, list(faults.values()))
        if faults:
            say(f"{corpus}: ignored, since they are not lists of audio files: {', '.join(faults)}")
        for fault in faults.values():
            if fault.fix:  # it may still be meant as a list
                say(f"  {fault}")
        names = tuple(name for name in names if name not in faults)
        for name in names if _asks_for_texts(settings) else ():
            if name not in settings.unlabelled:
                _check_texts(name, lists[name])
        if not settings.held_out_share:
            return names
        if len(names) > 1:
            raise ConfigError(
                "a part can be held out of one list only",
                where="held_out_share",
                expected="one list",
                got=", ".join(names),
                fix="Choose it with --split.",
            )
        return parts_of(names[0], settings.held_out_share, lists[names[0]].read(Dropped()))

    def scope(self, settings: SettingsT, corpus: Path, split: str) -> tuple[SettingsT, Files]:
        """Only the split's own list, and the settings that concern it."""
        lists = self._lists_in(settings, corpus)
        name, _ = _name_and_part(settings, lists, split)
        listed = lists[name].read(Dropped())
        unlabelled = (name,) if name in settings.unlabelled else ()
        own = dataclasses.replace(settings, split=(name,), unlabelled=unlabelled)
        if not unlabelled and _has_texts(listed):
            own = dataclasses.replace(own, segment_seconds=None)
        else:
            own = dataclasses.replace(own, numbers=None, spoken_forms=None)
        if channels := {one.cut.channel for one in listed} - {None}:
            files = files_of(lists[name].files + lists[name].channel_files, listed)
            # Channel 0 is all of a file that has no other.
            same = lists[name].averaged_before and channels == {0}
            return own, files._replace(earlier=Earlier(_AS_LISTED, averaged=False) if same else None)
        return own, files_of(lists[name].files, listed)._replace(
            generation=_AS_LISTED if in_order(listed) == listed else None,
            earlier=Earlier(_AS_LISTED, averaged=True),
            unused=(CHANNEL_KEY,),
        )

    def prepare(
        self,
        settings: SettingsT,
        corpus: Path,
        *,
        split: str,
        seed: int,
        dropped: Dropped,
        done: Mapping[str, int],
    ) -> Reading:
        """The utterances of a split, in the order of its list, but with the cuts of a file together."""
        lists = self._lists_in(settings, corpus)
        name, part = _name_and_part(settings, lists, split)
        # Faulty lines are recorded for one part only.
        listed = lists[name].read(dropped if part == PARTS[0] else Dropped())
        if settings.held_out_share and part == PARTS[0]:
            if not any(one.speaker for one in listed):
                say(f"{name}: {BY_FILE}{_names_of(lists[name], 'speaker')}")
            tell_shares(name, settings.held_out_share, listed)
        mine = of_part(in_order(listed), settings.held_out_share, part)
        if name not in settings.unlabelled and _has_texts(listed):
            return whole_utterances(
                mine,
                dropped,
                Limits(settings.min_seconds, settings.max_seconds),
                labelled=True,
                done=done,
                letters=settings.letters,
                spoken=spoken_form(settings),
            )
        if name not in settings.unlabelled and listed:
            said = "the list has no transcripts, so this is unlabelled audio"
            say(f"{name}: {said}{_names_of(lists[name], 'text')}")
        longest = [one for one in (settings.max_seconds, settings.segment_seconds) if one is not None]
        return segments(mine, dropped, Limits(settings.min_seconds, min(longest, default=None)), done)


def _asks_for_texts(settings: ListSettings) -> bool:
    return bool(settings.letters or settings.numbers or settings.spoken_forms or settings.held_out_share)


def _has_texts(listed: list[Listed]) -> bool:
    return any(one.text and one.text.strip() for one in listed)


def _names_of(one: AudioList, part: str) -> str:
    """A message with the names that a field of the lines might have, and the option that selects one."""
    kind, names = one.names()
    return f"; its other {kind}s are {', '.join(names)} (to use one: --{part}_{kind} NAME)" if names else ""


def _check_texts(name: str, one: AudioList) -> None:
    if (listed := one.read(Dropped())) and not _has_texts(listed):
        raise CorpusError(
            f"{name} should be transcribed speech but has no transcripts{_names_of(one, 'text')}",
            where=one.files[0],
            fix=f"If it is meant to have none, add --unlabelled {name}.",
        )


def _joined(corpus: Path, faults: list[CorpusError]) -> CorpusError:
    """One error for all faults, which shows the first few."""
    if len(faults) == 1:
        return faults[0]
    shown = [f"{Path(fault.where or '').name} ({fault.got or fault.what})" for fault in faults[:5]]
    return CorpusError(
        "none of these is a list of audio files",
        where=corpus,
        expected=faults[0].expected,
        got=", ".join(shown) + (", …" if len(faults) > len(shown) else ""),
    )


def parts_of(name: str, share: float, listed: list[Listed]) -> tuple[str, ...]:
    """The names of the parts into which the list `name` is divided.

    Raises:
        ConfigError: a part would be empty.
    """
    listed = _with_texts(listed)
    sides = sides_of(listed, share)
    if listed and (empty := [name + part for part in PARTS if not sides[part]]):
        count, least = sum(map(len, sides.values())), least_share(listed)
        what = f"{count} {'speakers' if any(one.speaker for one in listed) else 'files'}"
        would = sides_of(listed, least)
        # With few speakers, the least share may leave almost nothing.
        other = (
            f", or set held_out_share to {least:.2f}: {_shown(name, would)}" if all(would.values()) else ""
        )
        raise ConfigError(
            f"{' and '.join(empty)} would be empty",
            where="held_out_share",
            expected=f"a share that holds out some of {what} and leaves some",
            got=share if count >= len(PARTS) else f"too few for {len(PARTS)} parts",
            fix=f"{_OWN_LISTS}{other}.",
        )
    return tuple(name + part for part in PARTS)


def tell_shares(name: str, share: float, listed: list[Listed]) -> None:
    """Print a message if more than twice the share of the list `name` is held out: few speakers divide
    unevenly, and some have more utterances."""
    sides = sides_of(_with_texts(listed), share)
    counts = {part: side.total() for part, side in sides.items()}
    if max(counts[part] for part in PARTS[1:]) > 2 * share * sum(counts.values()):
        say(f"{name}: more than twice the held_out_share is held out: {_shown(name, sides)}. {_OWN_LISTS}.")


def _with_texts(listed: list[Listed]) -> list[Listed]:
    """The utterances with transcripts, since only these are used; all if none has one."""
    return [one for one in listed if one.text] or listed


def _shown(name: str, sides: dict[str, Counter[str]]) -> str:
    """A message on the share of utterances in each part, and their speakers."""
    in_all = sum(side.total() for side in sides.values())
    shown = (f"{name}{part} {side.total() / in_all:.0%} ({_named(side)})" for part, side in sides.items())
    return f"of {in_all} utterances, {', '.join(shown)}"


def _named(side: Counter[str]) -> str:
    first = sorted(side)[:_MOST_NAMED]
    return ", ".join(first) + (f" and {len(side) - len(first)} more" if len(side) > len(first) else "")


def files_of(lists: tuple[Path, ...], listed: list[Listed]) -> Files:
    """The files on which the splits of these lists depend."""
    return Files(lists, {one.recording: one.path for one in listed})


def _name_and_part(settings: ListSettings, lists: Mapping[str, AudioList], split: str) -> tuple[str, str]:
    """The list and the one of its `PARTS` that a split is. A list may itself have a name like calls-dev."""
    if not settings.held_out_share:
        return split, PARTS[0]
    parts = {name: split.removeprefix(name) for name in settings.split or lists if split.startswith(name)}
    name = next(name for name, part in parts.items() if part in PARTS and lists[name].fault() is None)
    return name, parts[name]


def lists_below(corpus: Path, extensions: tuple[str, ...], what: str) -> dict[str, Path]:
    """The files with these extensions directly in the folder, by name; hidden ones are left out.

    Raises:
        CorpusError: there are none, or two with the same name.
    """
    paths = sorted(
        path
        for path in corpus.iterdir()
        if path.suffix.lower() in extensions and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        expected = f"{what}: NAME{' or NAME'.join(extensions)}"
        raise CorpusError("there is no list of audio files in this folder", where=corpus, expected=expected)
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise CorpusError(
                "two lists have the same name", where=corpus, got=f"{found[path.stem].name} and {path.name}"
            )
        found[path.stem] = path
    return found


def utf_16_fault(path: Path) -> CorpusError | None:
    """The error for a list with a UTF-16 byte order mark, as some spreadsheet programs write; else None."""
    with path.open("rb") as file:
        if file.read(2) not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return None
    fix = "Convert a copy of it with `iconv -f utf-16 -t utf-8`, or save it again as UTF-8."
    return CorpusError("the list is UTF-16", where=path, expected="UTF-8", got="UTF-16", fix=fix)


def place_of(settings: ListSettings, folder: Path, audio: str, beside: str = "") -> tuple[str, Path]:
    """The name and path of the audio that a list in `folder` calls `audio`. If there is no such file, the
    path is that of a file whose name differs only in backslashes or the encoding of accents, if any.

    Raises:
        CorpusError: no file can have such a name.
    """
    name = os.path.join(beside if settings.audio_folder is None else settings.audio_folder, audio)  # noqa: PTH118
    try:
        if not audio.strip() or b"\0" in os.fsencode(name):
            raise ValueError
    except ValueError as error:
        if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
            raise  # not the list is at fault, but the locale
        raise CorpusError(
            "the audio path is empty or invalid", expected="the path of an audio file", got=repr(audio)
        ) from error
    return name, folder / _spelt(name, folder)


def _spelt(name: str, folder: Path) -> str:
    """A name as it is spelled on the disk: other systems write the same name in another way."""
    slashed = name.replace("\\", "/")
    if slashed.isascii() and slashed == name:
        return name  # for most lists, without a look at the disk
    composed, parted = (unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))
    found = (spelling for spelling in (name, slashed, composed, parted) if os.path.exists(folder / spelling))  # noqa: PTH110  (too long a name is no error)
    return next(found, name)
