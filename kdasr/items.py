"""The utterances of a stream, in arrays: there may be millions, and every process of a training knows them.

As Python objects each took some 700 bytes, and each worker of a DataLoader soon had them all again: who looks
at an object changes its reference count, and so copies the page on which it lies.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdasr.contract import Contract
from kdasr.shards import Shard, ShardEntry
from kdasr.soft_labels import LabelShard

_FIELDS = [field.name for field in fields(ShardEntry)]
_values = attrgetter(*_FIELDS)


class Joined(NamedTuple):
    """The soft labels of one audio shard, and how they become those of the student."""

    labels: LabelShard
    contract: Contract | None


class Item(NamedTuple):
    """An utterance.

    Attributes:
        shard: where it lies; without its `entries`.
        entry: where in it.
        joined: the soft labels of its shard.
        label_row: which of them are its own; see `LabelShard.rows`.
    """

    shard: Shard
    entry: ShardEntry
    joined: Joined | None = None
    label_row: int = 0


class Items:
    """Utterances in order, shard by shard; each is made anew when it is asked for."""

    def __init__(self) -> None:
        self._shards: list[tuple[Shard, Joined | None]] = []
        self._tables: list[NDArray[np.void]] = []
        self._ends: list[int] = []

    def add(
        self, shard: Shard, joined: Joined | None, entries: Sequence[ShardEntry], label_rows: Sequence[int]
    ) -> None:
        """Append those `entries` of a shard, and the row of its soft labels that belongs to each."""
        longest = max((len(entry.key) for entry in entries), default=0)
        numbers = [(name, np.int64) for name in (*_FIELDS[1:], "label_row")]
        rows = [(*_values(entry), row) for entry, row in zip(entries, label_rows, strict=True)]
        self._append(
            replace(shard, entries=()), joined, np.array(rows, [(_FIELDS[0], f"S{longest}"), *numbers])
        )

    def _append(self, shard: Shard, joined: Joined | None, table: NDArray[Any]) -> None:
        if len(table):
            self._shards.append((shard, joined))
            self._tables.append(table)
            self._ends.append(len(self) + len(table))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Item:
        number = range(len(self))[number]
        place = bisect.bisect_right(self._ends, number)
        (shard, joined), table = self._shards[place], self._tables[place]
        key, *numbers, label_row = table[number - self._ends[place]].item()
        return Item(shard, ShardEntry(key.decode(), *numbers), joined, label_row)

    def __iter__(self) -> Iterator[Item]:
        return map(self.__getitem__, range(len(self)))

    def only(self, numbers: NDArray[np.int64]) -> Items:
        """Those of these `numbers`, which rise."""
        chosen, first = Items(), 0
        for (shard, joined), table, end in zip(self._shards, self._tables, self._ends, strict=True):
            inside = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, end)]
            chosen._append(shard, joined, table[inside - first])
            first = end
        return chosen

    def num_samples(self) -> Iterator[int]:
        """Of each utterance."""
        return (count for table in self._tables for count in table["num_samples"].tolist())

    def sha256(self) -> dict[Path, str]:
        """Of each tar."""
        return {shard.path: shard.sha256 for shard, _ in self._shards}
