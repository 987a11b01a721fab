"""The whole way at a tiny scale: recipes/mini as users run it, twice, and with a kill in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdasr.cli import main

ROOT = Path(__file__).parents[2]
TINY = [
    "--labelled_minutes", "1", "--unlabelled_minutes", "1", "--dev_minutes", "0.5", "--test_minutes", "0.5",
    "--batch_seconds", "10", "--optimisation.steps", "16", "--optimisation.eval_every", "8",
    "--mwer.optimisation.steps", "16",
    "--optimisation.checkpoint_every", "4", "--model.width", "32", "--model.num_layers", "1",
    # An untrained student's int8 twin may err anywhere; the gate has its own tests.
    "--max_wer_rise", "200",
]  # fmt: skip
MODELS = [
    "teacher",
    "student_labelled_only",
    "student_distilled",
    "student_mwer",
    "student_mwer_streaming",
    "student_mwer_after_noise",
    "onnx_float32",
    "onnx_int8",
]
FIELDS = {"model", "wer", "cer", "params", "bytes", "rtf", "latency_ms", "seed", "train_steps"}


def run(work_dir: Path, *more: str) -> int:
    return main(["run", str(ROOT / "recipes/mini"), "--work-dir", str(work_dir), "--seed", "5", *TINY, *more])


def contents(work_dir: Path) -> dict[str, bytes]:
    kept = [
        work_dir / folder for folder in ("teacher", "student_distilled", "student_mwer", "labels", "shards")
    ]
    files = [path for folder in kept for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(work_dir)): path.read_bytes() for path in files if path.suffix != ".jsonl"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("mini") / "work"
    assert run(work_dir) == 0
    return work_dir


@pytest.mark.slow
def test_every_model_has_its_row(finished: Path) -> None:
    rows = json.loads((finished / "results.json").read_text())
    assert [row["model"] for row in rows] == MODELS
    for row in rows:
        assert set(row) >= FIELDS and row["seed"] == 5 and row["train_steps"] == 16
        assert row["rtf"] > 0 and row["bytes"] > 1_000 and row["params"] > 1_000
    by_model = {row["model"]: row for row in rows}
    assert by_model["student_mwer_streaming"]["texts_unlike_offline"] == 0
    assert by_model["student_mwer_after_noise"]["after_noise_s"] == 2.0
    assert by_model["onnx_float32"]["wer"] == by_model["student_mwer"]["wer"]
    assert by_model["onnx_int8"]["bytes"] < by_model["onnx_float32"]["bytes"]
    assert by_model["teacher"]["latency_ms"] is None
    assert by_model["student_mwer"]["latency_ms"] == by_model["student_distilled"]["latency_ms"] >= 320


@pytest.mark.slow
def test_sequence_training_goes_on_from_the_distilled_student_as_it_is(finished: Path) -> None:
    distilled, mwer = (
        json.loads((finished / f"student_{name}/model.json").read_text()) for name in ("distilled", "mwer")
    )
    assert mwer["start"] == distilled["weights_sha256"] != mwer["weights_sha256"]
    assert mwer["config"] == distilled["config"] and mwer["config"]["width"] == 32
    log = [json.loads(line) for line in (finished / "checkpoints/student_mwer/train.jsonl").open()]
    for stream in ("labelled", "unlabelled"):
        assert any(row.get(f"{stream}/words", 0.0) > 0.0 for row in log)


@pytest.mark.slow
def test_the_unlabelled_shards_have_labels_and_no_text(finished: Path) -> None:
    audio = sorted(path.stem for path in (finished / "shards/unlabelled").glob("*.tar"))
    labels = sorted(path.stem for path in (finished / "labels").glob("*.kdsl"))
    assert audio == labels and audio
    assert all(b'"text"' not in path.read_bytes() for path in (finished / "shards/unlabelled").glob("*.tar"))


@pytest.mark.slow
def test_the_report_and_the_live_line_are_there(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (finished / "report.html").exists() and (finished / "spike_offsets.json").exists()
    assert run(finished) == 0
    printed = capsys.readouterr()
    assert "transcribe --stream" in printed.out and "example.wav\t" in printed.out
    assert "report.html" in printed.out
    assert printed.err.count(": already done") == 8


@pytest.mark.slow
def test_a_second_run_redoes_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    assert run(finished) == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_changed_setting_redoes_its_stage_and_what_follows(finished: Path) -> None:
    before = (finished / "teacher/model.safetensors").stat().st_mtime_ns
    student = (finished / "student_distilled/model.safetensors").read_bytes()
    assert run(finished, "--student.unlabelled_losses.best_path.weight", "0.5") == 0
    assert (finished / "teacher/model.safetensors").stat().st_mtime_ns == before
    assert (finished / "student_distilled/model.safetensors").read_bytes() != student
    assert run(finished) == 0


@pytest.mark.slow
def test_a_run_goes_on_without_int8_and_says_why(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> dict[str, dict[str, object]]:
        return {row["model"]: row for row in json.loads((finished / "results.json").read_text())}

    folder = finished / "export" / "onnx"
    assert (folder / "model.int8.onnx").exists() and "wer" in rows()["onnx_int8"]
    for said_in_stage in (1, 0):
        capsys.readouterr()
        assert run(finished, "--max_wer_rise=-200") == 0
        assert (folder / "model.onnx").exists() and not (folder / "model.int8.onnx").exists()
        assert "wer" in rows()["onnx_float32"] and "wer" not in rows()["onnx_int8"]
        printed = capsys.readouterr()
        assert "exported ONNX int8 (seed 5) is left out: int8 costs too much accuracy" in printed.out
        assert f"transcribe --stream --model {folder / 'model.onnx'}" in printed.out
        assert printed.err.count("model.int8.onnx was not written") == said_in_stage
        assert printed.err.count(": already done") == (6 if said_in_stage else 8)
    assert "exported ONNX int8 (seed 5) is left out" in (finished / "report.html").read_text()
    assert run(finished) == 0
    assert (folder / "model.int8.onnx").exists() and "wer" in rows()["onnx_int8"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "work"
    command = [
        sys.executable,
        "-m",
        "kdasr.cli",
        "run",
        "recipes/mini",
        "--work-dir",
        str(work_dir),
        "--seed",
        "5",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for marker in (
        "shards/unlabelled",
        "checkpoints/teacher/train.jsonl",
        "checkpoints/student_distilled/train.jsonl",
        "checkpoints/student_mwer/train.jsonl",
    ):
        process = subprocess.Popen(
            [*command, *TINY], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not (work_dir / marker).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, *TINY], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert contents(work_dir) == contents(finished)
