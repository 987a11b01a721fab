"""Odd audio gets a right answer or a clear error, whatever runs the model: never a crash."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from export.parity import probe_sound
from export.publish import export_student
from export.transcribe import open_recogniser
from kdasr.cli import main
from kdasr.models import save_model
from kdasr.resampling import resample
from tests.export.small_models import UNITS, conformer

SOUND = probe_sound(40_000, 8)
ENGINES = ["torch", "onnx", "wave-onnx"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    student = conformer(num_layers=1)
    save_model(root / "torch", student, UNITS)
    for format in ("onnx", "wave-onnx"):
        export_student(student, UNITS, root / format, format=format, int8=False)
    return root


def offline_text(models: Path, samples: NDArray[np.float32]) -> str:
    return open_recogniser(models / "torch").transcribe(samples)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("stored", "rate_hz", "heard"),
    [
        (np.clip(50 * SOUND, -1, 1), 16_000, np.clip(50 * SOUND, -1, 1)),
        (np.zeros(16_000, np.float32), 16_000, np.zeros(16_000, np.float32)),
        (np.stack([SOUND, SOUND], axis=1), 16_000, SOUND),
        (SOUND[::2], 8_000, resample(SOUND[::2], 8_000, 16_000)),
        (SOUND[:1], 16_000, SOUND[:1]),
    ],
    ids=["clipped", "silent", "stereo", "8 kHz", "one sample"],
)
def test_odd_audio_gives_the_text_of_torch(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    engine: str, stored: NDArray[np.float32], rate_hz: int, heard: NDArray[np.float32],
) -> None:  # fmt: skip
    wav = tmp_path / "odd.wav"
    soundfile.write(wav, stored, rate_hz, subtype="FLOAT")
    assert main(["transcribe", "--model", str(models / engine), "--stream", str(wav)]) == 0
    text = capsys.readouterr().out.splitlines()[-1].split("\t")[1]
    assert text == offline_text(models, heard)
    assert (len(text) > 5) == (len(heard) > 1 and bool(heard.any()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.where(np.arange(40_000) == 20_000, np.nan, SOUND), "NaN or infinite"),
        (np.zeros(0, np.float32), "no samples|empty"),
    ],
    ids=["NaN", "zero length"],
)
def test_audio_that_is_none_is_a_clear_error(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    engine: str, stored: NDArray[np.float32], message: str,
) -> None:  # fmt: skip
    wav = tmp_path / "odd.wav"
    soundfile.write(wav, stored, 16_000, subtype="FLOAT")
    assert main(["transcribe", "--model", str(models / engine), "--stream", str(wav)]) != 0
    said = capsys.readouterr()
    assert re.search(message, said.err) and "odd.wav" in said.err
    assert "Traceback" not in said.err
