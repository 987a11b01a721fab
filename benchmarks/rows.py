"""Rows of a comparison of trainings, each in its own file with a hash of its inputs.

A row with the same inputs is not made again, so a comparison can be stopped and continued, and several of
its trainings can run in parallel.

    FOLDER/NAME.json     one row; delete it to train again
    FOLDER.json          all rows
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from kdasr.storage import commit_json

Row = Mapping[str, Any]
# Folders of audio in a run's work folder.
SHARDS = ("shards/labelled", "shards/unlabelled", "shards/dev", "shards/test")


def hash_of_inputs(*inputs: str) -> str:
    """A hash of the texts on which a row depends: recipe, hashes of weights, manifests."""
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()


def manifests(work_dir: Path, folders: Sequence[str] = ("labels", *SHARDS)) -> list[str]:
    """The manifests of the shards in folders of `work_dir`, which identify their audio and labels."""
    return [path.read_text() for name in folders for path in sorted((work_dir / name).glob("shard-*.json"))]


def read_row(file: Path, inputs: str) -> dict[str, Any] | None:
    """The row in `file` if it exists and was made from `inputs` (a hash); otherwise None."""
    if not file.exists():
        return None
    row: dict[str, Any] = json.loads(file.read_text())
    return row if row["inputs"] == inputs else None


def write_row(file: Path, row: Row) -> None:
    """Write a row, including its `inputs`, for `read_row`."""
    assert "inputs" in row, list(row)
    commit_json(file, row)


def write_all(folder: Path) -> None:
    """Write all rows of `folder` to one file next to it."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    commit_json(folder.with_name(f"{folder.name}.json"), rows)


def grouped(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    """Rows grouped by their value of `key`, which puts all seeds together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def mean_wers(groups: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """The mean WER of each group in percent."""
    return {name: mean(row["wer"] for row in group) for name, group in groups.items()}


def change(wers: Mapping[str, float], name: str, reference: str) -> str:
    """The relative change in WER of `name` from `reference` as a table cell: "-12 %"."""
    if name == reference or not wers.get(reference):
        return "–"
    return f"{100 * (wers[name] / wers[reference] - 1):+.0f} %"
