"""Resample audio, which is also used to change its speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from kdasr.compat import import_torchaudio
from kdasr.errors import AudioError, ConfigError

# The filter has a row for each output sample of a period, each as long as the period: at most 16 MB.
_MOST_WEIGHTS = 4_000_000
# Input values of one matrix product with the filter: 16 MB.
_BLOCK_INPUTS = 1 << 22


def resample(samples: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """(N,) samples at `from_hz` to (ceil(N * to_hz / from_hz),) at `to_hz`: windowed-sinc polyphase.

    Raises:
        AudioError: see `check_rates`.
    """
    if from_hz == to_hz:
        return samples
    check_rates(from_hz, to_hz)
    filters_pk, stride, before = _filters(from_hz, to_hz)
    padded = np.pad(np.asarray(samples, dtype=np.float32), (before, before + stride))
    windows_tk = torch.from_numpy(padded).unfold(0, filters_pk.shape[1], stride)
    rows = max(1, _BLOCK_INPUTS // filters_pk.shape[1])
    # Matrix products of a few MB instead of torchaudio's convolution, which takes up to ten times as long,
    # since every length is a new shape to it.
    resampled = torch.cat([block @ filters_pk.T for block in windows_tk.split(rows)]).flatten()
    return np.asarray(resampled[: -(-len(samples) * to_hz // from_hz)].numpy(), dtype=np.float32)


def check_rates(from_hz: int, to_hz: int, where: str = "audio") -> None:
    """Refuse two rates whose ratio in lowest terms has such large numbers (44,101 to 16,000) that the
    filter between them would take gigabytes.

    Raises:
        AudioError: they are such rates.
    """
    divisor = math.gcd(from_hz, to_hz)
    if from_hz // divisor * (to_hz // divisor) > _MOST_WEIGHTS:
        raise AudioError(
            "unsupported sample rate",
            where=where,
            expected=f"one in a simple ratio to {to_hz} Hz, such as 8000, 22050, 44100 or 48000 Hz",
            got=f"{from_hz} Hz",
            fix=f"Convert it first: ffmpeg -i FILE -ar {to_hz} OUT.wav",
        )


def check_speeds(speeds: Sequence[float]) -> None:
    """Refuse speed factors that do not occur in speech.

    Raises:
        ConfigError: there are none, or one is not from 0.5 to 2.
    """
    if not speeds or not all(0.5 <= speed <= 2 for speed in speeds):
        expected = "one or more numbers from 0.5 to 2"
        raise ConfigError("invalid speed factors", where="speeds", expected=expected, got=list(speeds))


@lru_cache(maxsize=64)
def _filters(from_hz: int, to_hz: int) -> tuple[torch.Tensor, int, int]:
    """torchaudio's windowed-sinc filters (phases, K), the stride in input samples from one set of phases to
    the next, and how far the first reaches back. Cached: building them costs more than filtering an
    utterance."""
    made = import_torchaudio().transforms.Resample(from_hz, to_hz)
    return made.kernel[:, 0], made.orig_freq // made.gcd, made.width
