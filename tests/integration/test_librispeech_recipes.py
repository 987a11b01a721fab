"""Every run below recipes/librispeech, through all of its stages, on a generated corpus at a tiny scale."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr.cli import main
from kdasr.models import count_parameters, save_model
from kdasr.recipe import RUN_FILE, load_recipe, parse_value, run_stages
from kdasr.streaming import algorithmic_latency_ms
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits
from tests.librispeech_tree import CHAPTERS, SPEAKERS, UTTERANCES, make_recordings, make_tree

ROOT = Path(__file__).parents[2]
RUNS = sorted(path.parent for path in (ROOT / "recipes/librispeech").rglob(RUN_FILE))
TINY = [
    "--model.width", "32", "--model.num_layers", "1", "--model.num_heads", "2",
    "--model.kernel_frames", "5",
    "--optimisation.steps", "4", "--optimisation.eval_every", "2", "--batch_seconds", "15",
    "--mwer.optimisation.steps", "4", "--mwer.optimisation.eval_every", "2",
    "--num_workers", "0",
    # What training of this length cannot give: an int8 twin that errs alike.
    "--max_wer_rise", "1000",
    # Nor a teacher that says anything.
    "--settings.filters", "[]",
]  # fmt: skip
GOOD_IN_SUBSET = SPEAKERS * CHAPTERS * UTTERANCES


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("librispeech")
    torch.manual_seed(0)
    teacher = ConformerTeacher(vocab_size=CharUnits().vocab_size, width=32, num_layers=1, kernel_frames=5)
    save_model(root / "teacher", teacher, CharUnits())
    return {
        "corpus": make_tree(root / "corpus"),
        "unlabelled_corpus": make_recordings(root / "more"),
        "teacher": root / "teacher",
    }


def options(run: Path, corpora: dict[str, Path]) -> list[str]:
    """What a user would add to the command: folders, and a teacher where the run trains none."""
    stages = {stage.name: load_recipe(stage.path).arguments for stage in run_stages(run, {})}
    keys = {key for arguments in stages.values() for key in arguments}
    given = ["--corpus", str(corpora["corpus"])]
    if "unlabelled_corpus" in keys:
        given += ["--unlabelled_corpus", str(corpora["unlabelled_corpus"])]
    if "teacher" not in stages:
        return [*given, "--teacher", str(corpora["teacher"])]
    # The words of this corpus fill no more pieces.
    pieces = stages["teacher"]["units"]["kind"] == "sentencepiece"
    return [*given, "--units.vocab_size", "30"] if pieces else given


def test_the_runs_were_found() -> None:
    assert {"100h", "960h", "mini"} <= {run.name for run in RUNS}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_larger_batches_for_students_are_so_in_all_of_their_stages(run: Path) -> None:
    said = re.findall(r"`--(student\.[^`]+)`", (run / "student.yaml").read_text())
    assert len(said) == (run.name != "mini")
    for line in said:
        pairs = [pair.split() for pair in line.split(" --")]
        settings = {key: parse_value(value) for key, value in pairs}
        changed = {
            one.path.name
            for one, other in zip(run_stages(run, settings), run_stages(run, {}), strict=True)
            if one.settings != other.settings
        }
        assert changed == {"student.yaml", "mwer.yaml"}
        student = load_recipe(run / "student.yaml").arguments
        seconds, batches = (
            settings[f"student.{key}"] for key in ("batch_seconds", "optimisation.accumulate")
        )
        assert seconds * batches == student["batch_seconds"] * student["optimisation"].accumulate
        mwer = load_recipe(run / "mwer.yaml", dict(run_stages(run, settings)[-3].settings)).arguments
        assert (mwer["batch_seconds"], mwer["optimisation"].accumulate) == (seconds, batches)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_students_are_of_the_promised_size_and_latency(run: Path) -> None:
    student = load_recipe(run / "student.yaml").arguments
    units = student["units"]
    if isinstance(units, str):
        units = load_recipe(run / "teacher.yaml").arguments["units"]
    vocab_size = units.get("vocab_size", CharUnits().vocab_size)
    with torch.device("meta"):
        model = student["model"](vocab_size=vocab_size)
    assert count_parameters(model) <= 10_000_000
    millions = re.search(r"Conformer of ([\d.]+) M parameters", (run / "student.yaml").read_text())
    assert millions is not None and f"{count_parameters(model) / 1e6:.1f}" == millions[1]
    # In bf16, attention over heads of other widths is slow.
    assert model.config["width"] / model.config["num_heads"] % 8 == 0
    assert 320 <= algorithmic_latency_ms(model) < 335


@pytest.mark.parametrize(
    "path",
    [path for run in RUNS for path in sorted(run.glob("*.yaml"))],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_headers_say_what_a_stage_needs(path: Path) -> None:
    header = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"kdasr \w+ recipes/librispeech/", header)
    for word in ("Hardware:", "Time", "Memory:", "Disk:"):
        assert word in header


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_run_goes_through_all_of_its_stages(
    run: Path, corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "work"
    command = ["run", str(run), "--work-dir", str(work_dir), *TINY, *options(run, corpora)]
    assert main(command) == 0
    check_shards(work_dir)
    check_labels(work_dir)
    check_models(work_dir)
    check_sequence_training(work_dir, run)
    check_rows(work_dir, run)
    assert "transcribe --stream" in capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().err.count(": already done") == len(run_stages(run, {}))


def check_sequence_training(work_dir: Path, run: Path) -> None:
    """The distilled student has gone on, on words of transcripts and, with much data, of the teacher."""
    cards = [
        json.loads((work_dir / f"student_{name}/model.json").read_text()) for name in ("distilled", "mwer")
    ]
    assert cards[1]["start"] == cards[0]["weights_sha256"] != cards[1]["weights_sha256"]
    assert cards[1]["config"] == cards[0]["config"]
    log = (work_dir / "checkpoints/student_mwer/train.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, log) if "dev_wer" not in row]
    assert len(steps) == 4
    for stream in ("labelled", *(["unlabelled"] if run.name.startswith("960h") else [])):
        rows = [row for row in steps if f"{stream}/words" in row]
        assert rows and all(row[f"{stream}/words"] > 0 for row in rows)
    assert run.name.startswith("960h") or not any("unlabelled/words" in row for row in steps)


def check_shards(work_dir: Path) -> None:
    """Nothing that is not usable, everything else, and no transcripts of unlabelled audio."""
    splits = {path.parent: json.loads(path.read_text()) for path in work_dir.rglob("prepared.json")}
    for folder, record in splits.items():
        dropped = json.loads((folder / "dropped.json").read_text())["dropped"]
        reasons = sorted(item["reason"].partition(";")[0] for item in dropped)
        tars = [path.read_bytes() for path in folder.glob("*.tar")]
        if record["source"]["corpus"] == "folder":
            assert record["count"] >= 6 and len(reasons) == 1, "the empty file"
            assert not any(b'"text"' in tar for tar in tars)
        elif record["source"]["settings"]["unlabelled"]:
            copies = len(record["source"]["settings"]["speeds"])
            assert record["count"] == copies * (GOOD_IN_SUBSET + 2) and len(reasons) == 1, "the empty file"
            assert not any(b'"text"' in tar for tar in tars)
        elif folder.name.endswith(("-a", "-b")):
            assert record["count"] == GOOD_IN_SUBSET // 2
        else:
            assert record["count"] == GOOD_IN_SUBSET
            assert len(reasons) == 5 and any("second transcript" in reason for reason in reasons)
            assert any(b"it's" in tar for tar in tars)


def check_labels(work_dir: Path) -> None:
    unlabelled = sorted(
        path.stem
        for record in work_dir.rglob("prepared.json")
        if "unlabelled" in str(record.parent.relative_to(work_dir))
        or json.loads(record.read_text())["source"]["settings"].get("unlabelled")
        for path in record.parent.glob("*.tar")
    )
    assert unlabelled and unlabelled == sorted(path.stem for path in (work_dir / "labels").rglob("*.kdsl"))


def check_models(work_dir: Path) -> None:
    """Two students of one kind, of which the second has heard the teacher too."""
    cards: dict[str, Any] = {
        name: json.loads((work_dir / name / "model.json").read_text())
        for name in ("student_labelled_only", "student_distilled")
    }
    assert len({json.dumps(card["config"]) for card in cards.values()}) == 1
    assert len({card["weights_sha256"] for card in cards.values()}) == 2
    assert cards["student_distilled"]["config"]["chunk_frames"] == 8
    for name, streams in (("student_labelled_only", 2), ("student_distilled", 3)):
        left_out = json.loads((work_dir / "checkpoints" / name / "left_out.json").read_text())
        assert len(left_out) == streams and all(stream["count"] == 0 for stream in left_out.values())


def check_rows(work_dir: Path, run: Path) -> None:
    settings = load_recipe(run / "evaluate.yaml").arguments
    tests = list(settings["test"]) if isinstance(settings["test"], dict) else [None]
    rows = json.loads((work_dir / "results.json").read_text())
    assert [(row.get("test"), row["model"]) for row in rows] == [
        (test, model) for test in tests for model in settings["models"]
    ]
    by_name = {(row.get("test"), row["model"]): row for row in rows}
    for test in tests:
        assert by_name[test, "student_mwer_streaming"]["texts_unlike_offline"] == 0
        assert by_name[test, "onnx_float32"]["wer"] == by_name[test, "student_mwer"]["wer"]
        assert 320 <= by_name[test, "student_mwer"]["latency_ms"] < 335
        assert (work_dir / "hypotheses" / (test or "") / "student_mwer-1.jsonl").exists()
