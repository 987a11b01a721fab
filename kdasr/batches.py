"""Building blocks of batches: grouping utterances by length, caching features, padding."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.features import LOG_MEL_FLOOR
from kdasr.interfaces import Batch, SoftLabels
from kdasr.resampling import resample
from kdasr.soft_labels import pad_soft_labels
from kdasr.text import Units

# The number of utterances below a length that is drawn for a sorted epoch differs from the usual by less than
# this many square roots of all: three standard deviations of a coin.
_CHANCE = 1.5
# Lengths are perturbed by up to this share when an epoch is sorted, so that batches differ between
# epochs; it is also about the share of padding. Less is enough if speeds change the lengths, too.
_LENGTH_NOISE, _NOISE_WITH_SPEEDS = 0.05, 0.02


class EpochBatches:
    """The batches of an epoch, each a list of utterance numbers.

    Attributes:
        speeds: (N,) the number of the speed at which each utterance is read.
    """

    def __init__(
        self,
        order: NDArray[np.int32],
        starts: NDArray[np.int64],
        turns: NDArray[np.int64],
        speeds: NDArray[np.int16],
    ) -> None:
        self._order, self._starts, self._turns, self.speeds = order, starts, turns, speeds

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, index: int) -> list[int]:
        turn = self._turns[index]
        numbers: list[int] = self._order[self._starts[turn] : self._starts[turn + 1]].tolist()
        return numbers


def cut_epoch(frames_sn: NDArray[np.signedinteger], batch_frames: int, seed: int, epoch: int) -> EpochBatches:
    """Draw the speed of each utterance, and group all into batches of about `batch_frames`, with padding.

    Utterances are sorted by length, with a little seeded noise so that batches differ between
    epochs, and cut into batches, which are then shuffled.

    Args:
        frames_sn: (S, N) the length of each of N utterances at each of S speeds.
        batch_frames: the size of a batch; the noise makes some a little larger.
        seed, epoch: determine everything that is drawn.
    """
    num_speeds, count = frames_sn.shape
    draws = np.random.default_rng([seed, epoch, 1])
    speeds = draws.integers(num_speeds, size=(count,), dtype=np.int16)
    rng = np.random.default_rng([seed, epoch])
    # The cuts depend on how long the sorted lengths can be, so that every epoch has as many batches.
    usual = np.sort(frames_sn, axis=None)[num_speeds // 2 :: num_speeds]
    if num_speeds > 1:
        later = np.arange(count) + int(_CHANCE * count**0.5)
        usual = usual[later.clip(max=count - 1)]
    starts = np.cumsum([0, *_batch_sizes(usual, batch_frames)])
    noise = _LENGTH_NOISE if num_speeds == 1 else _NOISE_WITH_SPEEDS
    noisy = rng.uniform(1 - noise, 1 + noise, (count,))
    noisy *= frames_sn[speeds, np.arange(count)]
    order = np.argsort(noisy, kind="stable").astype(np.int32)
    return EpochBatches(order, starts, rng.permutation(len(starts) - 1), speeds)


def _batch_sizes(frames: NDArray[np.signedinteger], batch_frames: int) -> list[int]:
    """The number of utterances in each batch, at least 1, from the shortest to the longest utterances."""
    sizes, size = [], 0
    for length, count in zip(*(part.tolist() for part in np.unique(frames, return_counts=True)), strict=True):
        most, left = max(1, batch_frames // length), count
        while left:
            if size >= most:
                sizes.append(size)
                size = 0
            taken = min(left, most - size)
            size, left = size + taken, left - taken
    return [*sizes, size]


class FeatureCache:
    """An LRU cache of features of at most `max_bytes`."""

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


def collate(
    keys: list[str],
    features: list[Tensor],
    units: Units | None = None,
    texts: Sequence[str | None] | None = None,
    soft_labels: list[SoftLabels] | None = None,
) -> Batch:
    """Pad the features (each (T, 80)) and targets of utterances to one batch."""
    lengths = torch.tensor([len(feature) for feature in features])
    padded = pad_sequence(features, batch_first=True, padding_value=LOG_MEL_FLOOR)
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
    """(N,) samples played `factor` times as fast, which also changes the pitch (Ko et al. 2015)."""
    if factor == 1.0:
        return samples
    return resample(samples, round(SAMPLE_RATE_HZ * factor), SAMPLE_RATE_HZ)
