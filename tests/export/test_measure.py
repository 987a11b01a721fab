"""Timings are of the chunks that were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import export.measure
from export.measure import measure_chunks
from export.parity import probe_sound
from kdasr.decoding import GreedyStream
from kdasr.errors import AudioError
from kdasr.streaming import TorchChunkModel
from tests.export.small_models import conformer


class Clock:
    """Stands still but for what a model says that it took."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def process_time(self) -> float:
        return self.seconds / 2


class Slow(TorchChunkModel):
    """Takes 4 ms for each chunk, and 40 ms for every tenth, by a clock of its own."""

    calls = 0

    def __init__(self, clock: Clock) -> None:
        super().__init__(conformer())
        self.clock = clock

    def step(self, window: Any, state: Any) -> Any:
        assert torch.get_num_threads() == 1
        self.calls += 1
        self.clock.seconds += 0.04 if self.calls % 10 == 0 else 0.004
        return super().step(window, state)


def test_percentiles_and_rtf_are_those_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(export.measure, "time", clock)
    timing = measure_chunks(Slow(clock), probe_sound(8_000, 1), min_chunks=100)
    assert timing.num_chunks == 100 and timing.chunk_ms == 160
    assert timing.p50_ms == pytest.approx(4)
    assert timing.p95_ms == pytest.approx(40) == timing.p99_ms
    assert timing.rtf == pytest.approx((0.9 * 4 + 0.1 * 40) / 160) == pytest.approx(2 * timing.cpu_rtf)


def test_the_time_of_a_search_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(export.measure, "time", clock)

    class Search(GreedyStream):
        def feed(self, log_probs_tv: Any) -> bool:
            clock.seconds += 0.006
            return super().feed(log_probs_tv)

    timing = measure_chunks(Slow(clock), probe_sound(8_000, 1), min_chunks=100, decoder=Search)
    assert timing.p50_ms == pytest.approx(10)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    measure_chunks(TorchChunkModel(conformer()), probe_sound(8_000, 1), min_chunks=5)
    assert torch.get_num_threads() == before


def test_no_audio_is_refused() -> None:
    with pytest.raises(AudioError, match="no audio to measure"):
        measure_chunks(TorchChunkModel(conformer()), np.zeros(0, np.float32))
