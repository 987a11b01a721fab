"""Find the dev utterances whose audio is also in the training audio."""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.items import Item, Items
from kdasr.shards import read_flac, read_metas, read_utterance

# If all clips have the same length, many have the same number of bytes too: not all of these are read.
_MOST_IN_VAIN = 1_000
# A key made by `kdasr prepare`: the recording's name and its hash, perhaps its channel, which is then a
# recording of its own; then the start and end of a cut in milliseconds, then the number of a segment. Up to
# three parts follow the recording, each after a hyphen.
_CUT = re.compile(rb"(.+?-[0-9a-f]{8}(?:-c\d+)?)(-\d{7,}(-\d{7,}|-end)?)?(-\d{4,})?")
_MOST_PARTS = 3
# An overlap of this length, or of half a dev utterance, is more than the margins of neighbouring cuts.
_COMMON_S = 5.0
# The least correlation of two copies of the same audio. Different recordings stay far below, unless both hold
# nothing but the same hum.
_ALIKE = 0.9
_COMPARED_S, _MOST_LAG_S = 5.0, 0.05
# After this many names that stand for different recordings, names in two folders are taken to be unrelated.
_MOST_UNLIKE = 3


def heard_in(dev: Items, training: Items) -> list[tuple[Item, Item]]:
    """The utterances of `dev` whose audio is in `training`, each with one there that has it.

    Equal utterances are found whatever their names and transcripts: candidates have as many samples and bytes
    in the manifests, and their bytes are compared. Utterances that overlap in a recording, but begin or end
    elsewhere, are found by the recording's name, which is in the keys. Since two corpora may both have a
    "1.wav", the audio of a few of them is compared for each pair of folders.

    Not found are: other parts of the same recordings; audio that was processed or resampled otherwise; of
    overlapping utterances, those whose recordings are named differently in the two lists or folders, or whose
    keys are not made of the recording's name (Kaldi's). After 1,000 comparisons of bytes that
    fail, only utterances with the same key and transcript are found.
    """
    found = _whole(dev, training)
    found |= _cuts(dev, training, found)
    return [(dev[number], found[number]) for number in sorted(found)]


def _whole(dev: Items, training: Items) -> dict[int, Item]:
    """The utterances of `dev`, by number, whose exact bytes are in `training`."""
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
    return found


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


class _Part(NamedTuple):
    """An utterance and where it starts and ends in its recording, in seconds."""

    item: Item
    start: float
    end: float

    def common_s(self, other: _Part) -> float:
        return min(self.end, other.end) - max(self.start, other.start)


def _cuts(dev: Items, training: Items, known: dict[int, Item]) -> dict[int, Item]:
    """The utterances of `dev`, by number and without the `known`, of which 5 s or half overlap with one of
    `training`."""
    cut_keys = ((number, _CUT.fullmatch(key)) for number, key in _keys(dev) if number not in known)
    recording_of = {number: cut[1] for number, cut in cut_keys if cut}
    by_recording: dict[bytes, list[tuple[float, int, _Part]]] = defaultdict(list)
    for number, here in _parts(dev, recording_of):
        by_recording[recording_of[number]].append((here.start, number, here))
    longest_s = {}
    for name, parts in by_recording.items():
        parts.sort()
        longest_s[name] = max(here.end - here.start for _, _, here in parts)
    named = ((place, _named(key, by_recording)) for place, key in _keys(training) if by_recording)
    name_of = {place: name for place, name in named if name is not None}
    found, same_names = dict[int, Item](), _SameNames()
    for place, there in _parts(training, name_of):
        parts = by_recording[name_of[place]]
        # No part that starts earlier reaches it.
        first = bisect.bisect_left(parts, (there.start - longest_s[name_of[place]],))
        for start, number, here in itertools.islice(parts, first, None):
            if start > there.end:
                break
            enough = min(_COMMON_S, (here.end - here.start) / 2)
            if number not in found and here.common_s(there) >= enough and same_names.of(here, there):
                found[number] = there.item
    return found


def _keys(items: Items) -> Iterator[tuple[int, bytes]]:
    for first, table in items.tables():
        yield from enumerate(table["key"].tolist(), first)


def _named(key: bytes, recordings: Container[bytes]) -> bytes | None:
    """The one of `recordings` that an utterance with this key comes from."""
    for _ in range(_MOST_PARTS + 1):
        if key in recordings:
            return key
        key = key.rpartition(b"-")[0]
    return None


def _parts(items: Items, places: Iterable[int]) -> Iterator[tuple[int, _Part]]:
    """The utterances at these places, in order, that know where they are in a recording; each shard is opened
    once."""
    chosen = ((place, items[place]) for place in sorted(places))
    for _, group in itertools.groupby(chosen, lambda pair: pair[1].shard.path):
        pairs = list(group)
        shard = replace(pairs[0][1].shard, entries=tuple(item.entry for _, item in pairs))
        for (place, item), meta in zip(pairs, read_metas(shard), strict=True):
            if meta.get("source") is not None:
                start = meta.get("offset") or 0.0
                yield place, _Part(item, start, start + item.entry.num_samples / SAMPLE_RATE_HZ)


class _SameNames:
    """Whether the same name means the same recording in two folders: it does if one pair sounds alike."""

    def __init__(self) -> None:
        self._same = set[tuple[Path, Path]]()
        self._unlike = Counter[tuple[Path, Path]]()

    def of(self, here: _Part, there: _Part) -> bool:
        """Whether it does in the folders of two utterances that overlap according to their offsets."""
        folders = (here.item.shard.path.parent, there.item.shard.path.parent)
        if folders not in self._same and self._unlike[folders] < _MOST_UNLIKE:
            if _sound_alike(here, there):
                self._same.add(folders)
            else:
                self._unlike[folders] += 1
        return folders in self._same


def _sound_alike(here: _Part, there: _Part) -> bool:
    """Whether the audio of two utterances correlates where they overlap, at a lag of at most 50 ms."""
    start = max(here.start, there.start)
    pieces = []
    for part in (here, there):
        samples = read_utterance(part.item.shard, part.item.entry).samples
        first = round((start - part.start) * SAMPLE_RATE_HZ)
        pieces.append(samples[first : first + int(_COMPARED_S * SAMPLE_RATE_HZ)])
    length = min(map(len, pieces))
    one, other = (piece[:length] - piece[:length].mean() for piece in pieces)
    spectra = [np.fft.rfft(piece, 2 * length) for piece in (one, other)]
    correlation = np.fft.irfft(spectra[0] * spectra[1].conj())
    lags = int(_MOST_LAG_S * SAMPLE_RATE_HZ)
    most = max(correlation[:lags].max(), correlation[-lags:].max())
    # Silence is not alike anything.
    return bool(most > max(_ALIKE * np.linalg.norm(one) * np.linalg.norm(other), 1e-6))
