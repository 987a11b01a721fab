"""data_prep.fsdd: which recordings go where, how they are joined, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data_prep import fsdd, prepare
from data_prep.fsdd import Settings
from data_prep.support.dropped import Dropped
from data_prep.support.grammar import DIGITS
from kdasr.errors import ConfigError, CorpusError
from kdasr.interfaces import Utterance
from tests.data_prep.fakes import (
    bytes_below,
    level_of,
    levels_in,
    make_fsdd,
    read_folder,
    record_of,
    recording_of,
    write_tone,
)

SPEAKERS = {"labelled_speakers": ("ann", "bob"), "unlabelled_speakers": ("cat",), "test_speakers": ("dan",)}
MINUTES = {"labelled_minutes": 0.6, "unlabelled_minutes": 0.4, "dev_minutes": 0.2, "test_minutes": 0.4}
PLAIN = {"labelled_augment_probability": 0.0, "unlabelled_augment_probability": 0.0, "dev_share": 0.25}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fsdd(tmp_path_factory.mktemp("fsdd"))


def strings_of(corpus: Path, split: str, seed: int = 1, **more: Any) -> list[Utterance]:
    settings = Settings(**{**SPEAKERS, **MINUTES, **PLAIN, **more})
    return list(fsdd.prepare(settings, corpus, split=split, seed=seed, dropped=Dropped(), done={}))


def recordings_in(utterances: list[Utterance]) -> list[list[tuple[str, int, int]]]:
    return [[recording_of(level) for level in levels_in(utterance.samples)] for utterance in utterances]


@pytest.mark.parametrize("split", fsdd.SPLITS)
def test_a_string_is_one_speaker_saying_its_text(corpus: Path, split: str) -> None:
    utterances = strings_of(corpus, split)
    allowed = {"labelled": {"ann", "bob"}, "dev": {"ann", "bob"}, "unlabelled": {"cat"}, "test": {"dan"}}[
        split
    ]
    spoken = recordings_in(utterances)
    assert {speaker for string in spoken for speaker, _, _ in string} == allowed
    for utterance, string in zip(utterances, spoken, strict=True):
        assert {speaker for speaker, _, _ in string} == {utterance.speaker}
        assert 3 <= len(string) <= 7
        words = " ".join(DIGITS[digit] for _, digit, _ in string)
        assert utterance.text == (None if split == "unlabelled" else words)


def test_the_unlabelled_strings_have_their_transcripts_where_these_are_asked_for(corpus: Path) -> None:
    asked = {"unlabelled_transcripts": True, "synthetic_unlabelled_minutes": 0.1}
    utterances = strings_of(corpus, "unlabelled", **asked)
    real = [utterance for utterance in utterances if utterance.speaker == "cat"]
    for utterance, string in zip(real, recordings_in(real), strict=True):
        assert utterance.text == " ".join(DIGITS[digit] for _, digit, _ in string)
    assert len(real) < len(utterances) and all(utterance.text for utterance in utterances)


def test_held_out_recordings_are_in_dev_alone(corpus: Path) -> None:
    dev, labelled = (
        {recording for string in recordings_in(strings_of(corpus, split)) for recording in string}
        for split in ("dev", "labelled")
    )
    assert dev.isdisjoint(labelled)
    assert {digit for _, digit, _ in dev} == set(range(10))
    assert len(labelled) == 2 * 10 * 3
    without_dev = strings_of(corpus, "labelled", dev_minutes=0.0, labelled_minutes=1.0)
    assert len({recording for string in recordings_in(without_dev) for recording in string}) == 80


def test_a_test_speaker_may_be_heard_unlabelled_by_other_recordings(corpus: Path) -> None:
    parted: dict[str, Any] = {"unlabelled_speakers": ("cat", "dan"), "test_share": 0.5}
    test, unlabelled, labelled = (
        {recording for string in recordings_in(strings_of(corpus, split, **parted)) for recording in string}
        for split in ("test", "unlabelled", "labelled")
    )
    assert {speaker for speaker, _, _ in test} == {"dan"}
    assert len(test) == 10 * 2
    assert {digit for _, digit, _ in test} == set(range(10))
    assert {speaker for speaker, _, _ in unlabelled} == {"cat", "dan"}
    assert len({recording for recording in unlabelled if recording[0] == "dan"}) > 10
    assert unlabelled.isdisjoint(test)
    assert {speaker for speaker, _, _ in labelled} == {"ann", "bob"}
    with pytest.raises(ConfigError, match="the speaker bob is in test and in training"):
        Settings(**{**SPEAKERS, "test_speakers": ("bob",), "test_share": 0.5})


def test_a_speaker_of_whom_nothing_is_left_is_no_silent_loss(corpus: Path) -> None:
    with pytest.raises(CorpusError, match=r"no recording of dan is left for unlabelled"):
        strings_of(corpus, "unlabelled", unlabelled_speakers=("cat", "dan"), test_share=0.9)


def test_no_recording_comes_twice_before_all_have_come_once(corpus: Path) -> None:
    spoken = [recording for string in recordings_in(strings_of(corpus, "test")) for recording in string]
    assert len(spoken) > 45
    # A string is never cut in two by the end of a round, so up to six may be left for the next one.
    assert len(set(spoken[:34])) == 34
    assert len(set(spoken[:46])) == 40
    assert max(spoken.count(recording) for recording in set(spoken)) <= len(spoken) // 40 + 1


@pytest.mark.parametrize("split", ["dev", "test"])
def test_dev_and_test_are_never_perturbed(corpus: Path, split: str) -> None:
    wild: dict[str, Any] = {
        "labelled_augment_probability": 1.0,
        "unlabelled_augment_probability": 1.0,
        "warp": (0.7, 0.7),
        "speed": (1.2, 1.2),
        "noise_probability": 1.0,
        "synthetic_minutes": 0.1,
        "synthetic_unlabelled_minutes": 0.1,
    }
    plain, other = strings_of(corpus, split), strings_of(corpus, split, **wild)
    assert [one.samples.tobytes() for one in plain] == [one.samples.tobytes() for one in other]


def test_between_recordings_lie_pauses_of_faint_noise(corpus: Path) -> None:
    for utterance in strings_of(corpus, "test", pause_seconds=(0.1, 0.1), floor_db=-60.0):
        silent = np.abs(utterance.samples) < 0.03  # the edges of a constant ring a little
        runs = np.split(silent, np.flatnonzero(np.diff(silent)) + 1)
        pauses = [len(run) for run in runs if run[0]][1:-1]
        assert len(pauses) == len((utterance.text or "").split()) - 1
        assert all(1500 < pause < 1700 for pause in pauses)
        assert 1e-5 < np.std(utterance.samples[:500]) < 2e-3


def test_pauses_are_within_their_range(corpus: Path) -> None:
    for utterance in strings_of(corpus, "test", digits=(3, 3), pause_seconds=(0.0, 0.4)):
        silence = len(utterance.samples) / 16_000 - 3 * 0.25
        assert 2 * 0.05 - 0.01 <= silence <= 2 * 0.25 + 2 * 0.4 + 0.01


def test_perturbed_strings_are_new_speakers_of_the_same_words(corpus: Path) -> None:
    plain = strings_of(corpus, "labelled", labelled_minutes=0.3)
    changed = strings_of(corpus, "labelled", labelled_minutes=0.3, labelled_augment_probability=1.0)
    assert [one.text for one in plain[:5]] == [one.text for one in changed[:5]]
    for one, other in zip(plain[:5], changed[:5], strict=True):
        assert 1 / 1.12 <= len(other.samples) / len(one.samples) <= 1 / 0.78
        assert np.abs(other.samples).max() <= 0.981
    assert (
        len({len(one.samples) / len(other.samples) for one, other in zip(plain, changed, strict=False)}) > 5
    )


def test_speed_alone_moves_the_pitch_and_tempo_alone_the_duration(tmp_path: Path) -> None:
    for digit in range(10):
        write_tone(tmp_path / "recordings" / f"{digit}_ann_0.wav", 0.5, 8_000)
        write_tone(tmp_path / "recordings" / f"{digit}_dan_0.wav", 0.5, 8_000)
    still: dict[str, Any] = {
        "labelled_speakers": ("ann",),
        "unlabelled_speakers": (),
        "dev_minutes": 0.0,
        "labelled_minutes": 0.1,
        "labelled_augment_probability": 1.0,
        "noise_probability": 0.0,
        "timbre_db": 0.0,
        "gain_db": (0.0, 0.0),
        "warp": (1.0, 1.0),
        "digits": (3, 3),
        "pause_seconds": (0.0, 0.0),
    }

    def tone_and_seconds(speed: float, tempo: float) -> tuple[float, float]:
        more = {**still, "speed": (speed, speed), "tempo": (tempo, tempo)}
        samples = strings_of(tmp_path, "labelled", **more)[0].samples
        middle = samples[len(samples) // 2 - 4000 : len(samples) // 2 + 4000]
        return float(np.argmax(np.abs(np.fft.rfft(middle * np.hanning(8000)))) * 2), len(samples) / 16_000

    tone, seconds = tone_and_seconds(1.0, 1.0)
    assert tone == 440
    faster_tone, faster_seconds = tone_and_seconds(1.15, 1.0)
    assert faster_tone == pytest.approx(440 * 1.15, abs=4)
    assert faster_seconds == pytest.approx(seconds, rel=0.01)
    tempo_tone, tempo_seconds = tone_and_seconds(1.0, 1.25)
    assert tempo_tone == pytest.approx(440, abs=4)
    assert tempo_seconds == pytest.approx(seconds / 1.25, rel=0.01)


def test_noise_and_gain_are_added_at_their_levels(corpus: Path) -> None:
    quiet: dict[str, Any] = {
        "labelled_augment_probability": 1.0,
        "timbre_db": 0.0,
        "speed": (1.0, 1.0),
        "tempo": (1.0, 1.0),
        "warp": (1.0, 1.0),
        "gain_db": (-20.0, -20.0),
        "floor_db": -90.0,
    }
    plain = strings_of(corpus, "labelled")[0].samples
    clean = strings_of(corpus, "labelled", **{**quiet, "noise_probability": 0.0})[0].samples
    np.testing.assert_allclose(clean, 0.1 * plain, atol=2e-3)
    more = {**quiet, "noise_probability": 1.0, "noise": ("white",), "snr_db": (10.0, 10.0)}
    noise = strings_of(corpus, "labelled", **more)[0].samples - clean
    # Resampled from 8 kHz, the noise keeps its level and has nothing above 4 kHz.
    measured = 20 * np.log10(np.sqrt(np.mean(clean**2)) / np.sqrt(np.mean(noise**2)))
    assert measured == pytest.approx(10.0, abs=0.7)


def test_synthetic_strings_are_added_where_asked(corpus: Path) -> None:
    more = {"labelled_minutes": 0.1, "unlabelled_minutes": 0.1, "synthetic_minutes": 0.3}
    labelled = strings_of(corpus, "labelled", **more)
    spoken = [utterance for utterance in labelled if "synth" in utterance.key]
    assert sum(len(utterance.samples) for utterance in spoken) / 16_000 >= 0.3 * 60
    assert spoken[0].key == "fsdd-synth-labelled-000000"
    assert all(set((utterance.text or "").split()) <= set(DIGITS) for utterance in spoken)
    power = np.abs(np.fft.rfft(spoken[0].samples)) ** 2
    assert power[len(power) // 2 + 10 :].sum() < 1e-3 * power.sum()
    assert not any("synth" in utterance.key for utterance in strings_of(corpus, "unlabelled", **more))
    unlabelled = strings_of(corpus, "unlabelled", **{**more, "synthetic_unlabelled_minutes": 0.1})
    others = [utterance for utterance in unlabelled if "synth" in utterance.key]
    assert all(utterance.text is None for utterance in others)
    voices = [{(one.speaker or "").split("+")[1] for one in group} for group in (spoken, others)]
    assert voices[0].isdisjoint(voices[1])


def test_shards_are_the_same_bytes_every_time(corpus: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare("fsdd", corpus=corpus, out=tmp_path / name, **SPEAKERS, **MINUTES)
    one, two = bytes_below(tmp_path / "one"), bytes_below(tmp_path / "two")
    assert one == two
    assert {name.split("/")[0] for name in one} == set(fsdd.SPLITS)
    prepare("fsdd", corpus=corpus, out=tmp_path / "three", seed=2, **SPEAKERS, **MINUTES)
    assert bytes_below(tmp_path / "three")["test/shard-000000.tar"] != one["test/shard-000000.tar"]


def test_the_recordings_may_lie_at_the_top(corpus: Path) -> None:
    above, inside = strings_of(corpus, "dev"), strings_of(corpus / "recordings", "dev")
    assert [one.samples.tobytes() for one in above] == [one.samples.tobytes() for one in inside]


def test_an_unknown_speaker_is_refused_with_the_known_ones(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"no speaker zoe; expected one of ann, bob, cat, dan\. Check test_speakers"
    ):
        prepare("fsdd", corpus=corpus, out=tmp_path, **{**SPEAKERS, **MINUTES, "test_speakers": "zoe"})
    assert list(tmp_path.iterdir()) == []


def test_a_test_speaker_may_not_be_trained_on() -> None:
    with pytest.raises(ConfigError, match=r"test_speakers: the speaker ann is in test and in training"):
        Settings(**{**SPEAKERS, "test_speakers": ("dan", "ann")})


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"noise": ("thunder",)}, "noise"),
        ({"dev_share": 1.0}, "dev_share"),
        ({"digits": (5, 3)}, "digits"),
        ({"digits": (0, 3)}, "digits"),
        ({"speed": (0.0, 1.0)}, "speed"),
        ({"warp": (0.9, 9.0)}, "warp"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Settings(**values)


def test_another_folder_is_no_corpus(tmp_path: Path) -> None:
    write_tone(tmp_path / "song.wav", 0.5)
    with pytest.raises(
        CorpusError, match=r"not a checkout of the Free Spoken Digit.*recordings/.*got 1 other wav"
    ):
        prepare("fsdd", corpus=tmp_path, out=tmp_path / "out")


def test_bad_recordings_are_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    folder = make_fsdd(tmp_path / "corpus") / "recordings"
    (folder / "0_dan_0.wav").write_bytes(b"")
    data = (folder / "1_dan_0.wav").read_bytes()
    (folder / "1_dan_0.wav").write_bytes(data[: len(data) // 2])
    (folder / "notes.wav").write_bytes(b"")
    soundfile.write(folder / "2_dan_0.wav", np.full(4000, level_of("dan", 2, 0), np.float32), 16_000, "FLOAT")
    prepare("fsdd", corpus=tmp_path / "corpus", out=tmp_path / "out", **SPEAKERS, **MINUTES)
    dropped = record_of(tmp_path / "out" / "test", "dropped.json")
    assert dropped["count"] == 3
    reasons = {item["file"]: item["reason"] for item in dropped["dropped"]}
    assert reasons["recordings/0_dan_0.wav"].startswith("the audio is empty")
    assert reasons["recordings/1_dan_0.wav"].startswith("the audio is cut short")
    assert "name" in reasons["recordings/notes.wav"]
    assert record_of(tmp_path / "out" / "test")["notes"] == {"resampled from 16000 Hz": 1}
    used = {one for string in recordings_in(read_folder(tmp_path / "out" / "test")) for one in string}
    assert ("dan", 2, 0) in used
    assert not used & {("dan", 0, 0), ("dan", 1, 0)}
