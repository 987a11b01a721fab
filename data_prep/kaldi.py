"""Kaldi data folders: the corpus folder or, if it has no wav.scp, each folder in it that has one is a split.

    wav.scp     RECORDING PATH                  PATH is absolute or relative to the folder
    segments    UTTERANCE RECORDING START END   optional: cuts, in seconds
    text        UTTERANCE TRANSCRIPT            without it: unlabelled audio
    utt2spk     UTTERANCE SPEAKER               optional

A wav.scp may hold commands (`sox … |`): they are never run, and their recordings are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.support.dropped import Dropped
from data_prep.support.listed import Listed, key_lines, key_of_id
from data_prep.support.lists import (
    AudioList,
    ListCorpus,
    ListSettings,
    place_of,
)
from kdasr.audio import WHOLE, Cut
from kdasr.errors import CorpusError

NEEDS_CORPUS = True
GENERATION = 2
RECORDINGS, SEGMENTS, TEXTS, SPEAKERS = "wav.scp", "segments", "text", "utt2spk"

Settings = ListSettings

_ONE_CHANNEL = (
    "the segment is of one channel, and channels are averaged: write each channel as a file of its own "
    "(sox FILE OUT remix N) and name that"
)


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

    def read(self, dropped: Dropped) -> list[Listed]:
        recordings = self._lines(RECORDINGS, "recording", dropped)
        texts = self._lines(TEXTS, "transcript", dropped)
        speakers = self._lines(SPEAKERS, "speaker", dropped)
        listed = []
        for utterance, (recording, cut) in self._cuts(recordings, dropped).items():
            text = texts.pop(utterance, None)
            try:
                name, path = self._place_of(recording, recordings)
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
                recording, start, end, *channel = line.split()
                cut = _cut(float(start), float(end))
            except ValueError:
                reason = f"this is no segment; expected UTTERANCE RECORDING START END; got {utterance} {line}"
                dropped.add(utterance, reason)
                continue
            if channel:
                dropped.add(utterance, _ONE_CHANNEL)
            else:
                cuts[utterance] = (recording, cut)
        return cuts

    def _place_of(self, recording: str, recordings: dict[str, str]) -> tuple[str, Path]:
        if recording not in recordings:
            raise CorpusError(f"{RECORDINGS} has no recording {recording}")
        audio = recordings[recording]
        if audio.endswith("|") or audio.startswith("|"):
            raise CorpusError(
                f"{RECORDINGS} has a command for it, and commands are never run",
                expected="the path of an audio file: run it yourself, and name the file that it gives",
                got=audio,
            )
        return place_of(self.settings, self.folder, audio)


def _cut(start_seconds: float, end_seconds: float) -> Cut:
    """As in Kaldi's extract-segments, a negative end means the end of the recording."""
    if not abs(start_seconds) + abs(end_seconds) < float("inf"):
        raise ValueError("a segment ends somewhere")
    return Cut(start_seconds, None if end_seconds < 0 else end_seconds - start_seconds)
