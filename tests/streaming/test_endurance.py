"""Many feeds and long streams: nothing diverges, nothing drifts, nothing grows."""

from __future__ import annotations

import resource
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.parity import probe_sound
from kdasr.features import log_mel
from kdasr.streaming import EndpointingSession, StreamingSession, TorchChunkModel
from tests.export.small_models import UNITS, conformer


def test_ten_thousand_ragged_feeds_do_not_diverge() -> None:
    random = np.random.default_rng(17)
    sizes = np.concatenate([random.integers(0, 300, 9_000), random.geometric(0.3, 1_000)])
    random.shuffle(sizes)
    samples, student = probe_sound(int(sizes.sum()), 9), conformer()
    session = StreamingSession(TorchChunkModel(student), UNITS, keep_log_probs=True)
    start = 0
    for size in sizes:
        session.accept(samples[start : start + size])
        start += size
    session.finish()
    features = log_mel(samples)[None]
    with torch.no_grad():
        log_probs, _ = student.offline(features, torch.tensor([features.shape[1]]))
    assert len(sizes) == 10_000 and session.num_frames == log_probs.shape[1] > 2_000
    assert np.abs(session.log_probs_tv - log_probs[0].numpy()).max() < 1e-4


class LastMinute(TorchChunkModel):
    """Remembers the log-probs of the last 60 chunks of one second."""

    def __init__(self, student: Any) -> None:
        super().__init__(student)
        self.heard: deque[NDArray[np.float32]] = deque(maxlen=60)

    def step(self, features_btf: NDArray[np.float32], state: Any) -> tuple[NDArray[np.float32], Any]:
        log_probs_btv, state = super().step(features_btf, state)
        self.heard.append(log_probs_btv[0])
        return log_probs_btv, state


@pytest.mark.slow
def test_eight_hours_without_drift_or_growth() -> None:
    """The same minute again and again: once the context is warm every minute gives the same
    log-probs, and memory stays where it is."""
    minute, model = probe_sound(60 * 16_000, 10), LastMinute(conformer(chunk_frames=25))
    session = EndpointingSession(model, UNITS)
    words, peaks_kib, minutes = 0, [], []
    for number in range(8 * 60):
        words += sum(len(segment.words) for segment in session.accept(minute))
        peaks_kib.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        if number in (2, 8 * 60 - 1):
            minutes.append(np.concatenate(model.heard))
    assert words > 480 * 15
    assert np.abs(minutes[0] - minutes[1]).max() < 1e-4
    assert len(set(minutes[0].argmax(1).tolist())) > 3
    assert peaks_kib[-1] - peaks_kib[10] < 20_000
    inner = session._session
    assert len(inner.tokens) < 500 and len(inner._front_end._pending_tf) < 2 * model.window
