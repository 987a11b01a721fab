"""Many feeds and long streams: nothing diverges, nothing drifts, nothing grows."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.bench_worker import memory_kib
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


class LastMinute(TorchChunkModel):
    """Remembers the log-probs of the last 60 chunks of one second."""

    def __init__(self, student: Any) -> None:
        super().__init__(student)
        self.heard: deque[NDArray[np.float32]] = deque(maxlen=60)

    def step(self, features_btf: NDArray[np.float32], state: Any) -> tuple[NDArray[np.float32], Any]:
        log_probs_btv, state = super().step(features_btf, state)
        self.heard.append(log_probs_btv[0])
        return log_probs_btv, state


class Memory:
    """What the process holds, minute by minute. Not its peak: that of an earlier test would hide a leak."""

    def __init__(self) -> None:
        self.held_kib: list[int] = []

    def note(self) -> None:
        # What was freed may still lie in the heap, and a leak would grow into it unseen.
        with contextlib.suppress(AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)
        self.held_kib.append(memory_kib("VmRSS"))

    def grew(self) -> bool:
        """Whether the last hundred minutes hold 20 MB more than the first, warm-up aside."""
        return float(np.median(self.held_kib[-100:]) - np.median(self.held_kib[10:110])) > 20_000


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own: here a leak might grow into what earlier tests freed."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
        return process.submit(function, *arguments).result()


def grows(kept_floats: int) -> bool:
    peak = np.ones(25_000_000)
    del peak
    memory, kept = Memory(), []
    for _ in range(480):
        kept.append(np.ones(kept_floats))
        memory.note()
    return memory.grew()


@pytest.mark.parametrize("kept_floats", [0, 10_000])
def test_growth_is_seen_below_an_earlier_peak(kept_floats: int) -> None:
    assert alone(grows, kept_floats) == (kept_floats > 0)


@pytest.mark.slow
def test_eight_hours_without_drift_or_growth() -> None:
    """The same minute again and again: once the context is warm every minute gives the same
    log-probs, and memory stays where it is."""
    alone(check_eight_hours)


def check_eight_hours() -> None:
    minute, model = probe_sound(60 * 16_000, 10), LastMinute(conformer(chunk_frames=25))
    session = EndpointingSession(model, UNITS)
    words, minutes, memory = 0, [], Memory()
    for number in range(8 * 60):
        words += sum(len(segment.words) for segment in session.accept(minute))
        memory.note()
        if number in (2, 8 * 60 - 1):
            minutes.append(np.concatenate(model.heard))
    assert words > 480 * 15
    assert np.abs(minutes[0] - minutes[1]).max() < 1e-4
    assert len(set(minutes[0].argmax(1).tolist())) > 3
    assert not memory.grew()
    inner = session._session
    assert len(inner.tokens) < 500 and len(inner._front_end._pending_tf) < 2 * model.window
