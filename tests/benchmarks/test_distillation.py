"""The comparison of the ways to distil, on a tiny work folder: every arm runs, and none twice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import distillation
from benchmarks.distillation import ARMS_FILE, main, table
from data_prep import prepare
from kdasr import stages
from kdasr.errors import ConfigError
from kdasr.models import save_model
from kdasr.soft_labels import open_label_shard
from kdasr.spikes import SpikeHistogram
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits
from tests.data_prep.fakes import read_folder

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a random teacher and its labels where a run of recipes/mini would have put them."""
    root = tmp_path_factory.mktemp("work")
    minutes = {"labelled": 0.3, "unlabelled": 0.3, "dev": 0.1, "test": 0.1}
    prepare("synth", out=root / "shards", **{f"{split}_minutes": value for split, value in minutes.items()})
    torch.manual_seed(1)
    teacher = ConformerTeacher(
        vocab_size=CharUnits().vocab_size, width=16, num_layers=1, num_heads=2, kernel_frames=3
    )
    save_model(root / "teacher", teacher, CharUnits())
    audio, labels = str(root / "shards/unlabelled"), str(root / "labels")
    stages.label(teacher=str(root / "teacher"), audio=audio, out=labels, device="cpu")
    return root


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """recipes/mini with a student that learns nothing, whose offsets to the teacher are given."""
    text = (RECIPES / "mini/student.yaml").read_text()
    for name, value in {
        "width": 16,
        "num_layers": 1,
        "num_heads": 2,
        "expansion": 1,
        "kernel_frames": 3,
    }.items():
        text = re.sub(rf"^    {name}: .*$", f"    {name}: {value}", text, flags=re.MULTILINE)
    shutil.copy(RECIPES / "mini/label.yaml", tmp_path)
    (tmp_path / "student.yaml").write_text(re.sub(r"batch_seconds: \d+", "batch_seconds: 8", text))
    histogram = SpikeHistogram(40.0, [40.0], [200], 200, 200)
    monkeypatch.setattr("kdasr.stages.delays.measure_offsets", lambda *_, **__: histogram)
    return tmp_path


def run(tiny: Path, work_dir: Path, *more: str) -> list[dict[str, Any]]:
    always = ["--recipe", str(tiny), "--work-dir", str(work_dir), "--steps", "2", "--delay-utterances", "2"]
    return main([*always, *more])


@pytest.mark.slow
def test_an_arm_is_run_once_and_again_when_its_settings_change(
    work_dir: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = run(tiny, work_dir, "--seeds", "4", "--arms", "delay_measured")
    assert row["arm"] == "delay_measured" and row["seed"] == 4 and row["steps"] == 2
    assert row["delay_frames"] == 2 and row["wer"] >= 0 and row["delays"]["utterances"] == 2
    folder = work_dir / "distillation"
    assert {path.name for path in folder.glob("*.json")} == {"labels_only-4.json", "delay_measured-4.json"}
    assert "unlabelled/soft_labels" in (folder / "delay_measured-4.jsonl").read_text()
    assert not list(folder.glob("*.checkpoints"))
    assert len(json.loads((work_dir / "distillation.json").read_text())) == 2
    as_heard = [open_label_shard(path).header for path in (folder / "labels_as_heard").glob("*.kdsl")]
    assert as_heard and not any("words" in header.settings for header in as_heard)
    assert "| delay_measured |" in capsys.readouterr().out

    trained: list[str] = []

    def stand_in(_: Path, settings: dict[str, Any], *, expected_stage: str) -> None:
        if expected_stage == "train":
            trained.append(settings["name"])

    monkeypatch.setattr(distillation, "run_recipe", stand_in)
    assert run(tiny, work_dir, "--seeds", "4", "--arms", "delay_measured") == [row]
    assert trained == []
    with pytest.raises(TypeError):  # what stands in for training gives no facts
        run(tiny, work_dir, "--seeds", "4", "--arms", "labels_only", "--steps", "3")
    assert trained == ["distillation/labels_only-4"]


@pytest.mark.slow
def test_every_arm_runs(work_dir: Path, tiny: Path) -> None:
    rows = run(tiny, work_dir, "--seeds", "1", "--steps", "4")
    arms = re.findall(r"^(\w+):", ARMS_FILE.read_text(), flags=re.MULTILINE)
    assert [row["arm"] for row in rows] == arms and len(arms) > 20
    for row in rows:
        log = (work_dir / f"distillation/{row['arm']}-1.jsonl").read_text()
        assert ("unlabelled/" in log) == (row["arm"] not in ("labels_only", "all_transcribed"))
        assert ('"labelled/ctc"' in log) == (row["arm"] != "no_transcripts")
    transcribed = read_folder(work_dir / "distillation/transcribed/unlabelled")
    untold = read_folder(work_dir / "shards/unlabelled")
    assert all(utterance.text for utterance in transcribed) and not any(one.text for one in untold)
    for one, other in zip(transcribed, untold, strict=True):
        assert one.key == other.key and np.array_equal(one.samples, other.samples)
    labels_only, all_transcribed = (
        (work_dir / f"distillation/{arm}-1.jsonl").read_text() for arm in ("labels_only", "all_transcribed")
    )
    assert labels_only != all_transcribed


def test_the_table_has_means_gains_and_delays() -> None:
    def row(arm: str, seed: int, wer: float, p50: float | None, offsets: dict[float, int]) -> dict[str, Any]:
        spikes = {"median_ms": 40.0, "offsets_ms": list(offsets), "counts": list(offsets.values())}
        delays = {"emission_p50_ms": p50, "emission_p90_ms": p50}
        return {"arm": arm, "seed": seed, "wer": wer, "delays": delays, "spikes": spikes}

    lines = table(
        [
            row("labels_only", 1, 40.0, 80.0, {0.0: 1, 80.0: 3}),
            row("labels_only", 2, 20.0, 120.0, {0.0: 1, 40.0: 3}),
            row("pseudo_labels", 1, 25.0, None, {}),
            row("combined", 1, 20.0, -40.0, {0.0: 1}),
            row("all_transcribed", 1, 15.0, 0.0, {0.0: 1}),
        ]
    ).splitlines()
    assert lines[2] == "| labels_only | 40.0 20.0 | 30.0 | – | +20 % | – | +100 / +100 | +40, 62 % |"
    assert lines[3] == "| pseudo_labels | 25.0 | 25.0 | -17 % | – | 33 % | – / – | +40, – |"
    assert lines[4] == "| combined | 20.0 | 20.0 | -33 % | -20 % | 67 % | -40 / -40 | +40, 100 % |"
    assert lines[5] == "| all_transcribed | 15.0 | 15.0 | -50 % | -40 % | – | +0 / +0 | +40, 100 % |"
    without = table([row("labels_only", 1, 40.0, None, {}), row("combined", 1, 20.0, None, {})])
    assert without.splitlines()[3] == "| combined | 20.0 | 20.0 | -50 % | – | – | – / – | +40, – |"
    for truth in (39.0, 41.0):  # transcripts that bring next to nothing, or harm
        rows = [("labels_only", 40.0), ("combined", 20.0), ("all_transcribed", truth)]
        line = table([row(arm, 1, wer, None, {}) for arm, wer in rows]).splitlines()[3]
        assert line == "| combined | 20.0 | 20.0 | -50 % | – | – | – / – | +40, – |"


def test_an_unknown_arm_is_refused(work_dir: Path, tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown arm.*pseudo_labels.*got nonsense"):
        run(tiny, work_dir, "--arms", "labels_only,nonsense")


def test_transcripts_that_cannot_be_had_are_named(work_dir: Path, tmp_path: Path) -> None:
    record = json.loads((work_dir / "shards/unlabelled/prepared.json").read_text())
    folder = tmp_path / "shards/unlabelled"
    with pytest.raises(ConfigError, match=r"no transcripts.*prepared\.json"):
        distillation._transcribed(tmp_path, None)
    folder.mkdir(parents=True)
    for name, reason in (("kaldi", "unlabelled audio from the corpus kaldi;"), ("fsdd", "add --corpus DIR")):
        record["source"]["corpus"] = name
        (folder / "prepared.json").write_text(json.dumps(record))
        with pytest.raises(ConfigError, match=reason):
            distillation._transcribed(tmp_path, None)
    record["source"] |= {"corpus": "synth", "generation": 0}
    (folder / "prepared.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="differs from that of the shards"):
        distillation._transcribed(tmp_path, None)
