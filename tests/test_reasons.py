"""Reasons are counted by kind, with one of each to look at."""

from __future__ import annotations

import pytest

from kdasr import reasons
from kdasr.reasons import Kind, Reasons, counted, duration, lines_of


def test_reasons_that_differ_in_numbers_are_counted_as_one() -> None:
    found = Reasons(
        [("a", "silent"), ("b", "too short: 0.2 s"), ("c", "too short: 0.31 s"), ("d", "utf8 is not utf16")]
    )
    found.add(Kind(5, "e", "silent"))
    assert found.commonest() == [
        Kind(6, "a", "silent"),
        Kind(2, "b", "too short: 0.2 s"),
        Kind(1, "d", "utf8 is not utf16"),
    ]


def test_people_see_the_commonest_and_how_many_there_are_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "_MOST_SHOWN", 2)
    kinds = [
        Kind(1200, "a", "silent"),
        Kind(1, "b", "too short"),
        Kind(1, "c", "other"),
        Kind(1, "d", "none"),
    ]
    assert lines_of(kinds, "not labelled") == [
        "not labelled: a and 1,199 more: silent",
        "not labelled: b: too short",
        "not labelled: 2 more, for other reasons; the manifests list each",
    ]
    assert lines_of([], "not labelled") == []


def test_one_is_no_plural() -> None:
    assert [counted(count, "shard") for count in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


def test_durations_are_in_the_unit_that_people_would_choose() -> None:
    said = {
        0.0: "0.0 s",
        59.9: "59.9 s",
        90.0: "1.5 min",
        59.96: "1.0 min",
        3590.0: "59.8 min",
        3599.0: "1.00 h",
        3600.0: "1.00 h",
        3.6e6: "1,000.00 h",
    }
    assert {seconds: duration(seconds) for seconds in said} == said
