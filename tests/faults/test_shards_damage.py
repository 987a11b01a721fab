"""Damaged tars, wrong manifests, killed writers, full disks: found, named, and never half-trusted."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdasr.errors import DamagedShardError, ManifestError, ShardError
from kdasr.labelling import verify_audio
from kdasr.shards import (
    left_out_by_prepare,
    list_shards,
    open_shard,
    read_shard,
    read_texts,
    read_utterance,
    write_shards,
)
from kdasr.storage import local, places
from tests.faults import shard_victim

BLOCK = tarfile.BLOCKSIZE


@pytest.fixture
def shard_path(pristine: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    shutil.copytree(pristine, folder)
    return folder / "shard-000000.tar"


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def cut_at_member(path: Path, data: bytearray) -> bytearray:
    return data[: members(path)["utt-1.flac"].offset]


def cut_in_header(path: Path, data: bytearray) -> bytearray:
    return data[: members(path)["utt-1.flac"].offset + 100]


def cut_between_flac_and_json(path: Path, data: bytearray) -> bytearray:
    return data[: members(path)["utt-1.json"].offset]


def cut_in_flac(path: Path, data: bytearray) -> bytearray:
    return data[: members(path)["utt-1.flac"].offset_data + 1000]


def cut_off_end_marker(path: Path, data: bytearray) -> bytearray:
    return data[:-BLOCK]


def flip_header_bit(path: Path, data: bytearray) -> bytearray:
    data[members(path)["utt-1.flac"].offset + 3] ^= 0x10
    return data


def flip_audio_bit(path: Path, data: bytearray) -> bytearray:
    data[members(path)["utt-1.flac"].offset_data + 2000] ^= 0x01
    return data


def flip_text_bit(path: Path, data: bytearray) -> bytearray:
    data[data.index(b"word b") + 5] ^= 0x01
    return data


def zero_block(path: Path, data: bytearray) -> bytearray:
    start = members(path)["utt-1.flac"].offset
    data[start : start + BLOCK] = bytes(BLOCK)
    return data


def zero_audio(path: Path, data: bytearray) -> bytearray:
    start = members(path)["utt-1.flac"].offset_data + BLOCK
    data[start : start + BLOCK] = bytes(BLOCK)
    return data


def nothing_left(path: Path, data: bytearray) -> bytearray:
    return bytearray()


def appended(path: Path, data: bytearray) -> bytearray:
    return data + bytes(BLOCK)


def other_shard(path: Path, data: bytearray) -> bytearray:
    return bytearray(path.with_name("shard-000001.tar").read_bytes())


DAMAGES: list[Callable[[Path, bytearray], bytearray]] = [
    *(cut_at_member, cut_in_header, cut_between_flac_and_json, cut_in_flac, cut_off_end_marker),
    *(flip_header_bit, flip_audio_bit, flip_text_bit, zero_block, zero_audio),
    *(nothing_left, appended, other_shard),
]
# What a lazy reader cannot see, and need not: it goes by the manifest, never by tar headers.
OUTSIDE_THE_MEMBERS = (flip_header_bit, zero_block)


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_passes_verification(shard_path: Path, damage: Callable[..., bytearray]) -> None:
    shard_path.write_bytes(damage(shard_path, bytearray(shard_path.read_bytes())))
    with pytest.raises(DamagedShardError, match=r"shard-000000\.tar: .*copy or prepare it again"):
        open_shard(shard_path, verify=True)
    with pytest.raises(DamagedShardError):
        next(read_shard(shard_path))
    assert any("shard-000000.tar" in problem for problem in verify_audio(shard_path.parent))


@pytest.mark.parametrize("damage", DAMAGES)
def test_lazy_reading_gives_the_right_utterances_or_an_error(
    shard_path: Path, damage: Callable[..., bytearray]
) -> None:
    wanted = list(read_shard(shard_path))
    shard_path.write_bytes(damage(shard_path, bytearray(shard_path.read_bytes())))

    def read_lazily() -> None:
        shard = open_shard(shard_path)
        read = [read_utterance(shard, entry) for entry in shard.entries]
        assert [one.text for one in read] == [one.text for one in wanted]
        assert all((one.samples == other.samples).all() for one, other in zip(read, wanted, strict=True))

    if damage in OUTSIDE_THE_MEMBERS:
        read_lazily()
    else:
        with pytest.raises(DamagedShardError, match=r"shard-000000\.tar"):
            read_lazily()


def test_a_tar_that_vanishes_after_opening_is_named(shard_path: Path) -> None:
    shard = open_shard(shard_path)
    shard_path.unlink()
    with pytest.raises(DamagedShardError, match=r"shard-000000\.tar: the audio shard cannot be read"):
        read_utterance(shard, shard.entries[0])
    with pytest.raises(DamagedShardError, match=r"shard-000000\.tar: the audio shard is missing"):
        open_shard(shard_path)


def broken_opens(monkeypatch: pytest.MonkeyPatch, suffix: str, number: int, times: int) -> None:
    """Let files with this suffix fail to open so many times, from the third time on."""
    original, count = Path.open, itertools.count()

    def opened(path: Path, *args: Any, **settings: Any) -> Any:
        if path.suffix == suffix and 2 <= next(count) < 2 + times:
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *args, **settings)

    monkeypatch.setattr(Path, "open", opened)


READS: list[Callable[[Path], list[Any]]] = [
    lambda path: [u.text for s in [open_shard(path)] for u in [read_utterance(s, e) for e in s.entries]],
    lambda path: [u.text for u in read_shard(path)],
    lambda path: [text for _ in range(3) for text in read_texts(open_shard(path))],
    lambda path: [shard.sha256 for _ in range(3) for shard in [open_shard(path, verify=True)]],
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("suffix", [".tar", ".json"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_mount_that_fails_for_a_moment_does_no_harm(
    shard_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], list[Any]],
    suffix: str,
    number: int,
) -> None:
    monkeypatch.setattr(places, "_FIRST_PAUSE_S", 0.0)
    wanted = read(shard_path)
    broken_opens(monkeypatch, suffix, number, times=2)
    assert read(shard_path) == wanted and len(wanted) >= 3


def test_a_mount_that_stays_away_is_no_damage(shard_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PATIENCE_S", 0.01)
    shard = open_shard(shard_path)
    wanted = "the audio shard cannot be read; got .*{}.*The shard may be intact: check the disk or its mount"
    for suffix, number in ((".tar", errno.ESTALE), (".json", errno.EIO), (".tar", errno.EACCES)):
        with monkeypatch.context() as patched:
            broken_opens(patched, suffix, number, times=10**6)
            with pytest.raises(ShardError, match=wanted.format(os.strerror(number))) as told:
                for entry in shard.entries:
                    open_shard(shard_path, verify=True)
                    read_utterance(shard, entry)
        assert type(told.value) is ShardError and str(told.value).startswith(f"{shard_path}: ")
        assert isinstance(told.value.__cause__, OSError)  # by which labelling tells it from an utterance's


def test_the_manifest_of_another_shard_is_found(shard_path: Path) -> None:
    other = shard_path.with_name("shard-000001.json")
    shutil.copy(other, shard_path.with_suffix(".json"))
    with pytest.raises(DamagedShardError, match="does not match its manifest"):
        open_shard(shard_path, verify=True)


def edit(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: value for name, value in {**fields, **changes}.items() if value != "gone"})
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something"}, "expected kdasr-audio-shard version 1; got something version 1"),
        ({"version": 2}, "got kdasr-audio-shard version 2"),
        ({"count": 4}, "expected 4 utterances; got 3"),
        ({"sha256": "gone"}, "sha256"),
        ({"utterances": "many"}, "utterances"),
        ({"utterances": [["a", 1, 2]], "count": 1}, "ShardEntry"),
        ({"utterances": [["a", 1, -2, 3, 4, 5, 6]], "count": 1}, "whole numbers"),
        ({"utterances": [["a", 1, 2, 3.5, 4, 5, 6]], "count": 1}, "whole numbers"),
        ({"utterances": [["../a", 1, 2, 3, 4, 5, 6]], "count": 1}, r"\.\./a"),
        ({"utterances": [["a", 1, 2, 3, 4, 10**9, 6]], "count": 1}, "members within"),
        ({"utterances": [["a", 1, 2, 3, 4, 5, 6]] * 2, "count": 2}, "a key twice"),
        ({"utterances": [["a", 1 << 63, 2, 3, 4, 5, 6]], "count": 1}, "whole numbers"),
        ({"seconds": 10**400}, "int too large"),
        ({"seconds": float("nan")}, "which its utterances have together; got nan s"),
        ({"count": float("inf")}, "cannot convert float infinity"),
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused(shard_path: Path, changes: Any, message: str) -> None:
    edit(shard_path.with_suffix(".json"), **changes)
    with pytest.raises(ManifestError, match=rf"shard-000000\.json: the manifest is invalid.*{message}"):
        open_shard(shard_path)


def test_a_number_of_samples_that_would_leave_an_utterance_out_is_refused(shard_path: Path) -> None:
    manifest = shard_path.with_suffix(".json")
    fields = json.loads(manifest.read_text())
    fields["utterances"][1][1] ^= 1 << 20  # now it seems to last more than a minute
    manifest.write_text(json.dumps(fields))
    with pytest.raises(ManifestError, match=r"shard-000000\.json: the manifest is invalid.*together"):
        open_shard(shard_path)


@pytest.mark.parametrize(
    ("column", "message"), [(0, "metadata of"), (2, "crc32"), (5, "crc32"), (6, "crc32")]
)
def test_verification_finds_a_damaged_row_of_a_manifest(shard_path: Path, column: int, message: str) -> None:
    manifest = shard_path.with_suffix(".json")
    fields = json.loads(manifest.read_text())
    row = fields["utterances"][1]
    row[column] = row[column][:-1] + "x" if column == 0 else row[column] ^ 1
    manifest.write_text(json.dumps(fields))
    (problem,) = verify_audio(shard_path.parent)
    assert problem.startswith(f"{shard_path}: the shard does not match its manifest") and message in problem


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00\x01", "[" * 200_000])
def test_a_manifest_that_is_no_manifest_is_refused(shard_path: Path, text: str) -> None:
    shard_path.with_suffix(".json").write_text(text)
    with pytest.raises(ManifestError, match=r"shard-000000\.json: the manifest is invalid"):
        open_shard(shard_path)


@pytest.mark.parametrize("where", ["in_tar", "before_manifest"])
def test_a_killed_writer_leaves_no_trusted_half_and_can_go_on(tmp_path: Path, where: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.shard_victim"])
    victim = context.Process(target=shard_victim.main, args=(tmp_path / "out", where))
    victim.start()
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL

    out = tmp_path / "out"
    assert (out / "shard-000001.tar").exists() == (where == "before_manifest")
    assert not (out / "shard-000001.json").exists()
    assert [one.key for one in read_shard(out / "shard-000000.tar")] == ["utt-0", "utt-1"]
    with pytest.raises(ManifestError):
        open_shard(out / "shard-000001.tar")
    assert verify_audio(out) != []

    shard_victim.main(out, "nowhere")
    shard_victim.main(tmp_path / "undisturbed", "nowhere")
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "undisturbed").iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
    assert verify_audio(out) == []


def test_a_full_disk_leaves_nothing_under_a_final_name(tmp_path: Path) -> None:
    # The device /dev/full answers every write with "no space left".
    (tmp_path / "shard-000001.tar.tmp").symlink_to("/dev/full")
    with pytest.raises(
        ShardError, match=r"shard-000001\.tar: .*cannot be written.*No space left.*free some space"
    ):
        write_shards(shard_victim.utterances(), tmp_path, max_utterances=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-000000.json", "shard-000000.tar"]
    assert len(write_shards(shard_victim.utterances(), tmp_path, max_utterances=2)) == 3
    assert verify_audio(tmp_path) == []


def test_a_disk_that_stores_other_bytes_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync = os.fsync

    def rot(descriptor: int) -> None:
        real_fsync(descriptor)
        for path in tmp_path.glob("*.tar.tmp"):
            data = bytearray(path.read_bytes())
            data[3000] ^= 1
            path.write_bytes(data)

    monkeypatch.setattr(os, "fsync", rot)
    with pytest.raises(DamagedShardError, match=r"shard-000000\.tar"):
        write_shards(shard_victim.utterances(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_or_incomplete_preparation_is_not_listed(shard_path: Path) -> None:
    folder = shard_path.parent
    (folder / "preparing.json").write_text("{}")
    with pytest.raises(ShardError, match="not completely prepared"):
        list_shards(folder)
    (folder / "preparing.json").unlink()
    record = {"shards": [{"name": f"shard-{number:06d}.tar"} for number in range(3)]}
    (folder / "prepared.json").write_text(json.dumps(record))
    with pytest.raises(ManifestError, match=r"prepared\.json: .*shard-000002\.tar missing"):
        list_shards(folder)
    assert any("shard-000002.tar missing" in problem for problem in verify_audio(folder))


@pytest.mark.parametrize(
    "record", ['{"dropped": 1, "cgunt": 2}', '{"dropped": "1", "count": 2}', "[]", "", "\x00", "[" * 200_000]
)
def test_a_damaged_record_of_what_was_left_out_is_named(shard_path: Path, record: str) -> None:
    file = shard_path.with_name("prepared.json")
    file.write_text('{"dropped": 1, "count": 2}')
    assert left_out_by_prepare([shard_path.parent]) == (1, 3)
    file.write_text(record)
    with pytest.raises(ManifestError, match=r"prepared\.json: the record of `kdasr prepare` cannot be read"):
        left_out_by_prepare([shard_path.parent])
