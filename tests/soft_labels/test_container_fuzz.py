"""Label files from strangers: whatever the bytes, the only error is SoftLabelError; memory stays small."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kdasr.errors import DamagedLabelsError, SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels import Codec, Failure, Full, LabelShard, Sampled, TopK, TopP, container
from tests.soft_labels.posteriors import make_header, posteriors

CODECS: list[Codec] = [TopP(), TopP(step_nats=0.0), TopK(4), Full(), Sampled()]
VOCAB_SIZE = 30
MAX_PEAK_BYTES = 48 << 20
HEADER_START = 16


def build(codec: Codec) -> bytes:
    labels = {f"u{i}": codec.encode(posteriors(n, VOCAB_SIZE, i), f"u{i}") for i, n in enumerate((9, 30, 4))}
    header = vars_of(make_header(codec, VOCAB_SIZE))
    return container.build(header, codec.layout(VOCAB_SIZE), [*labels.items(), ("bad", Failure("silence"))])


def vars_of(header: Any) -> dict[str, Any]:
    return {name: getattr(header, name) for name in header.__slots__}


FILES = [build(codec) for codec in CODECS]


def read_everything(data: bytes) -> list[SoftLabels]:
    """All labels of a file in memory, checked as a loss would need them."""

    def read(start: int, num_bytes: int) -> bytes:
        return data[start : start + num_bytes]

    shard = LabelShard(read, len(data), "memory")
    found = [labels for _, labels in shard]
    for labels in found:
        assert int(labels.kept_counts.sum()) == len(labels.ids) == len(labels.log_probs)
        assert (
            labels.ids.size == 0
            or 0 <= int(labels.ids.min()) <= int(labels.ids.max()) < shard.header.vocab_size
        )
        assert not np.isnan(labels.log_probs).any()
    return found


def survives(data: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(SoftLabelError):
            read_everything(data)
        assert tracemalloc.get_traced_memory()[1] < MAX_PEAK_BYTES
    finally:
        tracemalloc.stop()


def reassembled(
    data: bytes, header: bytes | None = None, index: Any = None, blocks: bytes | None = None
) -> bytes:
    """A file with parts replaced and every checksum made right again: damage that only checks find."""
    offset, index_bytes, _, _, magic = container._FOOTER.unpack(data[-container._FOOTER.size :])
    header_bytes = struct.unpack("<I", data[12:16])[0]
    old_header = data[HEADER_START : HEADER_START + header_bytes]
    header = old_header if header is None else header
    body = data[HEADER_START + header_bytes : offset] if blocks is None else blocks
    packed = data[offset : offset + index_bytes]
    raw = zstandard.ZstdDecompressor().decompress(packed)
    if index is not None:
        raw = json.dumps(index).encode()
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(raw)
    start = data[:12] + struct.pack("<I", len(header)) + header
    digest = container._digest(start, packed)
    footer = container._FOOTER.pack(len(start) + len(body), len(packed), len(raw), digest, magic)
    return start + body + packed + footer


def index_of(data: bytes) -> Any:
    offset, index_bytes, *_ = container._FOOTER.unpack(data[-container._FOOTER.size :])
    return json.loads(zstandard.ZstdDecompressor().decompress(data[offset : offset + index_bytes]))


def test_undamaged_files_are_read() -> None:
    for data in FILES:
        assert [labels.num_frames for labels in read_everything(data)] == [9, 30, 4]
        assert [labels.num_frames for labels in read_everything(reassembled(data, index=index_of(data)))] == [
            9,
            30,
            4,
        ]


@settings(max_examples=300, deadline=None)
@given(
    which=st.integers(0, len(FILES) - 1),
    damage=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
)
def test_random_bytes_never_crash_the_reader(which: int, damage: list[tuple[float, int]]) -> None:
    data = bytearray(FILES[which])
    for place, value in damage:
        data[int(place * len(data))] = value
    survives(bytes(data))


@settings(max_examples=150, deadline=None)
@given(
    which=st.integers(0, len(FILES) - 1),
    start=st.floats(0, 1),
    stop=st.floats(0, 1),
    junk=st.binary(max_size=80),
)
def test_cut_and_spliced_files_never_crash_the_reader(
    which: int, start: float, stop: float, junk: bytes
) -> None:
    data = FILES[which]
    survives(data[: int(start * len(data))] + junk + data[int(stop * len(data)) :])


@settings(max_examples=150, deadline=None)
@given(which=st.integers(0, len(FILES) - 1), data=st.data())
def test_lying_planes_with_right_checksums_never_crash_the_reader(which: int, data: st.DataObject) -> None:
    """The damage is inside the compressed blocks, under a valid zstd checksum."""
    codec, file = CODECS[which], FILES[which]
    frames, entries = (sum(block[i] for block in index_of(file)["blocks"]) for i in (1, 2))
    raw_bytes = codec.layout(VOCAB_SIZE).raw_bytes(frames, entries)
    raw = data.draw(
        st.binary(min_size=raw_bytes, max_size=raw_bytes)
        if raw_bytes < 2000
        else st.just(b"\xff" * raw_bytes)
    )
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(raw)
    index = index_of(file)
    index["blocks"] = [[len(packed), frames, entries]]
    survives(reassembled(file, index=index, blocks=packed))


ODD = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.none(),
    st.booleans(),
    st.lists(st.integers()),
)


@settings(max_examples=200, deadline=None)
@given(
    which=st.integers(0, len(FILES) - 1),
    block=st.booleans(),
    row=st.integers(0, 3),
    column=st.integers(0, 2),
    odd=ODD,
)
def test_a_lying_index_never_crashes_the_reader(
    which: int, block: bool, row: int, column: int, odd: Any
) -> None:
    index = index_of(FILES[which])
    rows = index["blocks" if block else "utterances"]
    target = rows[row % len(rows)]
    target[column % len(target)] = odd
    survives(reassembled(FILES[which], index=index))


def test_a_file_that_ends_anywhere_is_damaged() -> None:
    for end in range(len(FILES[0])):
        with pytest.raises(DamagedLabelsError):
            read_everything(FILES[0][:end])


@pytest.mark.parametrize(
    ("part", "row", "column", "value", "message"),
    [
        ("utterances", 1, 1, 31, "different numbers of frames"),
        ("utterances", 2, 1, 3, "different numbers of frames"),
        ("utterances", 1, 0, "u0", "a key is repeated"),
        ("utterances", 1, 0, "../u1", "not a valid key"),
        ("blocks", 0, 0, 7, "blocks do not fill the file"),
        ("blocks", 0, 2, -1, "not a count"),
        ("blocks", 0, 2, True, "not a count"),
    ],
)
def test_an_index_that_contradicts_itself_is_damaged(
    part: str, row: int, column: int, value: Any, message: str
) -> None:
    index = index_of(FILES[0])
    index[part][row][column] = value
    with pytest.raises(DamagedLabelsError, match=message):
        read_everything(reassembled(FILES[0], index=index))


@settings(max_examples=200, deadline=None)
@given(
    which=st.integers(0, len(FILES) - 1), field=st.sampled_from(sorted(vars_of(make_header(TopP())))), odd=ODD
)
def test_a_lying_header_never_crashes_the_reader(which: int, field: str, odd: Any) -> None:
    header = vars_of(make_header(CODECS[which], VOCAB_SIZE))
    survives(reassembled(FILES[which], header=json.dumps({**header, field: odd}).encode()))


@settings(max_examples=100, deadline=None)
@given(params=st.dictionaries(st.sampled_from(["mass", "cap", "step_nats", "floor_nats"]), ODD))
def test_lying_codec_parameters_never_crash_the_reader(params: dict[str, Any]) -> None:
    header = {**vars_of(make_header(TopP(), VOCAB_SIZE)), "codec_params": params}
    survives(reassembled(FILES[0], header=json.dumps(header).encode()))


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_goes_off() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 30))
    index = index_of(FILES[0])
    frames = (1 << 30) // 3
    index["blocks"] = [[len(bomb), frames, 0]]
    index["utterances"] = [["u0", frames]]
    data = reassembled(FILES[0], index=index, blocks=bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedLabelsError, match="too large"):
            read_everything(data)
        assert tracemalloc.get_traced_memory()[1] < MAX_PEAK_BYTES
    finally:
        tracemalloc.stop()


def test_class_ids_and_counts_out_of_range_are_refused() -> None:
    layout = TopP(step_nats=0.0).layout(VOCAB_SIZE)
    labels = TopP(step_nats=0.0).encode(posteriors(20, VOCAB_SIZE))
    entries = len(labels.ids) - 20
    raw = bytearray(layout.pack(labels))
    too_many = bytes([200]) + bytes(raw[1:])
    with pytest.raises(DamagedLabelsError, match="too many classes"):
        layout.unpack(too_many, 20, entries)
    id_plane = 20 + 20 * 4 * 2
    for wrong in (0, VOCAB_SIZE, 255):
        raw[id_plane] = wrong
        with pytest.raises(DamagedLabelsError, match="class id"):
            layout.unpack(bytes(raw), 20, entries)
