"""The measurements of an accelerator and of the input pipeline, run on the CPU and very small."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, loader
from benchmarks.step import TrainingStep, seconds_of, synthetic_batch
from kdasr.interfaces import Batch
from kdasr.recipe import parse_value, run_stages
from kdasr.teachers.conformer import ConformerTeacher
from tests.speech import shards

ROOT = Path(__file__).parents[2]


def test_flops_of_a_step_are_those_of_its_products() -> None:
    torch.manual_seed(1)
    model = ConformerTeacher(vocab_size=29, width=32, num_layers=1, num_heads=2, kernel_frames=3)
    step = TrainingStep(model, "cpu")
    batch = synthetic_batch(2, 2.0, 29, "cpu")
    forward = step.flops(batch, step.forward)
    # 100 frames: linear layers of 2 x 8 D^2 + 3 D^2 + D^2 + 2 D^2 + D^2 weights and the head, two
    # operations for each; the subsampling has 80 x 5 D at half of the rate and 5 D^2.
    width, frames = 32, 2 * 50
    products = frames * (23 * width**2 + 29 * width + 5 * width**2) + 2 * frames * 400 * width
    assert 2 * products <= forward <= 2.4 * products
    counted = gpu._flops(lambda: model, gpu.scales()["tiny"]._replace(seconds=2.0), "cpu")
    assert counted == {"step": pytest.approx(3 * forward / 2), "forward": pytest.approx(forward / 2)}
    assert seconds_of(batch) == 4.0
    step.close()


@pytest.mark.parametrize(
    ("card", "bf16_tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_card_is_measured_against_its_own_data_sheet(card: str, bf16_tflops: float | None) -> None:
    sheet = gpu.data_sheet(card)
    assert (sheet and sheet[0]) == bf16_tflops


@pytest.mark.slow
def test_the_table_of_an_accelerator_has_a_row_for_each_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--scale", "tiny", "--settings", "fp32", "bf16", "--utterances", "1"]
    rows = gpu.main([*arguments, "--kernels", "2", "--out", str(tmp_path / "steps.json")])
    assert capsys.readouterr().out.count("ms  all kernels") == 4  # of steps alone
    assert [(row["model"], row["setting"], row["what"]) for row in rows] == [
        (model, setting, what)
        for model in ("teacher", "student")
        for setting in ("fp32", "bf16")
        for what in ("step", "forward")
    ]
    assert all(row["times_real_time"] == pytest.approx(2_000 / row["ms"]) for row in rows)
    assert all(0 < row["mfu_of_matmul_percent"] < 200 for row in rows)
    assert len(json.loads((tmp_path / "steps.json").read_text())["rows"]) == 8


def test_the_longest_kernels_are_named_with_their_times(capsys: pytest.CaptureFixture[str]) -> None:
    left, right = torch.randn(2, 200, 200)
    gpu.print_kernels(lambda: (left @ right).exp(), "cpu", 99)
    total, *longest = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert total[1:] == ["ms", "all", "kernels"]
    # A call of `@` is one product.
    assert [line[2] for line in longest if line[-1] == "aten::mm"] == ["1.0"]
    times_ms = [float(line[0]) for line in longest]
    assert times_ms == sorted(times_ms, reverse=True)
    assert sum(times_ms) == pytest.approx(float(total[0]), abs=0.01 * len(times_ms))


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_two(self: TrainingStep, batch: Batch) -> torch.Tensor:
        if len(batch.keys) > 2:
            raise torch.OutOfMemoryError("full")
        return torch.zeros(())

    monkeypatch.setattr(TrainingStep, "__call__", only_two)
    monkeypatch.setattr(gpu, "_flops", lambda make, scale, device: {"step": 1e6, "forward": 1e6})
    scale = gpu.scales()["tiny"]._replace(utterances=8, times=1, matrix=8)
    rows = list(gpu.measure(scale, "cpu", ["fp32"]))
    assert [row["utterances"] for row in rows] == [2, 2, 2, 2]
    assert all(row["tflops"] == pytest.approx(2e-6 / (row["ms"] / 1e3)) for row in rows)


@pytest.mark.slow
def test_loader_and_step_are_compared_for_each_number_of_workers(tmp_path: Path) -> None:
    folder = shards(tmp_path / "labelled", 12)
    options = ["--shards", str(folder), "--batches", "2", "--batch-seconds", "4", "--workers", "0", "1"]
    figures = loader.main([*options, "--out", str(tmp_path / "loader.json")])
    assert figures["shard_to_log_mel_times_real_time"] > 100
    for row, workers in zip(figures["workers"], (0, 1), strict=True):
        assert row["workers"] == workers
        assert row["loader_to_step"] == pytest.approx(row["loader_s"] / row["step_s"])
    assert json.loads((tmp_path / "loader.json").read_text())["workers"] == figures["workers"]


@pytest.mark.parametrize("name", ["mini", "fsdd"])
def test_the_script_scales_teacher_and_students(name: str) -> None:
    full, tiny = re.findall(r"sizes=\((.*?)\)", (ROOT / "benchmarks/gpu.sh").read_text(), re.DOTALL)
    words = full.split()
    sizes = {key[2:]: parse_value(value) for key, value in zip(words[::2], words[1::2], strict=True)}
    settings = {"work_dir": "w", **sizes}
    stages = run_stages(ROOT / "recipes" / name, settings)
    trained = [stage for stage in stages if "optimisation.precision" in stage.settings]
    students = ["student_labelled_only", "student_distilled"]
    assert [stage.name for stage in trained] == ["teacher", *students, "student_mwer"]
    for stage in trained:
        assert stage.settings["batch_seconds"] == 320 and stage.settings["optimisation.precision"] == "bf16"
    for stage in trained[:3]:  # the last one's is what student_distilled's is
        assert stage.settings["model.width"] / stage.settings["model.num_heads"] == 64
    words = tiny.split()
    settings = {key[2:]: parse_value(value) for key, value in zip(words[::2], words[1::2], strict=True)}
    steps = [
        stage.settings.get("optimisation.steps") for stage in run_stages(ROOT / "recipes/mini", settings)
    ]
    assert steps == [None, 4, None, 4, 4, 4, None, None]


def test_the_script_names_what_an_interpreter_lacks(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\nexec python3 -S -I "$@"\n')
    bare.chmod(0o755)
    command = ["bash", "benchmarks/gpu.sh", "tiny"]
    run = subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "PYTHON": str(bare)}, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert (
        "lacks these packages: " in run.stderr and "speechbrain" in run.stderr and "pip install" in run.stderr
    )
