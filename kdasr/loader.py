"""Audio shards, joined by key with soft labels, in; training batches out, in an order fixed by a seed.

Which utterances make up step n is a pure function of the manifests, the settings and the seed. So a
position in the data is one number, resuming needs nothing else, and workers cannot change the order.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kdasr.audio import resample
from kdasr.errors import ConfigError, ShardError
from kdasr.features import FRAME_SHIFT_MS, HOP_SAMPLES, LOG_MEL_FLOOR, log_mel, num_frames
from kdasr.interfaces import Batch, SoftLabels, Utterance
from kdasr.shards import Shard, ShardEntry, list_shards, open_shard, read_utterance
from kdasr.soft_labels import LabelFolder, LabelShard, pad_soft_labels
from kdasr.text import Units

# Lengths are taken this much longer or shorter when an epoch is sorted, so that batches differ
# between epochs; it is also about what padding costs.
_LENGTH_NOISE = 0.05


class Item(NamedTuple):
    shard: Shard
    entry: ShardEntry


@dataclass(slots=True)
class Stream:
    """One endless source of batches: shards, cut into length-bucketed batches, epoch after epoch.

    Args:
        folders: folders of audio shards.
        batch_seconds: audio in a batch, padding included.
        seed: decides the batches and their order.
        units: turns transcripts into tokens; None for unlabelled audio.
        labels: soft labels for the audio; None for labelled audio.
        speeds: speed perturbation: each reading of an utterance picks one of these factors.
        max_utterances: use only so many utterances (the first of a seeded shuffle); None for all.
        exclude_longer_s: utterances longer than this are left out (and counted in `left_out`).
        cache_bytes: memory for features that were computed already; small corpora fit whole.
    """

    folders: Sequence[Path]
    batch_seconds: float
    seed: int
    units: Units | None = None
    labels: LabelFolder | None = None
    speeds: tuple[float, ...] = (1.0,)
    max_utterances: int | None = None
    exclude_longer_s: float = 40.0
    cache_bytes: int = 0
    items: list[Item] = field(init=False)
    left_out: dict[str, str] = field(init=False, default_factory=dict)
    _cache: FeatureCache = field(init=False)
    _frames: NDArray[np.int64] = field(init=False)
    _epochs: dict[int, list[list[int]]] = field(init=False, default_factory=dict)
    _batches_per_epoch: int = field(init=False, default=0)
    _label_shards: dict[Path, LabelShard] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels is not None and self.speeds != (1.0,):
            raise ConfigError(
                "speed perturbation would part the audio from its soft labels",
                where="speeds",
                expected=[1.0],
                got=list(self.speeds),
                fix="Perturb the audio when it is prepared, before it is labelled.",
            )
        self.items = list(self._usable_items())
        if self.max_utterances is not None:
            order = np.random.default_rng(self.seed).permutation(len(self.items))
            self.items = [self.items[i] for i in sorted(order[: self.max_utterances])]
        if not self.items:
            raise ShardError(
                "no utterance can be used",
                where=", ".join(str(folder) for folder in self.folders),
                got="; ".join(f"{key}: {reason}" for key, reason in list(self.left_out.items())[:3]) or None,
            )
        self._cache = FeatureCache(self.cache_bytes)
        # The slowest speed makes the longest audio; batches are cut for it.
        slowest = min(self.speeds)
        frames = [math.ceil(num_frames(item.entry.num_samples) / slowest) for item in self.items]
        self._frames = np.asarray(frames)

    def fingerprint(self) -> list[Any]:
        """What decides the batches: the audio, the labels and the settings."""
        shards = {item.shard.path: item.shard.sha256 for item in self.items}
        labels = [self._label_shards[path].header.config_hash for path in self._label_shards]
        settings = [self.batch_seconds, self.seed, self.speeds, self.max_utterances, self.exclude_longer_s]
        return [sorted(shards.values()), labels, settings, len(self.items)]

    def batch(self, position: int) -> Batch:
        """The `position`-th batch since the beginning of training."""
        epoch, index = self.locate(position)
        return self._load(epoch, self.epoch_batches(epoch)[index])

    def locate(self, position: int) -> tuple[int, int]:
        """Epoch and index within it of the `position`-th batch. All epochs have as many batches."""
        if self._batches_per_epoch == 0:
            self._batches_per_epoch = len(self.epoch_batches(0))
        return divmod(position, self._batches_per_epoch)

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """Item numbers of each batch of an epoch; every item is in exactly one batch."""
        if epoch not in self._epochs:
            batch_frames = int(self.batch_seconds * 1000 / FRAME_SHIFT_MS)
            self._epochs = {epoch: cut_epoch(self._frames, batch_frames, self.seed, epoch)}
        return self._epochs[epoch]

    def _usable_items(self) -> Iterator[Item]:
        for folder in self.folders:
            for path in list_shards(folder):
                shard = open_shard(path)
                labels = self._labels_of(shard)
                for entry in shard.entries:
                    if reason := self._unusable(entry, labels):
                        self.left_out[entry.key] = reason
                    else:
                        yield Item(shard, entry)

    def _unusable(self, entry: ShardEntry, labels: LabelShard | None) -> str | None:
        if labels is not None and entry.key not in labels:
            return "the teacher gave it no labels"
        if (seconds := entry.num_samples * FRAME_SHIFT_MS / HOP_SAMPLES / 1000) > self.exclude_longer_s:
            return f"{seconds:.1f} s are longer than {self.exclude_longer_s} s"
        return None

    def _labels_of(self, shard: Shard) -> LabelShard | None:
        if self.labels is None:
            return None
        if shard.path not in self._label_shards:
            self._label_shards[shard.path] = self.labels.shard_for(shard.path, shard.sha256)
        return self._label_shards[shard.path]

    def _soft_labels(self, item: Item) -> SoftLabels:
        labels = self._labels_of(item.shard)
        assert labels is not None
        return labels.read(item.entry.key)

    def _load(self, epoch: int, indices: Sequence[int]) -> Batch:
        items = [self.items[i] for i in indices]
        loaded = [self._features_and_text(item, self._speed(item, epoch)) for item in items]
        soft = [self._soft_labels(item) for item in items] if self.labels is not None else None
        texts = [text for _, text in loaded] if self.units is not None else None
        return collate([item.entry.key for item in items], [f for f, _ in loaded], self.units, texts, soft)

    def _speed(self, item: Item, epoch: int) -> float:
        if len(self.speeds) == 1:
            return self.speeds[0]
        name = f"{self.seed}/{epoch}/{item.entry.key}".encode()
        choice = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) % len(self.speeds)
        return self.speeds[choice]

    def _features_and_text(self, item: Item, speed: float) -> tuple[Tensor, str | None]:
        def compute() -> tuple[Tensor, str | None]:
            utterance = read_utterance(item.shard, item.entry)
            if self.units is not None and utterance.text is None:
                raise ShardError(
                    "an utterance without transcript in labelled audio",
                    where=f"{item.shard.path}:{utterance.key}",
                    expected="a text in its json",
                    fix="Put audio without transcripts under unlabelled shards.",
                )
            return log_mel(change_speed(utterance.samples, speed)), utterance.text

        return self._cache.get((item.shard.path, item.entry.key, speed), compute)


class FeatureCache:
    """Features kept in memory until `max_bytes` are used; the longest unused go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[tuple[Path, str, float], tuple[Tensor, str | None]] = OrderedDict()

    def get(
        self, name: tuple[Path, str, float], compute: Callable[[], tuple[Tensor, str | None]]
    ) -> tuple[Tensor, str | None]:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        value = compute()
        if value[0].nbytes <= self.max_bytes:
            self._kept[name] = value
            self._bytes += value[0].nbytes
        while self._bytes > self.max_bytes:
            _, (dropped, _text) = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return value


class ScheduledBatches(Dataset[Batch]):
    """Steps of training: step n is the next batch of the stream that the pattern names.

    Args:
        streams: batches by name, e.g. "labelled" and "unlabelled".
        pattern: blocks of (name, number of batches), repeated for ever: the million-hour system's
            interleaving of soft-target and labelled training (arXiv 1904.01624, section 3).
    """

    def __init__(self, streams: dict[str, Stream], pattern: Sequence[tuple[str, int]]) -> None:
        known = ", ".join(sorted(streams))
        for name, count in pattern:
            if name not in streams or count < 1:
                raise ConfigError(
                    "the schedule cannot be followed",
                    where=f"schedule entry [{name}, {count}]",
                    expected=f"one of {known} and a positive number of batches",
                )
        if not pattern:
            raise ConfigError("the schedule is empty", expected=f"[[name, batches], …] of {known}")
        self.streams = streams
        self._cycle = [name for name, count in pattern for _ in range(count)]

    def place(self, step: int) -> tuple[str, int]:
        """Which stream step `step` (from 0) reads, and which of its batches."""
        cycles, index = divmod(step, len(self._cycle))
        name = self._cycle[index]
        return name, cycles * self._cycle.count(name) + self._cycle[:index].count(name)

    def __getitem__(self, step: int) -> Batch:
        name, position = self.place(step)
        return self.streams[name].batch(position)


def collate(
    keys: list[str],
    features: list[Tensor],
    units: Units | None = None,
    texts: Sequence[str | None] | None = None,
    soft_labels: list[SoftLabels] | None = None,
) -> Batch:
    """Utterances' features (each (T, 80)) and targets, padded to one batch."""
    lengths = torch.tensor([len(feature) for feature in features])
    padded = torch.full((len(features), int(lengths.max()), features[0].shape[1]), LOG_MEL_FLOOR)
    for row, feature in zip(padded, features, strict=True):
        row[: len(feature)] = feature
    batch = Batch(keys, padded, lengths)
    if units is not None and texts is not None:
        tokens = [units.encode(text or "") for text in texts]
        batch.token_lengths_b = torch.tensor([len(ids) for ids in tokens])
        longest = max(1, int(batch.token_lengths_b.max()))
        batch.tokens_bu = torch.zeros(len(tokens), longest, dtype=torch.int64)
        for token_row, ids in zip(batch.tokens_bu, tokens, strict=True):
            token_row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    if soft_labels is not None:
        batch.soft_labels = pad_soft_labels(soft_labels)
    return batch


def change_speed(samples: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """(N,) samples played `factor` times as fast, pitch and all (Ko et al. 2015)."""
    if factor == 1.0:
        return samples
    return resample(samples, round(16_000 * factor), 16_000)


def texts_of(folders: Sequence[Path]) -> list[str]:
    """The transcripts in folders of labelled shards, in order."""
    utterances = (_read(item) for folder in folders for item in _entries(folder))
    return [utterance.text for utterance in utterances if utterance.text is not None]


def feature_statistics(stream: Stream, max_utterances: int = 500) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (80,) of each mel bin over (a seeded sample of) a stream."""
    count, total, squares = 0, torch.zeros(80, dtype=torch.float64), torch.zeros(80, dtype=torch.float64)
    order = np.random.default_rng(stream.seed).permutation(len(stream.items))[:max_utterances]
    for i in order:
        features = log_mel(_read(stream.items[int(i)]).samples).double()
        count += len(features)
        total += features.sum(0)
        squares += features.square().sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()


def _entries(folder: Path) -> Iterator[Item]:
    for path in list_shards(folder):
        shard = open_shard(path)
        yield from (Item(shard, entry) for entry in shard.entries)


def _read(item: Item) -> Utterance:
    return read_utterance(item.shard, item.entry)


def cut_epoch(frames: NDArray[np.int64], batch_frames: int, seed: int, epoch: int) -> list[list[int]]:
    """Numbers of the utterances in each batch of an epoch.

    Utterances are sorted by length, with a little seeded noise so that batches differ between
    epochs, and cut into batches, which are then shuffled. The cuts depend on the sorted lengths
    alone, so that every epoch has as many batches.
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.argsort(frames, kind="stable")
    sizes: list[int] = []
    size = 0
    for length in frames[order].tolist():
        if size and (size + 1) * length > batch_frames:
            sizes.append(size)
            size = 0
        size += 1
    sizes.append(size)
    order = np.argsort(frames * rng.uniform(1 - _LENGTH_NOISE, 1 + _LENGTH_NOISE, len(frames)), kind="stable")
    batches = np.split(order, np.cumsum(sizes)[:-1])
    return [batches[i].tolist() for i in rng.permutation(len(batches))]
