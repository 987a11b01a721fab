"""Dev utterances that a training hears too are found, whatever they are called; others are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from data_prep import prepare
from kdasr.interfaces import Utterance
from kdasr.loader import Stream
from kdasr.manifest import Shard
from kdasr.shards import list_shards, read_metas, read_shard, write_shards
from kdasr.stages import overlap
from kdasr.stages.overlap import heard_in
from tests.speech import shards, utterance


def found(dev: Path, *training: Path) -> list[tuple[str, str]]:
    """The keys of the dev utterances that are in folders of training audio, and the keys there."""
    streams = [Stream(folders, batch_seconds=60.0, seed=1) for folders in ([dev], training)]
    pairs = heard_in(streams[0].items, streams[1].items)
    return [(here.entry.key, there.entry.key) for here, there in pairs]


def speech(seconds: float, seed: int) -> NDArray[np.float32]:
    """Noise as loud as speech is, now more and now less."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0.01, 0.2, int(4 * seconds)), 4_000)
    return (loudness * rng.normal(0.0, 1.0, len(loudness))).clip(-1, 1).astype(np.float32)


def recordings(folder: Path, *seeds: int, seconds: float = 45.0, rate_hz: int = 16_000) -> Path:
    """1.wav, 2.wav, … of noise by these seeds."""
    folder.mkdir()
    for number, seed in enumerate(seeds, 1):
        soundfile.write(folder / f"{number}.wav", speech(seconds * rate_hz / 16_000, seed), rate_hz)
    return folder


def cuts(corpus: Path, out: Path, *places: tuple[str, float, float]) -> Path:
    """A split dev of cuts: file, offset and seconds."""
    rows = [
        {"audio_filepath": name, "offset": offset, "duration": seconds, "text": "a b"}
        for name, offset, seconds in places
    ]
    (corpus / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare("manifest", corpus=corpus, out=out)
    return out / "dev"


def segments(corpus: Path, out: Path) -> Path:
    prepare("folder", corpus=corpus, out=out)
    return out / "unlabelled"


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


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_cuts_are_found_in_the_segments_of_their_recordings(rate_hz: int, tmp_path: Path) -> None:
    corpus = recordings(tmp_path / "corpus", 1, 2, rate_hz=rate_hz)
    dev = cuts(corpus, tmp_path / "shards", ("1.wav", 3.25, 4.0), ("2.wav", 30.125, 6.5))
    pairs = found(dev, segments(corpus, tmp_path / "shards"))
    assert [here.split("-")[0] for here, _ in pairs] == ["1", "2"]
    assert pairs[0][1].startswith("1-") and pairs[0][1].endswith("-0000")
    assert pairs[1][1].startswith("2-") and pairs[1][1][-5:] in ("-0001", "-0002")


def test_the_channels_of_a_recording_are_recordings_of_their_own(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    stereo_nc = np.stack([speech(45.0, 1), speech(45.0, 2)], axis=1)
    soundfile.write(corpus / "1.wav", stereo_nc, 16_000)
    rows = [
        {"audio_filepath": "1.wav", "offset": offset, "duration": 4.0, "text": "a b", "channel": channel}
        for offset, channel in ((3.0, 0), (20.0, 1))
    ]
    for name, row in zip(("dev", "train"), rows, strict=True):
        (corpus / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    prepare("manifest", corpus=corpus, out=tmp_path / "shards")
    prepare("folder", corpus=corpus, out=tmp_path / "shards", channels="each")
    dev, train, all_of_it = (tmp_path / "shards" / name for name in ("dev", "train", "unlabelled"))
    assert found(dev, train) == []
    ((here, there),) = found(dev, all_of_it)
    assert "-c0-0003000" in here and "-c0-0000" in there
    ((here, there),) = found(train, all_of_it)
    assert "-c1-0020000" in here and "-c1-0001" in there


def test_cuts_of_other_recordings_of_the_same_name_are_not_the_same(tmp_path: Path) -> None:
    corpus, others = recordings(tmp_path / "one", 1, 2), recordings(tmp_path / "two", 3, 4)
    dev = cuts(corpus, tmp_path / "shards", ("1.wav", 3.0, 4.0), ("2.wav", 30.0, 6.0))
    assert found(dev, segments(others, tmp_path / "shards")) == []


def test_each_shard_is_opened_once_and_overlapping_cuts_of_any_length_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = recordings(tmp_path / "corpus", 1)
    dev_places = [("1.wav", 0.5, 12.0), ("1.wav", 10.0, 0.5), ("1.wav", 20.0, 2.0), ("1.wav", 40.0, 3.0)]
    dev = cuts(corpus, tmp_path / "dev-shards", *dev_places)
    other = cuts(corpus, tmp_path / "shards", ("1.wav", 2.0, 5.0), ("1.wav", 10.1, 0.6), ("1.wav", 22.5, 9.0))
    opened: list[int] = []

    def counted(shard: Shard) -> Any:
        opened.append(len(shard.entries))
        return read_metas(shard)

    monkeypatch.setattr(overlap, "read_metas", counted)
    starts = [tuple(int(key.split("-")[2]) for key in pair) for pair in found(dev, other)]
    assert starts == [(500, 2_000), (10_000, 10_100)]
    assert opened == [4, 3]


def test_other_parts_of_a_recording_are_not_the_same_audio(tmp_path: Path) -> None:
    corpus = recordings(tmp_path / "corpus", 1)
    dev = cuts(corpus, tmp_path / "dev-shards", ("1.wav", 3.0, 4.0))
    other = cuts(corpus, tmp_path / "shards", ("1.wav", 6.8, 4.0), ("1.wav", 20.0, 4.0))
    assert found(dev, other) == []
    other = cuts(corpus, tmp_path / "more", ("1.wav", 4.9, 4.0), ("1.wav", 20.0, 4.0))
    assert [there.split("-", 2)[2] for _, there in found(dev, other)] == ["0004900-0008900"]
