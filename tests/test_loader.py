"""Batches: each utterance once an epoch, the same for the same seed, joined with their labels by key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kdasr.errors import ConfigError, ShardError
from kdasr.features import log_mel
from kdasr.loader import FeatureCache, ScheduledBatches, Stream, change_speed, cut_epoch, feature_statistics
from kdasr.shards import read_shard
from kdasr.text import CharUnits
from tests.speech import shards, utterance


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("loader") / "labelled", 23, per_shard=10)


def stream(folder: Path, **settings: object) -> Stream:
    return Stream([folder], 8.0, 7, **{"units": CharUnits(), **settings})  # type: ignore[arg-type]


def test_each_utterance_is_in_exactly_one_batch_of_each_epoch(labelled: Path) -> None:
    source = stream(labelled)
    per_epoch = len(source.epoch_batches(0))
    for epoch in range(3):
        keys = [key for i in range(per_epoch) for key in source.batch(epoch * per_epoch + i).keys]
        assert sorted(keys) == [f"labelled-{i:04d}" for i in range(23)]


def test_order_is_fixed_by_the_seed_and_differs_between_epochs(labelled: Path) -> None:
    one, two = stream(labelled), stream(labelled)
    assert [one.batch(i).keys for i in range(9)] == [two.batch(i).keys for i in range(9)]
    assert one.epoch_batches(0) != one.epoch_batches(1)
    other = Stream([labelled], 8.0, 8, units=CharUnits())
    assert other.epoch_batches(0) != one.epoch_batches(0)


def test_any_position_can_be_read_first(labelled: Path) -> None:
    in_order, at_once = stream(labelled), stream(labelled)
    for position in range(12):
        expected = in_order.batch(position)
    torch.testing.assert_close(at_once.batch(11).features_btf, expected.features_btf, atol=0, rtol=0)
    assert at_once.batch(11).keys == expected.keys


def test_a_batch_holds_the_features_and_tokens_of_its_keys(labelled: Path) -> None:
    known = {u.key: u for path in sorted(labelled.glob("*.tar")) for u in read_shard(path)}
    batch = stream(labelled).batch(0)
    assert batch.tokens_bu is not None and batch.token_lengths_b is not None
    for row, key in enumerate(batch.keys):
        length = int(batch.feature_lengths_b[row])
        expected = log_mel(known[key].samples)
        torch.testing.assert_close(batch.features_btf[row, :length], expected, atol=0, rtol=0)
        tokens = batch.tokens_bu[row, : batch.token_lengths_b[row]].tolist()
        assert CharUnits().decode(tokens) == known[key].text


def test_batches_keep_to_their_size_and_waste_little() -> None:
    frames = np.random.default_rng(0).integers(50, 1_500, 3_000)
    batches = cut_epoch(frames, 10_000, 1, 0)
    padded = [len(batch) * int(frames[batch].max()) for batch in batches]
    assert np.mean([size > 10_000 * 1.1 for size in padded]) < 0.05
    assert 1 - frames.sum() / sum(padded) < 0.15
    assert sorted(i for batch in batches for i in batch) == list(range(3_000))


def test_the_cache_changes_nothing(labelled: Path) -> None:
    plain, cached = stream(labelled), stream(labelled, cache_bytes=10**8)
    for position in (0, 1, 2, 0, 9):
        expected = plain.batch(position).features_btf
        torch.testing.assert_close(cached.batch(position).features_btf, expected, atol=0, rtol=0)


def test_the_cache_forgets_the_longest_unused() -> None:
    cache, made = FeatureCache(2 * 80 * 4), []

    def ask(name: str) -> None:
        cache.get((Path("x"), name, 1.0), lambda: (made.append(name) or torch.zeros(1, 80), None))

    for name in "abacab":
        ask(name)
    assert made == ["a", "b", "c", "b"]


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


@pytest.mark.parametrize("pattern", [[], [("labeled", 1)], [("labelled", 0)]])
def test_an_impossible_schedule_is_refused(labelled: Path, pattern: list[tuple[str, int]]) -> None:
    with pytest.raises(ConfigError, match="labelled"):
        ScheduledBatches({"labelled": stream(labelled)}, pattern)


def test_speeds_change_from_epoch_to_epoch_and_are_repeatable(labelled: Path) -> None:
    source = stream(labelled, speeds=(0.9, 1.0, 1.1))
    item = source.items[0]
    chosen = [source._speed(item, epoch) for epoch in range(60)]
    assert set(chosen) == {0.9, 1.0, 1.1}
    assert chosen == [stream(labelled, speeds=(0.9, 1.0, 1.1))._speed(item, epoch) for epoch in range(60)]


def test_speed_changes_length_and_pitch() -> None:
    tone = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000).astype(np.float32)
    fast = change_speed(tone, 1.1)
    assert len(fast) == pytest.approx(16_000 / 1.1, abs=2)
    assert np.abs(np.fft.rfft(fast)).argmax() * 16_000 / len(fast) == pytest.approx(1_100, abs=5)


def test_what_is_too_long_is_left_out_by_name(labelled: Path) -> None:
    source = stream(labelled, exclude_longer_s=1.2)
    assert source.left_out and all("longer than 1.2 s" in reason for reason in source.left_out.values())
    assert len(source.items) + len(source.left_out) == 23
    with pytest.raises(ShardError, match="no utterance can be used"):
        stream(labelled, exclude_longer_s=0.1)


def test_few_labels_are_a_seeded_choice(labelled: Path) -> None:
    keys = [item.entry.key for item in stream(labelled, max_utterances=5).items]
    assert len(keys) == 5 and keys == [i.entry.key for i in stream(labelled, max_utterances=5).items]


def test_audio_without_transcript_among_the_labelled_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "mute", 3, with_text=False)
    with pytest.raises(ShardError, match=r"shard-000000\.tar:mute-\d{4}.*without transcript"):
        stream(folder).batch(0)


def test_statistics_are_those_of_the_features(labelled: Path) -> None:
    source = stream(labelled)
    features = torch.cat([log_mel(utterance(f"x{i}", i).samples) for i in range(23)])
    mean, std = feature_statistics(source)
    torch.testing.assert_close(mean, features.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(std, features.std(0), atol=0.02, rtol=0)
