"""Batches: each utterance once an epoch, the same for the same seed, joined with their labels by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdasr import loader
from kdasr.batches import FeatureCache, change_speed, collate, cut_epoch
from kdasr.contract import LabelSymbols, StudentSide, label_symbols
from kdasr.errors import ConfigError, DamagedShardError, LabelMismatchError, ShardError
from kdasr.features import LOG_MEL_FLOOR, log_mel, num_frames
from kdasr.interfaces import SoftLabels, Utterance
from kdasr.loader import Stream, feature_statistics, texts_of
from kdasr.methods.mixing import Munge
from kdasr.shards import ShardEntry, list_shards, open_shard, read_shard, write_shards
from kdasr.soft_labels import Failure, Header, LabelFolder, TopP, label_file, write_label_shard
from kdasr.storage import Location
from kdasr.symbols import FORMAT, VERSION, TableUnits
from kdasr.targets import best_units
from kdasr.text import UNITS_FILE, CharUnits
from tests.speech import shards, utterance

LabelsOf = Callable[[ShardEntry], SoftLabels | Failure]


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
    assert list(one.epoch_batches(0)) != list(one.epoch_batches(1))
    other = Stream([labelled], 8.0, 8, units=CharUnits())
    assert list(other.epoch_batches(0)) != list(one.epoch_batches(0))


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


def test_a_batch_is_padded_with_silence() -> None:
    batch = collate(["a", "b"], [torch.zeros(3, 80), torch.zeros(1, 80)])
    assert batch.features_btf[1, 1:].eq(LOG_MEL_FLOOR).all() and batch.features_btf[0].eq(0).all()


SPEEDS = (0.9, 1.0, 1.1)


def cut_one_by_one(frames: list[int], batch_frames: int) -> list[int]:
    """The sizes of batches, from the shortest utterances to the longest, by the rule itself."""
    sizes = [0]
    for length in sorted(frames):
        if sizes[-1] and (sizes[-1] + 1) * length > batch_frames:
            sizes.append(0)
        sizes[-1] += 1
    return sizes


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200))
def test_batches_are_as_full_as_they_may_be(frames: list[int], batch_frames: int) -> None:
    batches = cut_epoch(np.array([frames], np.int32), batch_frames, 1, 0)
    assert sorted(map(len, batches)) == sorted(cut_one_by_one(frames, batch_frames))
    assert sorted(number for batch in batches for number in batch) == list(range(len(frames)))


def test_the_order_of_an_epoch_stays_what_it_was() -> None:
    """A training that was begun with an earlier version goes on with the batches that it would have had, or
    begins anew if `_GENERATION` of `kdasr.loader` changes with them."""
    frames = np.random.default_rng(3).integers(100, 1_000, 12)
    assert list(cut_epoch(frames[None], 2_500, 7, 2)) == [[8, 1, 9, 4, 2, 3], [10, 11, 7], [6], [5, 0]]
    with_speeds = cut_epoch(np.stack([frames, frames * 9 // 10]), 2_500, 7, 2)
    assert list(with_speeds) == [[8, 9, 1, 2], [4, 3], [5, 0], [7, 6], [10, 11]]
    assert with_speeds.speeds.tolist() == [0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("count", [20, 3_000])
@pytest.mark.parametrize("lengths", ["equal", "any"])
@pytest.mark.parametrize("speeds", [(0.9, 1.0, 1.1), (1.1, 0.5, 2.0, 1.0)])
def test_no_draw_of_speeds_makes_batches_much_larger(
    speeds: tuple[float, ...], lengths: str, count: int
) -> None:
    rng = np.random.default_rng(count)
    frames = np.full(count, 1_000) if lengths == "equal" else rng.integers(300, 1_500, count)
    at_speeds = np.stack([np.ceil(frames / speed).astype(int) for speed in speeds])
    for epoch in range(20):
        batches = cut_epoch(at_speeds, 6_000, 1, epoch)
        read = at_speeds[batches.speeds, np.arange(count)]
        assert max(len(batch) * int(read[batch].max()) for batch in batches) < 6_000 * 1.045


def test_batches_are_sized_for_the_speed_at_which_each_utterance_is_read() -> None:
    frames = np.random.default_rng(0).integers(300, 1_500, 3_000)
    at_speeds = np.stack([np.ceil(frames / speed).astype(int) for speed in (0.9, 1.0, 1.1)])
    read, sizes = [], set()
    for epoch in range(6):
        batches = cut_epoch(at_speeds, 20_000, 1, epoch)
        lengths = at_speeds[batches.speeds, np.arange(3_000)]
        padded = [len(batch) * int(lengths[batch].max()) for batch in batches]
        assert max(padded) < 20_000 * 1.06
        assert lengths.sum() / sum(padded) > 0.95 and sum(padded) / (20_000 * len(batches)) > 0.94
        assert sorted(i for batch in batches for i in batch) == list(range(3_000))
        read.append(batches.speeds)
        sizes.add(len(batches))
    assert len(sizes) == 1, "as many batches in every epoch"
    for speed in range(3):
        assert 0.3 < np.mean(np.stack(read) == speed) < 0.37
        assert not np.array_equal(read[0] == speed, read[1] == speed)


def test_batches_keep_to_their_size_and_waste_little() -> None:
    frames = np.random.default_rng(0).integers(50, 1_500, 3_000)
    batches = cut_epoch(frames[None], 10_000, 1, 0)
    padded = [len(batch) * int(frames[batch].max()) for batch in batches]
    assert np.mean([size > 10_000 * 1.1 for size in padded]) < 0.05
    assert 1 - frames.sum() / sum(padded) < 0.15
    assert sorted(i for batch in batches for i in batch) == list(range(3_000))


def test_the_cache_changes_nothing(labelled: Path) -> None:
    plain, cached = stream(labelled), stream(labelled, cache_bytes=10**8)
    for position in (0, 1, 2, 0, 9):
        expected = plain.batch(position).features_btf
        torch.testing.assert_close(cached.batch(position).features_btf, expected, atol=0, rtol=0)


def test_a_stream_knows_whether_all_its_features_fit_the_cache(labelled: Path) -> None:
    num_bytes = sum(80 * 4 * num_frames(item.entry.num_samples) for item in stream(labelled).items)
    assert stream(labelled, cache_bytes=num_bytes).fits_cache
    assert not stream(labelled, cache_bytes=num_bytes - 1).fits_cache
    assert not stream(labelled, cache_bytes=2 * num_bytes, speeds=(0.9, 1.0)).fits_cache


def test_the_cache_forgets_the_longest_unused() -> None:
    cache, made = FeatureCache(2 * 80 * 4), []

    def ask(name: str) -> None:
        cache.get((Path("x"), name, 1.0), lambda: (made.append(name) or torch.zeros(1, 80), None))

    for name in "abacab":
        ask(name)
    assert made == ["a", "b", "c", "b"]


def test_speeds_change_from_epoch_to_epoch_and_are_repeatable(labelled: Path) -> None:
    source, again, plain = (stream(labelled, speeds=speeds) for speeds in (SPEEDS, SPEEDS, (1.0,)))
    original = {key: len(features) for _, key, features in readings(plain, 1)}
    read = [(epoch, key, len(features)) for epoch, key, features in readings(source, 20)]
    chosen: dict[str, set[float]] = {}
    for _, key, length in read:
        speed = min(SPEEDS, key=lambda speed: abs(original[key] / speed - length))
        assert abs(original[key] / speed - length) <= 1
        chosen.setdefault(key, set()).add(speed)
    assert all(speeds == {*SPEEDS} for speeds in chosen.values())
    first = [(epoch, key, len(features)) for epoch, key, features in readings(again, 5)]
    assert first == read[: len(first)] and len(first) == 5 * 23


def test_transcribed_audio_is_followed_by_silence_in_its_share_of_the_epochs(labelled: Path) -> None:
    plain, always, half = (stream(labelled, tail_share=share) for share in (0.0, 1.0, 0.5))
    without = {key: features for _, key, features in readings(plain, 1)}
    for _, key, features in readings(always, 1):
        torch.testing.assert_close(features[:-32], without[key], atol=0, rtol=0)
        assert features[-32:].eq(LOG_MEL_FLOOR).all() and len(features) == len(without[key]) + 32
    added = [(epoch, key) for epoch, key, features in readings(half, 12) if len(features) > len(without[key])]
    assert 0.4 < len(added) / (12 * 23) < 0.6 and len({key for _, key in added}) > 20, "now one, now another"
    again = [(epoch, key) for epoch, key, features in readings(half, 3) if len(features) > len(without[key])]
    assert again and again == added[: len(again)]
    assert len({str(one.fingerprint()) for one in (plain, always, half)}) == 3


def readings(source: Stream, epochs: int) -> list[tuple[int, str, torch.Tensor]]:
    """Epoch, key and features without padding, of all that is read."""
    found = []
    for epoch in range(epochs):
        for index in range(len(source.epoch_batches(epoch))):
            batch = source.batch(epoch * len(source.epoch_batches(0)) + index)
            lengths = batch.feature_lengths_b.tolist()
            rows = zip(batch.keys, batch.features_btf, lengths, strict=True)
            found += [(epoch, key, features[:length]) for key, features, length in rows]
    return found


def test_audio_with_labels_frame_by_frame_or_with_nothing_to_read_is_not_followed_by_silence(
    tmp_path: Path,
) -> None:
    audio = shards(tmp_path / "audio", 4)
    labels = [LabelFolder(label_all(audio, tmp_path / "labels"))]
    source = Stream([audio], 8.0, 7, labels=labels, tail_share=1.0)
    assert source.tail_share == 0.0 and source.batch(0).soft_labels is not None
    assert Stream([audio], 8.0, 7, tail_share=1.0).tail_share == 0.0


@pytest.mark.slow
def test_a_share_of_the_batches_begins_before_the_speech(labelled: Path) -> None:
    """With frames of the quietest 100 ms of each utterance, noise about as loud, or silence, in whole output
    frames."""
    student = StudentSide(CharUnits(), 4)
    plain, always, half = (stream(labelled, student=student, lead_share=share) for share in (0.0, 1.0, 0.5))
    without = {key: features for _, key, features in readings(plain, 1)}
    lengths, kinds, louder = set(), [], []
    for _, key, features in readings(always, 12):
        own = without[key]
        lead = features[: len(features) - len(own)]
        assert torch.equal(features[len(lead) :], own)
        assert 0 < len(lead) <= 150 and len(lead) % 4 == 0
        loudness = own.mean(1)
        quietest = min(range(len(own) - 9), key=lambda first: float(loudness[first : first + 10].mean()))
        pool = own[quietest : quietest + 10]
        if lead.eq(LOG_MEL_FLOOR).all():
            kinds.append("silent")
        elif all((row == pool).all(1).any() for row in lead):
            kinds.append("drawn")
        else:
            kinds.append("moving")
            louder.append(float(lead.mean() - pool.mean()))
            assert lead.min() >= LOG_MEL_FLOOR and len(lead.unique(dim=0)) > len(lead) // 2
        lengths.add(len(lead))
    shares = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert shares == pytest.approx({"silent": 0.125, "drawn": 0.375, "moving": 0.5}, abs=0.08)
    assert len(kinds) == 12 * 23 and -0.6 < min(louder) < 0.0
    assert 2.0 < max(louder) < 4.0, "2.5 nats at most, but for what is cut off at the floor"
    assert len(lengths) > 15 and max(lengths) > 120 and min(lengths) < 30
    per_epoch = len(half.epoch_batches(0))
    begun = []
    for index in range(20 * per_epoch):
        batch = half.batch(index)
        more = {
            int(n) - len(without[key]) for key, n in zip(batch.keys, batch.feature_lengths_b, strict=True)
        }
        assert len(more) == 1, "one length in a batch: others would be padding"
        begun.append(more.pop() > 0)
    assert 0.35 < sum(begun) / len(begun) < 0.65
    again = stream(labelled, student=student, lead_share=0.5).batch(2)
    assert torch.equal(again.features_btf, half.batch(2).features_btf)
    assert len({str(one.fingerprint()) for one in (plain, always, half)}) == 3


def test_labels_are_blank_before_the_speech_and_words_apart_in_a_row(tmp_path: Path) -> None:
    audio, units = shards(tmp_path / "audio", 9, with_text=False), CharUnits()
    labels = [LabelFolder(label_all(audio, tmp_path / "labels", units_hash=units.hash))]
    student = StudentSide(units, 4)
    samples = {
        entry.key: entry.num_samples for path in list_shards(audio) for entry in open_shard(path).entries
    }
    source = Stream([audio], 30.0, 7, labels=labels, student=student, lead_share=1.0, joined_share=1.0)
    batch = source.batch(0)
    assert batch.soft_labels is not None and sum("+" in key for key in batch.keys) == 4
    for row, key in enumerate(batch.keys):
        frames = [-(-num_frames(samples[part]) // 4) for part in key.split("+")]
        found = best_units(batch.soft_labels)[row, : int(batch.soft_labels.lengths_b[row])].tolist()
        assert len(found) == -(-int(batch.feature_lengths_b[row]) // 4)
        own = [int(part[-1]) for part in key.split("+")]
        if len(own) == 1:
            lead = len(found) - frames[0]
            expected = [0] * lead + own * frames[0]
        else:
            quiet = len(found) - sum(frames)
            lead = found.index(own[0]) if own[0] else quiet // 2
            pause = quiet - lead
            expected = [0] * lead + own[:1] * frames[0] + [0] * pause + own[1:] * frames[1]
            # What stands between two words, where the second does not begin with it (number 1).
            if own[0] and own[1] > 1:
                expected[lead + frames[0] + max(0, pause - 2)] = 1
            assert own[0] == 0 or 0 < pause <= 25
        assert lead > 0 and found == expected
        log_probs = batch.soft_labels.log_probs_btk[row, :lead]
        assert log_probs.max(1).values.eq(0.0).all()
        assert batch.soft_labels.tail_log_probs_bt[row, :lead].eq(-torch.inf).all()


def test_words_in_a_row_are_parted_as_long_before_as_within_utterances(tmp_path: Path) -> None:
    """Here 3 frames; and the utterances begin 9 frames before their first unit."""
    audio, units = shards(tmp_path / "audio", 8, with_text=False), CharUnits()
    spikes = {9: 4, 11: 1, 14: 5, 17: 1, 20: 6}

    def two_words(entry: ShardEntry) -> SoftLabels:
        frames = -(-num_frames(entry.num_samples) // 4)
        best = torch.tensor([spikes.get(frame, 0) for frame in range(frames)])
        (labels,) = TopP().encode_many([torch.eye(29)[best].log().clamp(-30)], [entry.key])
        assert isinstance(labels, SoftLabels)
        return labels

    labels = [LabelFolder(label_all(audio, tmp_path / "labels", two_words, units_hash=units.hash))]
    source = Stream([audio], 60.0, 7, labels=labels, student=StudentSide(units, 4), joined_share=1.0)
    batch = source.batch(0)
    assert batch.soft_labels is not None
    for key, found in zip(batch.keys, best_units(batch.soft_labels).tolist(), strict=True):
        assert "+" in key
        first = {frame: unit for frame, unit in enumerate(found) if unit}
        behind = [frame for frame, unit in first.items() if unit == 4][1] - 9
        assert first == spikes | {behind + 6: 1} | {behind + frame: unit for frame, unit in spikes.items()}


def test_transcripts_without_times_are_put_in_a_row_as_words(tmp_path: Path) -> None:
    audio, units = shards(tmp_path / "audio", 9, with_text=False), CharUnits()
    settings = {"teacher": {"level": "sequence"}}
    label_all(audio, tmp_path / "labels", units_hash=units.hash, frame_shift_ms=0.0, settings=settings)
    labels = [LabelFolder(tmp_path / "labels")]
    options = {"labels": labels, "student": StudentSide(units, 4), "lead_share": 1.0, "joined_share": 1.0}
    source = Stream([audio], 30.0, 7, **options)  # type: ignore[arg-type]
    batch = source.batch(0)
    assert not source.labels_have_times and batch.soft_labels is not None
    rows = dict(zip(batch.keys, best_units(batch.soft_labels).tolist(), strict=True))
    texts = {key: [unit for unit in row if unit] for key, row in rows.items()}
    for key, text in texts.items():
        numbers = [int(part[-1]) for part in key.split("+")]
        assert rows[key][0] == numbers[0], "a pause without units has no frames in them"
        if len(numbers) == 2 and 0 not in numbers:
            first, last = text.index(numbers[1]), numbers[1]
            assert set(text[: first - 1]) == {numbers[0]} and set(text[first:]) == {last}
            assert text[first - 1] == (numbers[0] if last == 1 else 1)


def test_utterances_follow_one_another_as_in_a_stream(labelled: Path) -> None:
    source = stream(labelled, joined_share=1.0, speeds=(0.9, 1.1))
    known = {key: features for _, key, features in readings(stream(labelled, speeds=(0.9, 1.1)), 1)}
    texts = {u.key: u.text for path in list_shards(labelled) for u in read_shard(path)}
    read: list[str] = []
    for index in range(len(source.epoch_batches(0))):
        batch = source.batch(index)
        assert batch.tokens_bu is not None and batch.token_lengths_b is not None
        pairs = sum("+" in key for key in batch.keys)
        count = sum(len(key.split("+")) for key in batch.keys)
        assert pairs == (count // 2 if count % 2 == 0 or count > 8 else 0)
        for row, key in enumerate(batch.keys):
            parts = key.split("+")
            read += parts
            features = batch.features_btf[row, : batch.feature_lengths_b[row]]
            first, last = known[parts[0]], known[parts[-1]]
            assert torch.equal(features[: len(first)], first) and torch.equal(features[-len(last) :], last)
            pause = len(features) - sum(len(known[part]) for part in parts)
            assert 0 < pause <= 100 if len(parts) == 2 else pause == 0
            ids = batch.tokens_bu[row, : batch.token_lengths_b[row]].tolist()
            assert CharUnits().decode(ids) == " ".join(texts[part] or "" for part in parts)
    assert sorted(read) == sorted(known)
    # However long they are: the batch is no larger for it.
    longest_s = max(len(features) for features in known.values()) / 100
    limited = stream(labelled, joined_share=1.0, exclude_longer_s=1.05 * longest_s, speeds=(0.9, 1.1))
    together = [len(features) for _, key, features in readings(limited, 6) if "+" in key]
    assert max(together) > 100 * longest_s
    some = stream(labelled, joined_share=0.5)
    batches = [some.batch(index).keys for index in range(8 * len(some.epoch_batches(0)))]
    assert 0.3 < sum("+" in keys[0] for keys in batches) / len(batches) < 0.7
    assert len({str(one.fingerprint()) for one in (source, limited, some)}) == 3


def test_units_without_a_mark_between_words_follow_nothing(tmp_path: Path) -> None:
    """Of single words in a table of syllables, say, a text of two cannot be spelled."""
    said = [replace(utterance(f"u{n}", n, words=1), text="ab") for n in range(6)]
    write_shards(said, tmp_path / "audio")
    for symbols, share in ((["<blk>", "a", "b"], 0.0), (["<blk>", "▁", "a", "b"], 1.0)):
        source = Stream([tmp_path / "audio"], 8.0, 7, units=TableUnits(symbols), joined_share=1.0)
        assert source.joined_share == share and source.batch(0).tokens_bu is not None


def test_one_that_is_left_over_is_no_reason_to_pad_a_few(labelled: Path) -> None:
    items = list(stream(labelled).items)
    source = stream(labelled, joined_share=1.0)
    sizes = {count: [len(row) for row in source._pairs(items[:count])] for count in (2, 3, 8, 9)}
    assert sizes == {2: [2], 3: [1, 1, 1], 8: [2] * 4, 9: [2] * 4 + [1]}


def test_what_is_around_utterances_does_not_count_for_their_length(labelled: Path) -> None:
    student = StudentSide(CharUnits(), 4)
    plain, around = (
        stream(labelled, student=student, lead_share=share, joined_share=share, tail_share=share)
        for share in (0.0, 0.5)
    )
    median = int(np.median([num_frames(item.entry.num_samples) for item in plain.items]))
    assert plain.median_frames() == around.median_frames() == student.frames(median)
    assert stream(labelled).median_frames() is None, "whose frames are unknown"


def test_labels_of_frames_that_nobody_knows_have_nothing_before_them(tmp_path: Path) -> None:
    audio = shards(tmp_path / "audio", 4)
    labels = [LabelFolder(label_all(audio, tmp_path / "labels"))]
    source = Stream([audio], 8.0, 7, labels=labels, lead_share=1.0, joined_share=1.0)
    assert (source.lead_share, source.joined_share) == (0.0, 0.0)


def test_speed_changes_length_and_pitch() -> None:
    tone = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000).astype(np.float32)
    fast = change_speed(tone, 1.1)
    assert len(fast) == pytest.approx(16_000 / 1.1, abs=2)
    assert np.abs(np.fft.rfft(fast)).argmax() * 16_000 / len(fast) == pytest.approx(1_100, abs=5)


def test_what_is_too_long_is_left_out_by_name(labelled: Path) -> None:
    source = stream(labelled, exclude_longer_s=1.2)
    assert source.left_out and all("longer than 1.2 s" in why for _, why in source.left_out.items())
    assert len(source.items) + len(source.left_out) == 23
    longest_s = max(item.entry.num_samples for item in stream(labelled).items) / 16_000
    assert not stream(labelled, exclude_longer_s=longest_s).left_out
    with pytest.raises(ShardError, match="no utterance can be used"):
        stream(labelled, exclude_longer_s=0.1)


def test_several_folders_each_have_their_labels(tmp_path: Path) -> None:
    folders = [shards(tmp_path / name, 5, with_text=False) for name in ("one", "two")]
    labels = [LabelFolder(label_all(folder, tmp_path / f"{folder.name}-labels")) for folder in folders]
    source = Stream(folders, 60.0, 1, labels=labels)
    batch = source.batch(0)
    assert sorted(batch.keys) == [f"{name}-{i:04d}" for name in ("one", "two") for i in range(5) if i != 2]
    assert batch.soft_labels is not None
    assert best_units(batch.soft_labels)[:, 0].tolist() == [int(key[-1]) for key in batch.keys]
    assert dict(source.left_out.items()) == {
        f"{tmp_path}/{name}/{name}-0002": "it has no labels: nothing heard" for name in ("one", "two")
    }
    with pytest.raises(
        ConfigError, match="the numbers of audio and label folders differ.*got 2 of audio and 1 of labels"
    ):
        Stream(folders, 60.0, 1, labels=labels[:1])
    with pytest.raises(LabelMismatchError, match="two-labels.*a different audio_sha256"):
        Stream(folders[:1], 60.0, 1, labels=[LabelFolder(tmp_path / "two-labels")])


def test_no_names_of_labels_are_kept_once_they_are_joined(tmp_path: Path) -> None:
    audio = shards(tmp_path / "audio", 23, with_text=False, per_shard=10)
    source = Stream([audio], 60.0, 1, labels=[LabelFolder(label_all(audio, tmp_path / "labels"))])
    names = [f"{audio}/audio-{number:04d}" for number in (2, 12, 22)]
    assert dict(source.left_out.items()) == dict.fromkeys(names, "it has no labels: nothing heard")
    opened = {id(item.joined): item.joined.labels for item in source.items if item.joined is not None}
    kept = [(len(one), one.keys, one.failures) for one in opened.values()]
    assert kept == [(10, [], {}), (10, [], {}), (3, [], {})]
    batch = source.batch(0)
    assert batch.soft_labels is not None
    assert best_units(batch.soft_labels)[:, 0].tolist() == [int(key[-1]) for key in batch.keys]


def test_symbols_of_a_teacher_are_mapped_once_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, units = shards(tmp_path / "audio", 30, with_text=False, per_shard=10), CharUnits()
    symbols = [units.symbols[0], *reversed(units.symbols[1:])]
    for name in ("one", "two"):
        label_all(audio, tmp_path / name, units_hash=name)
        card = {"format": FORMAT, "version": VERSION, "symbols": symbols, "hash": name}
        (tmp_path / name / UNITS_FILE).write_text(json.dumps(card))
    read: list[str] = []

    def counted(folder: Location) -> LabelSymbols | None:
        read.append(folder.name)
        return label_symbols(folder)

    monkeypatch.setattr(loader, "label_symbols", counted)
    side = StudentSide(units, 4)
    for name in ("one", "two"):
        source = Stream([audio], 60.0, 1, labels=[LabelFolder(tmp_path / name)], student=side)
        contracts = [item.joined.contract for item in source.items if item.joined is not None]
        assert len({id(contract) for contract in contracts}) == 1
        assert contracts[0] is not None and contracts[0].class_map == (0, *range(28, 0, -1))
        batch = source.batch(0)
        assert batch.soft_labels is not None
        expected = [-int(key[-1]) % 29 for key in batch.keys]
        assert best_units(batch.soft_labels)[:, 0].tolist() == expected
    assert read == ["one", "two"]


def test_labels_of_another_teacher_are_other_data(tmp_path: Path) -> None:
    audio = shards(tmp_path / "audio", 4)
    one, other = (
        Stream([audio], 8.0, 7, labels=[LabelFolder(label_all(audio, tmp_path / name, teacher_hash=name))])
        for name in ("one", "other")
    )
    assert one.fingerprint() != other.fingerprint()


def test_labels_of_another_length_than_their_audio_are_refused(tmp_path: Path) -> None:
    """Sooner than in the step that comes to them."""
    audio, units = shards(tmp_path / "audio", 4), CharUnits()
    label_all(audio, tmp_path / "labels", subsampling=2, units_hash=units.hash)
    labels = [LabelFolder(tmp_path / "labels")]
    with pytest.raises(LabelMismatchError, match="soft labels and the audio differ in length"):
        Stream([audio], 8.0, 7, labels=labels, student=StudentSide(units, 4))


def label_all(audio: Path, out: Path, of: LabelsOf | None = None, **changes: object) -> Path:
    """Labels by a function of an entry; of one class, the last digit of the key, for all but number 2."""
    for path in list_shards(audio):
        shard = open_shard(path)
        items = [(entry.key, (of or labels_of)(entry)) for entry in shard.entries]
        header = Header(
            teacher="t", teacher_hash="h", units_hash="u", vocab_size=29, feature_hash="f",
            frame_shift_ms=10.0, subsampling=4, codec="top_p", codec_params=TopP().params,
            audio_file=path.name, audio_sha256=shard.sha256, settings={},
        )  # fmt: skip
        header = replace(header, **changes)  # type: ignore[arg-type]
        write_label_shard(label_file(out, path.name), header, items)
    return out


def labels_of(entry: ShardEntry) -> SoftLabels | Failure:
    number, frames = int(entry.key[-1]), -(-num_frames(entry.num_samples) // 4)
    if number == 2:
        return Failure("nothing heard")
    (labels,) = TopP().encode_many([torch.eye(29)[number].log().clamp(-30).expand(frames, 29)], [entry.key])
    assert isinstance(labels, SoftLabels)
    return labels


def test_transcripts_are_read_without_the_audio(labelled: Path, tmp_path: Path) -> None:
    expected = [u.text for path in sorted(labelled.glob("*.tar")) for u in read_shard(path)]
    assert texts_of([labelled]) == expected
    shard = open_shard(sorted(labelled.glob("*.tar"))[0])
    data = bytearray(shard.path.read_bytes())
    first, second = shard.entries[:2]
    end = first.flac_offset + first.flac_bytes
    data[first.flac_offset : end] = bytes(first.flac_bytes)
    (tmp_path / shard.path.name).write_bytes(data)
    (tmp_path / "shard-000000.json").write_bytes(shard.path.with_suffix(".json").read_bytes())
    assert texts_of([tmp_path]) == expected[: len(shard.entries)], "the audio is gone, and not asked for"
    text = bytes(data[second.json_offset : second.json_offset + second.json_bytes])
    data[first.json_offset : first.json_offset + second.json_bytes] = text
    (tmp_path / shard.path.name).write_bytes(data)
    with pytest.raises(DamagedShardError, match="labelled-0000"):
        texts_of([tmp_path])


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


def test_what_never_changes_has_no_deviation(tmp_path: Path) -> None:
    """Rounding may make a variance of 0 a little less, whose root would be NaN."""
    silent = [Utterance(f"u{n}", np.zeros(16_000 + 1_600 * n, np.float32), "one") for n in range(3)]
    write_shards(silent, tmp_path / "audio")
    mean, std = feature_statistics(stream(tmp_path / "audio"))
    torch.testing.assert_close(mean, torch.full((80,), LOG_MEL_FLOOR))
    torch.testing.assert_close(std, torch.zeros(80), atol=1e-5, rtol=0)


class Halves:
    """A channel that only makes things quieter, by another factor in every epoch."""

    def __init__(self) -> None:
        self.config: dict[str, float] = {}

    def __call__(self, samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        return samples * np.float32(rng.uniform(0.1, 0.5))


def test_a_spoilt_stream_is_a_pair_of_views(tmp_path: Path) -> None:
    folder = shards(tmp_path / "audio", 6)
    plain = Stream([folder], 8.0, 1, units=CharUnits(), speeds=(0.9, 1.1))
    paired = Stream([folder], 8.0, 1, units=CharUnits(), speeds=(0.9, 1.1), spoil=Halves())
    clean, pair = plain.batch(0), paired.batch(0)
    assert pair.teacher_features_btf is not None and pair.keys == clean.keys
    assert torch.equal(pair.teacher_features_btf, clean.features_btf)
    assert torch.equal(pair.feature_lengths_b, clean.feature_lengths_b)
    inside = slice(0, int(pair.feature_lengths_b[0]))
    assert (pair.features_btf[0, inside] < pair.teacher_features_btf[0, inside]).float().mean() > 0.9
    assert torch.equal(pair.features_btf, paired.batch(0).features_btf)
    epoch = len(paired.epoch_batches(0))
    heard = [paired.batch(position) for position in range(2 * epoch)]
    of_one = [b.features_btf[b.keys.index(pair.keys[0])] for b in heard if pair.keys[0] in b.keys]
    assert len(of_one) == 2 and of_one[0].mean() != of_one[1].mean()
    assert paired.fingerprint() != plain.fingerprint()
    alone = Stream([folder], 8.0, 1, units=CharUnits(), speeds=(0.9, 1.1), spoil=Halves(), clean_too=False)
    heard_alone = alone.batch(0)
    assert heard_alone.teacher_features_btf is None and torch.equal(
        heard_alone.features_btf, pair.features_btf
    )
    assert torch.equal(heard_alone.tokens_bu, pair.tokens_bu) and alone.fingerprint() == paired.fingerprint()


def test_both_views_begin_before_the_speech_and_end_behind_it(tmp_path: Path) -> None:
    """A loss compares them frame by frame."""
    folder = shards(tmp_path / "audio", 8)
    around = {"lead_share": 1.0, "joined_share": 1.0, "tail_share": 1.0}
    source = Stream([folder], 30.0, 1, units=CharUnits(), spoil=Halves(), **around)  # type: ignore[arg-type]
    batch = source.batch(0)
    assert batch.teacher_features_btf is not None and any("+" in key for key in batch.keys)
    assert batch.features_btf.shape == batch.teacher_features_btf.shape
    for row, length in enumerate(batch.feature_lengths_b.tolist()):
        heard, clean = batch.features_btf[row, :length], batch.teacher_features_btf[row, :length]
        assert heard[-32:].eq(LOG_MEL_FLOOR).all() and clean[-32:].eq(LOG_MEL_FLOOR).all()
        # Where it is loud both are, however much quieter the one is.
        assert float(torch.corrcoef(torch.stack([heard.mean(1), clean.mean(1)]))[0, 1]) > 0.8


def test_whatever_decides_the_batches_is_in_the_fingerprint(labelled: Path) -> None:
    settings: list[dict[str, Any]] = [
        {"batch_seconds": 8.0, "seed": 7},
        {"batch_seconds": 9.0, "seed": 7},
        {"batch_seconds": 8.0, "seed": 8},
        {"batch_seconds": 8.0, "seed": 7, "speeds": (0.9, 1.0)},
        {"batch_seconds": 8.0, "seed": 7, "max_utterances": 20},
        {"batch_seconds": 8.0, "seed": 7, "exclude_longer_s": 39.0},
    ]
    streams = [Stream([labelled], units=CharUnits(), **one) for one in settings]
    assert len({str(one.fingerprint()) for one in streams}) == len(settings)


def test_mixing_is_for_audio_that_nobody_has_labelled(tmp_path: Path) -> None:
    folder = shards(tmp_path / "audio", 6)
    with pytest.raises(ConfigError, match="online teacher"):
        Stream([folder], 8.0, 1, units=CharUnits(), mix=Munge())
    plain, mixed = Stream([folder], 8.0, 1), Stream([folder], 8.0, 1, mix=Munge(probability=0.5))
    assert not torch.equal(mixed.batch(0).features_btf, plain.batch(0).features_btf)
    assert torch.equal(mixed.batch(0).features_btf, mixed.batch(0).features_btf)
    assert mixed.batch(0).tokens_bu is None


def test_what_is_mixed_is_not_spoilt_as_well(tmp_path: Path) -> None:
    folder = shards(tmp_path / "audio", 2)
    with pytest.raises(ConfigError, match=r"mix, spoil: .*one of the two"):
        Stream([folder], 8.0, 1, mix=Munge(), spoil=Halves())


def test_audio_without_a_frame_is_left_out_by_name(tmp_path: Path) -> None:
    short, longer = utterance("short", 1), utterance("longer", 2)
    write_shards([replace(short, samples=short.samples[:60]), longer], tmp_path)
    stream = Stream([tmp_path], 20.0, 1, units=CharUnits())
    assert [item.entry.key for item in stream.items] == ["longer"]
    assert dict(stream.left_out.items()) == {f"{tmp_path}/short": "60 samples are less than one frame"}


def test_audio_without_a_frame_at_the_highest_speed_is_left_out_by_name(tmp_path: Path) -> None:
    short, longer = utterance("short", 1), utterance("longer", 2)
    write_shards([replace(short, samples=short.samples[:80]), longer], tmp_path)
    assert not Stream([tmp_path], 20.0, 1).left_out
    source = Stream([tmp_path], 20.0, 1, speeds=(1.0, 1.2))
    assert dict(source.left_out.items()) == {f"{tmp_path}/short": "80 samples are less than one frame"}


def test_what_is_left_out_anyway_needs_no_transcript(tmp_path: Path) -> None:
    long, short = utterance("long", 1), utterance("short", 2)
    write_shards([replace(long, samples=np.tile(long.samples, 9), text=None), short], tmp_path)
    source = Stream([tmp_path], 20.0, 1, units=CharUnits(), exclude_longer_s=5.0)
    assert [item.entry.key for item in source.items] == ["short"]
    assert "longer than 5.0 s" in dict(source.left_out.items())[f"{tmp_path}/long"]


def test_what_is_left_out_of_folders_of_one_name_is_all_named(tmp_path: Path) -> None:
    for parent, key in (("x", "same"), ("y", "same")):
        short = replace(utterance(key, 1), samples=utterance(key, 1).samples[:60])
        write_shards([short, utterance(f"{parent}-longer", 2)], tmp_path / parent / "labelled")
    folders = [tmp_path / parent / "labelled" for parent in ("x", "y")]
    source = Stream(folders, 20.0, 1, units=CharUnits())
    assert [name for name, _ in source.left_out.items()] == [f"{folder}/same" for folder in folders]
    assert Stream(folders[::-1], 20.0, 1, units=CharUnits()).fingerprint() != source.fingerprint()


def test_a_folder_named_twice_is_refused(labelled: Path) -> None:
    again = labelled.parent / "." / labelled.name
    with pytest.raises(ConfigError, match=r"labelled: an audio folder is given twice.*each folder once"):
        Stream([labelled, again], 8.0, 1, units=CharUnits())


def test_audio_without_transcript_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    write_shards([utterance("said", 1), replace(utterance("unsaid", 2), text=None)], tmp_path)
    with pytest.raises(
        ShardError, match=r"shard-000000\.tar:unsaid: an utterance of labelled audio has no transcript"
    ):
        Stream([tmp_path], 8.0, 1, units=CharUnits(), student=StudentSide(CharUnits(), 4))


def test_a_transcript_longer_than_its_audio_is_left_out_by_name(tmp_path: Path) -> None:
    """One second is 25 output frames at speed 1, and 21 at 1.2; "aa" takes three."""
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    texts = {"fits": "a" * 10 + "b", "tight": "ab" * 12, "not": "a" * 14, "silent": ""}
    write_shards([Utterance(key, sound, text) for key, text in texts.items()], tmp_path)
    settings: dict[str, Any] = {"units": CharUnits(), "student": StudentSide(CharUnits(), 4)}
    source = Stream([tmp_path], 8.0, 0, **settings)
    ((name, reason),) = source.left_out.items()
    assert name == f"{tmp_path}/not" and "its transcript needs 27 output frames, but there are 25" in reason
    fast = Stream([tmp_path], 8.0, 0, speeds=(1.0, 1.2), **settings)
    assert [item.entry.key for item in fast.items] == ["fits", "silent"]
