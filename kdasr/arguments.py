"""Check values from YAML against what functions take; what does not fit is refused by name."""

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

# Types whose values YAML can express; objects of other types check their own arguments.
_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    types.NoneType: "null",
    Sequence: "a list",
    tuple: "a list",
    Mapping: "a mapping",
}
# Accepted instead of a number: the delay is measured before the loss is called.
_MEASURED = ("delay_frames", "auto")


def fitting(value: Any, hint: Any, where: str) -> Any:
    """The value, checked against an annotation; a single text becomes a list if texts are expected.

    Raises:
        ConfigError: the value has another type.
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
    """Raise ConfigError if a function, or a class to be built, does not take `keywords`.

    Args:
        positional: the number of positional arguments of a call with no other keywords; None if more
            arguments of any kind are given later.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # some built-ins have no signature
    name = getattr(function, "__qualname__", str(function))
    parameters = signature.parameters.values()
    known = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY] or list(signature.parameters)
    try:
        what = f"unknown setting for {name}"
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
    """The types of a function's arguments, or of a class's and its base classes' arguments."""
    made_by: list[Any] = [function]
    if isinstance(function, type):
        made_by = [one.__init__ for one in reversed(function.__mro__)]  # type: ignore[misc]
    hints: dict[str, Any] = {}
    for one in made_by:
        # Fails for types imported only for type checkers, and for callable objects.
        with contextlib.suppress(NameError, TypeError):
            hints |= typing.get_type_hints(one)
    return hints


def check_named(value: Any, where: str) -> None:
    """Check the keywords of every function that a setting names (`!name:`), at any depth.

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
    """A setting in a form that is the same in every process: functions by name, objects by their config."""
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
        # For our own classes, accept anything but YAML's own values; a text may stand for a path.
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
    except TypeError:  # a protocol that cannot be checked at runtime
        return False


def _is_list(value: Any, kinds: tuple[Any, ...], *, of_any_length: bool) -> bool:
    """Whether a value is a list of the first kind, or has one element of each kind."""
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
