"""Samples in pieces of any size in, the windows that a chunk model steps over out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kdasr.features import HOP_SAMPLES, LOG_MEL_FLOOR, WINDOW_SAMPLES, log_mel_under_windows, num_frames

# A feature frame is centred on its hop: so many samples of its window lie before it.
LEFT_SAMPLES = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
# Samples of a window of features beyond 160 for each frame.
EXTRA_SAMPLES = WINDOW_SAMPLES - HOP_SAMPLES


class FrontEnd(Protocol):
    """Cuts one stream of audio into windows."""

    @property
    def num_features(self) -> int:
        """Feature frames (10 ms) so far; once `finish` has begun, those of the whole stream."""
        ...

    def accept(self, samples: NDArray[np.float32]) -> Iterator[Any]:
        """The windows that these further samples complete, each with a batch axis of 1."""
        ...

    def finish(self) -> Iterator[Any]:
        """The windows of what is left; beyond the end they hold digital silence."""
        ...


class SampleWindow(NamedTuple):
    """The samples that a window of features is made from.

    Attributes:
        samples_bn: (B, 160 * window + 240) float32.
        valid_frames_b: (B,) float32, how many of the window's frames are of real audio; the model
            takes the floor of the log-mel for the others.
    """

    samples_bn: NDArray[np.float32]
    valid_frames_b: NDArray[np.float32]


class SampleWindows:
    """`SampleWindow`s for a model that makes its own features, `160 * shift` samples apart.

    Window k holds samples [160 * shift * k - 120, …): the audio is mirrored before its start and
    after its end, as `kdasr.features` does.

    Args:
        window, shift: feature frames.
    """

    def __init__(self, window: int, shift: int) -> None:
        self._window, self._shift = window, shift
        self._size = window * HOP_SAMPLES + EXTRA_SAMPLES
        self._pending = np.zeros(0, np.float32)
        self._num_samples = 0
        self._started = False  # whether the mirrored start is in front of the pending samples
        self._first = 0

    @property
    def num_features(self) -> int:
        return num_frames(self._num_samples)

    def accept(self, samples: NDArray[np.float32]) -> Iterator[SampleWindow]:
        self._num_samples += len(samples)
        self._pending = np.concatenate([self._pending, samples])
        if not self._started and len(self._pending) >= LEFT_SAMPLES:
            self._pending = np.pad(self._pending, (LEFT_SAMPLES, 0), mode="symmetric")
            self._started = True
        while self._started and len(self._pending) >= self._size:
            yield self._pop(self._window)
        if self._pending.base is not None:
            # A view would keep all of a long piece for as long as the next one does not come.
            self._pending = self._pending.copy()

    def finish(self) -> Iterator[SampleWindow]:
        if self.num_features == 0:
            return
        # The last frame's window reaches so far past the end: half a window at most.
        self._pending = np.pad(
            self._pending, (0 if self._started else LEFT_SAMPLES, WINDOW_SAMPLES // 2), mode="symmetric"
        )
        self._started = True
        while self._first < self.num_features:
            missing = max(0, self._size - len(self._pending))
            self._pending = np.pad(self._pending, (0, missing))
            yield self._pop(min(self._window, self.num_features - self._first))

    def _pop(self, valid_frames: int) -> SampleWindow:
        window = SampleWindow(
            np.ascontiguousarray(self._pending[None, : self._size]), np.array([valid_frames], np.float32)
        )
        self._pending = self._pending[self._shift * HOP_SAMPLES :]
        self._first += self._shift
        return window


class FeatureWindows:
    """(1, window, 80) windows of log-mel, `shift` frames apart: the features of `SampleWindows`.

    All features of a window are made at once. Made one or two at a time, as small pieces come, they cost
    several times as much, and differ in their last bits with the pieces, which turns letters in int8.

    Args:
        window, shift: feature frames.
    """

    def __init__(self, window: int, shift: int) -> None:
        self._windows = SampleWindows(window, shift)

    @property
    def num_features(self) -> int:
        return self._windows.num_features

    def accept(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        return map(_features, self._windows.accept(samples))

    def finish(self) -> Iterator[NDArray[np.float32]]:
        return map(_features, self._windows.finish())


def _features(window: SampleWindow) -> NDArray[np.float32]:
    features_tf = log_mel_under_windows(torch.from_numpy(window.samples_bn[0])).numpy()
    features_tf[int(window.valid_frames_b[0]) :] = LOG_MEL_FLOOR
    return features_tf[None]
