"""Change the tempo, vocal tract and timbre of a recording, as if another speaker spoke."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.compat import import_torchaudio
from kdasr.noise import Samples, shape_spectrum

_ENVELOPE_SECONDS = 0.0015
_WINDOW_SECONDS = 0.032


def stretch_and_warp(samples: Samples, rate_hz: int, *, tempo: float = 1.0, warp: float = 1.0) -> Samples:
    """(N,) to (about N / tempo,): `tempo` times as fast at the same pitch, with formants moved by `warp`.

    The vocal tract is warped by dividing each short-time spectrum by its cepstrally smoothed
    envelope and multiplying it by that envelope read at frequency / warp; the tempo is changed by a
    phase vocoder (Flanagan & Golden, 1966).
    """
    if tempo == 1.0 and warp == 1.0:
        return samples
    size = 1 << (round(_WINDOW_SECONDS * rate_hz) - 1).bit_length()
    hop, window = size // 4, torch.hann_window(size)
    audio = torch.from_numpy(np.ascontiguousarray(samples))
    spectrum_ft = torch.stft(audio, size, hop, window=window, return_complex=True)
    if warp != 1.0:
        spectrum_ft = spectrum_ft * _warp_gain(spectrum_ft.abs(), warp, round(_ENVELOPE_SECONDS * rate_hz))
    num_samples = len(samples)
    if tempo != 1.0:
        advance = torch.linspace(0, np.pi * hop, size // 2 + 1)[:, None]
        spectrum_ft = import_torchaudio().functional.phase_vocoder(spectrum_ft, tempo, advance)
        num_samples = round(num_samples / tempo)
    return torch.istft(spectrum_ft, size, hop, window=window, length=num_samples).numpy()


def tilt_timbre(samples: Samples, rate_hz: int, max_db: float, rng: np.random.Generator) -> Samples:
    """Apply a random smooth filter of at most +-`max_db`, like another microphone."""
    knots_hz = np.geomspace(60, rate_hz / 2, 6)
    gains_db = rng.uniform(-max_db, max_db, size=len(knots_hz))

    def gain(hz: NDArray[np.float64]) -> NDArray[np.float64]:
        return 10 ** (np.interp(np.log(np.maximum(hz, 1)), np.log(knots_hz), gains_db) / 20)

    return shape_spectrum(samples, rate_hz, gain)


def _warp_gain(magnitude_ft: Tensor, warp: float, num_cepstra: int) -> Tensor:
    log_magnitude_tf = torch.log(magnitude_ft.T + 1e-5)
    cepstrum = torch.fft.irfft(log_magnitude_tf)
    cepstrum[:, num_cepstra:-num_cepstra] = 0
    envelope_tf = torch.fft.rfft(cepstrum).real
    bins = envelope_tf.shape[1]
    position = torch.clamp(torch.arange(bins) / warp, max=bins - 1.001)
    below = position.long()
    share = position - below
    warped_tf = envelope_tf[:, below] * (1 - share) + envelope_tf[:, below + 1] * share
    # Limited to 30 dB: a steep slope moved far would turn the noise floor into a whistle.
    return torch.exp(torch.clamp(warped_tf - envelope_tf, -3.5, 3.5)).T
