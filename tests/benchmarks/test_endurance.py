"""A few turns through real models: nothing drifts, nothing grows, and drift would be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import benchmarks.endurance
from benchmarks.endurance import main
from export.publish import export_student
from kdasr.models import save_model
from kdasr.streaming import TorchChunkModel
from tests.export.small_models import UNITS, conformer


@pytest.mark.parametrize("format", ["torch", "wave-onnx"])
def test_nothing_drifts(tmp_path: Path, format: str) -> None:
    if format == "torch":
        save_model(tmp_path, conformer(chunk_frames=25), UNITS)
    else:
        export_student(conformer(chunk_frames=25), UNITS, tmp_path, format=format, int8=False)
    figures = main(["--model", str(tmp_path), "--hours", "0.1"])
    assert figures.turns == 6 and figures.hours == pytest.approx(0.1)
    assert figures.words > 60 and figures.drift < 1e-4 and figures.rise_mib < 20 and 0 < figures.rtf < 1


def test_a_model_that_drifts_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Drifting(TorchChunkModel):
        calls = 0

        def step(self, window: Any, state: Any) -> Any:
            self.calls += 1
            log_probs_btv, state = super().step(window, state)
            return log_probs_btv + 1e-4 * self.calls, state

    save_model(tmp_path, conformer(chunk_frames=25), UNITS)
    real = benchmarks.endurance.open_recogniser

    def opened(path: Path) -> Any:
        recogniser = real(path)
        object.__setattr__(recogniser, "chunk_model", Drifting(recogniser.offline_model))
        return recogniser

    monkeypatch.setattr(benchmarks.endurance, "open_recogniser", opened)
    assert main(["--model", str(tmp_path), "--hours", "0.1"]).drift > 1e-3
