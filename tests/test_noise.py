"""kdasr.noise: what each noise sounds like, and levels, noise and echo by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kdasr.noise import (
    MOVING_KINDS,
    NOISE_KINDS,
    Samples,
    add_noise,
    amplify,
    make_noise,
    moving_noise,
    noise_before,
    reverberate,
    rms,
)

RATE_HZ = 16_000


def spectrum_slope_db(noise: Samples) -> float:
    """dB for each octave between 200 Hz and 4 kHz."""
    power = np.abs(np.fft.rfft(noise)) ** 2
    hz = np.fft.rfftfreq(len(noise), 1 / RATE_HZ)
    edges = 200 * 2 ** np.arange(5.5)
    octaves = [power[(hz >= low) & (hz < 2 * low)].mean() for low in edges if 2 * low <= 6400]
    return float(np.polyfit(np.arange(len(octaves)), 10 * np.log10(octaves), 1)[0])


@pytest.mark.parametrize(
    ("kind", "slope"), [("white", 0.0), ("pink", -3.0), ("brown", -6.0), ("violet", 6.0)]
)
def test_coloured_noise_has_its_slope(kind: str, slope: float) -> None:
    noise = make_noise(kind, np.random.default_rng(0), 10 * RATE_HZ, RATE_HZ)
    assert spectrum_slope_db(noise) == pytest.approx(slope, abs=0.5)


@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize("num_samples", [50, 24_001])
def test_every_noise_has_unit_level_and_is_repeatable(kind: str, num_samples: int) -> None:
    noise, again = (make_noise(kind, np.random.default_rng(5), num_samples, RATE_HZ) for _ in range(2))
    np.testing.assert_array_equal(noise, again)
    assert (len(noise), noise.dtype) == (num_samples, np.float32)
    assert rms(noise) == pytest.approx(1.0, abs=1e-3)
    other = make_noise(kind, np.random.default_rng(6), num_samples, RATE_HZ)
    assert not np.array_equal(noise, other)
    assert num_samples < 1000 or abs(float(noise @ other)) / num_samples < 0.95


def test_a_melody_is_of_tones_that_are_held_or_glide() -> None:
    """A tenth of the frequencies of 50 ms hold nearly all of its power, and the loudest one changes."""
    shares, loudest = [], []
    for seed in range(20):
        noise = make_noise("melody", np.random.default_rng(seed), RATE_HZ, RATE_HZ).reshape(20, 800)
        power = np.sort(np.abs(np.fft.rfft(noise * np.hanning(800))) ** 2)
        shares.append(float(np.median(power[:, -40:].sum(1) / power.sum(1))))
        loudest.append(len(set(np.abs(np.fft.rfft(noise)).argmax(1).tolist())))
    assert np.median(shares) > 0.95 and np.median(loudest) >= 4


def test_hum_sits_on_the_mains_and_wind_below_the_rest() -> None:
    hum = np.abs(np.fft.rfft(make_noise("hum", np.random.default_rng(1), RATE_HZ, RATE_HZ)))
    assert np.argmax(hum) % 50 == 0 or np.argmax(hum) % 60 == 0
    centroids = {}
    for kind in ("wind", "white", "violet"):
        power = np.abs(np.fft.rfft(make_noise(kind, np.random.default_rng(1), RATE_HZ, RATE_HZ))) ** 2
        centroids[kind] = float(power @ np.arange(len(power)) / power.sum())
    assert centroids["wind"] < 300 < 3500 < centroids["white"] < 4500 < centroids["violet"]


@pytest.mark.parametrize("seed", range(8))
def test_crackle_is_of_sparse_clicks_that_ring_chirps_of_a_tone_and_a_fan_of_a_band(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crackle = make_noise("crackle", rng, RATE_HZ, RATE_HZ)  # of one second: a bin is 1 Hz
    assert np.mean(crackle**4) > 100, "white noise: 3"
    power = np.abs(np.fft.rfft(crackle)) ** 2
    around = np.convolve(power, np.ones(801), "same")
    assert 700 < around.argmax() < 0.36 * RATE_HZ
    # 1 / (1 + x ** 2) ** 2 has (1/2 + π/4) / (π/2) of its sum between -1 and 1.
    assert around.max() / power.sum() == pytest.approx(0.818, abs=0.03)
    power = np.abs(np.fft.rfft(make_noise("chirps", rng, RATE_HZ, RATE_HZ))) ** 2
    assert power[390:2260].sum() / power.sum() == pytest.approx(0.98, abs=0.01)
    power = np.abs(np.fft.rfft(make_noise("fan", rng, RATE_HZ, RATE_HZ))) ** 2
    assert 250 < np.searchsorted(power.cumsum(), power.sum() / 2) < 1600


def test_add_noise_by_hand() -> None:
    speech, noise = np.full(4, 0.5, np.float32), np.array([1, -1, 1, -1], np.float32)
    np.testing.assert_allclose(add_noise(speech, noise, 20.0, 0.5), [0.55, 0.45, 0.55, 0.45], atol=1e-6)


@pytest.mark.parametrize(("gain", "peak"), [(2.0, 0.8), (0.5, 0.2), (3.0, 0.98)])
def test_amplify_stops_below_full_scale(gain: float, peak: float) -> None:
    louder = amplify(np.array([0.1, -0.4, 0.0], np.float32), gain)
    np.testing.assert_allclose(louder, [peak / 4, -peak, 0.0], atol=1e-6)
    assert louder.dtype == np.float32


def test_an_echo_follows_the_sound_and_dies_away_by_60_db() -> None:
    click = np.zeros(RATE_HZ, np.float32)
    click[1000] = 1.0
    heard = reverberate(click, RATE_HZ, 0.5, np.random.default_rng(0))
    assert (len(heard), heard.dtype) == (RATE_HZ, np.float32)
    assert rms(heard[:1000]) < 1e-6 and heard[1000] == pytest.approx(1.0, abs=1e-5)
    start, end = (rms(heard[1001 + at : 1401 + at]) for at in (0, 7500))
    # 400 samples begin 7,500 later: 15/16 of the half second in which it falls by 60 dB
    assert 20 * np.log10(start / end) == pytest.approx(56.25, abs=1.5)
    assert rms(heard[9001:]) < 1e-6
    assert 0.2 < float(np.linalg.norm(heard[1001:])) < 0.7


def test_what_comes_before_is_as_loud_as_the_quietest_that_is_not_nothing() -> None:
    parts = [np.full(9_600, 0.5), np.full(3_200, 0.005), np.zeros(3_200)]
    speech = np.concatenate(parts).astype(np.float32)
    noise = noise_before(speech, 2.0, RATE_HZ, np.random.default_rng(0))
    assert noise.shape == (32_000,) and noise.dtype == np.float32
    assert rms(noise) == pytest.approx(0.005, rel=0.05)
    for without in (np.zeros(3_200, np.float32), np.ones(100, np.float32)):
        nothing = noise_before(without, 0.1, RATE_HZ, np.random.default_rng(0))
        assert len(nothing) == 1_600 and not nothing.any()


def test_moving_noise_swells_and_fades_and_is_of_some_kinds_alone() -> None:
    """So that the others are left for a test."""
    spread = []
    for seed in range(40):
        noise, again = (moving_noise(np.random.default_rng(seed), 16_123, RATE_HZ) for _ in range(2))
        np.testing.assert_array_equal(noise, again)
        assert (len(noise), noise.dtype) == (16_123, np.float32) and np.isfinite(noise).all()
        blocks = np.sqrt(np.square(noise[:16_000].reshape(20, 800)).mean(1))
        spread.append(float(np.log(blocks.max() / blocks.min())))
    still = make_noise("white", np.random.default_rng(0), 16_000, RATE_HZ).reshape(20, 800)
    levels = np.sqrt(np.square(still).mean(1))
    assert np.median(spread) > 4 * np.log(levels.max() / levels.min()), "nats between 50 ms and 50 ms"
    assert (
        set(MOVING_KINDS) < set(NOISE_KINDS)
        and len(moving_noise(np.random.default_rng(1), 160, RATE_HZ)) == 160
    )
