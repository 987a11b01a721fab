"""An hour of audio in one utterance, and silence of any length: labelled in windows, in little memory."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from kdasr.interfaces import Utterance
from kdasr.labelling import label
from kdasr.shards import write_shards
from kdasr.soft_labels import open_label_shard
from tests.labelling.tiny import TinySource

HOUR_SAMPLES = 3600 * 16_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_hour_in_one_utterance_is_labelled_beside_a_hundredth_of_a_second(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    second = (0.1 * rng.standard_normal(16_000)).astype(np.float32)
    items = [
        Utterance("hour", np.tile(second, 3600)),
        Utterance("blink", second[:160]),
        Utterance("plain", second),
    ]
    write_shards(items, tmp_path / "audio", max_seconds=1e9)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = label(teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels")
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    assert summary["failed"] == {} and summary["labelled"] == 3
    labels = open_label_shard(tmp_path / "labels" / "shard-000000.kdsl", verify=True)
    assert labels.read("hour").num_frames == 90_000
    assert labels.read("blink").num_frames == 1
    # Samples, features and labels of one hour, twice where the allocator keeps what was freed (Makefile).
    assert grown_mb < 2400
    # The same second again and again has the same labels again and again, across windows.
    hour = labels.read("hour")
    per_second = hour.kept_counts.reshape(3600, 25)
    assert (per_second[5] == per_second[6:-5]).all(1).mean() > 0.99
