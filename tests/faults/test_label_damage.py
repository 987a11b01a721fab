"""Damaged audio shards in a labelling job: named, never half-labelled, and done once they are whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdasr import stages
from kdasr.errors import ManifestError, ShardError, SoftLabelError
from kdasr.labelling import summary_text
from tests.faults.label_job import label_files, log_lines, run
from tests.faults.test_shards_damage import DAMAGES
from tests.labelling.tiny import TinySource


@pytest.fixture(scope="module")
def wanted(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("wanted")
    run(pristine, out)
    return label_files(out)


@pytest.fixture
def shards(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_labelled_once_it_is_whole(
    pristine: Path,
    shards: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    damage: Callable[[Path, bytearray], bytearray],
) -> None:
    path, out = shards / "shard-000000.tar", tmp_path / "labels"
    path.write_bytes(damage(path, bytearray(path.read_bytes())))
    summary = run(shards, out)
    assert list(summary["shards_failed"]) == [str(path)]
    assert "does not match its manifest" in summary["shards_failed"][str(path)]
    assert "shard failed: " + str(path) in summary_text(summary)
    # Of the damaged shard not even its good utterances: nobody knows which those are.
    assert label_files(out) == {name: data for name, data in wanted.items() if "000000" not in name}
    shutil.copy(pristine / path.name, path)
    again = run(shards, out)
    assert (again["shards_done_before"], again["shards_labelled"]) == (1, 1)
    assert label_files(out) == wanted


@pytest.mark.parametrize("damage", ["{", "", "[]", "another count"])
def test_a_shard_whose_manifest_is_damaged_is_named_and_the_others_are_labelled(
    pristine: Path,
    shards: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = shards / "shard-000000.json", tmp_path / "labels"
    if damage == "another count":
        damage = json.dumps({**json.loads(path.read_text()), "count": 99})
    path.write_text(damage)
    name, said = str(path.with_suffix(".tar")), f"ManifestError: {path}: the manifest is invalid"
    summary = run(shards, out)
    assert list(summary["shards_failed"]) == [name] and summary["shards_labelled"] == 1
    assert f"failed: {name}: {said}" in capsys.readouterr().err
    assert f"shard failed: {name}: {said}" in summary_text(summary)
    failed, labelled = sorted(log_lines(out), key=lambda line: str(line["event"]))
    assert (failed["event"], failed["audio"], labelled["event"]) == ("failed", name, "labelled")
    assert failed["reason"].startswith(said)
    assert label_files(out) == {name: data for name, data in wanted.items() if "000000" not in name}
    with pytest.raises(SoftLabelError, match=r"1 shard without labels.*shard-000000.*manifest"):
        stages.label(teacher=TinySource(), audio=str(shards), out=str(out))
    shutil.copy(pristine / path.name, path)
    assert run(shards, out)["shards_labelled"] == 1
    assert label_files(out) == wanted


def test_labels_of_a_shard_that_was_damaged_later_are_still_those_of_the_whole_one(
    shards: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    run(shards, tmp_path / "labels")
    path = shards / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-1000])
    summary = run(shards, tmp_path / "labels")
    assert summary["shards_done_before"] == 2
    assert label_files(tmp_path / "labels") == wanted


def test_the_half_shard_of_a_killed_writer_stops_the_job_by_name(shards: Path, tmp_path: Path) -> None:
    """A partial tar under its final name, as writers without a manifest leave it."""
    tar = shards / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    (shards / "shard-000001.json").unlink()
    with pytest.raises(ManifestError, match=r"shard-000001\.tar: the manifest is missing"):
        run(shards, tmp_path / "labels")
    assert not (tmp_path / "labels").exists()


def test_a_shard_that_vanished_stops_the_job_by_name(shards: Path, tmp_path: Path) -> None:
    (shards / "shard-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000000"):
        run(shards, tmp_path / "labels")
