"""What is left to label: its shards, its hours and what is wrong with what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdasr.labelling import Settings, label
from kdasr.labelling.done import find_work
from kdasr.labelling.settings import make_header
from kdasr.shards import open_shard
from tests.labelling.tiny import TinySource, make_audio


def test_what_is_left_is_counted_without_what_is_done(tmp_path: Path) -> None:
    shards = [str(path) for path in make_audio(tmp_path / "audio", 8, per_shard=2)]
    label(teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels")
    cut = tmp_path / "labels/shard-000001.kdsl"
    cut.write_bytes(cut.read_bytes()[:-3])
    for suffix in ("kdsl", "json"):
        (tmp_path / f"labels/shard-000003.{suffix}").unlink()
    expect = make_header(TinySource().load("cpu"), Settings(), "", "")
    plan = find_work(shards, tmp_path / "labels", expect)
    assert (plan.done, plan.todo) == ([shards[0], shards[2]], [shards[1], shards[3]])
    # Labels that are not there are not damaged.
    assert list(plan.damaged) == [shards[1]]
    left_s = sum(open_shard(Path(shards[number])).seconds for number in (1, 3))
    assert plan.seconds == pytest.approx(left_s)
