"""Degrade audio as a worse channel does, for a student that hears worse audio than its teacher.

Cross-channel distillation: the teacher hears clean wide-band audio, and the student the same audio, frame
by frame, with noise, far-field or over a telephone (Li et al. 2014 and 2017, "Large-scale domain adaptation
via teacher-student learning").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.compat import import_torchaudio
from kdasr.errors import ConfigError
from kdasr.noise import (
    NOISE_KINDS,
    Samples,
    add_noise,
    check_kinds,
    make_noise,
    reverberate,
    rms,
    shape_spectrum,
)
from kdasr.resampling import resample

TELEPHONE_RATE_HZ = 8_000
TELEPHONE_BAND_HZ = (300.0, 3_400.0)


class WorseChannel:
    """A random mixture of echo, noise and telephone, each with its probability.

    Args:
        noise_probability, noise_kinds, snr_db: noise of one of these kinds (see `kdasr.noise`), and the
            range of the SNR.
        echo_probability, echo_seconds: far-field speech; the range of the reverberation time.
        telephone_probability: 300 to 3,400 Hz, 8 kHz, and 8-bit μ-law as in ITU-T G.711.

    Raises:
        ConfigError: an unknown kind of noise, or a value out of range.
    """

    def __init__(
        self,
        *,
        noise_probability: float = 0.5,
        noise_kinds: Sequence[str] = tuple(NOISE_KINDS),
        snr_db: tuple[float, float] = (5.0, 20.0),
        echo_probability: float = 0.3,
        echo_seconds: tuple[float, float] = (0.2, 0.6),
        telephone_probability: float = 0.3,
    ) -> None:
        self.config: dict[str, Any] = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        self.probabilities = (echo_probability, noise_probability, telephone_probability)
        if not all(0.0 <= probability <= 1.0 for probability in self.probabilities):
            raise ConfigError("probabilities must lie between 0 and 1", where="spoil", got=self.probabilities)
        noise_kinds = tuple(noise_kinds or ())  # null: no noise
        if noise_probability and not noise_kinds:
            raise ConfigError(
                "no kind of noise is given", where="spoil.noise_kinds", expected=", ".join(NOISE_KINDS)
            )
        check_kinds(noise_kinds, "spoil.noise_kinds")
        if echo_probability and not _is_range(echo_seconds, 0.01, 10):
            raise ConfigError(
                "invalid range of echo durations",
                where="spoil.echo_seconds",
                expected="[minimum, maximum], within 0.01 to 10",
                got=echo_seconds,
            )
        self.noise_kinds, self.snr_db, self.echo_seconds = list(noise_kinds), snr_db, echo_seconds

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """(N,) samples at `SAMPLE_RATE_HZ` to (N,) samples at the same times."""
        echo, noise, telephone = rng.uniform(size=3) < self.probabilities
        if echo:
            samples = reverberate(samples, SAMPLE_RATE_HZ, rng.uniform(*self.echo_seconds), rng)
        if noise:
            kind = self.noise_kinds[rng.integers(len(self.noise_kinds))]
            background = make_noise(kind, rng, len(samples), SAMPLE_RATE_HZ)
            samples = add_noise(samples, background, rng.uniform(*self.snr_db), rms(samples))
        return over_telephone(samples) if telephone else samples


def _is_range(value: object, least: float, most: float) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return least <= value[0] <= value[1] <= most


def over_telephone(samples: Samples) -> Samples:
    """(N,) samples at `SAMPLE_RATE_HZ` as transmitted by a telephone."""
    low_hz, high_hz = TELEPHONE_BAND_HZ
    band = shape_spectrum(
        samples, SAMPLE_RATE_HZ, lambda hz: ((hz >= low_hz) & (hz <= high_hz)).astype(np.float64)
    )
    narrow = torch.from_numpy(resample(band, SAMPLE_RATE_HZ, TELEPHONE_RATE_HZ)).clamp(-1.0, 1.0)
    functional = import_torchaudio().functional
    coded = functional.mu_law_decoding(functional.mu_law_encoding(narrow, 256), 256)
    return resample(coded.numpy(), TELEPHONE_RATE_HZ, SAMPLE_RATE_HZ)[: len(samples)]
