"""data_prep.support: setting values, random streams, espeak-ng and perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from data_prep.support import espeak
from data_prep.support.dropped import Dropped
from data_prep.support.grammar import _COMMANDS, DIGITS, command, digit_string
from data_prep.support.perturb import stretch_and_warp, tilt_timbre
from data_prep.support.seeding import rng_for
from data_prep.support.settings import parse_settings
from kdasr.errors import AudioError, ConfigError
from kdasr.noise import Samples, rms
from kdasr.text import normalise

RATE_HZ = 16_000


@dataclass(frozen=True)
class Example:
    minutes: float = 1.0
    voices: int = 2
    wet: bool = False
    kind: str = "a"
    kinds: tuple[str, ...] = ()
    snr_db: tuple[float, float] = (0.0, 1.0)
    cap: float | None = 3.0


@pytest.mark.parametrize(
    ("name", "given", "parsed"),
    [
        ("minutes", "2.5", 2.5),
        ("minutes", 2, 2.0),
        ("voices", "7", 7),
        ("voices", 7.0, 7),
        ("wet", "true", True),
        ("wet", "off", False),
        ("wet", True, True),
        ("kind", "b", "b"),
        ("kinds", "a, b", ("a", "b")),
        ("kinds", ["a", "b"], ("a", "b")),
        ("kinds", "", ()),
        ("kinds", 19, ("19",)),
        ("snr_db", "0,20", (0.0, 20.0)),
        ("snr_db", [-5, 20], (-5.0, 20.0)),
        ("cap", "none", None),
        ("cap", None, None),
        ("cap", "4", 4.0),
    ],
)
def test_a_setting_is_read(name: str, given: Any, parsed: Any) -> None:
    value = getattr(parse_settings(Example, {name: given}, "x"), name)
    assert value == parsed
    assert type(value) is type(parsed)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("minutes", "many", "a number"),
        ("minutes", True, "a number"),
        ("minutes", "nan", "a number"),
        ("voices", 2.5, "a whole number"),
        ("wet", "perhaps", "true or false"),
        ("kind", ["a"], "a string"),
        ("kinds", {"a": 1}, "a list of strings"),
        ("snr_db", "5", "two numbers: low,high"),
        ("snr_db", [1, 2, 3], "two numbers: low,high"),
        ("cap", "much", "a number"),
    ],
)
def test_a_setting_of_the_wrong_type_is_named(name: str, given: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--{name}: the value cannot be used; expected {expected}; got "):
        parse_settings(Example, {name: given}, "x")


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"^prepare x: unknown setting minuets; expected one of cap, kind, kinds, m"
    ):
        parse_settings(Example, {"minuets": 1}, "prepare x")


def test_random_streams_are_apart_and_fixed() -> None:
    draws = [
        rng_for(*names).integers(1 << 30) for names in ((1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0))
    ]
    assert len(set(draws)) == 4
    assert rng_for(1, "synth", "test", 17).integers(1000) == rng_for(1, "synth", "test", 17).integers(1000)


def test_dropped_things_are_counted_without_their_place() -> None:
    dropped = Dropped()
    dropped.add("a.wav", "no text")
    dropped.add_error(
        "b\udcff.wav", AudioError("it is cut", where="/somewhere/b.wav", expected=2, got=1, fix="Fix.")
    )
    dropped.note_rate(8000, 16000)
    dropped.note_rate(16000, 16000)
    for text in ("it’s a dayʼs café", "it’s “one”", "itʼs", "für die Straße"):
        dropped.note_accents(text, normalise(text))
    assert dropped.as_json() == {
        "count": 2,
        "dropped": [
            {"file": "a.wav", "reason": "no text"},
            {"file": "b?.wav", "reason": "it is cut; expected 2; got 1"},
        ],
    }
    assert dropped.notes == {"resampled from 8000 Hz": 1, "with accents removed": 2}


@pytest.mark.parametrize(
    ("text", "letters", "lost"),
    [
        ("İstanbul'da IŞIK", "çğıöşü", False),
        ("İzmir ile Iğdır", "ıöü", True),
        ("كَتَبَ أنا", "انكتب", True),
        ("كتب انا", "انكتب", False),
        ("हिन्दी", "हिनदी", True),
        ("हिन्दी", "हिन्दी", False),
        ("ﬁn", "", False),
    ],
)
def test_accents_and_marks_that_a_transcript_lost_are_counted(text: str, letters: str, lost: bool) -> None:
    dropped = Dropped()
    dropped.note_accents(text, normalise(text, letters))
    assert dropped.notes["with accents removed"] == lost


def test_every_voice_speaks_and_carries_nothing_over_to_the_next() -> None:
    def say(variant: str) -> Samples:
        return espeak.speak("nine two", f"en-us+{variant}")

    before = {variant: say(variant) for variant in espeak.VARIANTS}
    assert len({samples.tobytes() for samples in before.values()}) == len(espeak.VARIANTS)
    order = np.random.default_rng(0).permutation(np.array(espeak.VARIANTS))
    for variant in order:
        np.testing.assert_array_equal(say(variant), before[variant], err_msg=variant)
    for variant, samples in before.items():
        assert 0.3 < len(samples) / espeak.ESPEAK_RATE_HZ < 1.5, variant
        assert rms(samples) > 0.02, variant


@pytest.mark.parametrize("accent", espeak.ACCENTS)
def test_every_accent_speaks(accent: str) -> None:
    samples = espeak.speak("zero four nine", f"{accent}+m1")
    assert samples.dtype == np.float32
    assert 0.5 < len(samples) / espeak.ESPEAK_RATE_HZ < 2.5


def fundamental_hz(samples: Samples, rate_hz: int) -> float:
    """The strongest lag between 2.5 and 20 ms of the loudest 100 ms."""
    size = rate_hz // 10
    start = max(range(0, len(samples) - size, size // 4), key=lambda at: rms(samples[at : at + size]))
    frame = samples[start : start + size] - samples[start : start + size].mean()
    correlation = np.correlate(frame, frame, "full")[size - 1 :]
    low, high = rate_hz // 400, rate_hz // 50
    return float(rate_hz / (low + np.argmax(correlation[low:high])))


def test_rate_and_pitch_do_what_they_say() -> None:
    def say(**settings: int) -> Samples:
        return espeak.speak("one nine nine", "en-us+m1", pitch_range=0, **settings)

    slow, fast = say(words_per_minute=100), say(words_per_minute=200)
    assert 1.5 < len(slow) / len(fast) < 2.3
    low, high = (fundamental_hz(say(pitch=pitch), espeak.ESPEAK_RATE_HZ) for pitch in (40, 80))
    assert high > 1.2 * low


def test_an_unknown_voice_and_silence_are_errors() -> None:
    with pytest.raises(espeak.SpeechSynthesisError, match="could not set the voice xx-nowhere"):
        espeak.speak("one", "xx-nowhere")
    with pytest.raises(espeak.SpeechSynthesisError, match="produced no sound"):
        espeak.speak("", "en-us+m1")
    assert len(espeak.speak("one", "en-us+m1")) > 1000


def test_a_library_that_someone_holds_open_is_refused() -> None:
    import _ctypes
    import ctypes

    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    with pytest.raises(espeak.SpeechSynthesisError, match="already in use"):
        espeak.speak("one", "en-us+m1")
    _ctypes.dlclose(library._handle)
    assert len(espeak.speak("one", "en-us+m1")) > 1000


def test_grammar() -> None:
    rng = np.random.default_rng(0)
    strings = [digit_string(rng, (3, 7)) for _ in range(200)]
    assert {len(string.split()) for string in strings} == {3, 4, 5, 6, 7}
    assert {word for string in strings for word in string.split()} == set(DIGITS)
    commands = {command(rng) for _ in range(500)}
    assert {"stop", "next song", "turn volume up"} <= commands
    words = {word for slots in _COMMANDS for words in slots for word in words}
    assert 25 <= len(words - set(DIGITS)) <= 32


def vowel(formant_hz: float, fundamental: float = 125.0) -> Samples:
    """Two seconds of pulses through one resonance."""
    pulses = np.zeros(2 * RATE_HZ, np.float32)
    pulses[:: round(RATE_HZ / fundamental)] = 1
    hz = np.fft.rfftfreq(len(pulses), 1 / RATE_HZ)
    shaped = np.fft.irfft(np.fft.rfft(pulses) / (1 + ((hz - formant_hz) / 150) ** 2))
    return (shaped / np.abs(shaped).max()).astype(np.float32)


def formant_hz(samples: Samples) -> float:
    power = np.abs(np.fft.rfft(samples[4000:20000])) ** 2
    hz = np.fft.rfftfreq(16000, 1 / RATE_HZ)
    return float(power @ hz / power.sum())


@pytest.mark.parametrize("warp", [0.85, 1.0, 1.15])
@pytest.mark.parametrize("tempo", [0.8, 1.0, 1.25])
def test_tempo_and_warp_change_one_thing_each(warp: float, tempo: float) -> None:
    changed = stretch_and_warp(vowel(1500), RATE_HZ, tempo=tempo, warp=warp)
    assert len(changed) == round(2 * RATE_HZ / tempo)
    assert formant_hz(changed) == pytest.approx(1500 * warp, rel=0.05)
    assert fundamental_hz(changed, RATE_HZ) == pytest.approx(125, rel=0.03)


def test_timbre_stays_within_its_bounds() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 15).astype(np.float32)
    changed = tilt_timbre(noise, RATE_HZ, 6.0, rng)
    change_db = 20 * np.log10(np.abs(np.fft.rfft(changed)) / np.abs(np.fft.rfft(noise)))
    assert -6.01 <= change_db.min() < change_db.max() <= 6.01
    assert change_db.max() - change_db.min() > 2
    np.testing.assert_allclose(tilt_timbre(noise, RATE_HZ, 0.0, rng), noise, atol=1e-4)
