"""How many words are cut in two when long audio is segmented: at quiet places, and at equal lengths.

    python -m benchmarks.cuts --corpus FSDD

The recordings of each speaker of the Free Spoken Digit Dataset, which begin and end with their word, are
joined to long files, with pauses between them and noise added throughout. A cut counts as inside a word if
it is more than 25 ms from both ends of its recording.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from kdasr.audio import AudioReader
from kdasr.errors import ConfigError, CorpusError

_PAUSES_S = ((0.02, 0.1), (0.05, 0.35), (0.2, 0.8))
_MARGIN_S = 0.025
_NOISE = 0.002
Row = tuple[tuple[float, float], int, int, int]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print; returns (pauses in s, cuts, of these in words, of equal lengths in words)."""
    parser = argparse.ArgumentParser(description="count the words that segmentation cuts in two")
    parser.add_argument(
        "--corpus", type=Path, required=True, help="a checkout of the Free Spoken Digit Dataset"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of audio per speaker")
    parser.add_argument("--max-seconds", type=float, default=20.0, help="maximum seconds of a segment")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    files = sorted((options.corpus / "recordings").glob("*_*_*.wav"))
    if not files:
        raise CorpusError(
            "the folder contains no recordings",
            where=options.corpus,
            expected="recordings/7_jackson_32.wav, …",
        )
    speakers: dict[str, list[Path]] = {}
    for file in files:
        speakers.setdefault(file.stem.split("_")[1], []).append(file)
    rng, rows = np.random.default_rng(options.seed), list[Row]()
    for pauses_s in _PAUSES_S:
        counts = [_count(own, pauses_s, options, rng) for own in speakers.values()]
        cuts, quiet, equal = (sum(column) for column in zip(*counts, strict=True))
        if not cuts:
            raise ConfigError("nothing is long enough to be cut", where="--minutes", got=options.minutes)
        rows.append((pauses_s, cuts, quiet, equal))
    print(f"| pauses, ms | cuts | in a word, at quiet places | at equal lengths |\n{'|---' * 4}|")
    for (least, most), cuts, quiet, equal in rows:
        shares = [f"{100 * number / cuts:.0f} %" for number in (quiet, equal)]
        print(f"| {1000 * least:.0f} to {1000 * most:.0f} | {cuts} | {shares[0]} | {shares[1]} |")
    return rows


def _count(
    files: Sequence[Path],
    pauses_s: tuple[float, float],
    options: argparse.Namespace,
    rng: np.random.Generator,
) -> tuple[int, int, int]:
    """Cuts in one speaker's audio: their number, those inside a word, and those inside if equally spaced."""
    samples_n, words, rate_hz = _joined(files, pauses_s, 60 * options.minutes, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        soundfile.write(path, samples_n, rate_hz)
        with AudioReader(path, rate_hz) as reader:
            lengths = [len(segment.samples) for segment in reader.segments(options.max_seconds)]
    quiet = np.cumsum(lengths)[:-1]
    equal = np.linspace(0, len(samples_n), len(lengths) + 1)[1:-1]
    return len(quiet), _in_words(quiet, words, rate_hz), _in_words(equal, words, rate_hz)


def _joined(
    files: Sequence[Path], pauses_s: tuple[float, float], seconds: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[tuple[int, int]], int]:
    """(N,) samples, the first sample and the end of each word, and the sample rate."""
    parts: list[NDArray[np.float32]] = []
    words: list[tuple[int, int]] = []
    end, rate_hz = 0, int(soundfile.info(files[0]).samplerate)
    while end < seconds * rate_hz:
        word_n, _ = soundfile.read(files[rng.integers(len(files))], dtype="float32")
        pause_n = np.zeros(int(rng.uniform(*pauses_s) * rate_hz), np.float32)
        words.append((end, end + len(word_n)))
        parts += [word_n, pause_n]
        end += len(word_n) + len(pause_n)
    noise_n = _NOISE * rng.standard_normal(end).astype(np.float32)
    return np.concatenate(parts) + noise_n, words, rate_hz


def _in_words(cuts: NDArray[np.floating | np.integer], words: list[tuple[int, int]], rate_hz: int) -> int:
    margin = _MARGIN_S * rate_hz
    return sum(any(first + margin < cut < last - margin for first, last in words) for cut in cuts)


if __name__ == "__main__":
    main()
