"""Lists of JSON lines, as in NeMo: each NAME.jsonl or NAME.json in the corpus folder is a split NAME.

    {"audio_filepath": "clips/1.wav", "text": "it's a day"}
    {"audio_filepath": "/far/a.mp3", "offset": 12.5, "duration": 3.2, "text": "two", "speaker": "ann"}
    {"audio_filepath": "calls/1.wav", "channel": 1, "text": "three"}

`audio_filepath` is absolute or relative to the list; `duration` and `offset`, in seconds, select a cut of the
file; `channel` or `channel_selector`, counted from 0, selects one of its channels; `lang` or `language` is a
tag. A list in which no line has a `text` is unlabelled audio. Settings can name other keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from data_prep.support.dropped import Dropped
from data_prep.support.listed import Listed, key_of
from data_prep.support.lists import (
    AudioList,
    ListCorpus,
    ListSettings,
    lists_below,
    place_of,
    utf_16_fault,
)
from data_prep.support.settings import check_language
from kdasr.audio import MOST_SECONDS, Cut
from kdasr.errors import ConfigError, CorpusError

NEEDS_CORPUS = True
IN_PARALLEL = True
GENERATION = 3
EXTENSIONS = (".jsonl", ".json")
_CHANNEL, _AVERAGE = "channel", "average"
_NO_CHANNEL = "with a channel that is not a number, which is ignored"
_NO_TAG = "with a language that is not a tag such as en, which is ignored"


@dataclass(frozen=True, slots=True)
class Settings(ListSettings):
    """The settings of this corpus, in addition to those of all lists.

    Attributes:
        audio_key, text_key, speaker_key: the keys of the path of the audio, the transcript and the speaker.
        channel_key: the key of the channel: 0, 1, … or average. Under channel, anything else is ignored.
    """

    audio_key: str = "audio_filepath"
    text_key: str = "text"
    speaker_key: str = "speaker"
    channel_key: str = _CHANNEL


def _manifests(settings: Settings, corpus: Path) -> dict[str, Manifest]:
    found = lists_below(corpus, EXTENSIONS, f"lists of JSON lines with {settings.audio_key}")
    return {name: Manifest(settings, path) for name, path in found.items()}


_corpus = ListCorpus(_manifests)
splits, scope, prepare = _corpus.splits, _corpus.scope, _corpus.prepare


@dataclass(frozen=True, slots=True)
class Manifest(AudioList):
    """A file of JSON lines."""

    settings: Settings
    path: Path
    averaged_before: ClassVar[bool] = True

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def fault(self) -> CorpusError | None:
        audio, text = self.settings.audio_key, self.settings.text_key
        keys = self._keys()
        if audio in keys:
            return None
        return utf_16_fault(self.path) or CorpusError(
            "this is not a list of audio files",
            where=self.path,
            expected=f'lines of {{"{audio}": "…", "{text}": "…", …}} (--audio_key NAME for another)',
            got=f"the keys {', '.join(keys)}" if keys else None,
        )

    def names(self) -> tuple[str, Sequence[str]]:
        return "key", [key for key in self._keys() if key != self.settings.audio_key]

    def read(self, dropped: Dropped) -> list[Listed]:
        listed = []
        for number, line in self._lines():
            where = f"{self.path.name}:{number}"
            if (fields := _fields(line)) is None:
                dropped.add(where, "this is not a JSON object")
                continue
            try:
                listed.append(self._listed(where, fields, dropped))
            except CorpusError as error:
                dropped.add_error(where, error)
        return listed

    def _keys(self) -> list[str]:
        return [*dict.fromkeys(key for _, line in self._lines() for key in _fields(line) or {})]

    def _lines(self) -> Iterator[tuple[int, str]]:
        """The numbers and texts of lines that are not empty."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if text := line.decode("utf-8-sig", errors="replace").strip():
                    yield number, text

    def _listed(self, where: str, fields: dict[str, Any], dropped: Dropped) -> Listed:
        audio = _text_of(fields, self.settings.audio_key) or ""
        name, path = place_of(self.settings, self.path.parent, audio)
        offset, seconds = _number_of(fields, "offset"), _number_of(fields, "duration")
        cut = Cut(offset or 0.0, seconds, _channel_of(fields, self.settings.channel_key, dropped))
        return Listed(
            name=f"{where} {name}",
            # NeMo also writes the duration of whole files, which is not part of their key.
            key=key_of(audio, Cut(channel=cut.channel) if offset is None else cut),
            path=path,
            recording=name,
            text=_text_of(fields, self.settings.text_key),
            speaker=_text_of(fields, self.settings.speaker_key),
            language=_language_of(fields, dropped) or self.settings.language,
            cut=cut,
        )


def _fields(line: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _language_of(fields: dict[str, Any], dropped: Dropped) -> str | None:
    """The language tag of a line, `de_DE` as `de-DE`; None, and counted, if it cannot be a tag."""
    try:
        tag = _text_of(fields, "lang") or _text_of(fields, "language")
        tag = tag.replace("_", "-") if tag else None
        check_language(tag)
    except (ConfigError, CorpusError):
        dropped.notes[_NO_TAG] += 1
        return None
    return tag


def _channel_of(fields: dict[str, Any], channel_key: str, dropped: Dropped) -> int | None:
    """The one channel that a line selects."""
    given = {key: fields[key] for key in (channel_key, "channel_selector") if fields.get(key) is not None}
    # Without being asked for, `channel` may also be where something was recorded: "phone", "radio".
    if channel_key == _CHANNEL and not _is_channel(given.get(_CHANNEL, _AVERAGE)):
        dropped.notes[_NO_CHANNEL] += 1
        del given[_CHANNEL]
    key, value = next(iter(given.items()), ("", _AVERAGE))
    if value == _AVERAGE:
        return None
    if not _is_channel(value) or int(value) < 0:
        other = f" (--channel_key NAME if {key} means something else)" if key == channel_key else ""
        expected = f"0, 1, … or average{other}"
        raise CorpusError(f"the {key} is not a valid channel", expected=expected, got=repr(value))
    return int(value)


def _is_channel(value: Any) -> bool:
    return value == _AVERAGE or (isinstance(value, int) and not isinstance(value, bool))


def _text_of(fields: dict[str, Any], key: str) -> str | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CorpusError(f"the {key} is not a string", got=repr(value))
    # JSON can encode lone surrogates, which UTF-8 cannot.
    return str(value).encode("utf-8", "replace").decode()


def _number_of(fields: dict[str, Any], key: str) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    # The comparison is false for NaN too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MOST_SECONDS:
        raise CorpusError(f"the {key} is not a number of seconds", got=repr(value))
    return float(value)
