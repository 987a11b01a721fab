"""Measures speed on one core, chunk by chunk: real-time factor and time per chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import GreedyStream, StreamDecoder
from kdasr.devices import one_torch_thread
from kdasr.errors import AudioError
from kdasr.features import HOP_SAMPLES
from kdasr.streaming import ChunkModel

WARM_UP_CHUNKS = 5


@dataclass(frozen=True)
class ChunkTiming:
    """How long a model takes on one core, features and decoding included.

    Attributes:
        rtf: seconds of computation per second of audio.
        cpu_rtf: the same in CPU time, which other programs on the machine do not lengthen; on an idle
            machine it equals `rtf`.
        p50_ms, p95_ms, p99_ms: percentiles of the time from the last sample of a chunk to its tokens.
        num_chunks: chunks measured.
        chunk_ms: audio in each.
    """

    rtf: float
    cpu_rtf: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    num_chunks: int
    chunk_ms: float


def measure_chunks(
    model: ChunkModel,
    samples: NDArray[np.float32],
    *,
    min_chunks: int = 200,
    decoder: Callable[[], StreamDecoder] = GreedyStream,
) -> ChunkTiming:
    """Runs `model` over `samples` (repeated until there are `min_chunks`), one chunk at a time, and a
    decoder over its output.

    torch is limited to one thread meanwhile; ONNX Runtime sessions have one thread anyway.

    Raises:
        AudioError: no samples.
    """
    if len(samples) == 0:
        raise AudioError("there is no audio to measure with", expected="at least one sample", got=0)
    chunk_samples = model.shift * HOP_SAMPLES
    needed = chunk_samples * (min_chunks + WARM_UP_CHUNKS) + model.window * HOP_SAMPLES
    audio = np.resize(samples, needed)  # repeats
    with one_torch_thread():
        times = np.array(list(_chunk_times(model, decoder(), audio, chunk_samples)))[WARM_UP_CHUNKS:]
    seconds, cpu_seconds = times.T
    p50, p95, p99 = (float(1000 * value) for value in np.percentile(seconds, (50, 95, 99)))
    chunk_s = chunk_samples / SAMPLE_RATE_HZ
    return ChunkTiming(
        float(seconds.mean()) / chunk_s,
        float(cpu_seconds.mean()) / chunk_s,
        p50,
        p95,
        p99,
        len(seconds),
        1000 * chunk_s,
    )


def _chunk_times(
    model: ChunkModel, decoder: StreamDecoder, samples: NDArray[np.float32], chunk_samples: int
) -> Iterator[tuple[float, float]]:
    """Seconds of wall-clock time and of CPU time that each chunk took: features, model and decoding."""
    front_end, state = model.front_end(), model.initial_state(1)
    for start in range(0, len(samples) - chunk_samples + 1, chunk_samples):
        began, cpu_began = time.perf_counter(), time.process_time()
        for window in front_end.accept(samples[start : start + chunk_samples]):
            log_probs_btv, state = model.step(window, state)
            decoder.feed(log_probs_btv[0])
            yield time.perf_counter() - began, time.process_time() - cpu_began
