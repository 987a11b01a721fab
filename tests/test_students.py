"""What every student must do: found by globbing, so that a new file is tested without an edit here."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kdasr.students
from kdasr.features import LOG_MEL_FLOOR
from kdasr.interfaces import StreamingModel

FILES = sorted(path.stem for path in Path(kdasr.students.__file__).parent.glob("[a-z]*.py"))
SHAPES = [(8, 32, 0), (8, 16, 2), (1, 8, 3), (5, 7, 1), (16, 4, 0)]


def students_in(module_name: str) -> list[Any]:
    module = importlib.import_module(f"kdasr.students.{module_name}")
    classes = [value for _, value in inspect.getmembers(module, inspect.isclass)]
    return [c for c in classes if issubclass(c, nn.Module) and c.__module__ == module.__name__]


STUDENTS = [student for name in FILES for student in students_in(name)]


def test_students_were_found() -> None:
    assert "conformer" in FILES and len(STUDENTS) >= len(FILES)


def make(student: Any, chunk: int = 8, left: int = 16, lookahead: int = 1) -> Any:
    torch.manual_seed(3)
    model = student(
        vocab_size=11, width=32, num_layers=2, chunk_frames=chunk, left_context_frames=left,
        lookahead_frames=lookahead,
    )  # fmt: skip
    model.set_statistics(torch.full((80,), -8.0), torch.full((80,), 3.0))
    return model.eval()


def speech_features(batch_size: int, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, frames, 80, generator=generator) * 3 - 8


def chunked(model: Any, features_btf: Tensor) -> Tensor:
    """Log-probs of whole features (B, T, 80) by windows with state; the tail is padded as silence."""
    frames_out = -(-features_btf.shape[1] // model.subsampling)
    chunks = -(-frames_out // model.chunk_frames)
    total = (chunks - 1) * model.shift + model.window
    padded = torch.full((len(features_btf), max(total, features_btf.shape[1]), 80), LOG_MEL_FLOOR)
    padded[:, : features_btf.shape[1]] = features_btf
    state, pieces = model.initial_state(len(features_btf)), []
    for chunk in range(chunks):
        window = padded[:, chunk * model.shift : chunk * model.shift + model.window]
        log_probs, state = model(window, state)
        assert log_probs.shape == (len(features_btf), model.chunk_frames, model.vocab_size)
        pieces.append(log_probs)
    return torch.cat(pieces, dim=1)[:, :frames_out]


@pytest.mark.parametrize("student", STUDENTS)
class TestStudent:
    def test_is_a_streaming_model_that_rebuilds_from_its_config(self, student: Any) -> None:
        model = make(student)
        assert isinstance(model, StreamingModel)
        twin = student(**model.config)
        twin.load_state_dict(model.state_dict())

    @pytest.mark.parametrize(("chunk", "left", "lookahead"), SHAPES)
    @pytest.mark.parametrize("frames", [1, 4, 31, 32, 33, 203])
    @torch.no_grad()
    def test_chunked_equals_offline(
        self, student: Any, chunk: int, left: int, lookahead: int, frames: int
    ) -> None:
        model = make(student, chunk, left, lookahead)
        features = speech_features(1, frames)
        offline, lengths = model.offline(features, torch.tensor([frames]))
        streamed = chunked(model, features)
        assert lengths.tolist() == [-(-frames // 4)]
        torch.testing.assert_close(streamed, offline, atol=1e-4, rtol=0)
        assert torch.equal(streamed.argmax(-1), offline.argmax(-1))

    @torch.no_grad()
    def test_chunked_in_a_batch_equals_alone(self, student: Any) -> None:
        model = make(student)
        features = speech_features(3, 150)
        together = chunked(model, features)
        for row in range(3):
            torch.testing.assert_close(
                together[row], chunked(model, features[row : row + 1])[0], atol=1e-5, rtol=0
            )

    @torch.no_grad()
    def test_offline_ignores_batch_neighbours_and_padding(self, student: Any) -> None:
        model = make(student)
        features, lengths = speech_features(3, 203), torch.tensor([203, 150, 37])
        together, frames = model.offline(features, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, _ = model.offline(features[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(together[row, : frames[row]], alone[0], atol=1e-5, rtol=0)

    @torch.no_grad()
    def test_the_future_does_not_change_the_past(self, student: Any) -> None:
        model = make(student)
        features = speech_features(1, 240)
        changed = features.clone()
        first_changed = 3 * model.shift + (model.window - model.shift)
        changed[:, first_changed:] += 5.0
        before, after = chunked(model, features), chunked(model, changed)
        heard_before = 3 * model.chunk_frames
        torch.testing.assert_close(before[:, :heard_before], after[:, :heard_before], atol=0, rtol=0)
        assert not torch.allclose(before[:, heard_before:], after[:, heard_before:])

    def test_state_is_batch_first_zero_and_named(self, student: Any) -> None:
        state = make(student).initial_state(3)
        assert state._fields and state.processed.dtype == torch.int64
        for tensor in state:
            assert tensor.shape[0] == 3
            assert not tensor.any()

    @torch.no_grad()
    def test_log_probs_are_normalised(self, student: Any) -> None:
        model = make(student)
        log_probs, _ = model(speech_features(2, model.window), model.initial_state(2))
        np.testing.assert_allclose(log_probs.exp().sum(-1).numpy(), 1.0, atol=1e-5)

    def test_every_parameter_learns(self, student: Any) -> None:
        model = make(student).train()
        log_probs, _ = model.offline(speech_features(2, 120), torch.tensor([120, 80]))
        log_probs.square().sum().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # A bias of the keys moves all scores of a query alike, which softmax does not see.
        assert without == []
