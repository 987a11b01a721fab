"""Stock sherpa-onnx decodes an exported folder to the text, tokens and times of our own session."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from export.load import load_exported
from export.parity import probe_sound
from export.publish import export_student
from kdasr.streaming import StreamingSession, TorchChunkModel, with_tail
from kdasr.symbols import TableUnits
from tests.export.small_models import ALL, KINDS, UNITS, conformer

PROGRAM = Path(__file__).with_name("sherpa_decode.py")
# Sounds begin every 4,000 samples and last 1,500 at least: each of these ends within one.
NUM_SAMPLES = (41_000, 25_123, 29_321)


def utterance(num_samples: int, seed: int) -> Any:
    """Made-up speech that sounds up to its last sample."""
    samples = probe_sound(num_samples + 4_000, seed)[:num_samples]
    return (np.round(samples * 32_767) / 32_768).astype(np.float32)  # what a 16-bit file holds


def flushed(samples: Any, window: int) -> Any:
    """The samples, the tail that our session hears of its own accord, and the zeros that sherpa wants before
    it decodes the last frames: its test for a ready window is strict, so one window and a frame."""
    return np.concatenate([with_tail(samples), np.zeros((window + 2) * 160, np.float32)])


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    student = ALL[request.param](lead_nats=6.0)
    export_student(student, UNITS, folder)
    wavs = []
    for seed, num_samples in enumerate(NUM_SAMPLES):
        samples = flushed(utterance(num_samples, seed + 20), student.window)
        wavs.append(folder / f"{seed}.wav")
        soundfile.write(wavs[-1], samples, 16_000, subtype="PCM_16")
    return student, folder, wavs


def sherpa(folder: Any, wavs: Any, mode: str = "whole", file: Any = "model.onnx", graph: Any = "") -> Any:
    command = [sys.executable, PROGRAM, folder / file, folder / "tokens.txt", graph, mode, *wavs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return json.loads(done.stdout.splitlines()[-1])


def sessions(model: Any) -> Any:
    for seed, num_samples in enumerate(NUM_SAMPLES):
        session = StreamingSession(model, UNITS, keep_log_probs=True)
        session.accept(utterance(num_samples, seed + 20))
        session.finish()
        yield session


def assert_same(session: Any, result: Any) -> None:
    """Up to the end of the tail; sherpa also decodes the silence that flushes it. What is said in the tail is
    in our session in the last frame of the audio."""
    ends = session.num_frames * 0.04
    kept = [
        (token, time)
        for token, time in zip(result["tokens"], result["timestamps"], strict=True)
        if time < ends - 0.02
    ]
    assert [token.replace(" ", "▁") for token, _ in kept] == [
        UNITS.symbols[token.id] for token in session.tokens
    ]
    last = 0.04 * (session.num_frames - 8 - 1)
    assert np.allclose(
        [min(time, last) for _, time in kept], [0.04 * token.frame for token in session.tokens], atol=2e-3
    )
    # sherpa 2 strips punctuation from the start of its text, a leading apostrophe with it.
    text = " ".join(result["text"].split()).lstrip("' ")
    assert text.startswith(session.text.lstrip("' "))


def least_lead(session: Any) -> float:
    """How far the best class of a frame is before the next, in nats, where it is least. A tie could fall
    either way with the last bit, and would say nothing about the export."""
    best = np.sort(session.log_probs_tv, axis=1)[:, -2:]
    return float((best[:, 1] - best[:, 0]).min())


@pytest.mark.parametrize("mode", ["whole", "ragged", "batch"])
def test_sherpa_gives_the_same_text_tokens_and_times(exported: Any, mode: str) -> None:
    student, folder, wavs = exported
    assert all(
        np.abs(utterance(size, seed + 20)[-80:]).max() > 0.005 for seed, size in enumerate(NUM_SAMPLES)
    )
    for session, result in zip(sessions(TorchChunkModel(student)), sherpa(folder, wavs, mode), strict=True):
        assert least_lead(session) > 1e-3
        assert len(session.tokens) >= 6
        assert_same(session, result)


def test_sherpa_runs_int8_as_onnxruntime_does(exported: Any) -> None:
    _, folder, wavs = exported
    model, _ = load_exported(folder / "model.int8.onnx")
    results = sherpa(folder, wavs, file="model.int8.onnx")
    # sherpa's features differ in the sixth digit, which moves what is rounded to 8 bits by a step.
    clear = [pair for pair in zip(sessions(model), results, strict=True) if least_lead(pair[0]) > 0.1]
    assert clear
    for session, result in clear:
        assert_same(session, result)


def test_sherpa_command_line_gives_the_same_text(exported: Any) -> None:
    student, folder, wavs = exported
    program = shutil.which("sherpa-onnx", path=str(Path(sys.executable).parent))
    assert program, "the package sherpa-onnx-bin of the dev extra is not installed"
    command = [
        program,
        f"--tokens={folder / 'tokens.txt'}",
        f"--zipformer2-ctc-model={folder / 'model.onnx'}",
    ]
    padding = ["--left-padding=0", "--right-padding=0"]
    done = subprocess.run(
        [*command, *padding, *wavs], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    lines = re.findall(r"^\{.*\}$", done.stderr + done.stdout, re.MULTILINE)
    results = [json.loads(line) for line in lines]
    assert len(results) == len(wavs)
    for session, result in zip(sessions(TorchChunkModel(student)), results, strict=True):
        assert_same(session, result)


def test_sherpa_prints_no_symbol_that_stands_for_no_text(tmp_path: Path) -> None:
    units = TableUnits.from_foreign(["<s>", "<pad>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"], 1)
    student = conformer(vocab_size=units.vocab_size, lead_nats=6.0, num_layers=1)
    with torch.no_grad():
        student.head.bias[1:4] += 20
    export_student(student, units, tmp_path, int8=False)
    soundfile.write(tmp_path / "a.wav", flushed(utterance(40_000, 20), student.window), 16_000)
    (heard,) = sherpa(tmp_path, [tmp_path / "a.wav"])
    assert len(heard["tokens"]) >= 6 and not {"<s>", "</s>", "<unk>"} & set(heard["tokens"])
    model, _ = load_exported(tmp_path / "model.onnx")
    session = StreamingSession(model, units)
    session.accept(utterance(40_000, 20))
    assert heard["text"].split()[:3] == session.finish().split()[:3]


def test_the_comparison_notices_other_features(exported: Any) -> None:
    """The negative control: audio at another loudness is other features and other tokens."""
    student, folder, wavs = exported
    session = StreamingSession(TorchChunkModel(student), UNITS)
    session.accept(utterance(NUM_SAMPLES[0], 20) * 0.25)
    session.finish()
    with pytest.raises(AssertionError):
        assert_same(session, sherpa(folder, wavs[:1])[0])
