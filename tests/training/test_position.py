"""Where a training stands: what is written of it, and data that is no longer the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdasr.errors import TrainingError
from kdasr.loader import Stream
from kdasr.schedule import ScheduledBatches
from kdasr.text import CharUnits
from kdasr.training.position import Position
from tests.speech import shards


def position(folder: Path, seed: int = 7) -> Position:
    stream = Stream([folder], 4.0, seed, units=CharUnits())
    return Position(ScheduledBatches({"labelled": stream}, [("labelled", 1)]), batches_per_step=2)


def test_what_was_counted_comes_back_where_the_data_is_the_same(tmp_path: Path) -> None:
    folder, path = shards(tmp_path / "labelled", 12, per_shard=6), tmp_path / "position.ckpt"
    position(folder).save(path, 3, {"losses": 3, "loss_total": 1.5})
    assert position(folder).check(path) == {"losses": 3, "loss_total": 1.5}
    written = json.loads(path.read_text())
    # Each step has two batches.
    assert (written["steps_done"], written["batches_done"]) == (3, 6)
    stream = Stream([folder], 4.0, 7, units=CharUnits())
    assert written["streams"]["labelled"]["next_key"] == stream.batch(6).keys[0]
    # As one that was written before anything was counted.
    path.write_text(json.dumps({name: value for name, value in written.items() if name != "so_far"}))
    assert position(folder).check(path) == {}


def test_data_that_comes_in_another_order_is_not_gone_on_with(tmp_path: Path) -> None:
    folder, path = shards(tmp_path / "labelled", 12, per_shard=6), tmp_path / "position.ckpt"
    position(folder).save(path, 3, {})
    with pytest.raises(TrainingError, match="the data has changed since this checkpoint was written"):
        position(folder, seed=8).check(path)
