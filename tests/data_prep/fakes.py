"""Small corpora in the shape of real ones, made of signals that tell what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from kdasr.interfaces import Utterance
from kdasr.shards import list_shards, open_shard, read_metas, read_shard

SPEAKERS = ("ann", "bob", "cat", "dan")
PER_DIGIT = 4
LEVELS = 2000
TONES_HZ = (400, 1000)


def level_of(speaker: str, digit: int, number: int) -> float:
    """The constant that a fake recording consists of: no two have the same."""
    index = (SPEAKERS.index(speaker) * 10 + digit) * PER_DIGIT + number
    return (index + 100) / LEVELS


def recording_of(level: float) -> tuple[str, int, int]:
    """Speaker, digit and number of the recording with this constant."""
    index = round(level * LEVELS) - 100
    return SPEAKERS[index // PER_DIGIT // 10], index // PER_DIGIT % 10, index % PER_DIGIT


def make_fsdd(folder: Path, rate_hz: int = 8_000) -> Path:
    """A digit dataset: every recording is 0.25 s of its own constant."""
    (folder / "recordings").mkdir(parents=True)
    for speaker in SPEAKERS:
        for digit in range(10):
            for number in range(PER_DIGIT):
                samples = np.full(rate_hz // 4, level_of(speaker, digit, number), np.float32)
                path = folder / "recordings" / f"{digit}_{speaker}_{number}.wav"
                soundfile.write(path, samples, rate_hz, subtype="FLOAT")
    return folder


def levels_in(samples: NDArray[np.float32]) -> list[float]:
    """The constants of the recordings that an utterance was joined from, in order."""
    grid = np.rint(samples * LEVELS).astype(int)
    edges = np.flatnonzero(np.diff(grid)) + 1
    runs = [run for run in np.split(grid, edges) if len(run) > 3000 and run[0] >= 100]
    return [int(run[0]) / LEVELS for run in runs]


def make_librispeech(folder: Path) -> Path:
    """Two subsets, three chapters, six good utterances."""
    root = folder / "LibriSpeech"
    for subset, speaker, chapter, texts in (
        ("train-clean-5", "19", "198", ("IT'S A DAY", "TWO", "THREE")),
        ("train-clean-5", "26", "495", ("FOUR",)),
        ("dev-clean-2", "84", "121", ("FIVE", "SIX")),
    ):
        place = root / subset / speaker / chapter
        place.mkdir(parents=True)
        lines = []
        for number, text in enumerate(texts):
            key = f"{speaker}-{chapter}-{number:04d}"
            write_tone(place / f"{key}.flac", 0.5 + 0.1 * number)
            lines.append(f"{key} {text}\n")
        (place / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    (root / "SPEAKERS.TXT").write_text("; about the readers\n")
    return folder


def write_tone(path: Path, seconds: float, rate_hz: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)
    soundfile.write(path, samples.astype(np.float32), rate_hz)


def write_call(path: Path, seconds: float, rate_hz: int = 16_000) -> None:
    """A file of two channels, with a tone of `TONES_HZ` on each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times_n1 = np.arange(round(seconds * rate_hz))[:, None] / rate_hz
    samples_nc = 0.3 * np.sin(2 * np.pi * np.array(TONES_HZ) * times_n1)
    soundfile.write(path, samples_nc.astype(np.float32), rate_hz)


def channels_of(utterance: Utterance) -> list[int]:
    """The channels of a `write_call` whose tones are heard."""
    times_n = np.arange(len(utterance.samples)) / 16_000
    levels = [abs(np.mean(utterance.samples * np.exp(2j * np.pi * hz * times_n))) for hz in TONES_HZ]
    return [channel for channel, level in enumerate(levels) if level > 0.02]


def dropped_in(folder: Path) -> dict[str, str]:
    """What was left out of a split, and why."""
    record = record_of(folder, "dropped.json")
    assert record["count"] == len(record["dropped"])
    return {item["file"]: item["reason"] for item in record["dropped"]}


def read_folder(folder: Path) -> list[Utterance]:
    return [utterance for path in list_shards(folder) for utterance in read_shard(path)]


def places_in(folder: Path) -> list[tuple[str | None, float | None]]:
    """Source and offset of each utterance of a split."""
    metas = (meta for path in list_shards(folder) for meta in read_metas(open_shard(path)))
    return [(meta.get("source"), meta.get("offset")) for meta in metas]


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record_of(folder: Path, name: str = "prepared.json") -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / name).read_text())
    return record
