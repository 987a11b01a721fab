"""Many feeds: nothing diverges, and what was said is forgotten. Hours: tests/benchmarks/test_endurance.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.load import load_exported
from export.parity import probe_sound
from export.publish import export_student
from kdasr.features import log_mel
from kdasr.streaming import ChunkModel, EndpointingSession, StreamingSession, TorchChunkModel, with_tail
from tests.export.small_models import ALL, UNITS, conformer


def check_ragged_feeds(student: Any, model: ChunkModel, count: int, tolerance: float) -> None:
    """Feeds `model` pieces of odd sizes: what comes out is what `student` says of the whole."""
    random = np.random.default_rng(17)
    sizes = np.concatenate([random.integers(0, 300, 9 * count // 10), random.geometric(0.3, count // 10)])
    random.shuffle(sizes)
    samples = probe_sound(int(sizes.sum()), 9)
    session = StreamingSession(model, UNITS, keep_log_probs=True)
    start = 0
    for size in sizes:
        session.accept(samples[start : start + size])
        start += size
    session.finish()
    features = log_mel(with_tail(samples))[None]
    with torch.no_grad():
        log_probs, _ = student.offline(features, torch.tensor([features.shape[1]]))
    assert len(sizes) == count and session.num_frames == log_probs.shape[1] > count // 5
    assert np.abs(session.log_probs_tv - log_probs[0].numpy()).max() < tolerance


@pytest.mark.slow
def test_ten_thousand_ragged_feeds_do_not_diverge() -> None:
    student = conformer()
    check_ragged_feeds(student, TorchChunkModel(student), 10_000, 1e-4)


@pytest.mark.parametrize("kind", sorted(set(ALL) - {"conformer"}))
def test_ragged_feeds_of_other_students_do_not_diverge(kind: str) -> None:
    student = ALL[kind]()
    check_ragged_feeds(student, TorchChunkModel(student), 2_000, 1e-4)


@pytest.mark.parametrize("format", ["onnx", "wave-onnx"])
def test_ragged_feeds_of_an_export_do_not_diverge(format: str, tmp_path: Path) -> None:
    exported = export_student(conformer(), UNITS, tmp_path, format=format, int8=False)
    model, _ = load_exported(exported.float_path)
    check_ragged_feeds(conformer(), model, 2_000, 5e-3)


def test_a_stream_forgets_what_it_said() -> None:
    minute, model = probe_sound(60 * 16_000, 10), TorchChunkModel(conformer(chunk_frames=25))
    session = EndpointingSession(model, UNITS)
    said = "".join(segment.text for _ in range(2) for segment in session.accept(minute))
    inner = session._session
    assert len(set(said)) > 3 and len(said) > 200 > len(inner.tokens)
    assert len(inner._front_end._windows._pending) < 160 * model.window + 240
