"""kdasr.shards and kdasr.manifest: what is written is read back, and other tools can read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
import webdataset
from numpy.typing import NDArray

from kdasr.audio import decode
from kdasr.errors import AudioError, DamagedShardError, ManifestError, ShardError
from kdasr.interfaces import Utterance
from kdasr.labelling import verify_audio
from kdasr.manifest import manifest_path, manifest_text, read_manifest, sha256_of, shard_path
from kdasr.shards import (
    Placed,
    complete_shards,
    list_shards,
    open_shard,
    read_metas,
    read_shard,
    read_utterance,
    write_shards,
)


def utterance(key: str, num_samples: int = 4000, **more: str | None) -> Utterance:
    samples = np.random.default_rng(num_samples).normal(0, 0.1, num_samples)
    return Utterance(key, (np.rint(samples * 32768) / 32768).astype(np.float32), **more)


def utterances(count: int) -> list[Utterance]:
    return [utterance(f"u{index}", 4000 + index, text=f"it's {'abcdefgh'[index]}") for index in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five utterances in three shards."""
    write_shards(utterances(5), tmp_path, max_utterances=2, description="five")
    return tmp_path


def test_what_was_written_is_read_in_order(folder: Path) -> None:
    read = [one for path in list_shards(folder) for one in read_shard(path)]
    assert [one.key for one in read] == ["u0", "u1", "u2", "u3", "u4"]
    for one, original in zip(read, utterances(5), strict=True):
        np.testing.assert_array_equal(one.samples, original.samples)
        assert (one.text, one.speaker) == (original.text, None)


def test_any_utterance_can_be_read_by_its_place(folder: Path) -> None:
    shard = open_shard(folder / "shard-000001.tar")
    read = read_utterance(shard, shard.entries[1])
    assert read.key == "u3"
    np.testing.assert_array_equal(read.samples, utterances(5)[3].samples)


def test_text_and_speaker_come_back_and_no_text_stays_no_text(tmp_path: Path) -> None:
    write_shards([utterance("a", text="café", speaker="en-us+m3"), utterance("b")], tmp_path)
    first, second = read_shard(tmp_path / "shard-000000.tar")
    assert (first.text, first.speaker) == ("café", "en-us+m3")
    assert (second.text, second.speaker) == (None, None)
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        meta = json.loads(tar.extractfile("b.json").read())  # type: ignore[union-attr]
    assert meta == {"key": "b", "duration": 0.25, "num_samples": 4000, "sample_rate": 16000, "speaker": None}


def test_places_are_read_without_audio_and_are_none_where_nobody_said_them(tmp_path: Path) -> None:
    samples = utterance("x").samples
    whole, part = (
        Placed("b", samples, source="b é.wav"),
        Placed("c", samples, source="c.mp3", offset=0.0, channel=0),
    )
    (path,) = write_shards([utterance("a"), whole, part], tmp_path)
    places = [(meta.get("source"), meta.get("offset")) for meta in read_metas(open_shard(path))]
    assert places == [(None, None), ("b é.wav", None), ("c.mp3", 0.0)]
    assert [one.key for one in read_shard(path)] == ["a", "b", "c"]
    with tarfile.open(path) as tar:
        meta = json.loads(tar.extractfile("b.json").read())  # type: ignore[union-attr]
    assert meta["source"] == "b é.wav" and "offset" not in meta


def test_the_manifest_says_what_the_tar_holds(folder: Path) -> None:
    shards = [open_shard(path, verify=True) for path in list_shards(folder)]
    assert [shard.count for shard in shards] == [2, 2, 1]
    assert shards[0].seconds == 8001 / 16000
    assert shards[0].description == "five"
    for shard in shards:
        assert shard.sha256 == sha256_of(shard.path)
        data = shard.path.read_bytes()
        assert shard.bytes == len(data)
        with tarfile.open(shard.path) as tar:
            members = {member.name: member for member in tar}
        for entry in shard.entries:
            flac, meta = members[f"{entry.key}.flac"], members[f"{entry.key}.json"]
            assert (entry.flac_offset, entry.flac_bytes) == (flac.offset_data, flac.size)
            assert (entry.json_offset, entry.json_bytes) == (meta.offset_data, meta.size)
            samples = decode(data[entry.flac_offset : entry.flac_offset + entry.flac_bytes], entry.key)
            assert len(samples) == entry.num_samples


def test_a_manifest_survives_being_written_and_read(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    shard = read_manifest(path)
    assert manifest_path(path).read_text() == manifest_text(shard)
    assert json.loads(manifest_text(shard))["format"] == "kdasr-audio-shard"


def test_of_hours_in_few_bytes_only_a_minute_more_than_promised_is_decoded(tmp_path: Path) -> None:
    (path,) = write_shards([Utterance("u0", np.zeros(16_000 * 300, np.float32))], tmp_path)
    manifest = manifest_path(path).read_text()
    manifest_path(path).write_text(manifest.replace("4800000", "16000").replace("300.0", "1.0"))
    shard = open_shard(path, verify=True)
    with pytest.raises(
        DamagedShardError, match="expected u0 with 16000 samples; got at least 960000 samples"
    ):
        read_utterance(shard, shard.entries[0])


def test_webdataset_reads_the_shards(folder: Path) -> None:
    urls = [str(path) for path in list_shards(folder)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == ["u0", "u1", "u2", "u3", "u4"]
    assert json.loads(samples[2]["json"])["text"] == "it's c"
    np.testing.assert_array_equal(decode(samples[2]["flac"], "u2"), utterances(5)[2].samples)


def test_the_same_utterances_give_the_same_bytes(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    write_shards(iter(utterances(5)), other, max_utterances=2, description="five")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert len(names) == 6
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_a_shard_is_closed_by_seconds_too(tmp_path: Path) -> None:
    paths = write_shards((utterance(f"u{i}", 16_000) for i in range(5)), tmp_path, max_seconds=2.0)
    assert [open_shard(path).seconds for path in paths] == [2.0, 2.0, 1.0]


def test_at_most_one_shard_of_utterances_is_held(tmp_path: Path) -> None:
    alive: list[int] = []

    def source() -> Iterator[Utterance]:
        for index in range(6):
            done = len(list(tmp_path.glob("shard-*.json")))
            alive.append(index - 2 * done)
            yield utterance(f"u{index}")

    write_shards(source(), tmp_path, max_utterances=2)
    assert max(alive) <= 2


def test_long_keys_are_kept(tmp_path: Path) -> None:
    key = "k" * 200
    (path,) = write_shards([utterance(key)], tmp_path)
    assert [one.key for one in read_shard(path)] == [key]


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../up", "ä", "k" * 201, "a b", "a\n"])
def test_keys_that_could_mean_something_else_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ShardError, match="invalid key"):
        write_shards([utterance("fine"), utterance(key)], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_key_may_come_once(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"^a: two utterances have the same key"):
        write_shards([utterance("a"), utterance("b"), utterance("a")], tmp_path, max_utterances=1)


def test_a_key_of_a_shard_that_is_kept_may_not_come_again(tmp_path: Path) -> None:
    kept = [open_shard(path) for path in write_shards([utterance("a")], tmp_path)]
    with pytest.raises(ShardError, match=r"^a: two utterances have the same key"):
        write_shards([utterance("b"), utterance("a")], tmp_path, kept=kept)


def test_audio_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    silent = dataclasses.replace(utterance("a"), samples=np.zeros(0, np.float32))
    with pytest.raises(AudioError, match="^a: only finite, non-empty audio"):
        write_shards([silent], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda x: (x * 32_767).astype(np.int16),
            r"got int16 of shape \(\d+,\)\. Divide 16-bit samples by 32768",
        ),
        (lambda x: x * 32_767, r"not scaled; expected values in \[-1, 1\]"),
        (lambda x: np.stack([x, x], 1), r"got float32 of shape \(\d+, 2\)"),
        (lambda x: x[None], r"got float32 of shape \(1, \d+\)"),
    ],
)
def test_audio_of_another_scale_or_shape_is_refused(
    tmp_path: Path, change: Callable[[NDArray[np.float32]], NDArray[Any]], found: str
) -> None:
    """16-bit samples would be stored as full-scale noise."""
    first = utterance("a")
    with pytest.raises(AudioError, match=f"^a: .*{found}"):
        write_shards([dataclasses.replace(first, samples=change(first.samples))], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no utterances"):
        write_shards([], tmp_path)


def test_writing_the_same_again_changes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_shards(utterances(5), folder, max_utterances=2, description="five")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_content_is_never_mixed_in(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ShardError, match=r"shard-000000\.tar.*already holds a shard with different content"):
        write_shards([utterance("new")], folder)
    with pytest.raises(ShardError, match=r"shard-000001\.\w+: .*different content"):
        write_shards(utterances(2), folder, description="five")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_list_shards_wants_a_folder_with_shards(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no such folder"):
        list_shards(tmp_path / "absent")
    with pytest.raises(ShardError, match=r"holds no audio shards.*shard-000000\.tar"):
        list_shards(tmp_path)


def test_list_shards_misses_a_manifest_or_a_tar(folder: Path) -> None:
    manifest = (folder / "shard-000001.json").read_bytes()
    (folder / "shard-000001.json").unlink()
    with pytest.raises(ManifestError, match=r"shard-000001\.tar: the manifest is missing"):
        list_shards(folder)
    (folder / "shard-000001.json").write_bytes(manifest)
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(ManifestError, match=r"shard-000001\.json: the shard of this manifest is missing"):
        list_shards(folder)


def test_list_shards_misses_what_a_finished_preparation_does_not_name(folder: Path) -> None:
    named = [{"name": f"shard-00000{number}.tar"} for number in (0, 1)]
    (folder / "prepared.json").write_text(json.dumps({"shards": named}))
    with pytest.raises(ManifestError, match=r"shard-000002\.tar unknown"):
        list_shards(folder)


def test_shards_beyond_six_digits_are_shards(tmp_path: Path) -> None:
    numbers = (999_998, 999_999, 1_000_000, 1_000_001)
    for number in numbers:
        shard_path(tmp_path, number).touch()
        manifest_path(shard_path(tmp_path, number)).touch()
    assert list_shards(tmp_path) == [shard_path(tmp_path, number) for number in numbers]


def test_shards_with_names_that_are_no_numbers_are_refused(folder: Path) -> None:
    """As after two folders were copied into one: half of the audio would be left out without a word."""
    for number, name in ((1, "shard-other-000001"), (2, "shard-00002")):
        for kind in ("tar", "json"):
            (folder / f"shard-00000{number}.{kind}").rename(folder / f"{name}.{kind}")
    with pytest.raises(ShardError, match=r"six or more digits; .*shard-other-000001\.tar\. Rename") as told:
        list_shards(folder)
    assert "got shard-00002.tar, shard-other-000001.tar" in str(told.value)
    assert str(told.value) in verify_audio(folder)


def test_of_many_missing_shards_three_are_named(folder: Path) -> None:
    names = [f"shard-{number:06d}.tar" for number in range(100_000)]
    (folder / "prepared.json").write_text(json.dumps({"shards": [{"name": name} for name in names]}))
    several = "shard-000003.tar, shard-000004.tar, shard-000005.tar and 99,994 more missing"
    with pytest.raises(ManifestError, match=rf"not those that were prepared: {several}\. Copy all") as told:
        list_shards(folder)
    assert len(str(told.value)) < 500
    (folder / "prepared.json").write_text(json.dumps({"shards": [{"name": names[0]}]}))
    with pytest.raises(ManifestError, match=r"shard-000001\.tar, shard-000002\.tar unknown\."):
        list_shards(folder)


def test_of_many_gaps_three_are_named(tmp_path: Path) -> None:
    for number in range(10, 20):
        (tmp_path / f"shard-{number:06d}.json").touch()
    (gaps, *_) = verify_audio(tmp_path)
    assert gaps.endswith("missing shard-000000, shard-000001, shard-000002 and 7 more")


def test_a_shard_that_is_damaged_ends_those_that_are_complete(folder: Path) -> None:
    assert len(list(complete_shards(folder))) == 3
    damaged = folder / "shard-000001.tar"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert [shard.path.name for shard in complete_shards(folder)] == ["shard-000000.tar"]


def test_a_good_folder_has_no_problems(folder: Path) -> None:
    assert verify_audio(folder) == []


def test_verification_names_every_problem(folder: Path) -> None:
    (folder / "shard-000009.json").write_text("{}")
    (folder / ".shard-000003.json.1-a.tmp").write_bytes(b"")
    data = bytearray((folder / "shard-000001.tar").read_bytes())
    data[2000] ^= 1
    (folder / "shard-000001.tar").write_bytes(data)
    (folder / "shard-000004.tar").write_bytes((folder / "shard-000000.tar").read_bytes())
    (folder / "shard-000004.json").write_bytes((folder / "shard-000000.json").read_bytes())
    problems = "\n".join(verify_audio(folder))
    assert "shard-000003.json.1-a.tmp: left over" in problems
    assert "missing shard-000003" in problems
    assert "shard-000001.tar: the shard does not match its manifest" in problems
    assert "shard-000009.json: the manifest is invalid" in problems
    assert "the key u0 is also in shard-000000.tar" in problems
    assert "shard-000002" not in problems


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("shard-000001.tar", ["shard-000001.tar: the audio shard is missing"]),
        ("shard-000001.json", ["shard-000001.tar: the manifest is missing, so the shard may be unfinished"]),
        ("prepared.json", []),
    ],
)
def test_a_folder_in_a_store_has_the_same_problems(folder: Path, lost: str, said: list[str]) -> None:
    for name in ("prepared.json", "preparing.json", "shard-000005.json"):
        (folder / name).write_text('{"shards": [{"name": "shard-000004.tar"}]}')
    (folder / "shard-000002.tar").write_bytes(b"cut")
    (folder / lost).unlink()
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe_file(f"/same-problems-{lost}/{path.name}", path.read_bytes())
    problems = verify_audio(folder)
    url = f"memory://same-problems-{lost}"
    assert [problem.replace(url, str(folder)) for problem in verify_audio(url)] == problems
    told = [problem.removeprefix(f"{folder}").lstrip("/: ").partition(";")[0] for problem in problems]
    assert sorted(told) == sorted(
        [
            "the numbering has gaps",
            "the corpus is not completely prepared. Run the same `kdasr prepare` command again to finish it.",
            "shard-000002.tar: the shard does not match its manifest",
            "shard-000005.json: the manifest is invalid",
            *["prepared.json: the shards are not those that were prepared: shard-000004.tar missing"]
            * bool(said),
            *said,
        ]
    )


def test_verifying_nothing(tmp_path: Path) -> None:
    assert "no such folder" in verify_audio(tmp_path / "absent")[0]
    assert "holds no audio shards" in verify_audio(tmp_path)[0]


@pytest.mark.parametrize(
    ("strange", "found"),
    [
        ('"text": 5', "a `text` that is 5"),
        ('"text": "\\ud800"', "surrogates not allowed"),
        ('"speaker": {"a": 1}', "a `speaker` that is"),
        ('"offset": "x"', "a `offset` that is 'x'"),
        ('"channel": true', "a `channel` that is True"),
        # How deep is too deep, and the words for it, differ between versions of Python.
        (f'"more": {"[" * 100_000}', "(recursion|Stack overflow|Expecting value)"),
    ],
    ids=["text", "surrogate", "speaker", "offset", "channel", "deep"],
)
def test_metadata_of_another_kind_is_named(tmp_path: Path, strange: str, found: str) -> None:
    (path,) = write_shards([utterance("u0", text="one")], tmp_path)
    shard = open_shard(path)
    (entry,) = shard.entries
    data = path.read_bytes()
    flac = data[entry.flac_offset :][: entry.flac_bytes]
    text = f'{{"key": "u0", {strange}}}'.encode()
    whole = data[: entry.json_offset] + text
    theirs = dataclasses.replace(
        shard,
        entries=(dataclasses.replace(entry, json_bytes=len(text), crc32=zlib.crc32(text, zlib.crc32(flac))),),
        bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
    )
    path.write_bytes(whole)
    manifest_path(path).write_text(manifest_text(theirs))
    for read in (lambda: [*read_shard(path)], lambda: read_metas(open_shard(path))):
        with pytest.raises(DamagedShardError, match=f"u0 cannot be decoded; got .*{found}"):
            read()
