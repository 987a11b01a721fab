"""Convert setting values from YAML or a command line to a corpus's typed Settings."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from data_prep.support.spoken import check_spoken
from kdasr.errors import ConfigError, UnitsError

SettingsT = TypeVar("SettingsT")
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class AudioSettings:
    """The settings that a folder and lists of audio share; each explains those that it uses in its own way.

    Attributes:
        letters: the language's letters beyond a-z, such as äöüß: transcripts keep them and lose all
            other accents. The units of a model must also have them.
        numbers: en-US or en-GB: digits with one usual reading become English words, as "one hundred five"
            or "one hundred and five"; none: transcripts with digits are left out.
        spoken_forms: a file of lines WRITTEN<TAB>SPOKEN, such as mr.<TAB>mister, which transcripts are
            rewritten by before anything else; none: they are as they are spoken.
        max_shard_utterances: utterances in one shard.
    """

    held_out_share: float = 0.0
    min_seconds: float = 0.2
    max_seconds: float | None = 20.0
    language: str | None = None
    letters: str = ""
    numbers: str | None = None
    spoken_forms: str | None = None
    max_shard_utterances: int = 500

    def __post_init__(self) -> None:
        check_numbers(self)
        check_language(self.language)
        object.__setattr__(self, "letters", checked_letters(self.letters))
        _check_max_seconds(self)
        check_spoken(self)


def parse_settings(settings_class: type[SettingsT], values: Mapping[str, Any], where: str) -> SettingsT:
    """An instance of the dataclass `settings_class`, with defaults for settings not in `values`.

    Numbers may be given as text, and lists as text with commas, as on a command line.

    Raises:
        ConfigError: an unknown setting, a value of the wrong type, or a value that the class refuses.
    """
    known = {field.name for field in dataclasses.fields(settings_class)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}",
            where=where,
            expected=f"one of {', '.join(sorted(known))}",
            fix="Check the spelling.",
        )
    hints = typing.get_type_hints(settings_class)
    return settings_class(**{name: _convert(value, hints[name], name) for name, value in values.items()})


def check_numbers(settings: Any) -> None:
    """Refuse numbers that do not fit the names of their settings; for `__post_init__` of a Settings.

    Ranges (tuples of two) run from low to high; minutes, voices and seconds are not negative;
    probabilities and shares lie between 0 and 1; held_out_share, which is held out twice, is below 0.5; a
    shard holds at least one utterance.

    Raises:
        ConfigError: naming the setting.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        is_range = Ellipsis not in typing.get_args(hints[field.name])
        numbers = [
            number for number in (value if isinstance(value, tuple) else (value,)) if _is_number(number)
        ]
        problem = ""
        if is_range and numbers != sorted(numbers):
            problem = "low,high with low first"
        elif field.name.endswith(("minutes", "voices", "seconds")) and any(number < 0 for number in numbers):
            problem = "at least 0"
        elif field.name == "held_out_share" and not 0 <= value < 0.5:
            problem = "at least 0 and below 0.5, since as much is held out for dev as for test"
        elif field.name.endswith(("probability", "share")) and not all(
            0 <= number <= 1 for number in numbers
        ):
            problem = "from 0 to 1"
        elif field.name == "max_shard_utterances" and value < 1:
            problem = "at least 1"
        if problem:
            raise ConfigError("the value is out of range", where=field.name, expected=problem, got=value)


def check_language(tag: str | None) -> None:
    """Refuse anything but a language tag (BCP 47), so that filters can match it.

    Raises:
        ConfigError: for `English`, `en_GB`, …
    """
    if tag is not None and not _LANGUAGE_TAG.fullmatch(tag):
        expected = "a tag such as en, en-GB or yue-Hant"
        raise ConfigError("this is not a language tag", where="language", expected=expected, got=tag)


def checked_letters(letters: str) -> str:
    """A language's letters beyond a-z, in order.

    Raises:
        ConfigError: there are other characters among them.
    """
    from kdasr.text import check_letters  # command-line help works without importing SentencePiece

    try:
        return check_letters(letters) if letters else ""
    except UnitsError as error:
        raise ConfigError(error.what, where="--letters", expected=error.expected, got=letters) from error


def _check_max_seconds(settings: Any) -> None:
    """Refuse values of `max_seconds` and `segment_seconds` that are too short.

    Raises:
        ConfigError: `max_seconds` is below 1 s or `min_seconds`, or `segment_seconds` is below 1 s.
    """
    if (segment := getattr(settings, "segment_seconds", None)) is not None and segment < 1:
        raise ConfigError("segment_seconds is too short", expected="at least 1 s", got=segment)
    if settings.max_seconds is not None and settings.max_seconds < max(1.0, settings.min_seconds):
        expected = "at least 1 s, and at least min_seconds" if settings.min_seconds > 1 else "at least 1 s"
        raise ConfigError("max_seconds is too short", expected=expected, got=settings.max_seconds)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _convert(value: Any, hint: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None or value == "none":
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    try:
        if typing.get_origin(hint) is tuple:
            return _convert_tuple(value, typing.get_args(hint))
        return _convert_scalar(value, hint)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            "the value cannot be used", where=f"--{name}", expected=_describe(hint), got=repr(value)
        ) from error


def _convert_tuple(value: Any, item_hints: tuple[Any, ...]) -> tuple[Any, ...]:
    items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        items = [items]
    if item_hints[-1] is Ellipsis:
        return tuple(_convert_scalar(item, item_hints[0]) for item in items)
    if len(items) != len(item_hints):
        raise ValueError(f"{len(item_hints)} values are needed")
    return tuple(_convert_scalar(item, hint) for item, hint in zip(items, item_hints, strict=True))


def _convert_scalar(value: Any, hint: Any) -> Any:
    if hint is bool:
        return _convert_truth(value)
    if isinstance(value, bool):
        raise TypeError("a truth value is not a number or a name")
    if hint is int and float(value) != int(float(value)):
        raise ValueError("a whole number is needed")
    if hint is int:
        return int(float(value))
    if hint is float and not math.isfinite(float(value)):
        raise ValueError("a finite number is needed")
    if hint is float:
        return float(value)
    if not isinstance(value, str | int):
        raise TypeError("a string is needed")
    return str(value)


def _convert_truth(value: Any) -> bool:
    if str(value).lower() not in _TRUTHS:
        raise ValueError("true or false is needed")
    return _TRUTHS[str(value).lower()]


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    if typing.get_origin(hint) is tuple:
        first, *rest = typing.get_args(hint)
        return (
            f"a list of {'strings' if first is str else 'numbers'}"
            if Ellipsis in rest
            else "two numbers: low,high"
        )
    return names[hint]
