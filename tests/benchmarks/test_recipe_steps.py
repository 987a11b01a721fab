"""The steps of a recipe, run on the CPU and very small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import recipe_steps

ROOT = Path(__file__).parents[2]
TINY = ["model.width=16", "model.num_layers=1", "model.num_heads=2", "batch_seconds=30"]


@pytest.mark.parametrize(("recipe", "streams"), [("student", "uuulu"), ("teacher", "lllll")])
def test_a_recipe_s_own_batches_are_timed_new_and_known(recipe: str, streams: str, tmp_path: Path) -> None:
    out = tmp_path / "steps.json"
    path = ROOT / f"recipes/librispeech/100h/{recipe}.yaml"
    settings = [*TINY, "optimisation.accumulate=5", "optimisation.precision=fp32"]
    rows = recipe_steps.main(
        [str(path), "--device", "cpu", "--steps", "1", "--out", str(out), "--set", *settings]
    )
    assert [row["pass"] for row in rows] == ["new shapes", "known shapes", "one shape"]
    assert [row["batches"] for row in rows] == [5, 5, 5] and rows[2]["shapes"] == 1
    assert rows[0]["shapes"] == rows[1]["shapes"] > 1
    assert all(row["times_real_time"] > 1 and row["ms_a_batch"] > 0 for row in rows)
    assert json.loads(out.read_text())["settings"]["batch_seconds"] == 30
    given = recipe_steps.load_recipe(path, {"batch_seconds": 30}, recipe_steps.taken_keys()).arguments
    steps = recipe_steps.draw_shapes(given, 2)
    assert "".join(shape.stream[0] for shape in steps[0][:5]) == streams and len(steps[1]) == 8
    assert all(2_000 < len(one.frames) * max(one.frames) < 3_200 or len(one.frames) == 1 for one in steps[0])
    batch = recipe_steps.batch_of(recipe_steps.Shape("unlabelled", (101, 40)), 29, "cpu")
    assert batch.soft_labels is not None and batch.soft_labels.lengths_b.tolist() == [26, 10]
