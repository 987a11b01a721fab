"""A corpus in LibriSpeech's format, to rehearse recipes/librispeech on two cores: espeak-ng reads a text.

    python -m benchmarks.read_speech --text kjv.txt --corpus corpora/read --hours train-clean-100=1.5 \\
        train-clean-360=5 train-other-500=5 dev-clean=0.1 dev-other=0.1 test-clean=0.3 test-other=0.3
    kdasr run recipes/librispeech/100h --corpus corpora/read

The text is English, with a verse or paragraph per line; ten hours need 116,000 words. Its sentences are
split or joined to 4 to 40 words, shuffled and distributed, so that none is in two subsets; those with digits
or non-English letters are left out. Voices are distributed as well; non-human ones only to the unlabelled
subsets. A speaker has a voice, an accent, a pace and a pitch; a chapter has a room and a noise. "clean" has
little noise and no echo, "other" much of both, and dev and test have other noises than training. The corpus
depends only on text, hours and seed, not on the number of processes.

It lacks the many ways in which people say a word, so its error rates do not estimate LibriSpeech's. They
show how long utterances of many words, word pieces and the losses of those recipes work together.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from data_prep.support import espeak
from data_prep.support.seeding import rng_for
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.noise import Samples, add_noise, amplify, make_noise, reverberate, rms
from kdasr.resampling import resample

# Number of human voices in a subset; subsets without a number share all other voices.
NUM_VOICES = {"test-clean": 5, "test-other": 5, "dev-clean": 3, "dev-other": 3, "train-clean-100": 12}
SUBSETS = (*NUM_VOICES, "train-clean-360", "train-other-500")
ROOT = "LibriSpeech"
SPEAKERS = 60
CHAPTER_UTTERANCES = 20
MIN_WORDS, MAX_WORDS = 4, 40
WORDS_AN_HOUR = 11_600
_TRAINING_NOISES = ("white", "pink", "hum", "brown", "fan")
_OTHER_NOISES = ("engine", "wind", "crackle", "violet")
_SENTENCE_ENDS = re.compile(r"(?<=[.;:?!])\s+")
# Text that is spelled as it is spoken.
_READABLE = re.compile(r"[A-Za-z'’,.;:?!()\s-]*[A-Za-z][A-Za-z'’,.;:?!()\s-]*")


class Chapter(NamedTuple):
    """Sentences that one speaker reads in one room."""

    subset: str
    speaker: int
    number: int
    sentences: Sequence[str]


class Room(NamedTuple):
    """Recording conditions: kind of noise, SNR, and reverberation time (echo falls by 60 dB)."""

    noise: str
    snr_db: float
    reverberation_s: float


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Write the corpus; returns the hours of each subset."""
    parser = argparse.ArgumentParser(
        description="synthesise a corpus with LibriSpeech's layout, read by espeak-ng"
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--hours", nargs="+", required=True, metavar="SUBSET=HOURS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    hours = {subset: float(number) for subset, number in (item.split("=") for item in options.hours)}
    if unknown := [subset for subset in hours if subset not in SUBSETS]:
        parser.error(f"there is no subset {', '.join(unknown)}; expected some of {', '.join(SUBSETS)}")
    if written := [subset for subset in hours if (options.corpus / ROOT / subset).exists()]:
        parser.error(f"{options.corpus} already has {', '.join(written)}; choose another --corpus")
    sentences = iter(readable(options.text.read_text(encoding="utf-8"), options.seed))
    read = dict.fromkeys(hours, 0.0)
    with Pool(options.processes) as pool:
        for subset, wanted in hours.items():
            chapters = list(_chapters(subset, sentences, round(wanted * WORDS_AN_HOUR)))
            for seconds in pool.imap_unordered(partial(_read, options.corpus, options.seed), chapters):
                read[subset] += seconds / 3600
            print(f"{subset}: {read[subset]:.2f} h, {len(chapters)} chapters", flush=True)
    return read


def readable(text: str, seed: int) -> list[str]:
    """Distinct sentences of 4 to 40 words in random order; text that is not `_READABLE` is left out."""
    sentences: list[str] = []
    words: list[str] = []
    for part in (part for line in text.splitlines() for part in _SENTENCE_ENDS.split(line.strip())):
        if not _READABLE.fullmatch(part):
            words = []
            continue
        words += part.split()
        while len(words) > MAX_WORDS:
            sentences.append(" ".join(words[: MAX_WORDS // 2]))
            words = words[MAX_WORDS // 2 :]
        # The minimum length of the next sentence varies evenly between the bounds.
        if len(words) >= MIN_WORDS + 7 * len(sentences) % (MAX_WORDS - MIN_WORDS):
            sentences.append(" ".join(words))
            words = []
    sentences = list(dict.fromkeys(sentences))
    return [sentences[index] for index in rng_for(seed, "read", "order").permutation(len(sentences))]


def _chapters(subset: str, sentences: Iterator[str], num_words: int) -> Iterator[Chapter]:
    """The chapters of a subset, from sentences not used by other subsets; speakers take turns."""
    for number in count():
        chapter: list[str] = []
        while num_words > 0 and len(chapter) < CHAPTER_UTTERANCES:
            if (sentence := next(sentences, None)) is None:
                raise SystemExit(f"the text ends in {subset}; an hour takes {WORDS_AN_HOUR:,} words")
            chapter.append(sentence)
            num_words -= len(sentence.split())
        if not chapter:
            return
        yield Chapter(subset, number % SPEAKERS, number, chapter)


def _voices(subset: str, seed: int) -> list[str]:
    """The voices of a subset; the two subsets without a number share the remaining ones."""
    human = sorted(set(espeak.VARIANTS) - espeak.TRAINING_ONLY)
    left = [human[index] for index in rng_for(seed, "read", "voices").permutation(len(human))]
    for name, number in NUM_VOICES.items():
        own, left = left[:number], left[number:]
        if name == subset:
            return own
    return left + sorted(espeak.TRAINING_ONLY)


def _read(corpus: Path, seed: int, chapter: Chapter) -> float:
    """Write the recordings and transcripts of a chapter; returns its length in seconds."""
    subset, voices = chapter.subset, _voices(chapter.subset, seed)
    rng = rng_for(seed, "read", subset, "speaker", chapter.speaker)
    voice = f"{rng.choice(espeak.ACCENTS)}+{voices[chapter.speaker % len(voices)]}"
    pace, pitch = round(rng.uniform(135, 185)), round(rng.uniform(25, 75))
    rng = rng_for(seed, "read", subset, "chapter", chapter.number)
    room = _room(subset, rng)
    speaker = 1_000 * (1 + SUBSETS.index(subset)) + chapter.speaker
    name = f"{speaker}-{100_000 + chapter.number}"
    folder = corpus / ROOT / subset / name.replace("-", "/")
    folder.mkdir(parents=True, exist_ok=True)
    lines, seconds = [], 0.0
    for number, sentence in enumerate(chapter.sentences):
        speech = espeak.speak(sentence, voice, words_per_minute=pace, pitch=pitch)
        samples = _heard(resample(speech, espeak.ESPEAK_RATE_HZ, SAMPLE_RATE_HZ), room, rng)
        soundfile.write(folder / f"{name}-{number:04d}.flac", samples, SAMPLE_RATE_HZ)
        lines.append(f"{name}-{number:04d} {_spelled(sentence)}\n")
        seconds += len(samples) / SAMPLE_RATE_HZ
    (folder / f"{name}.trans.txt").write_text("".join(lines))
    return seconds


def _room(subset: str, rng: np.random.Generator) -> Room:
    noise = str(rng.choice(_TRAINING_NOISES if subset.startswith("train") else _OTHER_NOISES))
    if "clean" in subset:
        return Room(noise, rng.uniform(20, 40), 0.0)
    return Room(noise, rng.uniform(5, 20), rng.uniform(0.1, 0.4))


def _heard(speech: Samples, room: Room, rng: np.random.Generator) -> Samples:
    """The speech with the room's echo and noise, at a random level."""
    speech_rms = rms(speech)
    if room.reverberation_s:
        speech = reverberate(speech, SAMPLE_RATE_HZ, room.reverberation_s, rng)
    noise = make_noise(room.noise, rng, len(speech), SAMPLE_RATE_HZ)
    speech = add_noise(speech, noise, room.snr_db, speech_rms)
    return amplify(speech, 10 ** (rng.uniform(-30, -18) / 20) / speech_rms)


def _spelled(sentence: str) -> str:
    """The sentence in LibriSpeech's style: upper case, no punctuation but the apostrophe."""
    return " ".join(re.sub(r"[^A-Z' ]", " ", sentence.upper().replace("\u2019", "'")).split())


if __name__ == "__main__":
    main()
