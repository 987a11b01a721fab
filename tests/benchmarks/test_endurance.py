"""Turns through real models: nothing drifts, nothing grows, and either would be seen."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.endurance
from benchmarks.endurance import Endurance, main
from export.publish import export_student
from kdasr.models import save_model
from kdasr.streaming import TorchChunkModel
from tests.export.small_models import UNITS, conformer


def after_a_peak(model: Path) -> Endurance:
    """A few turns, when much more memory was held before."""
    np.ones(25_000_000)
    return main(["--model", str(model), "--hours", "0.1"])


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", "wave-onnx"])
def test_nothing_drifts(tmp_path: Path, format: str) -> None:
    if format == "torch":
        save_model(tmp_path, conformer(chunk_frames=25), UNITS)
    else:
        export_student(conformer(chunk_frames=25), UNITS, tmp_path, format=format, int8=False)
    figures = after_a_peak(tmp_path)
    assert figures.turns == 6 and figures.hours == pytest.approx(0.1)
    assert figures.words > 60 and figures.drift < 1e-4 and figures.rise_mib < 19.5 and 0 < figures.rtf < 1


@pytest.mark.slow
def test_nothing_drifts_or_grows_in_half_an_hour(tmp_path: Path) -> None:
    save_model(tmp_path, conformer(chunk_frames=50), UNITS)
    # In a process of its own: here a leak might grow into what earlier tests freed.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        figures = process.submit(main, ["--model", str(tmp_path), "--hours", "0.5"]).result()
    assert figures.turns == 30 and figures.words > 30 * 15
    assert figures.drift < 1e-4 and figures.rise_mib < 2


class Drifting(TorchChunkModel):
    calls = 0

    def step(self, window: Any, state: Any) -> Any:
        self.calls += 1
        log_probs_btv, state = super().step(window, state)
        return log_probs_btv + 1e-4 * self.calls, state


class Leaking(TorchChunkModel):
    kept: tuple[Any, ...] = ()

    def step(self, window: Any, state: Any) -> Any:
        # 190 MiB between the turns that are compared: what earlier tests freed takes some of it.
        self.kept += (np.ones(50_000), np.ones(50_000))
        return super().step(window, state)


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "figure", "least"), [(Drifting, "drift", 1e-3), (Leaking, "rise_mib", 40)])
def test_a_model_that_drifts_or_grows_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: type[TorchChunkModel], figure: str, least: float
) -> None:
    save_model(tmp_path, conformer(chunk_frames=25), UNITS)
    real = benchmarks.endurance.open_recogniser

    def opened(path: Path) -> Any:
        recogniser = real(path)
        object.__setattr__(recogniser, "chunk_model", wrong(recogniser.offline_model))
        return recogniser

    monkeypatch.setattr(benchmarks.endurance, "open_recogniser", opened)
    assert getattr(after_a_peak(tmp_path), figure) > least
