"""Errors of students with an open microphone: audio before the speech, other speech, lower levels.

    python -m benchmarks.live --models runs/mini/student_mwer runs/mini/student_distilled \\
        --test runs/mini/shards/test

Utterances of a test set are cut to the speech and have the level of their recording; an app gets whatever
the microphone hears. For each model, this measures the WER of the test set as cut; with some seconds of
noise as loud as the utterance's quietest 100 ms, or of digital silence, before each utterance; in streams of
ten utterances in a row with some seconds of such noise between them, where a pause of a second ends a word,
as it ends a segment of a stream; and with speech and noise some decibels quieter. Lastly it counts the words
per minute recognised in generated noise without speech: the mean over eleven kinds, and the worst kind. Each
is a single pass over the whole audio, with the same result as chunk by chunk. Noise is drawn with fixed
seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.transcribe import open_recogniser
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.devices import one_torch_thread
from kdasr.error_rates import count_errors
from kdasr.interfaces import Utterance
from kdasr.noise import NOISE_KINDS, make_noise, noise_before
from kdasr.shards import list_shards, read_shard

_TOGETHER = 10
# Clips of each kind of noise.
_CLIPS, _CLIP_S = 12, 10
_LEVELS_DBFS = (-55, -35)

Samples = NDArray[np.float32]
Heard = Callable[[Samples], str]


def before(utterances: Sequence[Utterance], seconds: float, *, zeros: bool = False) -> list[Utterance]:
    """Each utterance with noise at its own noise level, or zeros, before it."""
    rng = np.random.default_rng(1)
    leads = [noise_before(one.samples, seconds, SAMPLE_RATE_HZ, rng) * (not zeros) for one in utterances]
    return [
        Utterance(one.key, np.concatenate([lead, one.samples]).astype(np.float32), one.text)
        for one, lead in zip(utterances, leads, strict=True)
    ]


def joined(utterances: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Streams of ten utterances each with pauses before them."""
    apart = before(utterances, seconds)
    groups = [apart[start : start + _TOGETHER] for start in range(0, len(apart), _TOGETHER)]
    return [
        Utterance(
            group[0].key,
            np.concatenate([one.samples for one in group]),
            " ".join(one.text or "" for one in group),
        )
        for group in groups
    ]


def louder(utterances: Sequence[Utterance], decibels: float) -> list[Utterance]:
    """The utterances with their level changed by `decibels`."""
    gain = np.float32(10 ** (decibels / 20))
    return [Utterance(one.key, gain * one.samples, one.text) for one in utterances]


def word_error_rate(hear: Heard, utterances: Sequence[Utterance]) -> float:
    """WER in % over all utterances together."""
    return count_errors([one.text or "" for one in utterances], [hear(one.samples) for one in utterances]).wer


def words_in_noise(hear: Heard) -> dict[str, float]:
    """Words per minute recognised in two minutes of each kind of noise."""
    found = {}
    for kind in NOISE_KINDS:
        words = 0
        for number in range(_CLIPS):
            rng = np.random.default_rng([7, number])
            noise = make_noise(kind, rng, _CLIP_S * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
            level = 10 ** (rng.uniform(*_LEVELS_DBFS) / 20)
            words += len(hear(noise * np.float32(level)).split())
        found[kind] = 60 * words / (_CLIPS * _CLIP_S)
    return found


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a table; returns its rows."""
    parser = argparse.ArgumentParser(description="measure word errors on speech that does not begin at once")
    parser.add_argument(
        "--models", type=Path, nargs="+", required=True, help="model folders or exported files"
    )
    parser.add_argument("--test", type=Path, required=True, help="labelled shards")
    parser.add_argument("--utterances", type=int, help="use only this many of the first utterances")
    options = parser.parse_args(arguments)
    spoken = [one for path in list_shards(options.test) for one in read_shard(path) if one.text]
    spoken = spoken[: options.utterances]
    audio: dict[str, list[Utterance]] = {
        "as cut": spoken,
        "0.1 s before": before(spoken, 0.1),
        "0.5 s before": before(spoken, 0.5),
        "2 s before": before(spoken, 2.0),
        "0.5 s of zeros before": before(spoken, 0.5, zeros=True),
        "streams, 0.2 s apart": joined(spoken, 0.2),
        "streams, 1.5 s apart": joined(spoken, 1.5),
        "-10 dB": louder(spoken, -10.0),
        "-20 dB": louder(spoken, -20.0),
    }
    columns = [*audio, "words per minute of noise", "for the worst noise"]
    print("| model |", " | ".join(columns), "|\n|---" + "|---" * len(columns) + "|")
    rows: list[dict[str, Any]] = []
    with one_torch_thread():
        for folder in options.models:
            hear = open_recogniser(folder).transcribe
            wers = {name: round(word_error_rate(hear, utterances), 2) for name, utterances in audio.items()}
            in_noise = words_in_noise(hear)
            worst = max(in_noise, key=lambda kind: in_noise[kind])
            cells = [*wers.values(), float(np.mean([*in_noise.values()]))]
            ends = f"{in_noise[worst]:.1f} ({worst})"
            print(f"| {folder} |", " | ".join([*(f"{cell:.1f}" for cell in cells), ends]), "|", flush=True)
            rows.append({"model": str(folder), "wer": wers, "words_a_minute_of_noise": in_noise})
    print(json.dumps(rows))
    return rows


if __name__ == "__main__":
    main()
