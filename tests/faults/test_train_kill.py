"""Kill a training at any step, by SIGKILL, and start it again: everything is as if nothing had happened.

The victims are forked from a small server process that has torch imported already.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from kdasr.errors import TrainingError
from kdasr.schedule import ScheduledBatches
from tests.faults import train_victim

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    train_victim.prepare(root)
    return root


@pytest.fixture(scope="module")
def whole(data: Path, forkserver: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole")
    assert run(forkserver, data, out) == 0
    return out


@pytest.fixture(scope="module")
def whole_with_looks_at_checkpoints(
    data: Path, forkserver: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One whose looks at the dev set fall on steps that have a checkpoint anyway."""
    out = tmp_path_factory.mktemp("whole_4")
    assert run(forkserver, data, out, eval_every=4) == 0
    return out


def run(
    context: Any, data: Path, out: Path, workers: int = 0, at: str = "", count: int = 0, eval_every: int = 5
) -> int:
    """The exit code of a training."""
    arguments = (data, out, workers, at, count, eval_every)
    process = context.Process(target=train_victim.train_and_die, args=arguments)
    process.start()
    process.join()
    code: int = process.exitcode
    return code


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights_and_log(out: Path) -> tuple[bytes, bytes, list[Any]]:
    model = out / "model"
    log = lines(out / "checkpoints/train.jsonl")
    return (model / "model.safetensors").read_bytes(), (model / "model.json").read_bytes(), log


def steps_of_checkpoints(out: Path) -> list[int]:
    """The steps at which the checkpoints stand, each of which can be read."""
    positions = (out / "checkpoints").glob("CKPT*/position.ckpt")
    return sorted(json.loads(path.read_text())["steps_done"] for path in positions)


CASES = [(0, "step", 1), (0, "step", 5), (0, "step", 8), (0, "step", 13), (2, "step", 6)]
CASES += [(0, "save", 2), (0, "save", 11), (0, "rename", 1), (0, "rename", 6)]


@pytest.mark.parametrize(("workers", "at", "count"), CASES)
def test_killed_and_resumed_it_ends_as_if_undisturbed(
    forkserver: Any, data: Path, whole: Path, tmp_path: Path, workers: int, at: str, count: int
) -> None:
    out = tmp_path / "out"
    assert run(forkserver, data, out, workers, at, count) == -signal.SIGKILL
    assert not (out / "model").exists()
    read_before = lines(out / train_victim.READ_FILE)
    saved = max(steps_of_checkpoints(out), default=0)
    # A checkpoint every second step, one at each look: little is done twice.
    assert saved <= len(read_before) <= saved + 3
    (out / train_victim.READ_FILE).unlink()
    assert run(forkserver, data, out, workers) == 0
    assert weights_and_log(out) == weights_and_log(whole)
    every = lines(whole / train_victim.READ_FILE)
    assert read_before == every[: len(read_before)]
    assert lines(out / train_victim.READ_FILE) == every[saved:]
    assert not list((out / "checkpoints").glob("unfinished*"))


# In its 4th step: the checkpoint of step 4 gets its name, that of step 2 loses it, that of the look gets its.
AT_LOOKS = [("look", 1), ("look", 3), ("rename", 2), ("rename", 3), ("rename", 4), ("look", 4)]


@pytest.mark.parametrize(("at", "count"), AT_LOOKS)
def test_killed_at_a_look_that_has_a_checkpoint_before_it(
    forkserver: Any, data: Path, whole_with_looks_at_checkpoints: Path, tmp_path: Path, at: str, count: int
) -> None:
    out, whole = tmp_path / "out", whole_with_looks_at_checkpoints
    assert run(forkserver, data, out, 0, at, count, eval_every=4) == -signal.SIGKILL
    saved = max(steps_of_checkpoints(out))
    (out / train_victim.READ_FILE).unlink()
    assert run(forkserver, data, out, eval_every=4) == 0
    assert weights_and_log(out) == weights_and_log(whole)
    every = lines(whole / train_victim.READ_FILE)
    read = out / train_victim.READ_FILE
    assert (lines(read) if read.exists() else []) == every[saved:]


def test_killed_again_and_again_it_still_ends_the_same(
    forkserver: Any, data: Path, whole: Path, tmp_path: Path
) -> None:
    out, deaths = tmp_path / "out", 0
    while run(forkserver, data, out, 0, "step", 4) == -signal.SIGKILL:
        deaths += 1
        assert deaths < 10
    assert deaths >= 3
    assert weights_and_log(out) == weights_and_log(whole)


def test_each_utterance_is_read_once_an_epoch(data: Path, whole: Path, tmp_path: Path) -> None:
    training = train_victim.training(data, tmp_path, 0)
    batches = ScheduledBatches(training.streams, training.schedule)
    read: dict[str, list[str]] = {"labelled": [], "unlabelled": []}
    for step, keys in enumerate(lines(whole / train_victim.READ_FILE)):
        read[batches.place(step)[0]] += keys
    for name, count in (("labelled", 7), ("unlabelled", 9)):
        every = sorted(f"{name}-{i:04d}" for i in range(count))
        assert len(read[name]) >= count, "an epoch at least"
        for first in range(0, len(read[name]) - count + 1, count):
            assert sorted(read[name][first : first + count]) == every


def test_a_checkpoint_says_where_it_stands(data: Path, whole: Path, tmp_path: Path) -> None:
    training = train_victim.training(data, tmp_path, 0)
    batches = ScheduledBatches(training.streams, training.schedule)
    every = lines(whole / train_victim.READ_FILE)
    for path in (whole / "checkpoints").glob("CKPT*/position.ckpt"):
        written = json.loads(path.read_text())
        step = written["steps_done"]
        if step < len(every):
            stream = batches.place(step)[0]
            assert written["block"]["stream"] == stream
            assert written["streams"][stream]["next_key"] == every[step][0]


def test_data_in_another_order_is_noticed(forkserver: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(forkserver, data, out, at="step", count=7) == -signal.SIGKILL
    positions = (out / "checkpoints").glob("CKPT*/position.ckpt")
    position = max(positions, key=lambda path: int(json.loads(path.read_text())["steps_done"]))
    written = json.loads(position.read_text())
    written["streams"]["labelled"]["next_key"] = "another"
    position.write_text(json.dumps(written))
    (position.parent / "SHA256SUMS").unlink()  # which would call it damaged
    with pytest.raises(TrainingError, match=r"the data has changed since this checkpoint.*another"):
        train_victim.training(data, out / "checkpoints", 0).run(out / "model")
