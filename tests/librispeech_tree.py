"""A corpus in the shape of LibriSpeech, quirks and all, of generated speech: each word is a chord."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

WORDS = [
    "IT'S", "A", "LONG", "WAY", "HOME", "SHE", "DON'T", "KNOW", "WHERE", "THE",
    "RIVER", "BENDS", "NOR", "WHY", "OLD", "MEN", "SING", "BY", "NIGHT",
]  # fmt: skip
SUBSETS = (
    "train-clean-5", "dev-clean-2", "train-clean-100", "train-clean-360", "train-other-500",
    "dev-clean", "dev-other", "test-clean", "test-other",
)  # fmt: skip
SPEAKERS, CHAPTERS, UTTERANCES = 2, 2, 4


def speak(words: list[str], seed: int) -> NDArray[np.float32]:
    """Samples at 16 kHz of the words, 0.2 s each, with faint noise."""
    time_s = np.arange(3_200) / 16_000
    pieces = [np.zeros(1_600)]
    for word in words:
        number = WORDS.index(word)
        tones = [np.sin(2 * np.pi * hz * time_s) for hz in (300 + 90 * number, 2_000 + 200 * number)]
        pieces += [0.1 * sum(tones) * np.hanning(len(time_s)), np.zeros(800)]
    samples = np.concatenate(pieces)
    noise = np.random.default_rng(seed).normal(0, 1e-3, len(samples))
    return (samples + noise).astype(np.float32)


def make_tree(corpus: Path) -> Path:
    """Every subset with several speakers and chapters; the first chapter of each has all the quirks."""
    for number, subset in enumerate(SUBSETS):
        for speaker in range(SPEAKERS):
            for chapter in range(CHAPTERS):
                name = f"{100 * number + speaker}-{1000 + chapter}"
                folder = corpus / "LibriSpeech" / subset / name.replace("-", "/")
                _make_chapter(folder, name, first_seed=1_000 * number + 100 * speaker + 10 * chapter)
        _spoil(folder.parents[1] / f"{100 * number}/1000", f"{100 * number}-1000")
    (corpus / "LibriSpeech" / "SPEAKERS.TXT").write_text(";ID |SEX| SUBSET\n")
    return corpus


def make_recordings(folder: Path) -> Path:
    """Audio without transcripts, of several kinds and lengths, one of them empty."""
    for number in range(6):
        words = [WORDS[(number + place) % len(WORDS)] for place in range(6 + 20 * (number == 0))]
        path = folder / f"day {number % 2}" / f"take-{number}.{'wav' if number % 2 else 'flac'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speak(words, number), 16_000)
    (folder / "empty.wav").write_bytes(b"")
    return folder


def _make_chapter(folder: Path, name: str, first_seed: int) -> None:
    folder.mkdir(parents=True)
    lines = []
    for number in range(UTTERANCES):
        rng = np.random.default_rng(first_seed + number)
        words = [*(["IT'S"] if number == 0 else []), *map(str, rng.choice(WORDS, rng.integers(4, 8)))]
        soundfile.write(folder / f"{name}-{number:04d}.flac", speak(words, first_seed + number), 16_000)
        lines.append(f"{name}-{number:04d} {' '.join(words)}\n")
    (folder / f"{name}.trans.txt").write_text("".join(lines))


def _spoil(chapter: Path, name: str) -> None:
    """A transcript twice, one without audio, audio without transcript, an empty file, a digit."""
    with (chapter / f"{name}.trans.txt").open("a") as file:
        file.write(
            f"{name}-0001 THE WAY HOME\n{name}-0090 NO AUDIO\n{name}-0091 EMPTY\n{name}-0092 CHAPTER 4\n"
        )
    good = (chapter / f"{name}-0000.flac").read_bytes()
    for number, data in ((91, b""), (92, good), (93, good)):
        (chapter / f"{name}-{number:04d}.flac").write_bytes(data)
