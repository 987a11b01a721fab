"""Schedules: blocks in any pattern, each utterance once an epoch, a position that says what comes next."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from kdasr.errors import ConfigError
from kdasr.loader import Stream
from kdasr.schedule import ScheduledBatches
from kdasr.text import CharUnits
from tests.speech import shards


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("schedule") / "labelled", 23, per_shard=10)


def stream(folder: Path, **settings: object) -> Stream:
    return Stream([folder], 8.0, 7, **{"units": CharUnits(), **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", [[("a", 1)], [("a", 3), ("b", 1)], [("b", 2), ("a", 1), ("b", 5)]])
def test_each_utterance_of_each_stream_comes_once_an_epoch(
    labelled: Path, pattern: list[tuple[str, int]]
) -> None:
    """Whatever the pattern, and however its blocks lie across the epochs."""
    streams = {"a": stream(labelled), "b": stream(labelled, units=None)}
    batches, epochs = ScheduledBatches(streams, pattern), 2
    read: dict[str, list[str]] = {"a": [], "b": []}
    wanted = {name: epochs * len(streams[name].epoch_batches(0)) for name, _ in pattern}
    for step in range(1_000):
        name, position = batches.place(step)
        if position < wanted[name]:
            read[name] += batches[step].keys
        elif all(batches.place(step + i)[1] >= wanted[batches.place(step + i)[0]] for i in range(8)):
            break
    every = sorted(f"labelled-{i:04d}" for i in range(23))
    for name in wanted:
        for epoch in range(epochs):
            assert sorted(read[name][epoch * 23 : (epoch + 1) * 23]) == every


def test_workers_do_not_change_the_order(labelled: Path) -> None:
    batches = ScheduledBatches({"labelled": stream(labelled)}, [("labelled", 1)])
    alone = [b.keys for b in DataLoader(batches, batch_size=None, sampler=range(10))]
    helped = [b.keys for b in DataLoader(batches, batch_size=None, sampler=range(10), num_workers=2)]
    assert alone == helped


def test_the_schedule_repeats_its_blocks(labelled: Path) -> None:
    streams = {"labelled": stream(labelled), "unlabelled": stream(labelled, units=None)}
    batches = ScheduledBatches(streams, [("unlabelled", 2), ("labelled", 1)])
    assert [batches.place(step) for step in range(7)] == [
        ("unlabelled", 0), ("unlabelled", 1), ("labelled", 0),
        ("unlabelled", 2), ("unlabelled", 3), ("labelled", 1),
        ("unlabelled", 4),
    ]  # fmt: skip
    assert batches[2].tokens_bu is not None and batches[3].tokens_bu is None


def test_a_position_names_what_comes_next(labelled: Path) -> None:
    streams = {"labelled": stream(labelled), "unlabelled": stream(labelled, units=None)}
    batches = ScheduledBatches(streams, [("unlabelled", 3), ("labelled", 2), ("unlabelled", 1)])
    per_epoch = len(streams["labelled"].epoch_batches(0))
    for step in range(40):
        found = batches.position(step)
        read = {name: sum(batches.place(i)[0] == name for i in range(step)) for name in streams}
        assert {name: at["batches_read"] for name, at in found["streams"].items()} == read
        name = found["block"]["stream"]
        assert name == batches.place(step)[0]
        for stream_name, at in found["streams"].items():
            assert (at["epoch"], at["batch_in_epoch"]) == divmod(read[stream_name], per_epoch)
            assert streams[stream_name].batch(read[stream_name]).keys[0] == at["next_key"]
            assert (labelled / at["next_shard"]).exists()
    assert [batches.position(step)["block"]["batches_left"] for step in range(7)] == [3, 2, 1, 2, 1, 1, 3]


@pytest.mark.parametrize("pattern", [[], [("labeled", 1)], [("labelled", 0)]])
def test_an_impossible_schedule_is_refused(labelled: Path, pattern: list[tuple[str, int]]) -> None:
    with pytest.raises(ConfigError, match="labelled"):
        ScheduledBatches({"labelled": stream(labelled)}, pattern)
