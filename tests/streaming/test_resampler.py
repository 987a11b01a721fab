"""Piece by piece gives what the whole gives."""

from __future__ import annotations

import numpy as np
import pytest

from export.parity import probe_sound
from kdasr.errors import AudioError, ConfigError
from kdasr.resampling import resample
from kdasr.streaming import StreamingResampler


@pytest.mark.parametrize("from_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("pieces", [[1] * 50, [1_000, 0, 37, 9_000], [160] * 100, [10**6]])
def test_pieces_equal_the_whole(from_hz: int, pieces: list[int]) -> None:
    samples = probe_sound(20_001, from_hz)
    resampler, start, out = StreamingResampler(from_hz), 0, []
    for size in [*pieces, len(samples)]:
        out.append(resampler.accept(samples[start : start + size]))
        start += size
    out.append(resampler.flush())
    whole = resample(samples, from_hz, 16_000)
    assert len(np.concatenate(out)) == len(whole)
    assert np.abs(np.concatenate(out) - whole).max() < 1e-6


@pytest.mark.parametrize("from_hz", [8_000, 11_025, 44_100, 48_000])
def test_the_sizes_of_pieces_do_not_change_a_bit(from_hz: int) -> None:
    samples = probe_sound(20_001, from_hz)
    results = set()
    for size in (37, 160, 4_410, len(samples)):
        resampler = StreamingResampler(from_hz)
        pieces = (samples[start : start + size] for start in range(0, len(samples), size))
        results.add(np.concatenate([*map(resampler.accept, pieces), resampler.flush()]).tobytes())
    assert len(results) == 1


def test_most_comes_at_once_and_little_is_kept() -> None:
    resampler = StreamingResampler(44_100)
    for _ in range(100):
        resampler.accept(np.zeros(4_410, np.float32))
    assert len(resampler.accept(np.zeros(4_410, np.float32))) == pytest.approx(1_600, abs=170)
    assert len(resampler._history) < 4_410


@pytest.mark.parametrize("from_hz", [16_000, 44_100])
def test_reset_begins_a_new_stream(from_hz: int) -> None:
    samples, resampler = probe_sound(9_000, 1), StreamingResampler(from_hz)
    resampler.accept(probe_sound(5_000, 2))
    resampler.flush()
    resampler.reset()
    again = np.concatenate([resampler.accept(samples), resampler.flush()])
    assert np.abs(again - resample(samples, from_hz, 16_000)).max() < 1e-6


def test_nothing_in_gives_nothing_out() -> None:
    resampler = StreamingResampler(8_000)
    assert len(resampler.accept(np.zeros(0, np.float32))) == 0 and len(resampler.flush()) == 0


@pytest.mark.parametrize(
    ("from_hz", "at_most_ms"),
    [(8_000, 21.0), (11_025, 40.7), (22_050, 20.5), (44_100, 20.5), (48_000, 20.5), (22_010, 100.5)],
)
def test_little_is_waited_for(from_hz: int, at_most_ms: float) -> None:
    """A step of whole blocks, and what the filter needs behind it."""
    resampler, heard, latest = StreamingResampler(from_hz), 0, 0.0
    for count in range(1, 1_001):
        heard += len(resampler.accept(np.zeros(from_hz // 1000, np.float32)))
        latest = max(latest, 1000 * (count * (from_hz // 1000) / from_hz - heard / 16_000))
    assert at_most_ms - 2 < latest < at_most_ms


@pytest.mark.parametrize("from_hz", [48_000.0, np.float64(48_000), np.int64(48_000)])
def test_a_rate_may_be_a_float(from_hz: float) -> None:
    samples = probe_sound(9_000, 1)
    resampler = StreamingResampler(from_hz)
    heard = np.concatenate([resampler.accept(samples), resampler.flush()])
    assert np.abs(heard - resample(samples, 48_000, 16_000)).max() < 1e-6
    assert np.array_equal(StreamingResampler(16_000.0).accept(samples), samples)


def test_a_rate_is_positive_and_whole() -> None:
    for from_hz in (0, 0.5, -8_000):
        with pytest.raises(ConfigError, match=f"the sample rate must be positive.*got {from_hz}$"):
            StreamingResampler(from_hz)
    for from_hz in (48_000.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"the sample rate must be a whole number.*got {from_hz}$"):
            StreamingResampler(from_hz)


def test_rates_without_a_simple_ratio_are_refused_before_any_audio() -> None:
    with pytest.raises(AudioError, match="unsupported sample rate.*got 44101 Hz"):
        StreamingResampler(44_101)
