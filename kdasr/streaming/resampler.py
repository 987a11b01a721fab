"""Resampling to 16 kHz, piece by piece."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ConfigError
from kdasr.resampling import check_rates, resample

# Half-width of the filter: torchaudio's default has six zero crossings on either side, counted at the
# lower of the two rates; one more for rounding.
_ZERO_CROSSINGS = 7
# The amount resampled at a time, about, and always the same: the last bit of a matrix product depends on its
# size, and results must not depend on the sizes of the pieces. A step takes 0.1 ms, whatever its length.
_STEP_MS = 20


class StreamingResampler:
    """`kdasr.resampling.resample` for audio that arrives in pieces; equal to resampling the whole except for
    the last bit, and bit-identical for pieces of any size.

    Args:
        from_hz: sample rate of the pieces; a float is allowed, since some audio libraries use one.

    Raises:
        ConfigError: a rate that is not positive, or not a whole number.
        AudioError: a rate that `kdasr.resampling.check_rates` refuses.
    """

    def __init__(self, from_hz: float) -> None:
        from_hz = _whole(from_hz)
        check_rates(from_hz, SAMPLE_RATE_HZ)
        divisor = math.gcd(from_hz, SAMPLE_RATE_HZ)
        self._from_hz = from_hz
        # The smallest blocks of input samples that give a whole number of output samples.
        self._block_in, self._block_out = from_hz // divisor, SAMPLE_RATE_HZ // divisor
        self._step = math.ceil(from_hz * _STEP_MS / 1000 / self._block_in) * self._block_in
        # It waits for no more future samples than the filter needs, and keeps past ones in whole blocks.
        self._ahead = math.ceil(_ZERO_CROSSINGS * from_hz / min(from_hz, SAMPLE_RATE_HZ))
        self._context = math.ceil(self._ahead / self._block_in) * self._block_in
        self.reset()

    def reset(self) -> None:
        """Resets everything: the next sample is the first of a new stream."""
        self._history = np.zeros(0, np.float32)
        self._history_before = 0  # samples of the history whose output has been returned already

    def accept(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes (n,) further samples and returns the (m,) resampled ones that are now final; m may be 0."""
        if self._from_hz == SAMPLE_RATE_HZ:
            return samples
        self._history = np.concatenate([self._history, samples])
        certain = len(self._history) - self._history_before - self._ahead
        steps = [self._emit(self._step, final=False) for _ in range(certain // self._step)]
        return np.concatenate([np.zeros(0, np.float32), *steps])

    def flush(self) -> NDArray[np.float32]:
        """The remaining samples, as if silence followed."""
        if self._from_hz == SAMPLE_RATE_HZ:
            return np.zeros(0, np.float32)
        return self._emit(len(self._history) - self._history_before, final=True)

    def _emit(self, count_in: int, *, final: bool) -> NDArray[np.float32]:
        if count_in == 0:
            return np.zeros(0, np.float32)
        start = self._history_before
        end = len(self._history) if final else start + count_in + self._ahead
        resampled = resample(self._history[:end], self._from_hz, SAMPLE_RATE_HZ)
        skip = start // self._block_in * self._block_out
        count_out = None if final else count_in // self._block_in * self._block_out
        keep_from = max(0, start + count_in - self._context)
        self._history = self._history[keep_from:]
        self._history_before = start + count_in - keep_from
        return resampled[skip : None if count_out is None else skip + count_out]


def _whole(from_hz: float) -> int:
    if from_hz < 1:
        raise ConfigError("the sample rate must be positive", expected=">= 1 Hz", got=from_hz)
    if not float(from_hz).is_integer():
        raise ConfigError(
            "the sample rate must be a whole number", expected="whole Hz, such as 48000", got=from_hz
        )
    return int(from_hz)
