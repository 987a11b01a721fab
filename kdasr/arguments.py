"""What a YAML says in, what a function takes out; what does not fit is refused by its name."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdasr.errors import ConfigError

# Types of which a YAML writes values; objects of any other know themselves what they are made of.
_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    types.NoneType: "null",
    Sequence: "a list",
    tuple: "a list",
    Mapping: "a mapping",
}
# In place of a number: it is measured before the loss is called.
_MEASURED = ("delay_frames", "auto")


def fitting(value: Any, hint: Any, where: str) -> Any:
    """The value as an annotation asks for it: one text where texts are asked for is a list of one.

    Raises:
        ConfigError: a value of another type.
    """
    kinds = _alternatives(hint)
    if isinstance(value, str) and str not in kinds and Sequence[str] in kinds:
        return [value]
    if not any(_is_of(value, kind) for kind in kinds):
        raise ConfigError("the value cannot be used", where=where, expected=_said(hint), got=repr(value))
    return value


def check_keywords(
    function: Callable[..., Any], keywords: Mapping[str, Any], where: str, *, positional: int | None = None
) -> None:
    """Raise ConfigError where a function, or a class that is to be built, does not take `keywords`.

    Args:
        positional: how many arguments come before them in a call that has no others; None where more
            of any kind are given later.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # a built-in does not say what it takes
    name = getattr(function, "__qualname__", str(function))
    parameters = signature.parameters.values()
    known = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY] or list(signature.parameters)
    try:
        what = f"{name} takes no such setting"
        signature.bind_partial(**keywords)
        if positional is not None:
            what = f"{name} lacks a setting"
            signature.bind(*[None] * positional, **keywords)
    except TypeError as error:
        reason = str(error).removeprefix("got ")
        raise ConfigError(what, where=where, expected=", ".join(known), got=reason) from error
    hints = _hints(function)
    for keyword, value in keywords.items():
        if (keyword, value) != _MEASURED:
            fitting(value, hints.get(keyword, Any), f"{where}.{keyword}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of what a function takes, or a class and those that it passes further settings on to."""
    made_by: list[Any] = [function]
    if isinstance(function, type):
        made_by = [one.__init__ for one in reversed(function.__mro__)]  # type: ignore[misc]
    hints: dict[str, Any] = {}
    for one in made_by:
        # Types imported for type checkers only, or an object that is called.
        with contextlib.suppress(NameError, TypeError):
            hints |= typing.get_type_hints(one)
    return hints


def check_named(value: Any, where: str) -> None:
    """Check the keywords of every function that a setting names (`!name:`), however deep it lies.

    Raises:
        ConfigError: as `check_keywords`.
    """
    inner: Mapping[Any, Any] = {}
    if isinstance(value, functools.partial):
        check_keywords(value.func, value.keywords, where)
        inner = value.keywords
    elif isinstance(value, Mapping):
        inner = value
    elif isinstance(value, list | tuple):
        inner = dict(enumerate(value))
    for name, one in inner.items():
        check_named(one, f"{where}.{name}")


def described(value: Any) -> Any:
    """A setting as text that is the same in every process: a function by name, an object by its config."""
    if isinstance(value, functools.partial):
        return [described(value.func), {k: described(v) for k, v in value.keywords.items()}]
    return getattr(value, "__qualname__", getattr(value, "config", value))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _is_of(value: Any, kind: Any) -> bool:
    if len(kinds := _alternatives(kind)) > 1:
        return any(_is_of(value, one) for one in kinds)
    plain, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if plain is typing.Literal:
        return value in parts
    if plain not in _KINDS:
        # Of a class of ours, where YAML's own values are not; but a text may stand for a path.
        is_path = isinstance(value, str) and plain is Path
        return (
            is_path
            or type(value) not in (bool, int, float, str, list, dict, types.NoneType)
            or _is_instance(value, plain)
        )
    if plain in (Sequence, tuple):
        return _is_list(value, parts, of_any_length=plain is Sequence or ... in parts)
    if plain in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if plain is float else plain)


def _is_instance(value: Any, kind: Any) -> bool:
    if kind is Any or not isinstance(kind, type):
        return True
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that only type checkers know
        return False


def _is_list(value: Any, kinds: tuple[Any, ...], *, of_any_length: bool) -> bool:
    """Whether a value is a list of elements of the first kind, or of one of each kind."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    if of_any_length:
        return not kinds or all(_is_of(one, kinds[0]) for one in value)
    return len(value) == len(kinds) and all(map(_is_of, value, kinds))


def _said(kind: Any) -> str:
    if len(kinds := _alternatives(kind)) > 1:
        return " or ".join(map(_said, kinds))
    plain = typing.get_origin(kind) or kind
    parts = typing.get_args(kind)
    if plain is typing.Literal:
        return " or ".join(map(str, parts))
    if plain in (Sequence, tuple) and parts:
        elements = (*parts, ...) if plain is Sequence else parts
        return "[" + ", ".join("…" if one is ... else _said(one) for one in elements) + "]"
    return _KINDS.get(plain, str(kind))
