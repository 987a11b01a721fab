"""Cut pieces of audio of any size into the windows that a chunk model steps over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kdasr.features import HOP_SAMPLES, LOG_MEL_FLOOR, WINDOW_SAMPLES, log_mel_under_windows, num_frames

# A feature frame's window is centred on its hop; this many of its samples are before the hop.
LEFT_SAMPLES = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
# Samples that a window of features needs beyond 160 per frame.
EXTRA_SAMPLES = WINDOW_SAMPLES - HOP_SAMPLES


class FrontEnd(Protocol):
    """Cuts one stream of audio into windows."""

    @property
    def num_features(self) -> int:
        """Feature frames (10 ms) so far; once `finish` has been called, those of the whole stream."""
        ...

    def accept(self, samples: NDArray[np.float32]) -> Iterator[Any]:
        """The windows that the further `samples` complete, each with a batch axis of 1."""
        ...

    def finish(self) -> Iterator[Any]:
        """The remaining windows, with digital silence beyond the end of the audio."""
        ...


class SampleWindow(NamedTuple):
    """The samples from which a window of features is computed.

    Attributes:
        samples_bn: (B, 160 * window + 240) float32.
        valid_frames_b: (B,) float32, how many of the window's frames are real audio; the model sets the
            others to the floor of the log-mel.
    """

    samples_bn: NDArray[np.float32]
    valid_frames_b: NDArray[np.float32]


class SampleWindows:
    """`SampleWindow`s, `160 * shift` samples apart, for a model that computes its own features.

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
        self._started = False  # whether the mirrored start has been prepended to the pending samples
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
            # A view would keep a long piece in memory until the next one arrives.
            self._pending = self._pending.copy()

    def finish(self) -> Iterator[SampleWindow]:
        if self.num_features == 0:
            return
        # The last frame's window reaches at most half a window past the end.
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

    All features of a window are computed at once. One or two at a time, as small pieces arrive, they would
    cost several times as much, and their last bits would depend on the pieces, which changes letters in int8.

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
