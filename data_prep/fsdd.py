"""Free Spoken Digit Dataset: strings of digits joined from one speaker's real recordings.

`corpus` is any checkout of the dataset: recordings/{digit}_{speaker}_{number}.wav at 8 kHz
(Jackson et al., https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0).

Splits: `labelled`, `unlabelled` (without transcripts, unless requested), `dev` (recordings of the
labelled speakers that `labelled` never uses), `test`. Speakers are chosen by name. A test speaker
occurs nowhere else except, with `test_share`, in `unlabelled`, with other recordings.
`dev` and `test` are unchanged recordings with pauses between them. `labelled` and `unlabelled` may be
perturbed into new pseudo-speakers, and synthetic strings may be added.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from data_prep import synth
from data_prep.support.digit_recordings import Recording, find_recordings, load_recordings
from data_prep.support.dropped import Dropped
from data_prep.support.grammar import DIGITS
from data_prep.support.perturb import stretch_and_warp, tilt_timbre
from data_prep.support.seeding import rng_for
from data_prep.support.settings import check_numbers
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ConfigError, CorpusError
from kdasr.interfaces import Utterance
from kdasr.noise import Samples, add_noise, amplify, check_kinds, make_noise, rms
from kdasr.resampling import resample

SPLITS = ("labelled", "unlabelled", "dev", "test")
NEEDS_CORPUS = True
IN_PARALLEL = False
GENERATION = 2
RATE_HZ = 8_000
_EDGE_SECONDS = (0.05, 0.25)
# Speeds are whole percents, since a resampling filter is built for each ratio.
_SPEED_STEP_HZ = RATE_HZ // 100

_LIMITS = (
    ("digits", 1, 100),
    ("dev_share", 0.01, 0.9),
    ("test_share", 0.01, 1.0),
    ("speed", 0.5, 2.0),
    ("tempo", 0.5, 2.0),
    ("warp", 0.5, 2.0),
    ("timbre_db", 0.0, 40.0),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of this corpus.

    Attributes:
        labelled_speakers, unlabelled_speakers, test_speakers: names, as in the file names.
        labelled_minutes, unlabelled_minutes, dev_minutes, test_minutes: audio made from recordings.
        digits: range of the number of digits in a string.
        pause_seconds: range of the pause between two digits.
        floor_db: level of the faint noise in pauses, relative to the speech of the string.
        dev_share: part of the labelled speakers' recordings kept for `dev`.
        test_share: part of the test speakers' recordings that `test` may use. If less than 1, they may
            also be unlabelled speakers, and `unlabelled` uses the other recordings.
        labelled_augment_probability, unlabelled_augment_probability: share of strings that are perturbed
            into a pseudo-speaker, each with its own values from the following ranges.
        speed: factor on pitch and formants, by resampling.
        tempo: factor on the final tempo of the string, whatever the speed.
        warp: factor on the formants alone.
        timbre_db: strength of a random smooth filter.
        gain_db: range of the change of level.
        noise_probability, noise, snr_db: share of perturbed strings with noise, its kinds, and the SNR.
        synthetic_minutes, synthetic_unlabelled_minutes: espeak-ng digit strings added to `labelled`
            and to `unlabelled`, with different voices, low-passed at 4 kHz like the recordings.
        unlabelled_transcripts: keep the transcripts of `unlabelled`, to compare distillation with a
            student that learns from them.
        max_shard_utterances: utterances in one shard.
    """

    labelled_speakers: tuple[str, ...] = ("george", "jackson")
    unlabelled_speakers: tuple[str, ...] = ("nicolas",)
    test_speakers: tuple[str, ...] = ("theo",)
    labelled_minutes: float = 20.0
    unlabelled_minutes: float = 20.0
    dev_minutes: float = 2.0
    test_minutes: float = 4.0
    digits: tuple[int, int] = (3, 7)
    pause_seconds: tuple[float, float] = (0.0, 0.3)
    floor_db: float = -45.0
    dev_share: float = 0.1
    test_share: float = 1.0
    labelled_augment_probability: float = 0.9
    unlabelled_augment_probability: float = 0.9
    speed: tuple[float, float] = (0.85, 1.18)
    tempo: tuple[float, float] = (0.8, 1.1)
    warp: tuple[float, float] = (0.9, 1.12)
    timbre_db: float = 6.0
    gain_db: tuple[float, float] = (-12.0, 6.0)
    noise_probability: float = 0.5
    noise: tuple[str, ...] = ("white", "pink", "brown", "hum", "fan")
    snr_db: tuple[float, float] = (8.0, 30.0)
    synthetic_minutes: float = 0.0
    synthetic_unlabelled_minutes: float = 0.0
    unlabelled_transcripts: bool = False
    max_shard_utterances: int = 200

    def __post_init__(self) -> None:
        check_numbers(self)
        check_kinds(self.noise, "noise")
        parted = self.test_share < 1
        training = {*self.labelled_speakers, *(() if parted else self.unlabelled_speakers)}
        neither = "not labelled" if parted else "neither labelled nor unlabelled"
        if both := sorted(training & set(self.test_speakers)):
            raise ConfigError(
                f"the speaker {', '.join(both)} is in test and in training",
                where="test_speakers",
                expected=f"speakers that are {neither}",
            )
        for name, lowest, highest in _LIMITS:
            value = getattr(self, name)
            if not all(lowest <= number <= highest for number in np.atleast_1d(value)):
                expected = f"from {lowest} to {highest}"
                raise ConfigError("the value is out of range", where=name, expected=expected, got=value)

    def speakers(self, split: str) -> tuple[str, ...]:
        names: tuple[str, ...] = getattr(self, f"{'labelled' if split == 'dev' else split}_speakers")
        return names


def splits(settings: Settings, corpus: Path) -> tuple[str, ...]:
    """The splits that have speakers and minutes.

    Raises:
        CorpusError: no recordings in `corpus`, or an unknown speaker.
    """
    used = tuple(
        split for split in SPLITS if settings.speakers(split) and getattr(settings, f"{split}_minutes") > 0
    )
    found = find_recordings(corpus, Dropped())
    for split in used:
        if unknown := sorted(set(settings.speakers(split)) - set(found)):
            raise CorpusError(
                f"there is no speaker {', '.join(unknown)}",
                where=corpus,
                expected=f"one of {', '.join(sorted(found))}",
                fix=f"Check {split}_speakers.",
            )
    return used


def scope(settings: Settings, corpus: Path, split: str) -> tuple[Settings, Path]:
    """All settings and the whole folder."""
    return settings, corpus


def prepare(
    settings: Settings, corpus: Path, *, split: str, seed: int, dropped: Dropped, done: Mapping[str, int]
) -> Iterator[Utterance]:
    """The utterances of one split: real strings first, then synthetic ones.

    Raises:
        CorpusError: no recordings can be used.
    """
    seconds_left = 60 * getattr(settings, f"{split}_minutes")
    recordings = _load(settings, corpus, split, seed, dropped)
    strings = _strings(settings, recordings, rng_for(seed, "fsdd", split, "strings"))
    for index in count():
        if seconds_left <= 0:
            break
        string, key = next(strings), f"fsdd-{split}-{index:06d}"
        if key in done:
            seconds_left -= done[key] / SAMPLE_RATE_HZ
            continue
        samples = _join(settings, string, rng_for(seed, "fsdd", split, "join", index))
        if split in ("labelled", "unlabelled"):
            samples = _perturb(settings, samples, split, rng_for(seed, "fsdd", split, "perturb", index))
        else:
            samples = resample(samples, RATE_HZ, SAMPLE_RATE_HZ)
        text = " ".join(DIGITS[recording.digit] for recording in string)
        seconds_left -= len(samples) / SAMPLE_RATE_HZ
        yield Utterance(
            key=key,
            samples=samples,
            text=None if split == "unlabelled" and not settings.unlabelled_transcripts else text,
            speaker=string[0].speaker,
        )
    yield from _synthetic(settings, split, seed, done)


def _synthetic(settings: Settings, split: str, seed: int, done: Mapping[str, int]) -> Iterator[Utterance]:
    wanted = {"labelled": settings.synthetic_minutes, "unlabelled": settings.synthetic_unlabelled_minutes}
    minutes = wanted.get(split, 0.0)
    voices = synth.Settings(
        labelled_minutes=minutes,
        unlabelled_minutes=minutes,
        labelled_voices=36,
        unlabelled_voices=36,
        dev_voices=0,
        test_voices=0,
        vocabulary="digits",
        comma_probability=0.4,
        labelled_noise=settings.noise,
        unlabelled_noise=settings.noise,
        labelled_snr_db=settings.snr_db,
        unlabelled_snr_db=settings.snr_db,
        bandwidth_hz=RATE_HZ / 2,
        unlabelled_transcripts=settings.unlabelled_transcripts,
    )
    if minutes > 0:
        theirs = {key.removeprefix("fsdd-"): num_samples for key, num_samples in done.items()}
        for utterance in synth.prepare(voices, None, split=split, seed=seed, dropped=Dropped(), done=theirs):
            yield dataclasses.replace(utterance, key=f"fsdd-{utterance.key}")


def _load(settings: Settings, corpus: Path, split: str, seed: int, dropped: Dropped) -> list[Recording]:
    """The recordings that a split may use, decoded at 8 kHz; the whole dataset takes 20 MB."""
    found = find_recordings(corpus, dropped)
    paths: list[Path] = []
    for speaker in settings.speakers(split):
        of_speaker = found[speaker]
        if speaker in settings.labelled_speakers and settings.dev_minutes > 0:
            of_speaker = _part(of_speaker, settings.dev_share, split == "dev", seed, ("dev", speaker))
        if speaker in settings.test_speakers and settings.test_share < 1:
            of_speaker = _part(of_speaker, settings.test_share, split == "test", seed, ("test", speaker))
        if not of_speaker:
            raise CorpusError(
                f"no recording of {speaker} is left for {split}",
                where=corpus,
                fix="Reduce dev_share or test_share.",
            )
        paths += of_speaker
    recordings = load_recordings(paths, corpus, RATE_HZ, dropped)
    if not recordings:
        raise CorpusError(
            "no recording can be used", where=corpus, fix=f"Check {split}_speakers, dev_share and test_share."
        )
    return recordings


def _part(paths: list[Path], share: float, inside: bool, seed: int, names: tuple[str, str]) -> list[Path]:
    """A share of one speaker's recordings, the same for each digit; or all others."""
    kept: list[Path] = []
    for digit in range(10):
        of_digit = [path for path in paths if path.name[0] == str(digit)]
        order = rng_for(seed, "fsdd", *names, digit).permutation(len(of_digit))
        num_inside = int(np.ceil(share * len(of_digit)))
        chosen = order[:num_inside] if inside else order[num_inside:]
        kept += [of_digit[position] for position in sorted(chosen)]
    return kept


def _strings(
    settings: Settings, recordings: list[Recording], rng: np.random.Generator
) -> Iterator[list[Recording]]:
    """Endless strings of one speaker each, which repeat a recording only after all others of the speaker."""
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        by_speaker[recording.speaker].append(recording)
    names = sorted(by_speaker)
    decks: dict[str, list[Recording]] = {name: [] for name in names}
    for turn in count():
        name = names[turn % len(names)]
        deck, length = decks[name], int(rng.integers(*settings.digits, endpoint=True))
        while len(deck) < length:
            deck[:0] = [by_speaker[name][position] for position in rng.permutation(len(by_speaker[name]))]
        yield [deck.pop() for _ in range(length)]


def _join(settings: Settings, string: list[Recording], rng: np.random.Generator) -> Samples:
    """(N,) at 8 kHz: the recordings with pauses of faint noise before, between and after."""
    level = rms(np.concatenate([recording.samples for recording in string]))
    floor = level * 10 ** (settings.floor_db / 20)

    def pause(seconds: tuple[float, float]) -> Samples:
        num_samples = int(rng.uniform(*seconds) * RATE_HZ)
        return np.float32(floor) * rng.standard_normal(num_samples, dtype=np.float32)

    parts = [pause(_EDGE_SECONDS)]
    for recording in string:
        parts += [recording.samples, pause(settings.pause_seconds)]
    return np.concatenate([*parts[:-1], pause(_EDGE_SECONDS)])


def _perturb(settings: Settings, samples: Samples, split: str, rng: np.random.Generator) -> Samples:
    """(N,) at 8 kHz to 16 kHz, with the split's probability as spoken by a pseudo-speaker."""
    if rng.random() >= getattr(settings, f"{split}_augment_probability"):
        return resample(samples, RATE_HZ, SAMPLE_RATE_HZ)
    level = rms(samples)
    speed_hz = round(rng.uniform(*settings.speed) * RATE_HZ / _SPEED_STEP_HZ) * _SPEED_STEP_HZ
    tempo = rng.uniform(*settings.tempo) * RATE_HZ / speed_hz
    samples = stretch_and_warp(samples, RATE_HZ, tempo=tempo, warp=rng.uniform(*settings.warp))
    samples = tilt_timbre(samples, RATE_HZ, settings.timbre_db, rng)
    samples = samples * np.float32(level / max(rms(samples), 1e-9))
    if settings.noise and rng.random() < settings.noise_probability:
        noise = make_noise(str(rng.choice(settings.noise)), rng, len(samples), RATE_HZ)
        samples = add_noise(samples, noise, rng.uniform(*settings.snr_db), level)
    samples = resample(samples, speed_hz, SAMPLE_RATE_HZ)
    return amplify(samples, 10 ** (rng.uniform(*settings.gain_db) / 20))
