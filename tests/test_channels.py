"""Worse channels: what is taken away is gone, what is kept is where it was."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kdasr.channels import WorseChannel, over_telephone
from kdasr.errors import ConfigError
from kdasr.noise import rms

QUIET = {"noise_probability": 0.0, "echo_probability": 0.0, "telephone_probability": 0.0}


def tone(hz: float, seconds: float = 0.5) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(16_000 * seconds)) / 16_000)).astype(np.float32)


def level(samples: NDArray[np.float32]) -> float:
    """RMS without the edges."""
    return float(np.sqrt(np.mean(np.square(samples[1_000:-1_000]))))


def test_a_telephone_passes_its_band_and_nothing_else() -> None:
    assert level(over_telephone(tone(1_000))) == pytest.approx(level(tone(1_000)), rel=0.02)
    for hz in (100, 3_800, 5_000):
        assert level(over_telephone(tone(hz))) < 0.02 * level(tone(hz))
    passed = over_telephone(tone(1_000))[1_000:-1_000]
    assert np.abs(passed - tone(1_000)[1_000:-1_000]).max() < 0.02
    assert len(over_telephone(tone(1_000)[:7_777])) == 7_777


def test_nothing_happens_with_probability_zero() -> None:
    samples = tone(500)
    assert WorseChannel(**QUIET)(samples, np.random.default_rng(1)) is samples
    for kinds in ([], None):
        without = WorseChannel(**QUIET, noise_kinds=kinds, echo_seconds=(0.0, 0.0))
        assert without(samples, np.random.default_rng(1)) is samples


def test_noise_lies_under_speech_at_its_ratio() -> None:
    spoil = WorseChannel(**{**QUIET, "noise_probability": 1.0}, noise_kinds=["white"], snr_db=(10.0, 10.0))
    samples = tone(500)
    noise = spoil(samples, np.random.default_rng(1)) - samples
    assert 20 * np.log10(level(samples) / level(noise)) == pytest.approx(10.0, abs=0.5)


def test_an_echo_is_speech_to_the_ratio() -> None:
    kinds = {"noise_kinds": ["white"], "snr_db": (10.0, 10.0), "echo_seconds": (0.5, 0.5)}
    echo = WorseChannel(**{**QUIET, "echo_probability": 1.0}, **kinds)
    both = WorseChannel(**{**QUIET, "echo_probability": 1.0, "noise_probability": 1.0}, **kinds)
    for seed in range(5):
        speech = tone(500, 2.0)
        heard, spoilt = (spoil(speech, np.random.default_rng(seed)) for spoil in (echo, both))
        assert 20 * np.log10(rms(heard) / rms(spoilt - heard)) == pytest.approx(10.0, abs=0.01)


def test_an_echo_comes_after_the_sound_and_moves_nothing() -> None:
    click = np.zeros(8_000, np.float32)
    click[2_000] = 0.5
    spoil = WorseChannel(**{**QUIET, "echo_probability": 1.0}, echo_seconds=(0.2, 0.2))
    heard = spoil(click, np.random.default_rng(1))
    assert np.abs(heard[:1_999]).max() < 1e-6 and heard[2_000] == pytest.approx(0.5, abs=1e-5)
    assert 0.01 < np.abs(heard[2_001:4_000]).max() < 0.5


def test_the_same_random_numbers_give_the_same_audio() -> None:
    spoil, samples = WorseChannel(noise_probability=1.0), tone(700)
    first, again, other = (spoil(samples, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown noise thunder"):
        WorseChannel(noise_kinds=["thunder"])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        WorseChannel(telephone_probability=2.0)
    with pytest.raises(ConfigError, match=r"noise_kinds: no kind of noise is given.*white"):
        WorseChannel(noise_kinds=[])
    with pytest.raises(
        ConfigError, match=r"echo_seconds: invalid range of echo durations.*got \(0\.0, 0\.0\)"
    ):
        WorseChannel(echo_seconds=(0.0, 0.0))
    with pytest.raises(ConfigError, match=r"echo_seconds: invalid range of echo durations.*got 0\.5"):
        WorseChannel(echo_seconds=0.5)  # type: ignore[arg-type]
