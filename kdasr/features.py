"""Compute Kaldi-compatible 80-bin log-mel features from samples.

The definition is Kaldi's fbank as sherpa-onnx computes it: 25 ms Povey windows every 10 ms, DC
removal, preemphasis 0.97, 512-point power spectrum, 80 triangular mel bins from 20 to 7,600 Hz,
natural log floored at float32 epsilon, no dither, `snip_edges=False` (frame t is centred on
sample 160 t + 80; the edges are mirrored), samples in [-1, 1].
"""

from __future__ import annotations

import functools
import hashlib
import json
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import AudioError

NUM_MEL_BINS = 80
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
FRAME_SHIFT_MS = 10
LOW_HZ, HIGH_HZ = 20.0, 7600.0
FFT_SIZE = 512
PREEMPHASIS = 0.97
POVEY_POWER = 0.85
# The silence that a streaming model is fed after the end of the audio; see kdasr.streaming.tail.
TAIL_MS = 320
LOG_MEL_FLOOR = math.log(torch.finfo(torch.float32).eps)

# Samples of a frame's window that precede the frame's own 160 samples.
_LEFT_SAMPLES = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
# Frames processed at a time: temporaries stay in the cache, which is 3-4 times faster than one pass
# over a whole utterance.
_BLOCK_FRAMES = 256
# A GPU needs more at a time; this is 17 MB of spectra.
_GPU_BLOCK_FRAMES = 8_192


def feature_hash() -> str:
    """A hash of the definition of the features, to detect labels and models made with another one."""
    definition = {
        "kind": "kaldi-fbank",
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "num_mel_bins": NUM_MEL_BINS,
        "hop_samples": HOP_SAMPLES,
        "window_samples": WINDOW_SAMPLES,
        "window": "povey",
        "low_hz": LOW_HZ,
        "high_hz": HIGH_HZ,
        "preemphasis": PREEMPHASIS,
        "snip_edges": False,
        "dither": 0,
    }
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]


def num_frames(num_samples: int) -> int:
    """The number of feature frames of `num_samples` samples."""
    return (num_samples + HOP_SAMPLES // 2) // HOP_SAMPLES


def log_mel(samples: Tensor | NDArray[np.float32]) -> Tensor:
    """(N,) samples at 16 kHz in [-1, 1] to (num_frames(N), 80) raw log-mel.

    Raises:
        AudioError: several axes, or integers.
    """
    samples = torch.as_tensor(samples)
    if samples.dim() != 1 or not samples.is_floating_point():
        raise AudioError(
            "features are computed from mono floating point samples",
            expected="(N,) in [-1, 1]",
            got=f"shape {tuple(samples.shape)} of {samples.dtype}",
            fix="Take one channel, or the mean of all, and divide 16-bit samples by 32768.",
        )
    frames = num_frames(len(samples))
    if frames == 0:
        return torch.empty(0, NUM_MEL_BINS)
    return log_mel_under_windows(samples_under_windows(samples))


def samples_under_windows(samples: Tensor | NDArray[np.float32]) -> Tensor:
    """From (N,) samples, the (160 T + 240,) samples covered by the windows of their T = num_frames(N) > 0
    frames, with mirrored edges; frames [t, u) cover [160 t, 160 u + 240)."""
    samples_n = torch.as_tensor(samples, dtype=torch.float32)
    return _mirrored(samples_n, -_LEFT_SAMPLES, _end_sample(num_frames(len(samples_n))))


def log_mel_under_windows(samples_n: Tensor) -> Tensor:
    """From (160 T + 240,) samples, as given by `samples_under_windows`, to (T, 80) raw log-mel."""
    windows = samples_n.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)
    return torch.cat([_block_log_mel(block) for block in windows.split(_BLOCK_FRAMES)])


def batch_log_mel(samples_bn: Tensor) -> Tensor:
    """From (B, 160 T + 240) samples, as given by `samples_under_windows` and padded with anything, to (B, T,
    80) raw log-mel on the same device, for a GPU. Frames of the padding are meaningless."""
    windows_btw = samples_bn.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
    windows_nw = windows_btw.flatten(0, 1)
    # Blocks of one size, the last one padded: a GPU plans the Fourier transform anew for each size.
    missing = -len(windows_nw) % _GPU_BLOCK_FRAMES
    blocks = functional.pad(windows_nw, (0, 0, 0, missing)).split(_GPU_BLOCK_FRAMES)
    features_nf = torch.cat([_block_log_mel(block) for block in blocks])
    return features_nf[: len(windows_nw)].unflatten(0, windows_btw.shape[:2])


def spectrum(windows_nw: Tensor) -> Tensor:
    """From (N, 400) windows of samples to their (N, 257) complex spectra: DC removal, preemphasis, the
    Povey window and the Fourier transform. It is linear: applied to the identity, it gives a matrix
    that does the same."""
    centred = windows_nw - windows_nw.mean(1, keepdim=True)
    padded = centred.new_zeros(len(centred), FFT_SIZE)
    # The window is 0 at its first sample, whose missing predecessor therefore does not matter.
    inside = padded[:, 1:WINDOW_SAMPLES]
    povey_w, _ = _constants(windows_nw.device)
    torch.sub(centred[:, 1:], centred[:, :-1], alpha=PREEMPHASIS, out=inside).mul_(povey_w[1:])
    return torch.fft.rfft(padded)


def mel_filters() -> Tensor:
    """(257, 80) float32 weights from powers of `spectrum` to mel energies."""
    return _MEL_FILTERS.clone()


def _end_sample(frames: int) -> int:
    return (frames - 1) * HOP_SAMPLES - _LEFT_SAMPLES + WINDOW_SAMPLES


def _mirrored(samples_n: Tensor, start: int, end: int) -> Tensor:
    """Samples [start, end), mirrored (edge sample repeated) beyond the ends of the signal."""
    size = len(samples_n)
    before, after = max(-start, 0), max(end - size, 0)
    if not before and not after:
        return samples_n[start:end]
    if max(before, after) <= size:
        # Contiguous copies: gathering a whole utterance by index costs a third of its log-mel.
        inside = samples_n[max(start, 0) : min(end, size)]
        return torch.cat([samples_n[:before].flip(0), inside, samples_n[size - after :].flip(0)])
    index = torch.arange(start, end) % (2 * size)
    return samples_n[torch.minimum(index, 2 * size - 1 - index)]


def _block_log_mel(windows: Tensor) -> Tensor:
    squares = torch.view_as_real(spectrum(windows)).square_()
    power = squares[..., 0] + squares[..., 1]
    _, mel_filters_fm = _constants(power.device)
    return (power @ mel_filters_fm).clamp_min(torch.finfo(torch.float32).eps).log()


def _povey_window() -> Tensor:
    return torch.hann_window(WINDOW_SAMPLES, periodic=False, dtype=torch.float64).pow(POVEY_POWER).float()


def _kaldi_mel_filters() -> Tensor:
    """(257, 80) triangular filters, linear on the mel axis, as Kaldi makes them."""

    def mel(hz: Tensor | float) -> Tensor:
        return 1127.0 * torch.log1p(torch.as_tensor(hz, dtype=torch.float64) / 700.0)

    edges = torch.linspace(float(mel(LOW_HZ)), float(mel(HIGH_HZ)), NUM_MEL_BINS + 2, dtype=torch.float64)
    bins = mel(torch.arange(FFT_SIZE // 2 + 1) * (SAMPLE_RATE_HZ / FFT_SIZE))[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0.0).float()


_POVEY = _povey_window()
_MEL_FILTERS = _kaldi_mel_filters()


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The window and the filters on `device`."""
    return _POVEY.to(device), _MEL_FILTERS.to(device)
