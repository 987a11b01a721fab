"""Timings are of the chunks that were asked for."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.measure import measure_chunks
from export.parity import probe_sound
from kdasr.errors import AudioError
from kdasr.streaming import TorchChunkModel
from tests.export.small_models import conformer


class Slow(TorchChunkModel):
    """Takes 4 ms more for each chunk, and 40 ms for every tenth."""

    calls = 0

    def step(self, features_btf: NDArray[np.float32], state: Any) -> Any:
        assert torch.get_num_threads() == 1
        self.calls += 1
        time.sleep(0.04 if self.calls % 10 == 0 else 0.004)
        return super().step(features_btf, state)


def test_percentiles_and_rtf_are_those_of_the_chunks() -> None:
    model = Slow(conformer())
    timing = measure_chunks(model, probe_sound(8_000, 1), min_chunks=60)
    assert timing.num_chunks >= 60 and timing.chunk_ms == 160
    assert 4 < timing.p50_ms < 20
    assert 40 < timing.p95_ms <= timing.p99_ms
    assert (0.9 * 4 + 0.1 * 40) / 160 < timing.rtf < 0.2


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    measure_chunks(TorchChunkModel(conformer()), probe_sound(8_000, 1), min_chunks=5)
    assert torch.get_num_threads() == before


def test_no_audio_is_refused() -> None:
    with pytest.raises(AudioError, match="no audio to measure"):
        measure_chunks(TorchChunkModel(conformer()), np.zeros(0, np.float32))
