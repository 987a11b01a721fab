"""What every student must do: found by globbing, so that a new file is tested without an edit here."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import kdasr.students
from export.parity import probe_sound
from export.publish import export_student
from kdasr.decoding import greedy
from kdasr.errors import ConfigError, ModelError
from kdasr.features import LOG_MEL_FLOOR, log_mel
from kdasr.interfaces import StreamingModel
from kdasr.streaming import StreamingSession, TorchChunkModel, set_chunk_ms, with_tail, within_audio
from kdasr.students.recurrent import RecurrentStudent
from tests.export.small_models import UNITS, make_talkative

FILES = sorted(path.stem for path in Path(kdasr.students.__file__).parent.glob("[a-z]*.py"))
# Chunk, left context and lookahead, in output frames; chunks are times what a student needs them to be.
SHAPES = [(8, 32, 0), (8, 16, 2), (1, 8, 3), (5, 7, 1), (16, 4, 0)]
# What makes a student small; one that is not named here is tested with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "Zipformer": {"widths": [24, 40, 32], "num_layers": [1, 2, 1], "num_heads": 2, "kernel_frames": 5},
    "ChunkConformer": {"width": 32, "num_layers": 2},
    "RecurrentStudent": {"width": 24, "num_layers": 2, "hidden_width": 40},
}


def students_in(module_name: str) -> list[Any]:
    module = importlib.import_module(f"kdasr.students.{module_name}")
    classes = [value for _, value in inspect.getmembers(module, inspect.isclass)]
    own = [c for c in classes if issubclass(c, nn.Module) and c.__module__ == module.__name__]
    return [c for c in own if hasattr(c, "initial_state") and not inspect.isabstract(c)]


STUDENTS = [student for name in FILES for student in students_in(name)]


def test_students_were_found() -> None:
    assert {student.__name__ for student in STUDENTS} >= SMALL.keys()


def make(student: Any, chunk: int = 8, left: int = 16, lookahead: int = 1, **changes: Any) -> Any:
    """A small student, in evaluation mode; what its constructor does not take is left out."""
    torch.manual_seed(3)
    geometry = {"chunk_frames": chunk, "left_context_frames": left, "lookahead_frames": lookahead}
    taken = inspect.signature(student).parameters
    settings = {**geometry, **SMALL.get(student.__name__, {}), **changes}
    settings = {name: value for name, value in settings.items() if name in taken}
    model = student(**{"vocab_size": 11, **settings})
    # So that nothing is at a value, zero or one, that would hide whether it is used.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.set_statistics(torch.full((80,), -8.0), torch.full((80,), 3.0))
    return model.eval()


def attends(student: Any) -> bool:
    """Whether what a frame hears depends on the chunk."""
    return "left_context_frames" in inspect.signature(student).parameters


def multiple(student: Any) -> int:
    return int(make(student).chunk_multiple)


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


def whole(model: Any, features_btf: Tensor) -> Tensor:
    log_probs, _ = model.offline(features_btf, torch.full((len(features_btf),), features_btf.shape[1]))
    return log_probs


def assert_close(got: Tensor, want: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


@pytest.mark.parametrize("student", STUDENTS)
class TestStudent:
    def test_is_a_streaming_model_that_rebuilds_from_its_config(self, student: Any) -> None:
        model = make(student)
        assert isinstance(model, StreamingModel)
        twin = student(**model.config)
        twin.load_state_dict(model.state_dict())
        assert twin.config == model.config

    @pytest.mark.parametrize(("chunk", "left", "lookahead"), SHAPES)
    @torch.no_grad()
    def test_chunked_equals_offline(self, student: Any, chunk: int, left: int, lookahead: int) -> None:
        model = make(student, chunk * multiple(student), left, lookahead)
        for frames in (1, 4, 31, 32, 33, 203):
            features = speech_features(2, frames)
            offline, lengths = model.offline(features, torch.tensor([frames, frames]))
            streamed = chunked(model, features)
            assert lengths.tolist() == 2 * [-(-frames // 4)]
            assert_close(streamed, offline)
            assert torch.equal(streamed.argmax(-1), offline.argmax(-1))

    @torch.no_grad()
    def test_chunked_in_a_batch_equals_alone(self, student: Any) -> None:
        model = make(student)
        features = speech_features(3, 150)
        together = chunked(model, features)
        for row in range(3):
            assert_close(together[row], chunked(model, features[row : row + 1])[0], 1e-5)

    @pytest.mark.parametrize("chunk", [8, 0])
    @torch.no_grad()
    def test_offline_ignores_batch_neighbours_and_padding(self, student: Any, chunk: int) -> None:
        model = make(student, chunk)
        features, lengths = speech_features(3, 203), torch.tensor([203, 150, 37])
        together, frames = model.offline(features, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, _ = model.offline(features[row : row + 1, :length], lengths[row : row + 1])
            assert_close(together[row, : frames[row]], alone[0], 1e-5)
        # As many frames as the batch is padded to: the lengths, which lie on a GPU, are not asked.
        shorter, frames = model.offline(features, lengths - 30)
        assert shorter.shape[1] == 51 and frames.tolist() == [44, 30, 2]

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

    @torch.no_grad()
    def test_state_is_batch_first_zero_and_keeps_its_shape(self, student: Any) -> None:
        model = make(student)
        state = model.initial_state(3)
        assert state._fields[-1] == "processed" and state.processed.dtype == torch.int64
        for tensor in state:
            assert tensor.shape[0] == 3
            assert not tensor.any()
        _, after = model(speech_features(3, model.window), state)
        for name, old, new in zip(state._fields, state, after, strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype), name
            assert new.any() and not old.any(), f"{name} is not used, or was written to in place"

    @torch.no_grad()
    def test_the_state_counts_the_frames_that_were_heard(self, student: Any) -> None:
        model = make(student, 4, 10)
        state, counts = model.initial_state(2), []
        for _ in range(4):
            _, state = model(speech_features(2, model.window), state)
            counts.append(state.processed.tolist())
        # Where frames are kept to be attended to, it counts those that are.
        assert counts == [2 * [min(heard, 10) if attends(student) else heard] for heard in (4, 8, 12, 16)]

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

    def test_trains_in_bf16(self, student: Any) -> None:
        model = make(student, dropout=0.0).train()
        features = speech_features(2, 120)
        exact = whole(model, features)
        with torch.autocast("cpu", torch.bfloat16):
            log_probs = whole(model, features)
        log_probs.square().mean().backward()
        assert log_probs.dtype == torch.float32
        assert_close(log_probs.exp().sum(-1), torch.ones(2, 30), 1e-5)
        assert 0 < (log_probs - exact).abs().mean() < 0.1
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_layers_give_frames_that_can_be_recorded(self, student: Any) -> None:
        model, shapes = make(student), []
        for layer in model.layers:
            layer.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        whole(model, speech_features(2, 203))
        assert len(shapes) == len(model.layers) >= 2
        assert all(shape[0] == 2 and shape[1] >= 51 for shape in shapes), "one row for each 40 ms frame"


@pytest.mark.parametrize("student", STUDENTS)
class TestChunks:
    @torch.no_grad()
    def test_one_model_serves_every_chunk(self, student: Any) -> None:
        model = make(student)
        features = speech_features(1, 203)
        heard, shapes = {}, set()
        for chunk_ms in (80, 320, 960):
            set_chunk_ms(model, chunk_ms)
            shapes.add(tuple(tensor.shape for tensor in model.initial_state(2)))
            heard[chunk_ms] = whole(model, features)
            assert_close(chunked(model, features), heard[chunk_ms])
        assert len(shapes) == 1, "a stream could not go on with another chunk size"
        assert torch.allclose(heard[80], heard[960], atol=1e-4) != attends(student)
        set_chunk_ms(model, 320)
        assert_close(whole(model, features), heard[320], 0)

    @torch.no_grad()
    def test_full_context_is_one_chunk_that_holds_the_utterance(self, student: Any) -> None:
        model = make(student)
        features = speech_features(2, 128)
        set_chunk_ms(model, 128 * 10)
        one_chunk = whole(model, features)
        set_chunk_ms(model, 0, or_whole=True)
        assert_close(whole(model, features), one_chunk, 1e-5)
        with pytest.raises(ModelError, match="full-context student cannot run chunk by chunk"):
            TorchChunkModel(model)

    @pytest.mark.parametrize("chunk_ms", [-40, 0, 50])
    def test_chunks_that_cannot_be_are_refused(self, student: Any, chunk_ms: int) -> None:
        model = make(student)
        with pytest.raises(ConfigError, match=f"a multiple of 40, at least 40; got {chunk_ms}"):
            set_chunk_ms(model, chunk_ms)
        assert model.chunk_frames == 8

    def test_contexts_and_chunks_that_cannot_be_are_refused_from_the_start(self, student: Any) -> None:
        with pytest.raises(ConfigError, match=r"lookahead_frames of .* 0 or more output frames; got .*-1$"):
            make(student, lookahead=-1)
        if attends(student):
            with pytest.raises(ConfigError, match="left_context_frames, .* 0 or more .*; got -1, 1"):
                make(student, left=-1)
            with pytest.raises(ConfigError, match=r"dynamic_chunks of .* up to 1500 .*; got 1600 "):
                make(student, dynamic_chunks=[8, 1_600])

    def test_a_chunk_is_a_minute_at_most(self, student: Any) -> None:
        model = make(student)
        set_chunk_ms(model, 60_000)
        with pytest.raises(ConfigError, match=r"chunk_frames of .* up to 1500 \(60000 ms\).*4000000 ms"):
            set_chunk_ms(model, 4_000_000)
        assert model.chunk_frames == 1_500

    def test_training_draws_its_chunks_and_decoding_does_not(self, student: Any) -> None:
        if not attends(student):
            assert "dynamic_chunks" not in inspect.signature(student).parameters
            return
        model = make(student, dropout=0.0, dynamic_chunks=[2, 8, 0])
        features = speech_features(1, 160)
        expected = {}
        for chunk in (2, 8, 0):
            model.chunk_frames = chunk
            expected[chunk] = whole(model, features)
        model.chunk_frames = 4
        fixed = whole(model, features)
        model.train()
        drawn = []
        for seed in range(24):
            torch.manual_seed(seed)
            heard = whole(model, features)
            torch.manual_seed(seed)
            assert torch.equal(whole(model, features), heard), "the draw follows torch's seed"
            drawn += [chunk for chunk, log_probs in expected.items() if torch.allclose(log_probs, heard)]
        assert len(drawn) == 24 and set(drawn) == {2, 8, 0}
        assert torch.equal(whole(model.eval(), features), fixed)

    def test_without_dynamic_chunks_nothing_is_drawn(self, student: Any) -> None:
        model = make(student, dropout=0.0).train()
        before = torch.get_rng_state()
        whole(model, speech_features(1, 64))
        assert torch.equal(torch.get_rng_state(), before)


# The log-probs that `remembered` gives for its first and its last frame, of every fifth class.
SAID: dict[str, list[list[float]]] = {
    "ChunkConformer": [[-1.9418, -3.9674, -3.2039], [-2.9382, -2.8819, -3.1962]],
    "RecurrentStudent": [[-2.992, -2.299, -2.226], [-2.9393, -1.2402, -1.6809]],
    "Zipformer": [[-3.9475, -2.9821, -3.0577], [-2.7094, -3.0564, -2.8917]],
}


def scattered(count: int, seed: int) -> Tensor:
    """Numbers in [-1, 1) without a pattern, by whole numbers alone: the same on every machine."""
    n = torch.arange(count) + 1_009 * seed
    return (7_919 * n * n + 104_729 * n) % 65_537 / 32_768.5 - 1


@torch.no_grad()
def remembered(student: Any) -> Tensor:
    """What a student with such weights says of such features."""
    model = make(student)
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        values = scattered(parameter.numel(), seed)
        if parameter.dim() > 1:
            values = values * 2.5 * parameter[0].numel() ** -0.5
        elif name.endswith(("weight", "share")):  # of norms, and of bypasses: some beyond their bounds
            values = 0.6 + 0.6 * values
        else:
            values = 0.3 * values
        parameter.copy_(values.view(parameter.shape))
    return whole(model, 5 * scattered(80 * 80, 99).view(1, 80, 80) - 8)


@pytest.mark.parametrize("student", [student for student in STUDENTS if student.__name__ in SAID])
def test_a_saved_model_goes_on_saying_what_it_said(student: Any) -> None:
    """A change to how weights are used would make nonsense of every model that was trained before."""
    heard = remembered(student)
    assert_close(heard[0, [0, -1]][:, ::5], torch.tensor(SAID[student.__name__]), 2e-3)


def test_a_student_of_few_layers_has_one_at_least() -> None:
    with pytest.raises(ConfigError, match="num_layers of RecurrentStudent: .*expected 1 or more; got 0"):
        make(RecurrentStudent, num_layers=0)


def talkative(student: Any, **changes: Any) -> Any:
    return make_talkative(make(student, vocab_size=UNITS.vocab_size, **changes), 4.0)


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("chunk_ms", [80, 320])
def test_ragged_audio_gives_the_tokens_of_the_whole(student: Any, chunk_ms: int) -> None:
    model, random = talkative(student), np.random.default_rng(chunk_ms)
    set_chunk_ms(model, chunk_ms)
    samples = probe_sound(48_123, 5)
    features = log_mel(with_tail(samples))[None]
    with torch.no_grad():
        log_probs, lengths = model.offline(features, torch.tensor([features.shape[1]]))
    session = StreamingSession(TorchChunkModel(model), UNITS, keep_log_probs=True)
    start = 0
    while start < len(samples):
        size = int(random.integers(0, 3_000))
        session.accept(samples[start : start + size])
        start += size
    session.finish()
    tokens = within_audio(greedy(log_probs, lengths)[0], len(samples), model.subsampling)
    assert len({token.id for token in tokens}) > 3
    assert np.abs(session.log_probs_tv - log_probs[0].numpy()).max() < 1e-4
    assert [token[:2] for token in session.tokens] == [token[:2] for token in tokens]


@pytest.mark.parametrize(
    "student",  # a Zipformer's graph is five times as large as the others'
    [pytest.param(one, marks=[pytest.mark.slow] * (one.__name__ == "Zipformer")) for one in STUDENTS],
)
@pytest.mark.parametrize("chunk_ms", [80, *(pytest.param(ms, marks=pytest.mark.slow) for ms in (320, 960))])
def test_onnx_says_what_torch_says(student: Any, chunk_ms: int, tmp_path: Path) -> None:
    model = talkative(student)
    set_chunk_ms(model, chunk_ms)
    card = export_student(model, UNITS, tmp_path).card
    parity = card["files"]["float32"]["parity_with_torch"]
    assert parity["max_abs_difference"] < 1e-3 and parity["tokens_identical"]
    assert tuple(parity["batch_sizes"]) == (1, 3) and card["streaming"]["chunk_ms"] == chunk_ms
    assert card["files"]["int8"]["agreement_with_torch"]["same_argmax"] > 0.8


def test_the_matrices_of_an_lstm_are_quantised(tmp_path: Path) -> None:
    model = talkative(RecurrentStudent, width=64, hidden_width=64)
    exported = export_student(model, UNITS, tmp_path)
    assert exported.int8_path is not None
    kinds = {node.op_type for node in onnx.load(exported.int8_path).graph.node}
    assert "DynamicQuantizeLSTM" in kinds and "LSTM" not in kinds
    front_end = sum(parameter.numel() for parameter in model.subsample.parameters())
    recurrent = sum(parameter.numel() for parameter in model.layers.parameters())
    saved = exported.float_path.stat().st_size - exported.int8_path.stat().st_size
    assert saved > 2.5 * recurrent and exported.int8_path.stat().st_size > 4 * front_end
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.onnx", "model.int8.onnx", "tokens.txt", "units.json", "model.json"
    }  # fmt: skip


def test_a_student_of_full_context_is_not_exported(tmp_path: Path) -> None:
    model = make(RecurrentStudent, vocab_size=UNITS.vocab_size)
    set_chunk_ms(model, 0, or_whole=True)
    with pytest.raises(ModelError, match="full-context student cannot run chunk by chunk"):
        export_student(model, UNITS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
