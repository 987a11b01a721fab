"""The utterances of a stream, in arrays: there may be millions, and every training process holds them.

As Python objects, each would take some 700 bytes, and each DataLoader worker would soon have its own copy:
reading an object changes its reference count, which copies its memory page.
"""

from __future__ import annotations

import bisect
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
    """The soft labels of one audio shard, and how they are mapped to the student."""

    labels: LabelShard
    contract: Contract | None


class Item(NamedTuple):
    """An utterance.

    Attributes:
        shard: the shard that holds it, without `entries`.
        entry: its place in the shard.
        joined: the soft labels of its shard.
        label_row: the row of its own labels in them; see `LabelShard.rows`.
        speed: how many times as fast it is read.
    """

    shard: Shard
    entry: ShardEntry
    joined: Joined | None = None
    label_row: int = 0
    speed: float = 1.0


class Items:
    """Utterances in order, shard by shard; each `Item` is created on access."""

    def __init__(self) -> None:
        self._shards: list[tuple[Shard, Joined | None]] = []
        self._tables: list[NDArray[np.void]] = []
        self._ends: list[int] = []

    def add(
        self, shard: Shard, joined: Joined | None, entries: Sequence[ShardEntry], label_rows: Sequence[int]
    ) -> None:
        """Append these `entries` of a shard, with the row of its soft labels for each."""
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
        """The utterances with these `numbers`, which must be ascending."""
        chosen, first = Items(), 0
        for (shard, joined), table, end in zip(self._shards, self._tables, self._ends, strict=True):
            inside = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, end)]
            chosen._append(shard, joined, table[inside - first])
            first = end
        return chosen

    def tables(self) -> Iterator[tuple[int, NDArray[np.void]]]:
        """For each shard the number of its first utterance, and an array of `ShardEntry` values, with keys as
        bytes."""
        return zip([0, *self._ends], self._tables, strict=False)

    def num_samples(self) -> Iterator[int]:
        """The number of samples of each utterance."""
        return (count for table in self._tables for count in table["num_samples"].tolist())

    def sha256(self) -> dict[Path, str]:
        """The sha256 of each tar."""
        return {shard.path: shard.sha256 for shard, _ in self._shards}


class LeftOut:
    """Names of utterances that are not used, and why.

    Every training process holds all of them, and there may be millions. Compressed, shard by shard, they
    take 6 to 20 bytes each; in a dict they would take 200, twice as much as utterances that are used.
    """

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._count = 0

    def add(self, reasons: Mapping[str, str]) -> None:
        """Append those of one shard, as a map from name to reason."""
        if reasons:
            # A higher level takes longer and saves hardly any space.
            self._packed.append(zlib.compress(json.dumps(reasons).encode(), 1))
            self._count += len(reasons)

    def __len__(self) -> int:
        return self._count

    def items(self) -> Iterator[tuple[str, str]]:
        """Names and reasons, in the order in which they were added."""
        for packed in self._packed:
            yield from json.loads(zlib.decompress(packed)).items()
