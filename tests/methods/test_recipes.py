"""Every recipe of recipes/methods trains: a few steps of a tiny student on a tiny run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import methods
from kdasr import stages
from kdasr.errors import ConfigError
from kdasr.models import load_model, save_model
from kdasr.pipeline import load_arguments, run_recipe
from kdasr.recipe import load_recipe
from kdasr.shards import list_shards, read_shard
from kdasr.spikes import SpikeHistogram
from kdasr.stages.checks import begins_in_silence
from kdasr.students.conformer import ChunkConformer
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits
from tests.speech import shards

RECIPES = sorted(path for path in Path("recipes/methods").glob("*.yaml") if path.stem != "base")
TINY = {"width": 16, "num_layers": 4, "num_heads": 2, "expansion": 1, "kernel_frames": 3}
# What makes a recipe of some minutes one of a second.
SMALLER: dict[str, Any] = {
    **{f"model.{name}": value for name, value in TINY.items()},
    "batch_seconds": 8.0,
    "optimisation.steps": 4,
    "optimisation.eval_every": 4,
}
SMALLER_STILL = {
    "data_free": {"unlabelled.utterances": 4, "unlabelled.frames": 8, "unlabelled.steps": 2},
    "few_sample": {"max_labelled_utterances": 3, "max_unlabelled_utterances": 3},
    "prune_brain_damage": {"prune.batches": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run of recipes/mini leaves, in small, with a teacher of another width."""
    folder, units = tmp_path_factory.mktemp("methods"), CharUnits()
    shards(folder / "shards" / "labelled", 12)
    shards(folder / "shards" / "dev", 3, first_seed=100)
    shards(folder / "shards" / "unlabelled", 12, first_seed=200, with_text=False)
    torch.manual_seed(1)
    teacher = {**TINY, "width": 24}
    save_model(folder / "teacher", ConformerTeacher(vocab_size=units.vocab_size, **teacher), units)  # type: ignore[arg-type]
    sizes: dict[str, Any] = {**TINY, "dropout": 0.0, "chunk_frames": 8, "left_context_frames": 32}
    for name in ("student_labelled_only", "student_distilled"):
        student = ChunkConformer(vocab_size=units.vocab_size, lookahead_frames=0, **sizes)
        save_model(folder / name, student, units)
    stages.label(
        teacher=str(folder / "teacher"),
        audio=str(folder / "shards" / "unlabelled"),
        out=str(folder / "labels"),
    )
    return folder


def settings(run: Path, recipe: Path) -> dict[str, Any]:
    given = {"work_dir": str(run), **SMALLER, **SMALLER_STILL.get(recipe.stem, {})}
    if load_recipe(recipe).arguments["model"] is None:  # that of `start`, which is small
        given = {key: value for key, value in given.items() if not key.startswith("model.")}
    return given


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_read_and_is_named_after_its_file(recipe: Path, run: Path) -> None:
    arguments = load_arguments(recipe, settings(run, recipe), expected_stage="train")
    assert arguments["name"] == recipe.stem
    assert arguments["out"] == str(run / "methods" / recipe.stem)
    assert recipe.read_text().startswith("# ")
    assert f"`{recipe.stem}`" in Path("docs/distillation.md").read_text()
    assert arguments["optimisation"].steps == 4


@pytest.fixture
def late_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student without training says nothing of which a delay could be measured."""
    histogram = SpikeHistogram(40.0, [40.0], [200], 200, 200)
    monkeypatch.setattr("kdasr.stages.delays.measure_offsets", lambda *_, **__: histogram)


@pytest.mark.slow
@pytest.mark.usefixtures("late_spikes")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(recipe: Path, run: Path) -> None:
    """Every loss has a value, and it has moved the student."""
    facts = run_recipe(recipe, settings(run, recipe), expected_stage="train")
    assert facts["train_steps"] == 4
    arguments = load_arguments(recipe, settings(run, recipe), expected_stage="train")
    log = [
        json.loads(line) for line in (Path(arguments["checkpoints"]) / "train.jsonl").read_text().splitlines()
    ]
    terms = {name: value for row in log for name, value in row.items() if "/" in name}
    used = {stream for stream, _ in arguments["schedule"]}
    begun = {name.split("/")[0]: terms.pop(name) for name in list(terms) if name.endswith("/silent_start")}
    assert all(0 < value < math.inf for value in begun.values())
    # Half of four steps: those of the streams that the schedule begins with.
    order = [stream for stream, batches in arguments["schedule"] for _ in range(batches)]
    first = {order[step % len(order)] for step in range(2)}
    new = {stream for stream in first if begins_in_silence(arguments[f"{stream}_losses"])}
    assert set(begun) == (set() if arguments.get("start") else new)
    expected = {f"{stream}/{name}" for stream in used for name in arguments[f"{stream}_losses"]}
    assert set(terms) == expected and all(math.isfinite(value) for value in terms.values())
    # Every one of them teaches something.
    assert all(any(row.get(name, 0.0) != 0.0 for row in log) for name in expected)
    student = load_model(run / "methods" / recipe.stem).model
    assert isinstance(student, nn.Module) and all(bool(w.isfinite().all()) for w in student.parameters())


@pytest.mark.slow
def test_the_driver_writes_a_row_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(run / "shards" / "test", 3, first_seed=300)
    changes = [f"{name}={value}" for name, value in SMALLER.items() if name != "optimisation.steps"]
    arguments = [
        "--work-dir",
        str(run),
        "--only",
        "labels_only,virtual_teacher",
        "--steps",
        "2",
        "--set",
        *changes,
    ]
    rows = methods.main(arguments)
    assert [(row["method"], row["steps"]) for row in rows] == [("labels_only", 2), ("virtual_teacher", 2)]
    assert json.loads((run / "methods.json").read_text()) == rows
    spoilt = [one for path in list_shards(run / "methods" / "test_spoilt") for one in read_shard(path)]
    clean = [one for path in list_shards(run / "shards" / "test") for one in read_shard(path)]
    assert [(one.key, one.text) for one in spoilt] == [(one.key, one.text) for one in clean]
    assert any((one.samples != other.samples).any() for one, other in zip(spoilt, clean, strict=True))
    assert "| virtual_teacher | 2 | " in capsys.readouterr().out
    (run / "methods" / "labels_only-1" / "model.safetensors").unlink()
    assert methods.main(arguments) == rows


def test_the_table_compares_with_both_references() -> None:
    rows = [
        {"method": name, "steps": 600, "wer": wer, "spoilt_wer": 2 * wer, "train_seconds": 10}
        for name, wer in (("labels_only", 30.0), ("labels_only", 10.0), ("soft_labels", 10.0), ("flow", 15.0))
    ]
    lines = methods.table(rows).splitlines()
    assert lines[2] == "| labels_only | 600 | 30.0 10.0 | 20.0 | – | +100 % | 40.0 | 10 |"
    assert lines[4] == "| flow | 600 | 15.0 | 15.0 | -25 % | +50 % | 30.0 | 10 |"


def test_the_references_come_first_and_unknown_names_are_refused() -> None:
    assert methods.chosen(None)[:2] == ["labels_only", "soft_labels"] and len(methods.chosen(None)) == len(
        RECIPES
    )
    assert methods.chosen(["flow", "soft_labels"]) == ["soft_labels", "flow"]
    with pytest.raises(ConfigError, match="unknown method"):
        methods.chosen(["magic"])
