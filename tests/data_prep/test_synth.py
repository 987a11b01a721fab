"""data_prep.synth: who speaks, what is said, how noisy it is, and that it is the same every time."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from data_prep import synth
from data_prep.support import espeak
from data_prep.support.dropped import Dropped
from data_prep.support.grammar import _COMMANDS, DIGITS
from data_prep.synth import SPLITS, Settings, voices_of
from kdasr.errors import ConfigError
from kdasr.features import num_frames
from kdasr.interfaces import Utterance
from kdasr.noise import Samples, rms

WORDS = {*DIGITS, "oh", *(word for slots in _COMMANDS for words in slots for word in words)}
DRY = Settings(noise_probability=0.0, reverb_probability=0.0, edge_seconds=(0.0, 0.0))


def generated(settings: Settings, split: str, seed: int = 1) -> Iterator[Utterance]:
    return synth.prepare(settings, None, split=split, seed=seed, dropped=Dropped(), done={})


def first(count: int, settings: Settings, split: str, seed: int = 1) -> list[Utterance]:
    return list(islice(generated(settings, split, seed), count))


def digest_of(split: str, count: int) -> str:
    digest = hashlib.sha256()
    for utterance in first(count, Settings(), split):
        digest.update(utterance.samples.tobytes() + f"{utterance.text}{utterance.speaker}".encode())
    return digest.hexdigest()


def test_the_minutes_are_kept() -> None:
    utterances = list(generated(Settings(dev_minutes=0.5), "dev"))
    seconds = [len(utterance.samples) / 16_000 for utterance in utterances]
    assert 30 <= sum(seconds) < 30 + seconds[-1]
    assert [utterance.key for utterance in utterances[:2]] == ["synth-dev-000000", "synth-dev-000001"]
    assert synth.splits(Settings(unlabelled_minutes=0.0), None) == ("labelled", "dev", "test")


@pytest.mark.parametrize("seed", [1, 2])
def test_no_voice_is_in_two_splits(seed: int) -> None:
    settings = Settings()
    voices = {split: voices_of(settings, split, seed) for split in SPLITS}
    for split in SPLITS:
        assert len(set(voices[split])) == getattr(settings, f"{split}_voices")
        for utterance in first(12, settings, split, seed):
            accent, variant = (utterance.speaker or "").split("+")
            assert accent in espeak.ACCENTS
            assert variant in voices[split]
    assert len(set().union(*map(set, voices.values()))) == settings.num_voices


@pytest.mark.parametrize("seed", range(20))
def test_dev_and_test_are_spoken_by_human_voices_alone(seed: int) -> None:
    measured = {*voices_of(Settings(), "dev", seed), *voices_of(Settings(), "test", seed)}
    assert measured.isdisjoint(espeak.TRAINING_ONLY)
    assert len(measured) == Settings().dev_voices + Settings().test_voices


def test_the_voices_that_are_not_human_are_those_whose_formants_lie_elsewhere() -> None:
    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    moved = set()
    for variant in espeak.VARIANTS:
        definition = (folder / variant).read_text(errors="replace")
        percents = re.findall(r"^\s*formant\s+[123]\s+(\d+)", definition, re.MULTILINE)
        if not all(75 <= int(percent) <= 130 for percent in percents):
            moved.add(variant)
    assert moved == espeak.NOT_HUMAN


def test_the_klatt_voices_are_those_that_ask_for_that_synthesiser() -> None:
    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    definitions = {variant: (folder / variant).read_text(errors="replace") for variant in espeak.VARIANTS}
    asking = {name for name, text in definitions.items() if re.search(r"^\s*klatt\s+\d", text, re.MULTILINE)}
    assert asking == espeak.KLATT


def test_more_measured_voices_than_human_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match="test_voices, dev_voices: .*too many human voices"):
        Settings(labelled_voices=1, unlabelled_voices=1, dev_voices=10, test_voices=60)


def test_another_seed_gives_other_voices_and_other_words() -> None:
    assert voices_of(Settings(), "test", 1) != voices_of(Settings(), "test", 2)
    texts = [[one.text for one in first(5, Settings(), "dev", seed)] for seed in (1, 2)]
    assert texts[0] != texts[1]


def test_the_noises_of_the_test_are_heard_nowhere_else() -> None:
    settings = Settings()
    elsewhere = {*settings.labelled_noise, *settings.unlabelled_noise, *settings.dev_noise}
    assert elsewhere.isdisjoint(settings.test_noise)
    assert len(settings.test_noise) >= 3


def test_transcripts_are_of_the_vocabulary_and_unlabelled_audio_has_none() -> None:
    texts = [utterance.text or "" for utterance in first(60, Settings(), "labelled")]
    assert {word for text in texts for word in text.split()} <= WORDS
    assert any(set(text.split()) <= set(DIGITS) for text in texts)
    assert any(not set(text.split()) & set(DIGITS) for text in texts)
    untold = first(5, Settings(), "unlabelled")
    told = first(5, Settings(unlabelled_transcripts=True), "unlabelled")
    assert all(utterance.text is None for utterance in untold)
    assert all(set((utterance.text or "-").split()) <= WORDS for utterance in told)
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(told, untold, strict=True))


def test_digits_alone_and_oh() -> None:
    settings = Settings(vocabulary="digits", oh_probability=1.0)
    words = [word for utterance in first(20, settings, "dev") for word in (utterance.text or "").split()]
    assert set(words) == {*DIGITS[1:], "oh"}
    lengths = {len((utterance.text or "").split()) for utterance in first(40, settings, "dev")}
    assert lengths == {3, 4, 5, 6, 7}


def test_every_utterance_has_frames_enough_to_be_spelled() -> None:
    """CTC needs a 40 ms frame for each letter, and one more between two that are the same."""
    for utterance in first(
        150, dataclasses.replace(DRY, labelled_voices=40, unlabelled_voices=0), "labelled"
    ):
        text = utterance.text or ""
        repeats = sum(one == other for one, other in pairwise(text))
        assert -(-num_frames(len(utterance.samples)) // 4) >= len(text) + repeats, utterance.speaker


@pytest.mark.parametrize("kind", ["white", "pink", "hum", "engine", "wind", "crackle", "chirps", "babble"])
@pytest.mark.parametrize("snr_db", [0.0, 15.0])
def test_the_snr_is_what_was_asked_for(kind: str, snr_db: float) -> None:
    noisy_settings = dataclasses.replace(
        DRY, test_noise=(kind,), noise_probability=1.0, test_snr_db=(snr_db, snr_db)
    )
    for clean, noisy in zip(first(4, DRY, "test"), first(4, noisy_settings, "test"), strict=True):
        assert (clean.text, clean.speaker) == (noisy.text, noisy.speaker)
        speech, mixed = clean.samples.astype(np.float64), noisy.samples.astype(np.float64)
        scaled = speech * (speech @ mixed) / (speech @ speech)
        measured = 20 * np.log10(rms(scaled.astype(np.float32)) / rms((mixed - scaled).astype(np.float32)))
        assert measured == pytest.approx(snr_db, abs=1.0)


def test_levels_and_peaks_are_in_range() -> None:
    settings = dataclasses.replace(DRY, level_db=(-32.0, -26.0))
    for utterance in first(20, settings, "dev"):
        assert -32.1 <= 20 * np.log10(rms(utterance.samples)) <= -25.9
    for utterance in first(20, Settings(level_db=(-3.0, 0.0)), "dev"):
        assert np.abs(utterance.samples).max() <= 0.981


def test_edges_are_silent_for_as_long_as_asked() -> None:
    dry = first(5, DRY, "dev")
    for without, padded in zip(
        dry, first(5, dataclasses.replace(DRY, edge_seconds=(0.25, 0.25)), "dev"), strict=True
    ):
        assert len(padded.samples) == len(without.samples) + 8000
        assert rms(padded.samples[:3999]) == 0 == rms(padded.samples[-3999:])


def test_a_narrow_band_has_nothing_above_it() -> None:
    def share_above_4_khz(samples: Samples) -> float:
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float(power[len(power) // 2 + 10 :].sum() / power.sum())

    wide = first(5, Settings(), "dev")
    narrow = first(5, Settings(bandwidth_hz=4000.0), "dev")
    assert all(share_above_4_khz(utterance.samples) > 1e-4 for utterance in wide)
    assert all(share_above_4_khz(utterance.samples) < 1e-5 for utterance in narrow)


def test_a_room_adds_a_tail_and_keeps_the_words() -> None:
    settings = dataclasses.replace(
        DRY, reverb_probability=1.0, reverb_seconds=(0.4, 0.4), edge_seconds=(0.3, 0.3)
    )
    (dry,) = first(1, dataclasses.replace(settings, reverb_probability=0.0), "dev")
    (wet,) = first(1, settings, "dev")
    assert (dry.text, len(dry.samples)) == (wet.text, len(wet.samples))
    assert rms(dry.samples[-4000:]) == 0
    assert rms(wet.samples[-4000:]) > 1e-4 * rms(wet.samples)
    assert rms(wet.samples[:4000]) < 1e-5


def test_an_utterance_depends_on_seed_split_and_index_alone() -> None:
    alone = first(10, Settings(), "unlabelled")[-1]
    first(3, Settings(), "test")
    again = first(10, Settings(unlabelled_minutes=99.0, test_minutes=1.0), "unlabelled")[-1]
    np.testing.assert_array_equal(alone.samples, again.samples)


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_samples() -> None:
    code = "from tests.data_prep.test_synth import digest_of; print(digest_of('unlabelled', 12))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first(2, Settings(), "labelled")
    assert fresh.stdout.strip() == digest_of("unlabelled", 12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocabulary": "novels"}, "unknown vocabulary; expected commands or digits; got novels"),
        ({"test_voices": 60}, "too many voices; expected at most 7\\d"),
        ({"dev_noise": ("pink", "thunder")}, "dev_noise: unknown noise thunder; expected .*babble"),
        ({"bandwidth_hz": 9000.0}, "bandwidth_hz is out of range"),
        ({"test_minutes": -1.0}, "test_minutes: .*out of range; expected at least 0; got -1.0"),
        ({"test_snr_db": (20.0, 5.0)}, "test_snr_db: .*expected low,high"),
        ({"reverb_probability": 1.5}, "reverb_probability: .*expected from 0 to 1"),
        ({"max_shard_utterances": 0}, "max_shard_utterances: .*at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**values)  # type: ignore[arg-type]


def test_a_split_needs_a_voice() -> None:
    with pytest.raises(ConfigError, match="dev_voices: the split has no voices"):
        first(1, Settings(dev_voices=0), "dev")
