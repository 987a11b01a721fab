"""Hours of audio without a break in one stream: do outputs drift, or does memory grow?

    python -m benchmarks.endurance --model PATH [--hours 8]

PATH is a student's folder, an export folder or a file in it. About a minute of synthetic sound, a
whole number of chunks, is streamed over and over. Once the context has filled up, every repetition
must give the same log-probabilities, and memory must not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.bench_worker import memory_kib
from export.parity import probe_sound
from export.transcribe import open_recogniser
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.features import HOP_SAMPLES
from kdasr.streaming import ChunkModel, EndpointingSession

_WARM_TURNS = 2


@dataclass(frozen=True)
class Endurance:
    """The result of `endure`.

    Attributes:
        hours: of audio.
        turns: how often the minute was streamed.
        words: recognised in all segments.
        drift: largest difference of any log-probability from the first repetition after warm-up.
        rise_mib: median memory in the last tenth of the turns minus that in the second tenth.
        rtf: seconds of processor time for each second of audio, including features and decoding.
    """

    hours: float
    turns: int
    words: int
    drift: float
    rise_mib: float
    rtf: float


class _Listener:
    """Wraps a model to collect the log-probs of the chunks since the last `take`."""

    def __init__(self, model: ChunkModel) -> None:
        self._model = model
        self.shift, self.window = model.shift, model.window
        self.subsampling, self.vocab_size = model.subsampling, model.vocab_size
        self.initial_state, self.front_end = model.initial_state, model.front_end
        self._heard: list[NDArray[np.float32]] = []

    def step(self, window: Any, state: Any) -> tuple[NDArray[np.float32], Any]:
        log_probs_btv, state = self._model.step(window, state)
        self._heard.append(log_probs_btv[0])
        return log_probs_btv, state

    def take(self) -> NDArray[np.float32]:
        heard, self._heard = np.concatenate(self._heard), []
        return heard


def endure(model: Path, hours: float) -> Endurance:
    """Stream `hours` of audio through the model at `model`."""
    recogniser = open_recogniser(model)
    listener = _Listener(recogniser.streaming_model())
    chunk_samples = listener.shift * HOP_SAMPLES
    minute = probe_sound(60 * SAMPLE_RATE_HZ // chunk_samples * chunk_samples, 10)
    turns = max(_WARM_TURNS + 2, round(hours * 3600 * SAMPLE_RATE_HZ / len(minute)))
    session = EndpointingSession(listener, recogniser.units)
    words, drift, first = 0, 0.0, None
    memories_kib, began = [], time.process_time()
    for turn in range(turns):
        words += sum(len(segment.words) for segment in session.accept(minute))
        heard_tv = listener.take()
        if turn == _WARM_TURNS:
            first = heard_tv
        elif first is not None:
            drift = max(drift, float(np.abs(heard_tv - first).max()))
        memories_kib.append(_held_kib())
    tenth = max(1, turns // 10)
    seconds = turns * len(minute) / SAMPLE_RATE_HZ
    return Endurance(
        seconds / 3600,
        turns,
        words,
        drift,
        (median(memories_kib[-tenth:]) - median(memories_kib[tenth : 2 * tenth] or memories_kib)) / 1024,
        (time.process_time() - began) / seconds,
    )


def _held_kib() -> int:
    """Current memory of the process. Not its peak, since an earlier peak would hide a leak."""
    # Return freed memory to the system first: a leak could grow into it unnoticed.
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    return memory_kib("VmRSS")


def main(arguments: Sequence[str] | None = None) -> Endurance:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="run hours of audio through one stream")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=8.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = endure(options.model, options.hours)
    print(json.dumps(asdict(figures), indent=1))
    return figures


if __name__ == "__main__":
    main()
