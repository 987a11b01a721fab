"""Speech from espeak-ng: digit strings and commands, in noise, with other voices in each split.

Splits: `labelled`, `unlabelled` (without transcripts, unless requested), `dev` (its own voices, the
noises of `labelled`), `test` (voices and noises that occur nowhere else). A voice is a variant of
espeak-ng; every voice speaks with any of the accents. Utterance i of a split depends only on the seed,
the settings and i.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from data_prep.support import espeak, grammar
from data_prep.support.dropped import Dropped
from data_prep.support.seeding import rng_for
from data_prep.support.settings import check_numbers
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ConfigError
from kdasr.interfaces import Utterance
from kdasr.noise import Samples, add_noise, amplify, check_kinds, make_noise, reverberate, rms, shape_spectrum
from kdasr.resampling import resample

SPLITS = ("labelled", "unlabelled", "dev", "test")
NEEDS_CORPUS = False
IN_PARALLEL = False
GENERATION = 2
BABBLE = "babble"
_BABBLE_CLIPS = 12
_BABBLE_SPEAKERS = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of this corpus.

    Attributes:
        labelled_minutes, unlabelled_minutes, dev_minutes, test_minutes: audio in each split.
        vocabulary: "commands" (half digit strings, half commands) or "digits".
        oh_probability: how often a zero is pronounced "oh".
        labelled_voices, unlabelled_voices, dev_voices, test_voices: voices in each split, all different.
        words_per_minute, pitch: ranges from which each utterance draws, in espeak-ng's units. In much
            faster speech, some words have fewer 40 ms frames than letters, which CTC cannot spell.
        comma_probability: how often there is a pause between two digits.
        labelled_noise, unlabelled_noise, dev_noise, test_noise: kinds of noise in each split, from
            those in `kdasr.noise` and "babble" (other voices of the same split).
        labelled_snr_db, unlabelled_snr_db, dev_snr_db, test_snr_db: ranges of the SNR.
        noise_probability: share of utterances with noise.
        reverb_probability, reverb_seconds: share of utterances with reverberation, and its time.
        level_db: range of the speech level in dB relative to full scale.
        edge_seconds: range of the silence before and after.
        bandwidth_hz: higher frequencies are removed; 4000 sounds like a telephone.
        unlabelled_transcripts: keep the transcripts of `unlabelled`, to compare distillation with a
            student that learns from them.
        max_shard_utterances: utterances in one shard.
    """

    labelled_minutes: float = 20.0
    unlabelled_minutes: float = 80.0
    dev_minutes: float = 2.0
    test_minutes: float = 8.0
    vocabulary: str = "commands"
    oh_probability: float = 0.0
    labelled_voices: int = 14
    unlabelled_voices: int = 36
    dev_voices: int = 6
    test_voices: int = 14
    words_per_minute: tuple[float, float] = (120.0, 185.0)
    pitch: tuple[float, float] = (25.0, 75.0)
    comma_probability: float = 0.1
    labelled_noise: tuple[str, ...] = ("white", "pink", "hum")
    unlabelled_noise: tuple[str, ...] = ("white", "pink", "hum", "brown", "fan", BABBLE)
    dev_noise: tuple[str, ...] = ("white", "pink", "hum")
    test_noise: tuple[str, ...] = ("engine", "wind", "crackle", "chirps", "violet")
    labelled_snr_db: tuple[float, float] = (5.0, 30.0)
    unlabelled_snr_db: tuple[float, float] = (0.0, 25.0)
    dev_snr_db: tuple[float, float] = (5.0, 30.0)
    test_snr_db: tuple[float, float] = (5.0, 25.0)
    noise_probability: float = 0.9
    reverb_probability: float = 0.3
    reverb_seconds: tuple[float, float] = (0.1, 0.4)
    level_db: tuple[float, float] = (-32.0, -16.0)
    edge_seconds: tuple[float, float] = (0.05, 0.3)
    bandwidth_hz: float = 8000.0
    unlabelled_transcripts: bool = False
    max_shard_utterances: int = 200

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.vocabulary not in ("commands", "digits"):
            raise ConfigError("unknown vocabulary", expected="commands or digits", got=self.vocabulary)
        if not 500 <= self.bandwidth_hz <= SAMPLE_RATE_HZ / 2:
            raise ConfigError("bandwidth_hz is out of range", expected="500 to 8000", got=self.bandwidth_hz)
        for split in SPLITS:
            check_kinds(getattr(self, f"{split}_noise"), f"{split}_noise", BABBLE)
        if self.num_voices > len(espeak.VARIANTS):
            raise ConfigError(
                "too many voices",
                expected=f"at most {len(espeak.VARIANTS)} in all splits together",
                got=self.num_voices,
            )
        human = len(espeak.VARIANTS) - len(espeak.TRAINING_ONLY)
        if self.test_voices + self.dev_voices > human:
            raise ConfigError(
                "too many human voices",
                where="test_voices, dev_voices",
                expected=f"at most {human} together",
                got=self.test_voices + self.dev_voices,
            )

    @property
    def num_voices(self) -> int:
        return sum(getattr(self, f"{split}_voices") for split in SPLITS)


def splits(settings: Settings, corpus: Path | None) -> tuple[str, ...]:
    """The splits with more than 0 minutes."""
    return tuple(split for split in SPLITS if getattr(settings, f"{split}_minutes") > 0)


def scope(settings: Settings, corpus: Path | None, split: str) -> tuple[Settings, Path | None]:
    """All settings and no folder."""
    return settings, corpus


def prepare(
    settings: Settings,
    corpus: Path | None,
    *,
    split: str,
    seed: int,
    dropped: Dropped,
    done: Mapping[str, int],
) -> Iterator[Utterance]:
    """The utterances of one split; nothing is read and nothing is ever dropped."""
    speaker = _Speaker.of_split(settings, split, seed)
    seconds_left = 60 * getattr(settings, f"{split}_minutes")
    for index in count():
        if seconds_left <= 0:
            return
        num_samples = done.get(speaker.key(index))
        if num_samples is None:
            utterance = speaker.utterance(index)
            yield utterance
            num_samples = len(utterance.samples)
        seconds_left -= num_samples / SAMPLE_RATE_HZ


def voices_of(settings: Settings, split: str, seed: int) -> tuple[str, ...]:
    """The variants that speak in one split; splits never share variants, and those that do not sound human,
    or use another synthesiser, speak only in `labelled` and `unlabelled`, and only if the others do not
    suffice."""
    shuffled = rng_for(seed, "synth", "voices").permutation(np.array(espeak.VARIANTS)).tolist()
    human = [voice for voice in shuffled if voice not in espeak.TRAINING_ONLY]
    heard_once = human[: settings.test_voices + settings.dev_voices]
    strange = [voice for voice in shuffled if voice in espeak.TRAINING_ONLY]
    others = human[len(heard_once) :] + strange
    pools = {
        "test": heard_once[: settings.test_voices],
        "dev": heard_once[settings.test_voices :],
        "labelled": others[: settings.labelled_voices],
        "unlabelled": others[settings.labelled_voices :][: settings.unlabelled_voices],
    }
    return tuple(pools[split])


@dataclass(slots=True)
class _Speaker:
    """Speaks the utterances of one split."""

    settings: Settings
    split: str
    seed: int
    voices: tuple[str, ...]
    noises: tuple[str, ...]
    snr_db: tuple[float, float]
    babble: list[Samples] = field(default_factory=list)

    @classmethod
    def of_split(cls, settings: Settings, split: str, seed: int) -> _Speaker:
        voices = voices_of(settings, split, seed)
        if not voices:
            raise ConfigError("the split has no voices", where=f"{split}_voices", expected="at least 1")
        noises, snr_db = getattr(settings, f"{split}_noise"), getattr(settings, f"{split}_snr_db")
        return cls(settings, split, seed, voices, noises, snr_db)

    def key(self, index: int) -> str:
        return f"synth-{self.split}-{index:06d}"

    def utterance(self, index: int) -> Utterance:
        rng = rng_for(self.seed, "synth", self.split, index)
        settings = self.settings
        text = grammar.sentence(settings.vocabulary, settings.oh_probability)(rng)
        speech, voice = self._speak(_with_pauses(text, settings.comma_probability, rng), rng)
        speech_rms = rms(speech)
        speech = _between_silences(speech, settings.edge_seconds, rng)
        if rng.random() < settings.reverb_probability:
            speech = reverberate(speech, SAMPLE_RATE_HZ, rng.uniform(*settings.reverb_seconds), rng)
        if self.noises and rng.random() < settings.noise_probability:
            noise = self._noise(str(rng.choice(self.noises)), rng, len(speech))
            speech = add_noise(speech, noise, rng.uniform(*self.snr_db), speech_rms)
        gain = 10 ** (rng.uniform(*settings.level_db) / 20) / speech_rms
        return Utterance(
            key=self.key(index),
            samples=_band_limited(amplify(speech, gain), settings.bandwidth_hz),
            text=None if self.split == "unlabelled" and not settings.unlabelled_transcripts else text,
            speaker=voice,
        )

    def _speak(self, text: str, rng: np.random.Generator) -> tuple[Samples, str]:
        voice = f"{rng.choice(espeak.ACCENTS)}+{rng.choice(self.voices)}"
        speech = espeak.speak(
            text,
            voice,
            words_per_minute=round(rng.uniform(*self.settings.words_per_minute)),
            pitch=round(rng.uniform(*self.settings.pitch)),
            pitch_range=round(rng.uniform(30, 70)),
        )
        return _trimmed(resample(speech, espeak.ESPEAK_RATE_HZ, SAMPLE_RATE_HZ)), voice

    def _noise(self, kind: str, rng: np.random.Generator, num_samples: int) -> Samples:
        if kind != BABBLE:
            return make_noise(kind, rng, num_samples, SAMPLE_RATE_HZ)
        if not self.babble:
            self.babble = [self._babble_clip(number) for number in range(_BABBLE_CLIPS)]
        mixed = np.zeros(num_samples, np.float32)
        for clip_index in rng.choice(len(self.babble), size=_BABBLE_SPEAKERS, replace=False):
            clip = np.roll(self.babble[clip_index], rng.integers(len(self.babble[clip_index])))
            mixed += np.resize(clip, num_samples)
        return mixed / np.float32(max(rms(mixed), 1e-9))

    def _babble_clip(self, number: int) -> Samples:
        """Some seconds of one voice that speaks without pauses."""
        rng = rng_for(self.seed, "synth", self.split, "babble", number)
        say = grammar.sentence(self.settings.vocabulary, self.settings.oh_probability)
        clip, _ = self._speak(" ".join(say(rng) for _ in range(4)), rng)
        return clip / np.float32(rms(clip))


def _with_pauses(text: str, probability: float, rng: np.random.Generator) -> str:
    """Add commas between digits, which make espeak-ng pause; within a command that would sound wrong."""
    words = text.split()
    if not set(words) <= {*grammar.DIGITS, "oh"}:
        return text
    return " ".join(word + "," * int(rng.random() < probability) for word in words)


def _trimmed(speech: Samples) -> Samples:
    """Without the silence (below 1 % of the peak) that espeak-ng puts before and after."""
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    return speech[loud[0] : loud[-1] + 1]


def _between_silences(speech: Samples, seconds: tuple[float, float], rng: np.random.Generator) -> Samples:
    before, after = (int(rng.uniform(*seconds) * SAMPLE_RATE_HZ) for _ in range(2))
    return np.pad(speech, (before, after))


def _band_limited(samples: Samples, bandwidth_hz: float) -> Samples:
    if bandwidth_hz >= SAMPLE_RATE_HZ / 2:
        return samples
    return shape_spectrum(samples, SAMPLE_RATE_HZ, lambda hz: (hz < bandwidth_hz).astype(np.float64))
