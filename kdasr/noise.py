"""Generate background noise of several kinds, mix it with speech at a given SNR, and add reverberation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kdasr.errors import ConfigError

Samples = NDArray[np.float32]
Noise = Callable[[np.random.Generator, int, int], Samples]
GainOfHz = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_PEAK = 0.98
_WITH_KNOCKS = 0.3


def make_noise(kind: str, rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """(num_samples,) noise of unit RMS. `kind` is one of `NOISE_KINDS`."""
    noise = NOISE_KINDS[kind](rng, num_samples, rate_hz).astype(np.float32)
    return noise / max(rms(noise), 1e-9)


def noise_before(samples: Samples, seconds: float, rate_hz: int, rng: np.random.Generator) -> Samples:
    """(seconds * rate_hz,) white noise as loud as the quietest 100 ms of audio that are not digital silence,
    as a microphone picks up before speech."""
    block = rate_hz // 10
    blocks = samples[: len(samples) // block * block].reshape(-1, block)
    levels = np.sqrt(np.square(blocks, dtype=np.float64).mean(1))
    level = levels[levels > 0].min() if levels.any() else 0.0
    return (level * rng.standard_normal(round(seconds * rate_hz))).astype(np.float32)


def moving_noise(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """(num_samples,) noise of one of `MOVING_KINDS` that swells and fades several times a second, sometimes
    with knocks, as in a room in which nobody speaks."""
    noise = make_noise(str(rng.choice(MOVING_KINDS)), rng, num_samples, rate_hz)
    count = max(4, round(num_samples / rate_hz * rng.uniform(2, 10)) + 3)
    knots_nats = rng.normal(0, rng.uniform(0, 1), count)
    places = np.linspace(0, count - 1, num_samples)
    if rng.random() < _WITH_KNOCKS:
        for start in rng.integers(0, num_samples, 1 + rng.poisson(3 * num_samples / rate_hz)):
            length = min(num_samples - int(start), round(rate_hz * rng.uniform(0.0025, 0.1)))
            fading = np.exp(-5 * np.arange(length) / length)
            knock = rng.uniform(1, 8) * rng.standard_normal(length) * fading
            noise[start : start + length] += knock.astype(np.float32)
    return (noise * np.exp(np.interp(places, np.arange(count), knots_nats))).astype(np.float32)


def add_noise(speech: Samples, noise: Samples, snr_db: float, speech_rms: float) -> Samples:
    """Add noise of unit RMS to speech, `snr_db` below `speech_rms`, which the caller measures with or without
    the pauses of the speech."""
    return speech + noise * np.float32(speech_rms * 10 ** (-snr_db / 20))


def amplify(samples: Samples, gain: float) -> Samples:
    """`samples` times `gain`, or as loud as possible without clipping."""
    return samples * np.float32(min(gain, _PEAK / float(np.abs(samples).max())))


def reverberate(speech: Samples, rate_hz: int, seconds: float, rng: np.random.Generator) -> Samples:
    """The speech with reverberation: a noise tail that decays by 60 dB in `seconds`."""
    num_samples = int(seconds * rate_hz)
    decay = 10 ** (-3 * np.arange(num_samples) / num_samples)
    room = rng.standard_normal(num_samples) * decay
    room *= rng.uniform(0.2, 0.7) / np.linalg.norm(room)
    room[0] = 1.0
    padded = 1 << (len(speech) + num_samples - 1).bit_length()
    spectrum = np.fft.rfft(speech, padded) * np.fft.rfft(room, padded)
    return np.fft.irfft(spectrum, padded)[: len(speech)].astype(np.float32)


def rms(samples: Samples) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def check_kinds(kinds: tuple[str, ...], setting: str, *more: str) -> None:
    """Raise ConfigError unless every kind is one of `NOISE_KINDS` or `more`."""
    known = (*NOISE_KINDS, *more)
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ConfigError(f"unknown noise {', '.join(unknown)}", where=setting, expected=", ".join(known))


def shape_spectrum(samples: Samples, rate_hz: int, gain: GainOfHz) -> Samples:
    """`samples` with each frequency multiplied by `gain(frequency in Hz)`."""
    padded = 1 << (len(samples) - 1).bit_length()  # a power of two: other lengths can be 50 x slower
    frequencies_hz = np.fft.rfftfreq(padded, 1 / rate_hz).astype(np.float64)
    spectrum = np.fft.rfft(samples, padded) * gain(frequencies_hz)
    return np.fft.irfft(spectrum, padded)[: len(samples)].astype(np.float32)


def _coloured(exponent: float, lowest_hz: float = 20.0) -> Noise:
    """Noise with power proportional to frequency ** -exponent: 1 pink, 2 brown, -2 violet."""

    def make(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
        white = rng.standard_normal(num_samples, dtype=np.float32)
        return shape_spectrum(white, rate_hz, lambda hz: np.maximum(hz, lowest_hz) ** (-exponent / 2))

    return make


def _white(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    return rng.standard_normal(num_samples, dtype=np.float32)


def _seconds(num_samples: int, rate_hz: int) -> NDArray[np.float32]:
    return (np.arange(num_samples) / rate_hz).astype(np.float32)


def _hum(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Mains hum: a low tone with harmonics of falling strength."""
    base_hz = rng.choice([50.0, 60.0]) * rng.choice([1, 2])
    seconds, hum = _seconds(num_samples, rate_hz), np.zeros(num_samples, np.float32)
    for harmonic in range(1, 13):
        phase, level = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.0) / harmonic
        hum += np.float32(level) * np.sin(2 * np.pi * base_hz * harmonic * seconds + phase, dtype=np.float32)
    return hum + 0.05 * _white(rng, num_samples, rate_hz)


def _fan(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """A band of noise that swells a few times each second."""
    centre_hz, width_hz = rng.uniform(300, 1500), rng.uniform(200, 800)
    white = _white(rng, num_samples, rate_hz)
    band = shape_spectrum(white, rate_hz, lambda hz: np.exp(-0.5 * ((hz - centre_hz) / width_hz) ** 2))
    swell = 1 + 0.5 * np.sin(2 * np.pi * rng.uniform(4, 12) * _seconds(num_samples, rate_hz))
    return (band * swell).astype(np.float32)


def _engine(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """A sawtooth whose speed drifts, over a rumble."""
    seconds = _seconds(num_samples, rate_hz)
    drift_hz, drift = rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.2)
    speed_hz = rng.uniform(25, 70) * (1 + drift * np.sin(2 * np.pi * drift_hz * seconds))
    turns = np.cumsum(speed_hz, dtype=np.float64) / rate_hz + rng.uniform()
    sawtooth = (2 * (turns % 1) - 1).astype(np.float32)
    rumble = _coloured(2.0)(rng, num_samples, rate_hz)
    return sawtooth / rms(sawtooth) + rumble / rms(rumble)


def _wind(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Low-frequency noise in gusts of about a second."""
    low = _coloured(3.0, lowest_hz=60.0)(rng, num_samples, rate_hz)
    knots = np.exp(rng.normal(0, 0.8, size=num_samples // rate_hz * 2 + 3))
    gusts = np.interp(np.arange(num_samples), np.arange(len(knots)) * rate_hz / 2, knots)
    return (low * gusts).astype(np.float32)


def _crackle(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Sparse clicks of random strength, each ringing for a few milliseconds."""
    clicks = np.zeros(num_samples, np.float32)
    count = max(1, rng.poisson(rng.uniform(15, 60) * num_samples / rate_hz))
    clicks[rng.integers(0, num_samples, size=count)] = rng.standard_normal(count) * rng.exponential(
        size=count
    )
    centre_hz = rng.uniform(800, 0.35 * rate_hz)
    rung = shape_spectrum(clicks, rate_hz, lambda hz: 1 / (1 + ((hz - centre_hz) / 400) ** 2))
    return rung + np.float32(0.1 * rms(rung)) * _white(rng, num_samples, rate_hz)


def _chirps(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """A tone that sweeps up and down like an alarm, over faint white noise."""
    low_hz = rng.uniform(400, 900)
    sweep_hz = low_hz * rng.uniform(1.5, 2.5) - low_hz
    position = np.sin(2 * np.pi * rng.uniform(0.5, 3) * _seconds(num_samples, rate_hz) + rng.uniform(0, 6))
    turns = np.cumsum(low_hz + sweep_hz * (0.5 + 0.5 * position), dtype=np.float64) / rate_hz
    tone = np.sin(2 * np.pi * (turns % 1)).astype(np.float32)
    return tone + 0.1 * _white(rng, num_samples, rate_hz)


def _melody(rng: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """Notes with harmonics, like music, telephones and alarms; in half of the melodies, notes glide into each
    other."""
    count = 2 + round(num_samples / rate_hz * rng.uniform(1, 8))
    starts = np.sort(rng.integers(0, num_samples, count))
    starts[0] = 0
    lowest_hz = 80 * 2 ** rng.uniform(0, 3.5)
    notes_hz = lowest_hz * 2 ** (rng.integers(0, 19, count) / 12)
    places = np.arange(num_samples)
    note = np.repeat(np.arange(count), np.diff(starts, append=num_samples))
    hz = np.interp(places, starts, notes_hz) if rng.random() < 0.5 else notes_hz[note]
    turns = 2 * np.pi * (np.cumsum(hz) / rate_hz % 1)
    age_s = ((places - starts[note]) / rate_hz).astype(np.float32)
    loudness = (rng.random(count) < 0.8) * rng.uniform(0.3, 1.0, count)
    envelope = loudness[note] * np.minimum(age_s / 0.005, 1) * np.exp(-age_s * rng.choice([0, 3, 10]))
    harmonics = _sines(turns.astype(np.float32), count=6)
    fall, audible = rng.uniform(0.5, 3.0), rate_hz / 2 / notes_hz.max()
    tone = sum(
        sine * np.float32(rng.uniform(0.2, 1.0) * harmonic**-fall * (harmonic < audible))
        for harmonic, sine in enumerate(harmonics, 1)
    )
    return (tone * envelope).astype(np.float32) + 0.02 * _white(rng, num_samples, rate_hz)


def _sines(radians: NDArray[np.float32], count: int) -> list[NDArray[np.float32]]:
    """sin(x), sin(2x), …, each computed from the two before it."""
    sines, twice_cosine = [np.zeros_like(radians), np.sin(radians)], 2 * np.cos(radians)
    for _ in range(count - 1):
        sines.append(twice_cosine * sines[-1] - sines[-2])
    return sines[1:]


NOISE_KINDS: dict[str, Noise] = {
    "white": _white,
    "pink": _coloured(1.0),
    "brown": _coloured(2.0),
    "violet": _coloured(-2.0),
    "hum": _hum,
    "fan": _fan,
    "engine": _engine,
    "wind": _wind,
    "crackle": _crackle,
    "chirps": _chirps,
    "melody": _melody,
}
# Kinds that training may use: `recipes/mini` keeps the others for its test set.
MOVING_KINDS = ("white", "pink", "brown", "hum", "fan", "melody")
