"""A model that takes samples says what a model that takes features says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.load import load_exported
from export.parity import probe_sound
from export.publish import export_student
from export.runtime import OnnxChunkModel, OnnxWaveModel
from export.wave_student import FoldedLogMel
from kdasr.errors import ModelError
from kdasr.features import LOG_MEL_FLOOR, log_mel
from kdasr.streaming import SampleWindows, StreamingSession, TorchChunkModel
from tests.export.small_models import STUDENTS, UNITS, recurrent


@pytest.fixture(scope="module", params=sorted(STUDENTS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    export_student(STUDENTS[request.param](), UNITS, folder, format="wave-onnx")
    return request.param, folder


@pytest.mark.parametrize("offset", [0.0, 0.2])
@pytest.mark.parametrize("loudness", [1.0, 1e-3, 0.0])
def test_folded_features_are_the_features(loudness: float, offset: float) -> None:
    samples = loudness * probe_sound(16_000, 3) + np.float32(offset)
    mirrored = torch.from_numpy(np.pad(samples, 120, mode="symmetric"))[None]
    with torch.no_grad():
        ours = FoldedLogMel()(mirrored)[0]
    assert ours.shape == (100, 80)
    assert (ours - log_mel(samples)).abs().max() < 0.02
    assert (ours - log_mel(samples)).abs().mean() < 1e-4
    assert bool((ours >= LOG_MEL_FLOOR - 1e-5).all())


def test_windows_mirror_both_ends_and_count_valid_frames() -> None:
    front_end, samples = SampleWindows(window=8, shift=4), np.arange(1, 1_001, dtype=np.float32)
    windows = [*front_end.accept(samples[:50]), *front_end.accept(samples[50:]), *front_end.finish()]
    assert front_end.num_features == 6 and len(windows) == 2
    first, last = (window.samples_bn[0] for window in windows)
    assert first.shape == (8 * 160 + 240,)
    assert np.array_equal(first[:240], [*range(120, 0, -1), *range(1, 121)])
    assert np.array_equal(last[: 1_000 - 640 + 120], range(521, 1_001))
    assert np.array_equal(last[480:680], range(1_000, 800, -1)) and not last[680:].any()
    assert [float(window.valid_frames_b[0]) for window in windows] == [6, 2]


@pytest.mark.parametrize("num_samples", [1, 79, 80, 119, 200, 5_281, 40_000])
def test_text_is_that_of_torch_for_every_tail(exported: tuple[str, Path], num_samples: int) -> None:
    kind, folder = exported
    model, units = load_exported(folder / "model.wave.onnx")
    samples = probe_sound(40_000, 8)[:num_samples]
    ours = StreamingSession(TorchChunkModel(STUDENTS[kind]()), UNITS, keep_log_probs=True)
    theirs = StreamingSession(model, units, keep_log_probs=True)
    ours.accept(samples)
    for start in range(0, num_samples, 777):
        theirs.accept(samples[start : start + 777])
    assert ours.finish() == theirs.finish()
    assert [token[:2] for token in ours.tokens] == [token[:2] for token in theirs.tokens]
    assert ours.log_probs_tv.shape == theirs.log_probs_tv.shape
    assert not ours.num_frames or np.abs(ours.log_probs_tv - theirs.log_probs_tv).max() < 5e-3


def test_card_and_quantised_file(exported: tuple[str, Path]) -> None:
    _, folder = exported
    card = json.loads((folder / "model.json").read_text())
    assert card["file_format"] == "wave-onnx" and "demo-page" in card["run"]["web"]
    assert card["files"]["float32"]["parity_with_torch"]["max_abs_difference"] < 5e-3
    assert card["files"]["int8"]["agreement_with_torch"]["same_argmax"] > 0.9
    graph = onnx.load(folder / "model.wave.int8.onnx").graph
    front = max(graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    assert list(front.dims) == [2 * 243, 1, 400] and front.data_type == onnx.TensorProto.FLOAT


def test_outputs_have_shapes_that_depend_on_the_batch_alone(exported: tuple[str, Path]) -> None:
    _, folder = exported
    for file in ("model.wave.onnx", "model.wave.int8.onnx"):
        model = onnx.load(folder / file)
        onnx.checker.check_model(model, full_check=True)
        facts = load_exported(folder / file)[0].facts
        shapes = {
            entry.name: [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
            for entry in model.graph.output
        }
        assert shapes == {
            "log_probs": ["batch", facts.shift // facts.subsampling, facts.vocab_size],
            "new_state": ["batch", facts.state_floats + 1],
        }


def test_one_kind_of_file_is_not_taken_for_the_other(exported: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = exported
    with pytest.raises(ModelError, match=r"expected kdasr_format = kdasr-onnx"):
        OnnxChunkModel(folder / "model.wave.onnx")
    export_student(recurrent(), UNITS, tmp_path, int8=False)
    with pytest.raises(ModelError, match=r"expected kdasr_format = kdasr-wave-onnx"):
        OnnxWaveModel(tmp_path / "model.onnx")
