"""The table of students: its figures against hand counts, and training into a tiny work folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.students import macs_per_second, main, measured, table
from kdasr.errors import ConfigError
from kdasr.models import save_model
from kdasr.students.conformer import ChunkConformer
from kdasr.students.recurrent import RecurrentStudent
from kdasr.text import CharUnits
from tests.speech import shards

MODEL = """# small
model: !name:kdasr.students.conformer.ChunkConformer
    width: 16
    num_layers: 1
    num_heads: 2
    expansion: 1
    kernel_frames: 3
    lookahead_frames: 0
"""


def front_macs(width: int, chunk: int) -> int:
    """One chunk through the subsampling and a lookahead of no frames: the first convolution gives
    three frames of 20 ms more than two for each output frame, from the context."""
    return (2 * chunk + 3) * 5 * 80 * width + chunk * 5 * width**2 + chunk * width**2


def test_macs_of_a_recurrent_student_are_those_of_its_matrices() -> None:
    width, hidden, layers, chunk = 24, 40, 2, 5
    model = RecurrentStudent(
        vocab_size=29,
        width=width,
        hidden_width=hidden,
        num_layers=layers,
        chunk_frames=chunk,
        lookahead_frames=0,
    )
    by_frame = layers * (4 * hidden * (width + hidden) + hidden * width) + width * 29
    expected = front_macs(width, chunk) + chunk * by_frame
    assert macs_per_second(model) == pytest.approx(expected / (chunk * 0.04))


def test_macs_of_a_conformer_hold_its_attention_to_the_left_context() -> None:
    width, chunk, left = 32, 4, 12
    model = ChunkConformer(
        vocab_size=29, width=width, num_layers=1, num_heads=2, expansion=2, kernel_frames=5,
        chunk_frames=chunk, left_context_frames=left, lookahead_frames=0,
    )  # fmt: skip
    by_frame = (8 + 4 + 3) * width**2 + 5 * width + 2 * (left + chunk) * width + width * 29
    expected = front_macs(width, chunk) + chunk * by_frame
    assert macs_per_second(model) == pytest.approx(expected / (chunk * 0.04))


def test_what_a_student_costs() -> None:
    torch.manual_seed(1)
    model = RecurrentStudent(vocab_size=29, width=24, num_layers=2, hidden_width=40)
    row = measured(model, 160)
    assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert row["state_bytes"] == 4 * (9 * 80 + 2 * 2 * 40) + 8
    assert 0 < row["rtf_int8"] < 1 and 0 < row["rtf_torch"] < 1 and row["train_step_ms"] > 1
    assert model.chunk_frames == 4


def test_training_needs_a_work_folder() -> None:
    with pytest.raises(ConfigError, match="--train: training needs the work folder"):
        main(["--train"])


@pytest.mark.slow
def test_students_are_trained_once_and_heard_at_each_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = tmp_path / "tiny.yaml"
    size.write_text(MODEL)
    shards(tmp_path / "shards" / "test", 2, with_text=True)
    trained: list[dict[str, Any]] = []

    def train(recipe: Path, settings: dict[str, Any], *, expected_stage: str) -> dict[str, Any]:
        """What training leaves behind, without the training."""
        assert expected_stage == "train" and recipe.is_file()
        trained.append(settings)
        torch.manual_seed(settings["seed"])
        model = ChunkConformer(
            vocab_size=29, width=16, num_layers=1, num_heads=2, expansion=1, kernel_frames=3
        )
        save_model(Path(settings["work_dir"]) / settings["name"], model, CharUnits())
        return {}

    monkeypatch.setattr("benchmarks.students.run_recipe", train)
    always = [
        "--sizes",
        str(size),
        "--train",
        "--work-dir",
        str(tmp_path),
        "--seeds",
        "3",
        "4",
        "--chunk-ms",
        "160",
    ]
    (row,) = main([*always, "--steps", "7", "--wer-chunk-ms", "160", "0"])
    assert [settings["optimisation.steps"] for settings in trained] == [7, 7]
    assert [settings["model"] for settings in trained] == [str(size)] * 2
    assert row["seeds"] == [3, 4] and [set(wers) for wers in row["wers"]] == [{"160", "0"}] * 2
    assert json.loads((tmp_path / "students.json").read_text()) == [row]
    main([*always, "--steps", "7"])
    assert len(trained) == 2, "what is there is not trained again"
    main([*always, "--steps", "8"])
    assert len(trained) == 4, "nor taken for what was trained otherwise"
    (dynamic,) = main([*always, "--dynamic-chunks", "2", "0"])
    assert [settings["model.dynamic_chunks"] for settings in trained[4:]] == [[2, 0], [2, 0]]
    assert "optimisation.steps" not in trained[4]
    with pytest.raises(SystemExit):
        main(["--sizes", str(size), "--steps", "7"])
    main([*always, "--dynamic-chunks", "2", "0"])
    assert len(trained) == 6
    shards(tmp_path / "shards" / "labelled", 1)
    main([*always, "--steps", "7"])
    assert len(trained) == 8, "nor for what was trained on other audio"
    printed, said = capsys.readouterr()
    assert "--steps needs --train" in said
    assert "WER % at 160 ms | WER % at full context" in printed and table([dynamic]) in printed
