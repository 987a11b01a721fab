"""Lists of JSON lines, as NeMo has them: each NAME.jsonl or NAME.json in the corpus folder is a split NAME.

    {"audio_filepath": "clips/1.wav", "text": "it's a day"}
    {"audio_filepath": "/far/a.mp3", "offset": 12.5, "duration": 3.2, "text": "two", "speaker": "ann"}

`audio_filepath` is absolute or relative to the list; `duration` and `offset`, in seconds, make a cut of the
file; `lang` or `language` is a tag. A list of which no line has a `text` is one of unlabelled audio.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.support.dropped import Dropped
from data_prep.support.listed import Listed, key_of
from data_prep.support.lists import (
    AudioList,
    ListCorpus,
    ListSettings,
    lists_below,
    place_of,
)
from data_prep.support.settings import check_language
from kdasr.audio import Cut
from kdasr.errors import ConfigError, CorpusError

NEEDS_CORPUS = True
GENERATION = 2
EXTENSIONS = (".jsonl", ".json")
AUDIO = "audio_filepath"

Settings = ListSettings


def _manifests(settings: Settings, corpus: Path) -> dict[str, Manifest]:
    found = lists_below(corpus, EXTENSIONS, f"lists of JSON lines with {AUDIO}")
    return {name: Manifest(settings, path) for name, path in found.items()}


_corpus = ListCorpus(_manifests)
splits, scope, prepare = _corpus.splits, _corpus.scope, _corpus.prepare


@dataclass(frozen=True, slots=True)
class Manifest(AudioList):
    """A file of JSON lines."""

    settings: Settings
    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def fault(self) -> CorpusError | None:
        for _, line in self._lines():
            if AUDIO in (_fields(line) or {}):
                return None
        return CorpusError(
            "this is no list of audio",
            where=self.path,
            expected=f'lines of {{"{AUDIO}": "…", "text": "…", …}}',
        )

    def read(self, dropped: Dropped) -> list[Listed]:
        listed = []
        for number, line in self._lines():
            where = f"{self.path.name}:{number}"
            if (fields := _fields(line)) is None:
                dropped.add(where, "this is no JSON object")
                continue
            try:
                listed.append(self._listed(where, fields))
            except (ConfigError, CorpusError) as error:
                dropped.add_error(where, error)
        return listed

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Number and text of the lines that are not empty."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if text := line.decode("utf-8-sig", errors="replace").strip():
                    yield number, text

    def _listed(self, where: str, fields: dict[str, Any]) -> Listed:
        audio = _text_of(fields, AUDIO) or ""
        name, path = place_of(self.settings, self.path.parent, audio)
        offset, seconds = _number_of(fields, "offset"), _number_of(fields, "duration")
        cut = Cut(offset or 0.0, seconds)
        language = _text_of(fields, "lang") or _text_of(fields, "language") or self.settings.language
        check_language(language)
        return Listed(
            name=f"{where} {name}",
            # NeMo writes the duration of whole files, too, which is no part of their name.
            key=key_of(audio) if offset is None else key_of(audio, cut),
            path=path,
            recording=name,
            text=_text_of(fields, "text"),
            speaker=_text_of(fields, "speaker"),
            language=language,
            cut=cut,
        )


def _fields(line: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _text_of(fields: dict[str, Any], key: str) -> str | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CorpusError(f"the {key} is no text", got=repr(value))
    # JSON can spell halves of characters, which no file can hold.
    return str(value).encode("utf-8", "replace").decode()


def _number_of(fields: dict[str, Any], key: str) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CorpusError(f"the {key} is no number of seconds", got=repr(value))
    return float(value)
