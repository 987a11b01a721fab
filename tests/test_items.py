"""Utterances in arrays: they come out as they went in, and take little."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdasr.items import Item, Items, LeftOut
from kdasr.shards import Shard, ShardEntry

ENTRIES = [
    ShardEntry("a", 16_000, 512, 90, 1_536, 40, 7),
    ShardEntry("a-much_longer-KEY", 2**40, 2**41, 2**42, 2**43, 2**44, 2**32 - 1),
    ShardEntry("b", 1, 2, 3, 4, 5, 6),
]


def shard(number: int) -> Shard:
    return Shard(Path(f"shard-{number:06d}.tar"), 3, 4.5, f"sha {number}", 2**45, tuple(ENTRIES), "a test")


@pytest.fixture
def items() -> Items:
    """All three utterances of one shard, none of the next, the last two of a third."""
    items = Items()
    items.add(shard(0), None, ENTRIES, [4, 5, 9])
    items.add(shard(1), None, [], [])
    items.add(shard(2), None, ENTRIES[1:], [0, 1])
    return items


def wanted() -> list[Item]:
    first, third = (replace(shard(number), entries=()) for number in (0, 2))
    rows = [(first, 0, 4), (first, 1, 5), (first, 2, 9), (third, 1, 0), (third, 2, 1)]
    return [Item(of, ENTRIES[entry], None, row) for of, entry, row in rows]


def test_utterances_come_out_as_they_went_in(items: Items) -> None:
    assert list(items) == wanted() and len(items) == 5
    assert [items[number] for number in (4, 0, -2)] == [wanted()[number] for number in (4, 0, -2)]
    assert type(items[1].entry.num_samples) is int and type(items[1].label_row) is int
    for number in (5, -6):
        with pytest.raises(IndexError):
            items[number]


def test_what_is_asked_of_all_is_told_in_their_order(items: Items) -> None:
    assert list(items.num_samples()) == [16_000, 2**40, 1, 2**40, 1]
    # Of the second shard nothing is used.
    assert [(first, list(table["key"])) for first, table in items.tables()] == [
        (0, [b"a", b"a-much_longer-KEY", b"b"]),
        (3, [b"a-much_longer-KEY", b"b"]),
    ]
    assert items.sha256() == {shard(0).path: "sha 0", shard(2).path: "sha 2"}


@pytest.mark.parametrize("numbers", [[], [0], [1, 2], [2, 3], [4], [0, 1, 2, 3, 4]])
def test_some_of_them(items: Items, numbers: list[int]) -> None:
    assert list(items.only(np.array(numbers, np.int64))) == [wanted()[number] for number in numbers]


def test_only_shards_of_which_something_is_left_are_told(items: Items) -> None:
    assert list(items.only(np.array([3])).sha256().values()) == ["sha 2"]


def test_an_utterance_takes_a_hundred_bytes() -> None:
    items, count = Items(), 2_000
    tracemalloc.start()
    for number in range(5):
        keys = (f"1089-134686-{number}{place:06d}" for place in range(count))
        entries = [
            ShardEntry(key, 200_000, place << 20, 10**5, place << 20, 100, 7)
            for place, key in enumerate(keys)
        ]
        items.add(replace(shard(number), entries=tuple(entries)), None, entries, range(count))
    del entries
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / len(items) < 100


def test_what_is_left_out_comes_out_in_order() -> None:
    found = LeftOut()
    assert not found and list(found.items()) == []
    for reasons in ({"x/b": "too long", "x/a": "«leise»"}, {}, {"y/\udce4": "too long"}):
        found.add(reasons)
    expected = {"x/b": "too long", "x/a": "«leise»", "y/\udce4": "too long"}
    assert len(found) == 3 and list(found.items()) == list(expected.items())


def test_what_is_left_out_takes_few_bytes() -> None:
    """Every process of a training knows millions of utterances."""
    found = LeftOut()
    tracemalloc.start()
    for shard in range(20):
        numbers = range(500 * shard, 500 * shard + 500)
        found.add(
            {f"/data/audio/1089-{number:08d}": f"{number / 250:.3f} s are too long" for number in numbers}
        )
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        len(found) == 10_000 and dict(found.items())["/data/audio/1089-00009999"] == "39.996 s are too long"
    )
    assert taken / len(found) < 20
