"""ONNX teachers: sherpa-onnx's own recogniser hears the same in every format, and torch the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch

from kdasr.decoding import greedy
from kdasr.errors import ConfigError, MissingDependencyError, ModelError
from kdasr.features import log_mel
from kdasr.teachers import onnx_ctc
from kdasr.teachers.base import Teacher
from kdasr.teachers.onnx_ctc import OnnxCTC
from tests.teachers.tiny_models import noise
from tests.teachers.tiny_onnx import SYMBOLS, write

PROGRAM = Path(__file__).with_name("sherpa_offline.py")
# Two classes this close could fall either way: sherpa takes variances as E[x²] - E[x]² in single precision,
# which is good to three digits.
NEAR_TIE = 0.12
FORMATS = ("nemo", "zipformer", "wenet", "sense_voice", "wav2vec2")


def speech(seconds: float, seed: int) -> Any:
    """Noise and tones that change, as a 16-bit file holds them."""
    samples = noise(seconds, seed)
    time_s = np.arange(len(samples)) / 16_000
    samples = 0.3 * samples + 0.2 * np.sin(2 * np.pi * (200 + 900 * time_s) * time_s) * (
        np.sin(9 * time_s) > 0
    )
    return (np.round(samples * 32_767) / 32_768).astype(np.float32)


def hear(teacher: Teacher, samples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = teacher.front_end.compute(samples)
    with torch.inference_mode():
        return teacher.model.offline(inputs[None], torch.tensor([len(inputs)]))


@pytest.fixture(scope="module", params=FORMATS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path, module = write(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, path, module, OnnxCTC(path).load("cpu")


@pytest.mark.slow
def test_sherpa_hears_the_same_tokens_at_the_same_times(written: Any) -> None:
    kind, path, _, teacher = written
    audio = []
    for seed in range(40):
        samples = speech(0.5 + 0.137 * (seed % 5), seed)
        log_probs, frames = hear(teacher, samples)
        best = log_probs[0, : int(frames[0])].topk(2).values
        if float((best[:, 0] - best[:, 1]).min()) > NEAR_TIE:
            audio.append(samples)
    assert len(audio) >= 3
    wavs = [path.parent / f"{number}.wav" for number in range(len(audio))]
    for wav, samples in zip(wavs, audio, strict=True):
        soundfile.write(wav, samples, 16_000, subtype="PCM_16")
    command = [sys.executable, PROGRAM, kind, path, path.with_name("tokens.txt"), *wavs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    for samples, (tokens, times) in zip(audio, json.loads(done.stdout.splitlines()[-1]), strict=True):
        log_probs, frames = hear(teacher, samples)
        ours = greedy(log_probs, frames)[0]
        assert len(ours) >= 3
        assert [teacher.units.symbols[token.id].replace("▁", " ") for token in ours] == tokens
        shift_s = teacher.facts["frame_shift_ms"] / 1000
        if kind != "wav2vec2":  # sherpa takes 10 ms for the frame shift of these
            assert [token.frame * shift_s for token in ours] == pytest.approx(times, abs=2e-3)


def test_the_teacher_says_what_it_is(written: Any) -> None:
    kind, _, _, teacher = written
    shifts = {"nemo": 40.0, "zipformer": 40.0, "wenet": 40.0, "sense_voice": 60.0, "wav2vec2": 20.0}
    assert teacher.facts["frame_shift_ms"] == shifts[kind]
    assert teacher.facts["blank_id"] == (len(SYMBOLS) if kind == "nemo" else 0)
    assert teacher.units.symbols[0] == "<blk>" and teacher.units.symbols[-1] == "'"
    assert teacher.units.vocab_size == teacher.model.vocab_size == len(SYMBOLS) + 1
    assert teacher.pads is False and len(teacher.weights_hash) == 64


def test_posteriors_are_those_of_the_network(tmp_path: Path) -> None:
    samples = speech(1.2, 4)
    path, module = write(tmp_path / "zipformer", "zipformer")
    got, frames = hear(OnnxCTC(path).load("cpu"), samples)
    features = log_mel(samples)[None]
    wanted, lengths = module(features, torch.tensor([features.shape[1]]))
    assert frames.tolist() == lengths.tolist()
    torch.testing.assert_close(got, wanted, atol=5e-4, rtol=0)
    path, module = write(tmp_path / "nemo", "nemo")
    teacher = OnnxCTC(path).load("cpu")
    features = teacher.front_end.compute(samples)
    features = (features - features.mean(0)) / (features.std(0, correction=0) + 1e-5)
    wanted = module(features.T[None], torch.tensor([len(features)]))
    blank = torch.cat([wanted[..., -1:], wanted[..., :-1]], -1)  # blank is last in NeMo's models
    torch.testing.assert_close(hear(teacher, samples)[0], blank, atol=5e-4, rtol=0)


def test_other_weights_tokens_or_language_are_another_teacher(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "sense_voice")
    first, again = (OnnxCTC(path).load("cpu") for _ in range(2))
    assert first.weights_hash == again.weights_hash
    assert OnnxCTC(path, language="en").load("cpu").weights_hash != first.weights_hash
    tokens = path.with_name("tokens.txt")
    tokens.write_text(tokens.read_text().replace("o 23", "ö 23"))
    assert OnnxCTC(path).load("cpu").weights_hash != first.weights_hash


@pytest.mark.parametrize(
    ("device", "providers"),
    [
        ("cuda:3", [("CUDAExecutionProvider", {"device_id": 3}), "CPUExecutionProvider"]),
        ("cuda", [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]),
        ("cpu", ["CPUExecutionProvider"]),
    ],
)
def test_a_session_opens_on_the_device_that_is_asked_for(
    device: str, providers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: there)
    monkeypatch.setattr(
        "onnxruntime.InferenceSession", lambda path, options, providers: opened.append(providers)
    )
    onnx_ctc._open(Path("model.onnx"), device)
    assert opened == [providers]


@pytest.mark.parametrize("package", ["onnxruntime", "kaldi_native_fbank"])
def test_without_a_package_its_pip_line_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write(tmp_path, "nemo")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install -c .*\[onnx-teacher\]'"):
        OnnxCTC(path).load("cpu")


def test_what_is_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx.*not on this machine.*Unpack"):
        OnnxCTC(tmp_path / "nowhere.onnx").load("cpu")
    path, _ = write(tmp_path / "odd", "nemo", model_type="EncDecRNNTBPEModel")
    with pytest.raises(ModelError, match=r"in a known format.*EncDecRNNTBPEModel"):
        OnnxCTC(path).load("cpu")
    with pytest.raises(ModelError, match=r"not an offline sense_voice model.*audio_signal"):
        OnnxCTC(path, format="sense_voice").load("cpu")
    with pytest.raises(ConfigError, match=r"cannot use the accelerator.*onnxruntime-gpu"):
        OnnxCTC(path, format="nemo").load("cuda:0")
    other, _ = write(tmp_path / "sense_voice", "sense_voice")
    with pytest.raises(ModelError, match="lacks lang_fr"):
        OnnxCTC(other, language="fr").load("cpu")
    tokens = path.with_name("tokens.txt")
    whole = tokens.read_text()
    tokens.write_text(whole.replace("<blk>", "<sil>"))
    with pytest.raises(ModelError, match="no blank"):
        OnnxCTC(path, format="nemo").load("cpu")
    tokens.write_text(whole + "more 25\n")
    with pytest.raises(ModelError, match=r"26 symbols.*25 classes"):
        OnnxCTC(path, format="nemo").load("cpu")
    tokens.write_text("half a line\n")
    with pytest.raises(ModelError, match=r"tokens\.txt:1"):
        OnnxCTC(path, format="nemo").load("cpu")
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="cannot load"):
        OnnxCTC(path).load("cpu")


def test_weights_beside_the_graph_are_part_of_the_teacher_whatever_the_file_is_called(tmp_path: Path) -> None:
    """Optimum writes model.onnx_data, sherpa-onnx's scripts model.onnx.data or model.weights."""
    hashes = set()
    for name in ("one", "two"):
        path, _ = write(tmp_path / name, "zipformer")
        proto = onnx.load(path)
        if name == "two":
            weights = onnx.numpy_helper.to_array(proto.graph.initializer[0])
            proto.graph.initializer[0].CopyFrom(
                onnx.numpy_helper.from_array(2 * weights, proto.graph.initializer[0].name)
            )
        onnx.save(proto, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
        (path.parent / "README.md").write_text(name)
        hashes.add(OnnxCTC(path).load("cpu").weights_hash)
    assert len(hashes) == 2
    (path.parent / "README.md").write_text("another")
    assert OnnxCTC(path).load("cpu").weights_hash in hashes, "no part of the model"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<blk> 0\n\xe9 1\n", r"tokens\.txt: the symbols are not UTF-8 text"),
        ("<blk> 0\na ²\n".encode(), r"tokens\.txt:2: not a symbol and a unique id"),
        (b"<blk> 0\na " + b"9" * 5000, r"tokens\.txt:2: not a symbol and a unique id"),
    ],
)
def test_damaged_tokens_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokens.txt").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        onnx_ctc._read_tokens(tmp_path / "tokens.txt")
