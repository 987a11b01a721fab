"""What is left to label: its shards, its hours and what is wrong with what there is."""

from __future__ import annotations

import errno
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest

from kdasr.errors import LabelMismatchError
from kdasr.labelling import Settings, done, label
from kdasr.labelling.done import each, find_work
from kdasr.labelling.settings import make_header
from kdasr.shards import open_shard
from tests.labelling.tiny import TinySource, make_audio

EXPECT = make_header(TinySource().load("cpu"), Settings(), "", "")


def note(monkeypatch: pytest.MonkeyPatch, store: Any, name: str, asked: list[tuple[str, str]]) -> None:
    """Have `asked` list the requests of a kind, by kind and path."""
    original = getattr(store, name)

    def request(self: Any, path: str, *rest: Any, **options: Any) -> Any:
        asked.append((name, path))
        return original(self, path, *rest, **options)

    monkeypatch.setattr(store, name, request)


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Four shards of two utterances, which are labelled."""
    paths = make_audio(tmp_path / "audio", 8, per_shard=2)
    label(teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels")
    return [str(path) for path in paths]


def test_what_is_left_is_counted_without_what_is_done(shards: list[str], tmp_path: Path) -> None:
    cut = tmp_path / "labels/shard-000001.kdsl"
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-3])
    for suffix in ("kdsl", "json"):
        (tmp_path / f"labels/shard-000003.{suffix}").unlink()
    plan = find_work(shards, tmp_path / "labels", EXPECT)
    assert (plan.done, plan.todo) == ([shards[0], shards[2]], [shards[1], shards[3]])
    # Labels that are not there are not damaged.
    assert plan.damaged == {shards[1]: f"the labels have {size - 3} bytes, but their manifest says {size}"}
    seconds = [open_shard(Path(shard)).seconds for shard in shards]
    assert plan.seconds == pytest.approx(seconds[1] + seconds[3])
    assert (plan.before.labelled, plan.before.seconds) == (4, pytest.approx(seconds[0] + seconds[2]))


def test_damage_that_leaves_the_size_is_found_by_verifying(shards: list[str], tmp_path: Path) -> None:
    file = tmp_path / "labels/shard-000002.kdsl"
    data = bytearray(file.read_bytes())
    data[20] ^= 1  # in its header
    file.write_bytes(data)
    assert find_work(shards, tmp_path / "labels", EXPECT).todo == []
    plan = find_work(shards, tmp_path / "labels", EXPECT, verify=True)
    assert plan.todo == [shards[2]] and "sha256" in plan.damaged[shards[2]]


@pytest.mark.parametrize("old", ['"failed"', '"labelled"', '"frames"', '"labelled": 2', '"utterances": 2'])
def test_labels_whose_manifest_miscounts_are_made_again(shards: list[str], tmp_path: Path, old: str) -> None:
    manifest = tmp_path / "labels/shard-000002.json"
    # One bit each: a letter of the name, or the number.
    new = old.replace(old[1], chr(ord(old[1]) ^ 1)) if old[-1] == '"' else old.replace("2", "3")
    manifest.write_text(manifest.read_text().replace(old, new))
    plan = find_work(shards, tmp_path / "labels", EXPECT)
    assert plan.todo == [shards[2]]
    assert plan.damaged == {shards[2]: "the counts in their manifest are damaged"}


def test_a_manifest_that_says_nothing_of_its_audio_is_not_believed(shards: list[str], tmp_path: Path) -> None:
    manifest = tmp_path / "labels/shard-000002.json"
    fields = json.loads(manifest.read_text())
    for header in (None, {}, {**fields["header"], "audio_sha256": "0" * 64}):
        manifest.write_text(json.dumps({**fields, "header": header}))
        plan = find_work(shards, tmp_path / "labels", EXPECT)
        assert plan.todo == [shards[2]] and "different headers" in plan.damaged[shards[2]]


def test_of_what_is_done_each_manifest_is_read_once_and_no_labels(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    for kind in ("audio", "labels"):
        for path in (tmp_path / kind).iterdir():
            memory.pipe_file(f"/done/{kind}/{path.name}", path.read_bytes())
    asked: list[tuple[str, str]] = []
    for name in ("cat_file", "info", "pipe_file"):
        note(monkeypatch, type(memory), name, asked)
    summary = label(teacher=TinySource(), audio="memory://done/audio", out="memory://done/labels")
    assert (summary["shards_done_before"], summary["labelled"]) == (4, 8)
    of_shards = Counter(one for one in asked if "/shard-" in one[1])
    first = ("cat_file", "/done/labels/shard-000000.json")
    assert of_shards.pop(first) == 2  # for its configuration, before all others
    names = [f"shard-00000{number}" for number in range(4)]
    read = {("cat_file", f"/done/{kind}/{name}.json") for kind in ("audio", "labels") for name in names}
    assert of_shards == Counter(read - {first} | {("info", f"/done/labels/{name}.kdsl") for name in names})
    # The jobs of an array do not all write the one object that they have in common.
    assert [path for name, path in asked if name == "pipe_file"] == []


def test_units_that_are_others_are_written_again(shards: list[str], tmp_path: Path) -> None:
    units = tmp_path / "labels/units.json"
    data = units.read_bytes()
    written = units.stat().st_ino
    label(teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels")
    assert units.stat().st_ino == written
    units.write_bytes(data[:-5])
    label(teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels")
    assert units.read_bytes() == data


def test_shards_of_a_folder_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the three others."""
    barrier = threading.Barrier(4)
    monkeypatch.setattr(done, "_AT_A_TIME", 4)

    def look(name: str) -> str:
        barrier.wait(timeout=10)
        return name.upper()

    assert list(each(look, list("abcdefgh"))) == list("ABCDEFGH")


def test_that_many_shards_are_looked_at_is_said_first(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for many, said in ((5, ""), (4, "checking 4 shards\n")):
        monkeypatch.setattr(done, "_MANY", many)
        label(teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels")
        assert capsys.readouterr().err == said


def test_another_teacher_is_refused_by_the_labels_of_other_jobs(tmp_path: Path) -> None:
    """Of its own shards none is labelled yet."""
    make_audio(tmp_path / "audio", 16, per_shard=2)
    out = tmp_path / "labels"

    def run(seed: int, number: int, count: int, **options: Any) -> int:
        teacher, audio = TinySource(seed), tmp_path / "audio"
        summary = label(
            teacher=teacher, audio=audio, out=out, shard_index=number, num_shards=count, **options
        )
        return int(summary["shards_labelled"])

    assert run(0, 1, 4) == 2
    # What was begun and not finished says nothing.
    (out / "shard-000000.kdsl").write_bytes(b"half")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for number, count in ((2, 4), (0, 3)):
        with pytest.raises(LabelMismatchError, match=r"a different configuration: teacher_hash") as caught:
            run(1, number, count)
        assert "shard-000001.kdsl" in str(caught.value) and "--overwrite true" in str(caught.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(0, 2, 4) == 2
    assert run(1, 3, 4, overwrite=True) == 2


def test_a_mount_that_is_gone_for_a_moment_makes_no_work(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, failing = Path.read_text, set(shards)

    def read(path: Path, *given: Any, **settings: Any) -> str:
        if (tar := str(path.with_suffix(".tar"))) in failing:
            failing.remove(tar)
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return original(path, *given, **settings)

    monkeypatch.setattr(Path, "read_text", read)
    plan = find_work(shards, tmp_path / "labels", EXPECT)
    assert not failing and plan.todo == [] and plan.done == shards
