"""Dev utterances that a training hears too are found, whatever they are called; others are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdasr.interfaces import Utterance
from kdasr.loader import Stream
from kdasr.shards import list_shards, read_shard, write_shards
from kdasr.stages import overlap
from kdasr.stages.overlap import heard_in
from tests.speech import shards, utterance


def found(dev: Path, *training: Path) -> list[tuple[str, str]]:
    """The keys of the dev utterances that are in folders of training audio, and the keys there."""
    streams = [Stream(folders, batch_seconds=60.0, seed=1) for folders in ([dev], training)]
    pairs = heard_in(streams[0].items, streams[1].items)
    return [(here.entry.key, there.entry.key) for here, there in pairs]


def test_a_copy_is_found_whatever_its_folder_and_shards_are_called(tmp_path: Path) -> None:
    dev = shards(tmp_path / "dev", 5)
    utterances = [one for path in list_shards(dev) for one in read_shard(path)]
    others = [utterance(f"dev-{n:04d}", 50 + n) for n in range(5)]
    write_shards([*others[:2], *utterances[3:], *others[2:3]], tmp_path / "copy", max_utterances=2)
    assert found(dev, tmp_path / "copy") == [("dev-0003", "dev-0003"), ("dev-0004", "dev-0004")]
    write_shards(others, tmp_path / "others")
    assert found(dev, tmp_path / "others") == []
    assert found(dev, tmp_path / "others", tmp_path / "copy") == found(dev, tmp_path / "copy")


def test_the_same_audio_without_its_transcript_and_name_is_found(tmp_path: Path) -> None:
    dev = shards(tmp_path / "dev", 3)
    utterances = [one for path in list_shards(dev) for one in read_shard(path)]
    plain = [replace(one, key=f"u-{n}", text=None, speaker=None) for n, one in enumerate(utterances)]
    write_shards(plain, tmp_path / "plain")
    assert found(dev, tmp_path / "plain") == [(f"dev-{n:04d}", f"u-{n}") for n in range(3)]


def test_other_audio_of_as_many_samples_and_bytes_is_other_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a constant FLAC writes the one value.
    dev, other = (
        Utterance(key, np.full(16_000, level, np.float32), "a")
        for key, level in (("one", 0.25), ("two", 0.5))
    )
    write_shards([dev], tmp_path / "dev")
    write_shards([other, replace(dev, key="same", text=None)], tmp_path / "training")
    items = Stream([tmp_path / "training"], batch_seconds=60.0, seed=1).items
    assert items[0].entry.flac_bytes == items[1].entry.flac_bytes, "or this tests nothing"
    assert found(tmp_path / "dev", tmp_path / "training") == [("one", "same")]
    monkeypatch.setattr(overlap, "_MOST_IN_VAIN", 1)
    assert found(tmp_path / "dev", tmp_path / "training") == []
