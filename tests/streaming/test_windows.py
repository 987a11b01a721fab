"""Windows are the same to the last bit, however the samples arrive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.load import load_exported
from export.parity import probe_sound
from export.publish import export_student
from kdasr.features import LOG_MEL_FLOOR, log_mel
from kdasr.streaming import ChunkModel, FeatureWindows, SampleWindows, StreamingSession
from tests.export.small_models import UNITS, conformer, recurrent

PIECES = (1, 160, 320, 441, 1_600, 5_119)


def windows(samples: np.ndarray, piece: int, window: int, shift: int) -> np.ndarray:
    front_end, heard = FeatureWindows(window, shift), []
    for start in range(0, len(samples), piece):
        buffer = samples[start : start + piece].copy()
        heard += list(front_end.accept(buffer))
        buffer[:] = 99  # a driver reuses its memory
    heard += list(front_end.finish())
    assert front_end.num_features == (len(samples) + 80) // 160
    return np.concatenate([np.zeros((0, window, 80), np.float32), *heard])


@pytest.mark.parametrize("num_samples", [0, 79, 80, 5_240, 20_000, 25_721])
@pytest.mark.parametrize(("window", "shift"), [(32, 32), (40, 32), (4, 4), (20, 8), (132, 100)])
def test_windows_do_not_depend_on_the_pieces(window: int, shift: int, num_samples: int) -> None:
    samples = probe_sound(25_721, 3)[:num_samples]
    whole = windows(samples, 10**6, window, shift)
    for piece in PIECES:
        assert np.array_equal(windows(samples, piece, window, shift), whole)
    features = log_mel(samples).numpy()
    assert len(whole) == -(-len(features) // shift)
    padded = np.pad(features, ((0, window), (0, 0)), constant_values=LOG_MEL_FLOOR)
    for number, one in enumerate(whole):
        assert np.abs(one - padded[number * shift :][:window]).max() < 1e-4


def test_a_window_comes_with_its_last_sample() -> None:
    front_end = FeatureWindows(20, 8)
    counts = [len(list(front_end.accept(np.zeros(1, np.float32)))) for _ in range(8_000)]
    assert np.flatnonzero(counts)[:4].tolist() == [160 * frames + 120 - 1 for frames in (20, 28, 36, 44)]


def test_what_is_kept_of_long_pieces_stays_short() -> None:
    front_end = SampleWindows(20, 8)
    for seconds in (0.1, 0.1, 10):
        list(front_end.accept(np.zeros(int(16_000 * seconds), np.float32)))
        assert len(front_end._pending) < 160 * 20 + 240 and front_end._pending.base is None


def log_probs(model: ChunkModel, samples: np.ndarray, piece: int) -> np.ndarray:
    session = StreamingSession(model, UNITS, keep_log_probs=True)
    for start in range(0, len(samples), piece):
        session.accept(samples[start : start + piece])
    session.finish()
    return session.log_probs_tv


@pytest.mark.parametrize(
    "student", [conformer(lookahead_frames=0, num_layers=1), recurrent()], ids=["0", "lookahead"]
)
def test_log_probs_of_an_int8_export_do_not_depend_on_the_pieces(student: object, tmp_path: Path) -> None:
    export_student(student, UNITS, tmp_path)  # type: ignore[arg-type]
    samples = probe_sound(80_000, 5)
    for file in ("model.onnx", "model.int8.onnx"):
        model, _ = load_exported(tmp_path / file)
        whole = log_probs(model, samples, 10**6)
        assert len(whole) == 133
        for piece in (160, 320, 1_600):
            assert np.array_equal(log_probs(model, samples, piece), whole)
