"""Label shards: commit, read by key, refuse what does not belong or is damaged."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdasr.errors import DamagedLabelsError, LabelMismatchError, SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels import (
    Codec,
    Failure,
    Full,
    LabelFolder,
    Sampled,
    TopK,
    TopP,
    container,
    manifest_of,
    open_label_shard,
    pad_soft_labels,
    write_label_shard,
)
from kdasr.soft_labels.shard import BlockCache
from kdasr.storage import locate
from kdasr.storage.local import LocalLocation
from tests.soft_labels.posteriors import make_header, posteriors

LENGTHS = (40, 1, 130, 7)


def labels_of(codec: Codec, lengths: tuple[int, ...] = LENGTHS) -> dict[str, SoftLabels]:
    return {f"utt-{i}": codec.encode(posteriors(n, seed=i), f"utt-{i}") for i, n in enumerate(lengths)}


def write(folder: Path, codec: Codec | None = None, **header: Any) -> tuple[Path, dict[str, SoftLabels]]:
    codec = codec or TopP()
    labels = labels_of(codec)
    path = folder / "shard-000000.kdsl"
    items = [*labels.items(), ("broken", Failure("NaN in its posteriors"))]
    write_label_shard(path, make_header(codec, **header), items, extra={"seconds": 7.0})
    return path, labels


def assert_same(got: SoftLabels, wanted: SoftLabels) -> None:
    for name in ("kept_counts", "ids", "log_probs", "tail_log_probs"):
        assert np.array_equal(getattr(got, name), getattr(wanted, name)), name


@pytest.mark.parametrize(
    "codec", [TopP(), TopP(step_nats=0.0), TopK(6), Full(), Sampled()], ids=lambda c: c.name
)
def test_what_is_read_is_what_was_encoded_whatever_the_order(tmp_path: Path, codec: Codec) -> None:
    path, labels = write(tmp_path, codec)
    shard = open_label_shard(path, {"units_hash": "b" * 64}, verify=True)
    assert shard.keys == ["utt-0", "utt-1", "utt-2", "utt-3", "broken"]
    for key in reversed(labels):
        assert_same(shard.read(key), labels[key])
    assert shard.lengths() == dict(zip(labels, LENGTHS, strict=True))


def test_an_utterance_is_read_by_its_number_too(tmp_path: Path) -> None:
    codec = TopP()
    (tmp_path / "labels").mkdir()
    labels = labels_of(codec)
    items = [*labels.items()]
    items.insert(1, ("broken", Failure("NaN in its posteriors")))
    write_label_shard(tmp_path / "labels/shard-000000.kdsl", make_header(codec), items)
    shard = open_label_shard(tmp_path / "labels/shard-000000.kdsl")
    assert shard.keys == ["utt-0", "broken", "utt-1", "utt-2", "utt-3"] and len(shard) == 5
    assert shard.rows() == {"utt-0": 0, "utt-1": 2, "utt-2": 3, "utt-3": 4}
    for key, row in shard.rows().items():
        assert_same(shard.read_row(row), labels[key])
        assert shard.num_frames_of_row(row) == labels[key].num_frames
    assert "utt-1" in shard and "broken" not in shard and "other" not in shard
    assert shard.lengths() == dict(zip(labels, LENGTHS, strict=True))


def test_without_names_utterances_are_read_by_their_numbers(tmp_path: Path) -> None:
    path, labels = write(tmp_path)
    shard = open_label_shard(path)
    rows = shard.rows()
    shard.forget_names()
    assert (len(shard), shard.keys, shard.failures, shard.rows()) == (5, [], {}, {})
    for key, row in rows.items():
        assert_same(shard.read_row(row), labels[key])
        assert shard.num_frames_of_row(row) == labels[key].num_frames


def test_an_open_shard_takes_few_bytes_for_an_utterance(tmp_path: Path) -> None:
    """A training keeps all shards of its audio open."""
    frame = TopP().encode(posteriors(1, seed=0), "frame")
    path, count = tmp_path / "shard-000000.kdsl", 3_000
    write_label_shard(path, make_header(TopP()), [(f"1089-134686-{i:06d}", frame) for i in range(count)])
    tracemalloc.start()
    shard = open_label_shard(path)
    rows = shard.rows()
    assert shard.num_frames_of_row(rows["1089-134686-002999"]) == 1
    del rows
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / count < 60


def test_utterances_that_span_blocks_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_BLOCK_FRAMES", 16)
    path, labels = write(tmp_path)
    shard = open_label_shard(path)
    for key, wanted in labels.items():
        assert_same(shard.read(key), wanted)
    assert [key for key, _ in shard] == list(labels)


def test_reading_one_utterance_reads_a_small_part_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_BLOCK_FRAMES", 64)
    codec = TopP()
    labels = labels_of(codec, (60,) * 100)
    path = tmp_path / "shard-000000.kdsl"
    write_label_shard(path, make_header(codec), labels.items())
    data, bytes_read = path.read_bytes(), []

    def read(start: int, num_bytes: int) -> bytes:
        bytes_read.append(num_bytes)
        return data[start : start + num_bytes]

    from kdasr.soft_labels import LabelShard

    shard = LabelShard(read, len(data), str(path))
    bytes_read.clear()
    assert_same(shard.read("utt-50"), labels["utt-50"])
    assert sum(bytes_read) < len(data) / 20


def test_the_same_labels_give_the_same_bytes(tmp_path: Path) -> None:
    first, _ = write(tmp_path / "a")
    second, _ = write(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".json").read_bytes() == second.with_suffix(".json").read_bytes()


def test_settings_in_any_order_give_the_same_bytes() -> None:
    assert container.canonical_json({"b": 1, "a": {"d": 2, "c": 3}}) == b'{"a":{"c":3,"d":2},"b":1}'


def test_an_old_manifest_is_gone_before_new_labels_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write(tmp_path)

    def stop(self: LocalLocation, data: bytes, **_: bool) -> None:
        raise OSError("killed here")

    monkeypatch.setattr(LocalLocation, "commit", stop)
    with pytest.raises(OSError, match="killed here"):
        write(tmp_path, teacher_hash="e" * 64)
    assert path.exists() and not path.with_suffix(".json").exists()


def test_a_manifest_that_another_job_has_written_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store can refuse it: that it does is tested with stores."""
    commit, asked = LocalLocation.commit, {}

    def record(self: LocalLocation, data: bytes, *, create_only: bool = False) -> None:
        asked[self.name] = create_only
        commit(self, data)

    monkeypatch.setattr(LocalLocation, "commit", record)
    write(tmp_path)
    assert asked == {"shard-000000.kdsl": False, "shard-000000.json": True}


def test_the_manifest_counts_and_names_what_failed(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["labelled"] == 4 and manifest["utterances"] == 5
    assert manifest["frames"] == sum(LENGTHS)
    assert manifest["failed"] == [["broken", "NaN in its posteriors"]]
    assert manifest["bytes"] == path.stat().st_size
    assert manifest["seconds"] == 7.0


def test_reading_a_failed_utterance_says_why(tmp_path: Path) -> None:
    shard = open_label_shard(write(tmp_path)[0])
    assert shard.failures == {"broken": "NaN in its posteriors"}
    assert "broken" not in shard and "utt-0" in shard
    with pytest.raises(SoftLabelError, match="broken was not labelled: NaN in its posteriors"):
        shard.read("broken")
    with pytest.raises(SoftLabelError, match="no labels for utterance utt-9"):
        shard.read("utt-9")


@pytest.mark.parametrize(
    ("field", "wanted", "advice"),
    [
        ("teacher_hash", "e" * 64, "another teacher"),
        ("audio_sha256", "e" * 64, "prepared again after it was labelled: label it again"),
        ("audio_sha256", "e" * 64, "labels of another folder: name the one that was labelled"),
        ("codec", "full", "Label again"),
    ],
)
def test_labels_of_something_else_are_refused_by_name_with_advice(
    tmp_path: Path, field: str, wanted: object, advice: str
) -> None:
    path, _ = write(tmp_path)
    with pytest.raises(LabelMismatchError, match=field) as caught:
        open_label_shard(path, {field: wanted})
    assert advice in str(caught.value)
    assert str(wanted) in str(caught.value)
    assert str(path) in str(caught.value)


def test_labels_of_a_newer_format_are_refused(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    manifest = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(LabelMismatchError, match="format version"):
        open_label_shard(path)
    path.with_suffix(".json").write_text(json.dumps(manifest))
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(LabelMismatchError, match="format version"):
        open_label_shard(path)


def test_a_shard_without_manifest_does_not_exist(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(DamagedLabelsError, match="kdasr label"):
        open_label_shard(path)


@pytest.mark.parametrize(
    "manifest", ["", "[]", '{"format": "kdasr-soft-labels"}', "[" * 100_000, '{"format": 1}']
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, manifest: str) -> None:
    path, _ = write(tmp_path)
    path.with_suffix(".json").write_text(manifest)
    with pytest.raises(SoftLabelError):
        open_label_shard(path)


def test_truncated_files_and_flipped_bits_are_found(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    whole = path.read_bytes()
    for other in (whole[:-1], whole + b"more"):
        path.write_bytes(other)
        with pytest.raises(DamagedLabelsError, match="size does not match its manifest"):
            open_label_shard(path)
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DamagedLabelsError, match="sha256"):
            open_label_shard(path, verify=True)
        with pytest.raises(SoftLabelError):
            for _ in open_label_shard(path):
                pass


@pytest.mark.parametrize(("old", "new"), [(b'"top_p"', b'"tnp_p"'), (b'"cap":', b'"cqp":')])
def test_a_header_whose_codec_is_unknown_is_named(tmp_path: Path, old: bytes, new: bytes) -> None:
    path, _ = write(tmp_path)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(SoftLabelError, match=rf"^{path}: .*codec.*Label again"):
        open_label_shard(path)


def test_a_manifest_of_another_header_is_refused(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["header"]["teacher_hash"] = "e" * 64
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedLabelsError, match="different headers"):
        open_label_shard(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    path.unlink()
    with pytest.raises(DamagedLabelsError, match="no file"):
        open_label_shard(path)


def test_keys_that_are_no_keys_or_come_twice_are_refused(tmp_path: Path) -> None:
    labels = TopP().encode(posteriors(3))
    for items in ([("../up", labels)], [("a", labels), ("a", labels)], [("", labels)]):
        with pytest.raises(SoftLabelError, match="repeated or invalid key"):
            write_label_shard(tmp_path / "shard-000000.kdsl", make_header(TopP()), items)
    assert list(tmp_path.iterdir()) == []


def test_more_utterances_than_an_index_holds_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, labels = write(tmp_path)
    items = [(f"{key}-{n}", one) for key, one in labels.items() for n in range(40)]
    monkeypatch.setattr(container, "_MAX_RAW_BYTES", 2_000)
    too_many = (
        r"b.kdsl: there are too many utterances.*2,000 bytes.*for 160 utt.*a lower --max_shard_utterances"
    )
    with pytest.raises(SoftLabelError, match=too_many) as caught:
        write_label_shard(tmp_path / "b.kdsl", make_header(TopP()), items)
    assert not isinstance(caught.value, DamagedLabelsError) and not (tmp_path / "b.kdsl").exists()
    monkeypatch.setattr(container, "_MAX_RAW_BYTES", 20)
    with pytest.raises(DamagedLabelsError, match="size of the index is too large.*in smaller shards"):
        open_label_shard(path)


def test_a_header_that_could_not_be_read_is_not_stored(tmp_path: Path) -> None:
    header = make_header(TopP(), settings={"words": ["word"] * 200_000})
    with pytest.raises(
        SoftLabelError, match="a.kdsl: the header is too large.*1,048,576.*the hash of a long"
    ):
        write_label_shard(tmp_path / "a.kdsl", header, [("a", Failure("silence"))])
    assert list(tmp_path.iterdir()) == []


def test_labels_of_another_codec_than_the_header_says_are_not_stored(tmp_path: Path) -> None:
    labels = TopP(step_nats=0.05).encode(posteriors(30))
    with pytest.raises(SoftLabelError, match="cannot be stored exactly"):
        write_label_shard(tmp_path / "shard-000000.kdsl", make_header(TopP(step_nats=0.25)), [("a", labels)])


@pytest.mark.parametrize(
    ("counts", "ids"), [([2, 2], [0, 1, 2, 0]), ([3, 0], [0, 1, 2]), ([0, 3], [0, 1, 2])]
)
def test_frames_that_do_not_begin_with_blank_are_not_stored(
    tmp_path: Path, counts: list[int], ids: list[int]
) -> None:
    half, nothing = np.full(len(ids), np.log(0.5), np.float32), np.full(2, -np.inf, np.float32)
    labels = SoftLabels(np.array(counts), np.array(ids), half, nothing)
    for codec in (TopP(), Full()):
        with pytest.raises(SoftLabelError, match="every frame must keep blank, as its first class"):
            write_label_shard(tmp_path / "a.kdsl", make_header(codec), [("a", labels)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("beside", [b'{"format": "kdasr-audio-shard"}', b'["a list of mine"]'])
def test_labels_replace_no_file_of_something_else(tmp_path: Path, beside: bytes) -> None:
    """Beside audio, their manifest would have the name of the audio's."""
    codec = TopP()
    item = [("a", codec.encode(posteriors(5)))]
    (tmp_path / "shard-000000.json").write_bytes(beside)
    (tmp_path / "shard-000000.tar").write_bytes(b"audio")
    with pytest.raises(
        SoftLabelError, match=r"shard-000000\.json: .* would replace a file of something else"
    ):
        write_label_shard(tmp_path / "shard-000000.kdsl", make_header(codec), item)
    with pytest.raises(SoftLabelError, match=r"shard-000000\.tar: not a name for labels"):
        write_label_shard(tmp_path / "shard-000000.tar", make_header(codec), item)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"shard-000000.json": beside, "shard-000000.tar": b"audio"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": np.int64(30)}, "cannot be written as JSON; .* got Object of type int64"),
        ({"settings": {"x": torch.zeros(1)}}, "cannot be written as JSON; .* got Object of type Tensor"),
        ({"subsampling": 4.0}, "header field subsampling has the wrong type"),
        ({"subsampling": 0}, "out of range; expected 1 or more, and 0 or more; got 0 and 10.0"),
        ({"frame_shift_ms": -10.0}, "out of range; .* got 4 and -10.0"),
    ],
)
def test_a_header_that_cannot_be_read_back_is_not_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    codec = TopP()
    with pytest.raises(SoftLabelError, match=rf"a\.kdsl: .*{message}") as caught:
        header = make_header(codec, **{"vocab_size": 30, **change})
        write_label_shard(tmp_path / "a.kdsl", header, [("a", codec.encode(posteriors(5)))])
    assert not isinstance(caught.value, DamagedLabelsError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("item", [("a", posteriors(5)), ("a", "silence"), (1, TopP().encode(posteriors(5)))])
def test_an_item_that_is_no_key_with_labels_is_named(tmp_path: Path, item: Any) -> None:
    with pytest.raises(
        SoftLabelError, match=rf"not an utterance .*; got {item[0]!r} and {type(item[1]).__name__}"
    ):
        write_label_shard(tmp_path / "a.kdsl", make_header(TopP()), [item])


def test_a_folder_gives_the_labels_of_an_audio_shard_and_checks_the_audio(tmp_path: Path) -> None:
    write(tmp_path)
    folder = LabelFolder(tmp_path, expect={"subsampling": 4})
    shard = folder.shard_for(Path("elsewhere/shard-000000.tar"), "d" * 64)
    assert len(shard) == 5
    with pytest.raises(LabelMismatchError, match="audio_sha256"):
        folder.shard_for(Path("shard-000000.tar"), "0" * 64)
    with pytest.raises(LabelMismatchError, match="subsampling"):
        LabelFolder(tmp_path, expect={"subsampling": 8}).shard_for(Path("shard-000000.tar"), "d" * 64)
    with pytest.raises(SoftLabelError, match="kdasr label"):
        LabelFolder(tmp_path / "nothing")


def test_a_folder_of_two_teachers_is_refused(tmp_path: Path) -> None:
    """As a relabelling leaves it that was killed between two shards."""
    write(tmp_path)
    items = list(labels_of(TopP()).items())
    other = make_header(TopP(), audio_file="shard-000001.tar", teacher_hash="e" * 64)
    write_label_shard(tmp_path / "shard-000001.kdsl", other, items)
    folder = LabelFolder(tmp_path)
    folder.shard_for("shard-000000.tar", "d" * 64)
    with pytest.raises(
        LabelMismatchError, match=r"shard-000001\.kdsl.*different teachers or settings.*shard-000000\.kdsl"
    ):
        folder.shard_for("shard-000001.tar", "d" * 64)


def test_decoded_blocks_are_bounded_for_a_whole_folder() -> None:
    cache, read = BlockCache(max_blocks=2), []

    def ask(shard: str, number: int) -> None:
        def make() -> Any:
            read.append((shard, number))
            return shard, number

        found: Any = cache.get((shard, number), make)
        assert found == (shard, number)
        assert len(cache) <= 2

    for shard, number in (("a", 0), ("b", 0), ("a", 0), ("b", 1), ("a", 0), ("b", 0)):
        ask(shard, number)
    assert read == [("a", 0), ("b", 0), ("b", 1), ("b", 0)], "the longest unused goes first"


def test_threads_may_share_a_cache_that_is_too_small_for_them() -> None:
    cache, wrong = BlockCache(max_blocks=1), []

    def work(thread: int) -> None:
        for number in range(30_000):
            name = ("a", (thread + number) % 3)
            try:
                found: Any = cache.get(name, lambda name=name: name)  # type: ignore[misc]
                assert found == name
            except (KeyError, AssertionError) as error:
                wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


def test_what_was_read_cannot_be_changed_for_later_reads(tmp_path: Path) -> None:
    path, labels = write(tmp_path)
    shard = open_label_shard(path)
    one = shard.read("utt-1")
    for array in (one.kept_counts, one.ids, one.log_probs, one.tail_log_probs):
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    assert_same(shard.read("utt-1"), labels["utt-1"])


def test_the_shards_of_a_folder_share_their_blocks(tmp_path: Path) -> None:
    _, labels = write(tmp_path)
    folder = LabelFolder(tmp_path)
    one, two = (folder.shard_for(Path("shard-000000.tar"), "d" * 64) for _ in range(2))
    assert one._blocks is two._blocks
    assert_same(one.read("utt-1"), labels["utt-1"])
    kept = len(one._blocks)
    assert_same(two.read("utt-1"), labels["utt-1"])
    assert len(two._blocks) == kept > 0


def test_the_configuration_hash_ignores_the_audio_and_nothing_else() -> None:
    header = make_header(TopP())
    assert dataclasses.replace(header, audio_sha256="0" * 64).config_hash == header.config_hash
    for change in ({"teacher_hash": "0"}, {"codec_params": TopP(cap=8).params}, {"settings": {"a": 1}}):
        assert dataclasses.replace(header, **change).config_hash != header.config_hash


def test_a_shard_in_which_everything_failed_is_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard-000000.kdsl"
    write_label_shard(path, make_header(TopP()), [("a", Failure("silence")), ("b", Failure("noise"))])
    shard = open_label_shard(path, verify=True)
    assert shard.failures == {"a": "silence", "b": "noise"}
    assert list(shard) == []


def test_labels_lie_in_a_store_of_objects_too() -> None:
    labels = labels_of(TopP())
    place = locate("memory://labels-test/shard-000003.kdsl")
    write_label_shard(place, make_header(TopP()), labels.items())
    assert manifest_of(place).name == "shard-000003.json"
    shard = LabelFolder("memory://labels-test").shard_for(Path("shard-000003.tar"), "d" * 64)
    for key, wanted in labels.items():
        assert_same(shard.read(key), wanted)


def test_padding_puts_every_entry_in_its_place() -> None:
    first = TopK(3).encode(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log())
    second = TopP(0.9, 2, 0.0).encode(torch.tensor([[0.95, 0.03, 0.01, 0.01], [0.3, 0.1, 0.4, 0.2]]).log())
    batch = pad_soft_labels([first, second])
    assert batch.lengths_b.tolist() == [1, 2]
    assert batch.ids_btk.tolist() == [[[0, 1, 2], [0, 0, 0]], [[0, 0, 0], [0, 2, 0]]]
    probs = batch.log_probs_btk.exp()
    assert probs[0].tolist() == [pytest.approx([0.5, 0.3, 0.15]), [0, 0, 0]]
    assert probs[1].tolist() == [pytest.approx([0.95, 0, 0]), pytest.approx([0.3, 0.4, 0])]
    tail = batch.tail_log_probs_bt.exp().tolist()
    assert tail == [pytest.approx([0.05, 0]), pytest.approx([0.05, 0.3])]


def test_padding_agrees_with_a_plain_loop() -> None:
    items = list(labels_of(TopP()).values())
    batch = pad_soft_labels(items)
    for row, item in enumerate(items):
        start = 0
        for t, count in enumerate(item.kept_counts):
            assert batch.ids_btk[row, t, :count].tolist() == item.ids[start : start + count].tolist()
            assert (
                batch.log_probs_btk[row, t, :count].tolist() == item.log_probs[start : start + count].tolist()
            )
            assert torch.isneginf(batch.log_probs_btk[row, t, count:]).all()
            start += int(count)


def test_no_utterances_are_no_batch() -> None:
    with pytest.raises(SoftLabelError, match="at least one utterance"):
        pad_soft_labels([])
