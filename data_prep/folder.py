"""Any folder of audio files without transcripts: one split, `unlabelled`.

wav, flac, ogg, opus and mp3 files are found in all folders below; hidden ones are passed over. A
key is made from the path below the folder, so adding a file changes no other key.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from data_prep.support.dropped import Dropped
from data_prep.support.settings import check_language, check_numbers
from kdasr.audio import SAMPLE_RATE_HZ, load_segments, promised_segments
from kdasr.errors import AudioError, ConfigError, CorpusError
from kdasr.interfaces import Utterance

NEEDS_CORPUS = True
GENERATION = 1
EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_WHOLE_SECONDS = 1e9
_MAX_NAME = 150


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set.

    Attributes:
        max_seconds: longer files are cut into equal segments of at most that; none: never cut.
        min_seconds: shorter files are left out.
        language: of the speech, such as en or pt-BR, for filters; none: unknown.
        max_shard_utterances: utterances in one shard.
    """

    max_seconds: float | None = 20.0
    min_seconds: float = 0.2
    language: str | None = None
    max_shard_utterances: int = 500

    def __post_init__(self) -> None:
        check_numbers(self)
        check_language(self.language)
        if self.max_seconds is not None and self.max_seconds < max(1.0, self.min_seconds):
            raise ConfigError("max_seconds is too short", expected="at least 1 s", got=self.max_seconds)


def splits(settings: Settings, corpus: Path) -> tuple[str, ...]:
    """The one split.

    Raises:
        CorpusError: there is no audio file in the folder.
    """
    if next(_files(corpus), None) is None:
        raise CorpusError(
            "there is no audio in this folder",
            where=corpus,
            expected=f"files that end in {', '.join(EXTENSIONS)}",
        )
    return ("unlabelled",)


def scope(settings: Settings, corpus: Path, split: str) -> tuple[Settings, Path]:
    """All settings and the whole folder."""
    return settings, corpus


def prepare(
    settings: Settings, corpus: Path, *, split: str, seed: int, dropped: Dropped, done: Mapping[str, int]
) -> Iterator[Utterance]:
    """The files, sorted by folder and name; of one at a time, one segment is in memory."""
    for path in _files(corpus):
        yield from _segments(settings, path, path.relative_to(corpus), dropped, done)


def _segments(
    settings: Settings, path: Path, name: PurePath, dropped: Dropped, done: Mapping[str, int]
) -> Iterator[Utterance]:
    kept, key, max_seconds = 0, key_of(name), settings.max_seconds or _WHOLE_SECONDS
    try:
        if _segment_key(key, 0) in done:
            promised, rate_hz = promised_segments(path, max_seconds)
            # A file that is cut or damaged is read again, to be named again.
            if promised and all(done.get(_segment_key(key, i)) == num for i, num in enumerate(promised)):
                dropped.note_rate(rate_hz, SAMPLE_RATE_HZ)
                return
        for samples, rate_hz, _ in load_segments(path, max_seconds):
            seconds = len(samples) / SAMPLE_RATE_HZ
            if seconds < settings.min_seconds:
                dropped.add(str(name), f"{seconds:.3f} s is shorter than min_seconds")
                return
            if kept == 0:
                dropped.note_rate(rate_hz, SAMPLE_RATE_HZ)
            yield Utterance(key=_segment_key(key, kept), samples=samples, language=settings.language)
            kept += 1
    except AudioError as error:
        dropped.add_error(str(name), error, f"; {kept} segments before that are kept" if kept else "")


def _segment_key(key: str, number: int) -> str:
    return f"{key}-{number:04d}"


def key_of(name: PurePath) -> str:
    """A key for the file `name` below the corpus: readable, and different for different names.

    What may not be in a key becomes `_`; the end is a hash of the name as it was.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", str(name.with_suffix("")))[-_MAX_NAME:]
    return f"{readable}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _files(corpus: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(corpus):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(parent, name)
