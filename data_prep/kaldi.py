"""Kaldi data folders: the corpus folder or, if it has no wav.scp, each folder in it that has one is a split.

    wav.scp     RECORDING PATH                  PATH is absolute or relative to the folder
    segments    UTTERANCE RECORDING START END   optional: cuts, in seconds; behind them a channel, from 0
    text        UTTERANCE TRANSCRIPT            without it: unlabelled audio
    utt2spk     UTTERANCE SPEAKER               optional
    reco2file_and_channel   RECORDING FILE CHANNEL   optional: A or 1 is the first channel, B or 2 the second

Where no other recording has its PATH, and FILE is the same as RECORDING or PATH has only one channel, a
recording is all of PATH.

A wav.scp may hold commands (`sox … |`): they are never run, and their recordings are dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.support.dropped import Dropped
from data_prep.support.listed import Listed, channels_in, key_lines, key_of_id
from data_prep.support.lists import (
    AudioList,
    ListCorpus,
    ListSettings,
    place_of,
)
from kdasr.audio import MOST_SECONDS, WHOLE, Cut
from kdasr.errors import CorpusError

NEEDS_CORPUS = True
IN_PARALLEL = True
GENERATION = 3
RECORDINGS, SEGMENTS, TEXTS, SPEAKERS = "wav.scp", "segments", "text", "utt2spk"
CHANNELS = "reco2file_and_channel"

Settings = ListSettings

_LETTERS = "ABCDEFGH"


def _folders(settings: Settings, corpus: Path) -> dict[str, DataFolder]:
    # Not deeper: Kaldi keeps parts of a data folder in subfolders (split8/1/wav.scp).
    folders = [corpus] if (corpus / RECORDINGS).is_file() else sorted(corpus.iterdir())
    found = [folder for folder in folders if (folder / RECORDINGS).is_file()]
    if not found:
        raise CorpusError(
            "there is no Kaldi data folder here",
            where=corpus,
            expected=f"{RECORDINGS} in the folder or in folders directly below it",
        )
    # `.` and `..` have no name of their own; a link keeps its own name.
    named = {folder if folder.name not in ("", "..") else folder.resolve(): folder for folder in found}
    return {place.name: DataFolder(settings, folder) for place, folder in named.items()}


_corpus = ListCorpus(_folders)
splits, scope, prepare = _corpus.splits, _corpus.scope, _corpus.prepare


@dataclass(frozen=True, slots=True)
class DataFolder(AudioList):
    """A folder with a wav.scp."""

    settings: Settings
    folder: Path

    @property
    def files(self) -> tuple[Path, ...]:
        paths = [self.folder / name for name in (RECORDINGS, SEGMENTS, TEXTS, SPEAKERS)]
        return tuple(path for path in paths if path.is_file())

    @property
    def channel_files(self) -> tuple[Path, ...]:
        path = self.folder / CHANNELS
        return (path,) if path.is_file() else ()

    def read(self, dropped: Dropped) -> list[Listed]:
        recordings = self._lines(RECORDINGS, "recording", dropped)
        texts = self._lines(TEXTS, "transcript", dropped)
        speakers = self._lines(SPEAKERS, "speaker", dropped)
        sides = self._lines(CHANNELS, "channel", dropped)
        uses, listed = Counter(recordings.values()), []
        for utterance, (recording, cut) in self._cuts(recordings, dropped).items():
            text = texts.pop(utterance, None)
            try:
                name, path = self._place_of(recording, recordings)
                if cut.channel is None and recording in sides:
                    alone = uses[recordings[recording]] == 1
                    cut = cut._replace(channel=_side(recording, sides[recording], path, alone=alone))
            except CorpusError as error:
                dropped.add_error(utterance, error)
                continue
            language, key = self.settings.language, key_of_id(utterance)
            listed.append(Listed(utterance, key, path, name, text, speakers.get(utterance), language, cut))
        for utterance in texts:
            dropped.add(utterance, "transcript without audio")
        return listed

    def _lines(self, name: str, what: str, dropped: Dropped) -> dict[str, str]:
        found: dict[str, str] = {}
        if (self.folder / name).is_file():
            key_lines(self.folder / name, name, what, found, dropped)
        return found

    def _cuts(self, recordings: dict[str, str], dropped: Dropped) -> dict[str, tuple[str, Cut]]:
        """The recording of each utterance, and its part of the recording."""
        if not (self.folder / SEGMENTS).is_file():
            return {recording: (recording, WHOLE) for recording in recordings}
        cuts = {}
        for utterance, line in self._lines(SEGMENTS, "segment", dropped).items():
            try:
                recording, start, end, *more = line.split()
                (channel,) = more or [""]
                cuts[utterance] = (recording, _cut(float(start), float(end), channel))
            except ValueError:
                expected = "UTTERANCE RECORDING START END and optionally a CHANNEL, counted from 0"
                dropped.add(
                    utterance, f"this is not a valid segment; expected {expected}; got {utterance} {line}"
                )
        return cuts

    def _place_of(self, recording: str, recordings: dict[str, str]) -> tuple[str, Path]:
        if recording not in recordings:
            raise CorpusError(f"{RECORDINGS} has no recording {recording}")
        audio = recordings[recording]
        if audio.endswith("|") or audio.startswith("|"):
            raise CorpusError(
                f"{RECORDINGS} gives a command for it, and commands are never run",
                expected="the path of an audio file: run the command yourself and name the file it writes",
                got=audio,
            )
        return place_of(self.settings, self.folder, audio)


def _side(recording: str, line: str, path: Path, *, alone: bool) -> int | None:
    """The channel of a recording as its line in `CHANNELS` has it; None: it is all of its file, being
    `alone` in that."""
    file, *sides = line.split() or [""]
    # Tools for scoring want `X X A` or `X X 1` of all files; and a side may have been extracted already.
    if alone and (file == recording or channels_in(path) == 1):
        return None
    try:
        (side,) = sides
        return _channel(side, first=1)
    except ValueError:
        raise CorpusError(
            f"{CHANNELS} gives no valid channel for it", expected="FILE and A, B, … or 1, 2, …", got=line
        ) from None


def _cut(start_seconds: float, end_seconds: float, channel: str) -> Cut:
    """As in Kaldi's extract-segments, a negative end means the end of the recording, and channels are counted
    from 0; an empty `channel` means all."""
    if not abs(start_seconds) + abs(end_seconds) < MOST_SECONDS:
        raise ValueError("the start or end is no time in a recording")
    seconds = None if end_seconds < 0 else end_seconds - start_seconds
    return Cut(start_seconds, seconds, _channel(channel, first=0) if channel else None)


def _channel(text: str, *, first: int) -> int:
    """A channel from 0, named by a letter or by a number from `first`."""
    if len(text) == 1 and text in _LETTERS:
        return _LETTERS.index(text)
    if (channel := int(text) - first) < 0:
        raise ValueError(f"the channel is below {first}")
    return channel
