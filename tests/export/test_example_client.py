"""A client that has nothing of kdasr but its export says what a session says."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import export.example_client
from export.example_client import Client, log_mel
from export.load import load_exported
from export.parity import probe_sound
from export.publish import export_student
from kdasr.features import log_mel as kdasr_log_mel
from kdasr.streaming import StreamingSession
from kdasr.symbols import TableUnits
from kdasr.text import Units
from tests.export.small_models import ALL, KINDS, UNITS, conformer, recurrent

PROGRAM = Path(export.example_client.__file__)


def heard_by_session(folder: Path, units: Units, samples: np.ndarray) -> StreamingSession:
    model, _ = load_exported(folder / "model.onnx")
    session = StreamingSession(model, units, keep_log_probs=True)
    for start in range(0, len(samples), 1_600):
        session.accept(samples[start : start + 1_600])
    session.finish()
    return session


@pytest.mark.parametrize("kind", KINDS)
def test_its_text_is_that_of_a_session(kind: str, tmp_path: Path) -> None:
    """Of an export with an int8 file beside, and of one without."""
    export_student(ALL[kind](lead_nats=6.0), UNITS, tmp_path, int8=kind == "conformer")
    client = Client(tmp_path)
    for num_samples in (1, 79, 80, 5_281, 47_123):
        samples = probe_sound(48_000, 5)[:num_samples]
        session = heard_by_session(tmp_path, UNITS, samples)
        assert client.text(samples) == session.text
        if num_samples >= 80:
            log_probs = client.log_probs(samples)
            assert log_probs.shape == session.log_probs_tv.shape
            assert np.abs(log_probs - session.log_probs_tv).max() < 5e-3
    assert len(set(session.text)) > 2


def test_a_pause_and_the_tail_are_heard_as_by_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units in given frames: a pause of a second, one that is shorter, runs, and a unit in the tail, which is
    in the last frame of the audio."""
    export_student(recurrent(), UNITS, tmp_path, int8=False)
    samples = np.zeros(100 * 640, np.float32)
    session = heard_by_session(tmp_path, UNITS, samples)
    for script in (
        {0: "a", 1: "a", 3: "▁", 4: "▁", 6: "b", 32: "c", 57: "d", 99: "e", 105: "f"},
        {74: "a", 104: "b"},
        {73: "a", 104: "b"},
    ):
        log_probs = np.full((108, UNITS.vocab_size), -20.0, np.float32)
        log_probs[:, 0] = -1.0
        for frame, symbol in script.items():
            log_probs[frame, UNITS.symbols.index(symbol)] = -0.5
        client = Client(tmp_path)
        monkeypatch.setattr(client, "log_probs", lambda samples, answer=log_probs: answer)
        session.reset()
        session.num_samples = len(samples)
        session._decoder.feed(log_probs)
        session._finished = True
        session._decode()
        assert client.text(samples) == session.text
    assert session.text == "a b"


def test_word_pieces_are_spelt(tmp_path: Path) -> None:
    units = TableUnits(
        ["<blk>", *UNITS.symbols[1:20], "▁th", "▁s", "ing", "▁the", "ed", "er", "▁a", "on", "qu"]
    )
    student = conformer(lead_nats=6.0, vocab_size=units.vocab_size, num_layers=1)
    export_student(student, units, tmp_path, int8=False)
    samples = probe_sound(47_123, 6)
    assert Client(tmp_path).text(samples) == heard_by_session(tmp_path, units, samples).text


def test_its_features_are_those_of_kdasr(tmp_path: Path) -> None:
    export_student(recurrent(), UNITS, tmp_path, int8=False)
    features = Client(tmp_path).features
    for num_samples in (80, 200, 5_281, 16_000):
        samples = probe_sound(20_000, 3)[:num_samples]
        ours = kdasr_log_mel(samples).numpy()
        theirs = log_mel(samples, features)
        assert theirs.shape == ours.shape and np.abs(theirs - ours).max() < 2e-3


@pytest.mark.slow
def test_a_copy_of_it_runs_beside_nothing_of_kdasr(tmp_path: Path) -> None:
    export_student(conformer(lead_nats=6.0), UNITS, tmp_path / "out", int8=False)
    (tmp_path / "out" / "units.json").unlink()
    soundfile.write(tmp_path / "a.wav", probe_sound(47_123, 5), 16_000)
    shutil.copy(PROGRAM, tmp_path / "client.py")
    command = [sys.executable, "client.py", "out", "a.wav"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    UNITS.save(tmp_path / "out")
    assert (
        done.stdout == heard_by_session(tmp_path / "out", UNITS, samples).text + "\n" and len(done.stdout) > 5
    )


def test_it_runs_where_it_lies_and_says_what_it_takes(tmp_path: Path) -> None:
    """Beside the other modules of `export`, none of which may hide one that it imports."""
    export_student(recurrent(lead_nats=6.0), UNITS, tmp_path / "out", int8=False)
    for rate_hz in (16_000, 8_000):
        soundfile.write(tmp_path / f"{rate_hz}.wav", probe_sound(20_000, 5), rate_hz)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, PROGRAM, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    heard, refused, empty = run("out", "16000.wav"), run("out", "8000.wav"), run()
    assert heard.returncode == 0 and len(heard.stdout) > 5
    got = "8000.wav: expected 1 channel of 16 bits at 16000 Hz; got 1 of 16 bits at 8000 Hz\n"
    assert (refused.returncode, refused.stderr) == (1, got)
    assert (empty.returncode, empty.stderr) == (1, "usage: python example_client.py OUT FILE.wav\n")


def test_it_is_short_and_imports_numpy_and_onnxruntime_alone() -> None:
    source = PROGRAM.read_text()
    names = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert {name for name in names if name not in sys.stdlib_module_names} == {"numpy", "onnxruntime"}
    assert len(source.splitlines()) <= 85
