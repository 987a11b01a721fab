"""Recipes on an accelerator, in small: each way to distil, and all stages of recipes/mini. Needs what
`make test` needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdasr.pipeline import run_recipe
from tests.integration.test_mini_recipe import MODELS
from tests.integration.test_mini_recipe import run as run_mini
from tests.methods.test_recipes import RECIPES, late_spikes, run, settings

__all__ = ["late_spikes", "run"]  # fixtures

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device(accelerator: torch.device) -> str:
    return accelerator.type


@pytest.mark.usefixtures("late_spikes")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_way_to_distil_trains(
    recipe: Path,
    device: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = run_recipe(recipe, {**settings(run, recipe), "device": device}, expected_stage="train")
    assert facts["train_steps"] == 4
    assert f"{recipe.stem}: on {device}" in capsys.readouterr().err


def test_the_mini_recipe_goes_through_all_of_its_stages(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Else the students may train side by side, in processes that know no pretended device.
    monkeypatch.setattr("kdasr.pipeline.usable_cores", lambda: 1)
    assert run_mini(tmp_path, "--device", device) == 0
    said = capsys.readouterr().err
    for name in ("teacher", "student_labelled_only", "student_distilled", "student_mwer"):
        assert f"{name}: on {device}" in said
    rows = {row["model"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(rows) == MODELS
    assert rows["student_mwer_streaming"]["texts_unlike_offline"] == 0
    assert rows["onnx_float32"]["wer"] == pytest.approx(rows["student_mwer"]["wer"], abs=1.0)
