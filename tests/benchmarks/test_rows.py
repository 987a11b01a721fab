"""Rows are kept with what they were made from, and put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.rows import (
    change,
    grouped,
    hash_of_inputs,
    manifests,
    mean_wers,
    read_row,
    write_all,
    write_row,
)


def test_a_row_is_known_by_its_inputs(tmp_path: Path) -> None:
    # The SHA-256 of "teacher\nrecipe", as files of rows have it that were written before.
    inputs = "9bea7097bdb04b7cb7cd917bf8cc9cf17586763967d81e8ea6b5f3d57a994e88"
    assert hash_of_inputs("teacher", "recipe") == inputs
    assert read_row(tmp_path / "a-1.json", inputs) is None, "nothing is there"
    row = {"arm": "a", "seed": 1, "wer": 12.5, "inputs": inputs}
    (tmp_path / "a-1.json").write_text(json.dumps(row, indent=1) + "\n")
    before = (tmp_path / "a-1.json").read_bytes()
    assert read_row(tmp_path / "a-1.json", inputs) == row
    assert read_row(tmp_path / "a-1.json", hash_of_inputs("teacher", "another")) is None
    write_row(tmp_path / "a-1.json", row)
    assert (tmp_path / "a-1.json").read_bytes() == before


def test_other_labels_or_audio_make_another_row(tmp_path: Path) -> None:
    for name in ("labels", "shards/test"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "shard-000000.json").write_text(f"of {name}")
        (tmp_path / name / "prepared.json").write_text("no manifest")
    assert manifests(tmp_path) == ["of labels", "of shards/test"]
    assert manifests(tmp_path, ("shards/test",)) == ["of shards/test"]


def test_all_rows_are_one_file_beside_their_folder(tmp_path: Path) -> None:
    rows = [{"arm": name, "inputs": ""} for name in ("a", "b")]
    for row in reversed(rows):
        write_row(tmp_path / "arms" / f"{row['arm']}-1.json", row)
    (tmp_path / "arms" / "a-1").mkdir()
    write_all(tmp_path / "arms")
    assert json.loads((tmp_path / "arms.json").read_text()) == rows


def test_seeds_are_taken_together_and_compared_by_their_means() -> None:
    rows = [{"arm": "a", "wer": 40.0}, {"arm": "b", "wer": 15.0}, {"arm": "a", "wer": 20.0}]
    groups = grouped(rows, "arm")
    assert groups == {"a": [rows[0], rows[2]], "b": [rows[1]]}
    wers = mean_wers(groups)
    assert wers == pytest.approx({"a": 30.0, "b": 15.0})
    assert (change(wers, "b", "a"), change(wers, "a", "b")) == ("-50 %", "+100 %")
    assert change(wers, "a", "a") == change(wers, "a", "absent") == "–"
    assert change({"a": 1.0, "b": 0.0}, "a", "b") == "–", "nothing is a share of nothing"
