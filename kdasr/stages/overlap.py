"""Find the dev utterances whose audio is also in the training audio."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from kdasr.items import Item, Items
from kdasr.shards import read_flac

# If all clips have the same length, many have the same number of bytes too: not all of these are read.
_MOST_IN_VAIN = 1_000


def heard_in(dev: Items, training: Items) -> list[tuple[Item, Item]]:
    """The utterances of `dev` whose audio is in `training`, each with one there that has it.

    They are found whatever their names and transcripts: candidates have as many samples and bytes in the
    manifests, and their bytes are compared. Not found are other cuts of the same recordings, and audio that
    was processed or resampled otherwise. After 1,000 comparisons of bytes that fail, only utterances with the
    same key and transcript are found.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for first, table in dev.tables():
        for place, size in enumerate(_sizes(table).tolist(), first):
            by_size[size].append(place)
    sizes, found, in_vain = np.array(list(by_size)), dict[int, Item](), 0
    for first, table in training.tables():
        sizes_there = _sizes(table)
        for place in np.flatnonzero(np.isin(sizes_there, sizes)).tolist():
            item = training[first + place]
            for number in by_size[int(sizes_there[place])]:
                if number in found:
                    continue
                if _same_sum(dev[number], item) or (
                    in_vain < _MOST_IN_VAIN and _same_bytes(dev[number], item)
                ):
                    found[number] = item
                else:
                    in_vain += 1
    return [(dev[number], found[number]) for number in sorted(found)]


def _sizes(table: NDArray[np.void]) -> NDArray[np.int64]:
    """A number for each utterance, equal for equal numbers of samples and bytes."""
    sizes: NDArray[np.int64] = (table["num_samples"] << 32) ^ table["flac_bytes"]
    return sizes


def _same_sum(one: Item, other: Item) -> bool:
    """Whether audio and transcript are the same, according to the manifests."""
    sums = [(item.entry.key, item.entry.crc32) for item in (one, other)]
    return sums[0] == sums[1]


def _same_bytes(one: Item, other: Item) -> bool:
    return read_flac(one.shard, one.entry) == read_flac(other.shard, other.entry)
