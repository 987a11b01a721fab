"""What recipes say is compared with what functions take, before anything runs."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from kdasr.arguments import check_keywords, check_named, fitting
from kdasr.errors import ConfigError
from kdasr.interfaces import StreamingModel


def loss(
    output: int,
    batch: int,
    *,
    delay_frames: int = 0,
    policy: Literal["all", "some"] = "all",
    teacher: str | None = None,
) -> None:
    """A function such as recipes name."""


class Model:
    """A class such as recipes name."""

    def __init__(self, *, vocab_size: int, width: int = 8, dropout: float = 0.1) -> None:
        self.sizes = vocab_size, width, dropout


class FurtherModel(Model):
    """A class that passes further settings on."""

    def __init__(self, *, depth: int = 2, **further: Any) -> None:
        super().__init__(**further)
        self.depth = depth


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        ("runs/a", Sequence[str], ["runs/a"]),
        ("runs/a", Sequence[str] | Model, ["runs/a"]),
        ("runs/a", str | Sequence[str], "runs/a"),
        (3, float, 3),
        (None, int | None, None),
        ([], Sequence[tuple[str, int]], []),
        ([["a", 1]], Sequence[tuple[str, int]], [["a", 1]]),
        ((5, 20.0), tuple[float, float], (5, 20.0)),
        ([1, 2, 3], tuple[int, ...], [1, 2, 3]),
        ({"a": 1}, str | Mapping[str, Any], {"a": 1}),
        ("runs/a", Path | None, "runs/a"),
        ({1, 2}, Collection[int], {1, 2}),
        ([1, 2], Collection[int], [1, 2]),
        (3, Any, 3),
        (None, Any, None),
        (None, Model | None, None),
        (["a", "b"], Sequence[str | Path], ["a", "b"]),
        ([{"steps": 3}], Sequence[Model | Mapping[str, Any]], [{"steps": 3}]),
        ([1, None], tuple[int | None, ...], [1, None]),
    ],
)
def test_what_fits_is_given_back(value: object, hint: object, found: object) -> None:
    assert fitting(value, hint, "key") == found


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("many", int, "key: .*expected a whole number; got 'many'"),
        (8.0, int, "a whole number"),
        (True, int, "a whole number"),
        ("x", float | None, "a number or null"),
        (3, Sequence, "a list"),
        (3, Sequence[str], r"expected \[a string, …\]; got 3"),
        ("12", Sequence[int], r"\[a whole number, …\]"),
        ([1, "2"], Sequence[int], r"\[a whole number, …\]"),
        (["a", 1], Sequence[tuple[str, int]], r"\[\[a string, a whole number\], …\]"),
        (10, tuple[float, float], r"\[a number, a number\]; got 10"),
        ([1], tuple[int, int], r"\[a whole number, a whole number\]; got \[1\]"),
        ([1, "2"], tuple[int, ...], r"\[a whole number, …\]"),
        ("x", Literal["all", "some"], "all or some"),
        ("x", Mapping[str, int] | None, "a mapping or null"),
        (1, bool, "true or false"),
        (3, str | Model, "a string or .*Model"),
        (["a"], Model, "Model.*got \\['a'\\]"),
        ("none", Model | None, "Model.* or null; got 'none'"),
        (3, StreamingModel, "StreamingModel"),
        (None, Model, "Model.*; got None"),
        ([1, "a"], Sequence[int | None], r"\[a whole number or null, …\]; got \[1, 'a'\]"),
        (None, str | Model, "a string or .*Model.*; got None"),
    ],
)
def test_what_does_not_is_refused_by_name(value: object, hint: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        fitting(value, hint, "key")


def test_keywords_are_those_of_the_function() -> None:
    check_keywords(loss, {"delay_frames": 2, "policy": "some"}, "here", positional=2)
    check_keywords(loss, {"delay_frames": "auto"}, "here", positional=2)
    check_keywords(Model, {"width": 4}, "here")
    with pytest.raises(
        ConfigError,
        match=r"here: unknown setting for loss; .*delay_frames, policy, teacher; got .*'delay_frame'",
    ):
        check_keywords(loss, {"delay_frame": 2}, "here", positional=2)
    with pytest.raises(ConfigError, match=r"here\.teacher: .*a string or null; got 3"):
        check_keywords(loss, {"teacher": 3}, "here", positional=2)
    with pytest.raises(
        ConfigError, match=r"Model lacks a setting; expected vocab_size, .*missing .*'vocab_size'"
    ):
        check_keywords(Model, {}, "here", positional=0)


def test_settings_that_are_passed_on_are_those_of_the_class_that_takes_them() -> None:
    check_keywords(FurtherModel, {"vocab_size": 4, "depth": 1}, "here", positional=0)
    for name in ("width", "depth"):
        with pytest.raises(ConfigError, match=rf"here\.{name}: .*a whole number; got '8'"):
            check_keywords(FurtherModel, {"vocab_size": 4, name: "8"}, "here")


def test_named_functions_are_found_however_deep() -> None:
    bad: Any = functools.partial(loss, policy="none")  # type: ignore[arg-type]
    outer = functools.partial(loss, teacher=bad)
    for value, where in ({"soft": {"loss": bad}}, "losses.soft.loss"), ([1, bad], "losses.1"):
        with pytest.raises(ConfigError, match=re.escape(f"{where}.policy")):
            check_named(value, "losses")
    with pytest.raises(ConfigError, match="teacher"):
        check_named(outer, "losses")
    check_named({"soft": {"loss": functools.partial(loss, policy="some")}}, "losses")
