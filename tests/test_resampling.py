"""kdasr.resampling: tones keep their pitch, what cannot be held is filtered out, blocks change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdasr import resampling
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.compat import import_torchaudio
from kdasr.resampling import resample


def tone(seconds: float, rate_hz: int = SAMPLE_RATE_HZ, pitch_hz: float = 440.0) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(
        np.float32
    )


@pytest.mark.parametrize("from_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone_and_the_duration(from_hz: int) -> None:
    samples = tone(0.25, from_hz)
    resampled = resample(samples, from_hz, SAMPLE_RATE_HZ)
    assert len(resampled) == -(-len(samples) * SAMPLE_RATE_HZ // from_hz)
    np.testing.assert_allclose(resampled[500:3500], tone(0.25)[500:3500], atol=2e-3)


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    assert np.abs(resample(tone(0.25, 44_100, 12_000.0), 44_100, SAMPLE_RATE_HZ)[500:3500]).max() < 0.01


@pytest.mark.parametrize("from_hz", [8_000, 14_400, 17_600, 44_100, 48_000])
def test_resampling_in_blocks_is_the_filter_of_torchaudio(
    from_hz: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    filter_all = import_torchaudio().transforms.Resample(from_hz, SAMPLE_RATE_HZ)
    for block in (resampling._BLOCK_INPUTS, 5_000):
        monkeypatch.setattr(resampling, "_BLOCK_INPUTS", block)
        for length in (1, 5, 79, 16_001, 70_001):
            samples = np.random.default_rng(length).normal(size=length).astype(np.float32)
            expected = filter_all(torch.from_numpy(samples)).numpy()
            np.testing.assert_allclose(resample(samples, from_hz, SAMPLE_RATE_HZ), expected, atol=2e-6)


@pytest.mark.parametrize("from_hz", [11_025, 14_416, 15_984, 37_800, 96_000, 192_000])
def test_rates_that_are_met_are_not_refused(from_hz: int) -> None:
    assert len(resample(np.zeros(from_hz // 10, np.float32), from_hz, SAMPLE_RATE_HZ)) == pytest.approx(
        1_600, abs=1
    )
