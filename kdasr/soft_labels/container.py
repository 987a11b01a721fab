"""The file of one soft-label shard: a header, compressed blocks of frames, an index, a footer.

    magic, version, header size     16 bytes
    header                          JSON
    block 0, block 1, …             zstd frames (planes of `kdasr.soft_labels.planes`)
    index                           zstd frame of JSON: blocks and utterances
    footer                          56 bytes: position of the index, checksum, magic

All utterances of a shard form one run of frames, in the order of the audio shard. It is cut into
blocks of a fixed number of frames, so reading an utterance usually needs one or two. Specified in
docs/soft-labels.md. Everything read is validated like untrusted input.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from kdasr.beside import usable_cores
from kdasr.errors import DamagedLabelsError, LabelMismatchError, SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.manifest import KEY_PATTERN
from kdasr.soft_labels.planes import Layout
from kdasr.soft_labels.runs import concatenate, cut, frame_starts

FORMAT_VERSION = 1
MAGIC = b"KDASR-SL"
END_MAGIC = b"KDSL-END"
_START = struct.Struct("<8sII")
_FOOTER = struct.Struct("<QII32s8s")
_BLOCK_FRAMES = 8192
_MAX_BLOCK_FRAMES = 1 << 16
_MAX_RAW_BYTES = 1 << 24
_MAX_HEADER_BYTES = 1 << 20
_ZSTD_LEVEL = 15

#: Reads `num_bytes` from `start`: random access to a local or remote file.
ReadRange = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an utterance has no labels."""

    reason: str


@dataclass(frozen=True, slots=True)
class Index:
    """Positions of blocks and utterances in the file.

    Attributes:
        blocks: (offset, compressed bytes, frames, entries) of each block.
        first_frames: first frame of each block in the shard's run of frames, then the end of the run.
        keys: all keys in the order of the audio shard.
        starts: first frame of each utterance, then the end of the run; one without labels has no frames.
        failures: reasons by key, for utterances without labels.
    """

    blocks: list[tuple[int, int, int, int]]
    first_frames: list[int]
    keys: NDArray[np.bytes_]
    starts: NDArray[np.int64]
    failures: dict[str, str]


def build(header: dict[str, Any], layout: Layout, items: Iterable[tuple[str, SoftLabels | Failure]]) -> bytes:
    """The content of the whole file. The same header and items give the same bytes.

    Raises:
        SoftLabelError: a key is repeated or does not match the pattern, or the header or index is too large.
    """
    head = canonical_json(header)
    if len(head) > _MAX_HEADER_BYTES:
        raise SoftLabelError(
            "the header is too large",
            expected=f"at most {_MAX_HEADER_BYTES:,} bytes",
            got=f"{len(head):,}",
            fix="Put less into its settings, such as the hash of a long list.",
        )
    body = [_START.pack(MAGIC, FORMAT_VERSION, len(head)), head]
    rows, labels = _index_rows(items)
    cuts = list(_cut_blocks(labels, layout))
    # Nine tenths of the time of a commit, during which an accelerator waits for the next shard.
    with ThreadPoolExecutor(min(4, usable_cores())) as pool:
        packed = list(pool.map(lambda run: _compress(layout.pack(run)), cuts))
    body += packed
    blocks = [
        [len(one), run.num_frames, len(run.ids) - run.num_frames]
        for one, run in zip(packed, cuts, strict=True)
    ]
    index_raw = canonical_json({"blocks": blocks, "utterances": rows})
    if len(index_raw) > _MAX_RAW_BYTES:
        raise SoftLabelError(
            "there are too many utterances for one file of labels",
            expected=f"an index of at most {_MAX_RAW_BYTES:,} bytes",
            got=f"{len(index_raw):,} bytes for {len(rows):,} utterances",
            fix="Label smaller audio shards: prepare the audio with a lower --max_shard_utterances.",
        )
    index = _compress(index_raw)
    offset = sum(map(len, body))
    digest = _digest(body[0] + body[1], index)
    footer = _FOOTER.pack(offset, len(index), len(index_raw), digest, END_MAGIC)
    return b"".join([*body, index, footer])


def read_header(read: ReadRange, where: str) -> dict[str, Any]:
    """The header's JSON.

    Raises:
        DamagedLabelsError, LabelMismatchError: the file has another format, or another version of this one.
    """
    start = read(0, _START.size)
    if len(start) < _START.size or start[:8] != MAGIC:
        raise DamagedLabelsError("not a soft-label file", where=where, fix="Label this shard again.")
    _, version, header_bytes = _START.unpack(start)
    if version != FORMAT_VERSION:
        raise LabelMismatchError(
            "unsupported soft-label format version",
            where=where,
            expected=FORMAT_VERSION,
            got=version,
            fix="Use the version of kdasr that wrote them, or label again.",
        )
    if header_bytes > _MAX_HEADER_BYTES:
        raise DamagedLabelsError("the header is too long", where=where, got=header_bytes)
    header = _parse_json(read(_START.size, header_bytes), where)
    if not isinstance(header, dict):
        raise DamagedLabelsError("the header is not a JSON object", where=where)
    return header


def read_index(read: ReadRange, file_bytes: int, where: str) -> Index:
    """The index, with every number in it checked against the file's size."""
    if file_bytes < _START.size + _FOOTER.size:
        raise DamagedLabelsError("the file is cut short", where=where, got=f"{file_bytes} bytes")
    footer = read(file_bytes - _FOOTER.size, _FOOTER.size)
    if len(footer) != _FOOTER.size or footer[-8:] != END_MAGIC:
        raise DamagedLabelsError("the file is cut short: it has no footer", where=where, fix="Label again.")
    offset, index_bytes, raw_bytes, digest, _ = _FOOTER.unpack(footer)
    if offset + index_bytes + _FOOTER.size != file_bytes:
        raise DamagedLabelsError("the footer does not match the file", where=where)
    if raw_bytes > _MAX_RAW_BYTES:
        raise DamagedLabelsError(
            "the stated size of the index is too large",
            where=where,
            expected=f"at most {_MAX_RAW_BYTES:,} bytes",
            got=f"{raw_bytes:,}",
            fix="Label again, in smaller shards if this one has hundreds of thousands of utterances.",
        )
    index = read(offset, index_bytes)
    start = read(0, _START.size)
    header_bytes = _START.unpack(start)[2]
    first_block = _START.size + header_bytes
    if first_block > offset or _digest(read(0, first_block), index) != digest:
        raise DamagedLabelsError(
            "the header or the index does not match its checksum", where=where, fix="Label again."
        )
    content = _parse_json(_decompress(index, raw_bytes, where), where)
    try:
        return _check_index(content, first_block, offset)
    except (TypeError, KeyError, ValueError) as error:
        raise DamagedLabelsError(f"the index is malformed: {error}", where=where) from error


def read_block(read: ReadRange, index: Index, number: int, layout: Layout, where: str) -> SoftLabels:
    """The labels of one block."""
    offset, num_bytes, frames, entries = index.blocks[number]
    raw_bytes = layout.raw_bytes(frames, entries)
    if raw_bytes > _MAX_RAW_BYTES or frames > _MAX_BLOCK_FRAMES:
        raise DamagedLabelsError(
            f"the stated size of block {number} is too large", where=where, got=raw_bytes
        )
    try:
        return layout.unpack(_decompress(read(offset, num_bytes), raw_bytes, where), frames, entries)
    except SoftLabelError as error:
        raise DamagedLabelsError(
            f"block {number} is damaged: {error}", where=where, fix="Label again."
        ) from error


def canonical_json(value: Any) -> bytes:
    """JSON with the same bytes for equal values: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


# -- writing ------------------------------------------------------------------------------------


def _index_rows(
    items: Iterable[tuple[str, SoftLabels | Failure]],
) -> tuple[list[list[Any]], list[SoftLabels]]:
    rows: list[list[Any]] = []
    labels: list[SoftLabels] = []
    seen: set[str] = set()
    for key, item in items:
        if key in seen or not KEY_PATTERN.fullmatch(key):
            raise SoftLabelError("repeated or invalid key", expected=KEY_PATTERN.pattern, got=f"{key!r:.80}")
        seen.add(key)
        if isinstance(item, Failure):
            rows.append([key, item.reason])
        else:
            rows.append([key, item.num_frames])
            labels.append(item)
    return rows, labels


def _cut_blocks(labels: list[SoftLabels], layout: Layout) -> Iterable[SoftLabels]:
    """The run of all frames, cut into blocks."""
    if not labels:
        return
    run = concatenate(labels)
    most_per_frame = layout.raw_bytes(1, min(layout.max_kept, layout.vocab_size) - 1)
    block_frames = max(1, min(_BLOCK_FRAMES, _MAX_RAW_BYTES // most_per_frame))
    starts = frame_starts(run)
    for first in range(0, run.num_frames, block_frames):
        yield cut(run, starts, first, min(first + block_frames, run.num_frames))


def _compress(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True, write_content_size=True).compress(
        raw
    )


def _digest(start_and_header: bytes, index: bytes) -> bytes:
    return hashlib.sha256(start_and_header + index).digest()


# -- reading ------------------------------------------------------------------------------------


def _decompress(packed: bytes, raw_bytes: int, where: str) -> bytes:
    """The content of one zstd frame, which must have exactly `raw_bytes`."""
    try:
        # Check the size that the frame states before memory for it is allocated.
        if zstandard.frame_content_size(packed) != raw_bytes:
            raise DamagedLabelsError("a compressed part has the wrong size", where=where, expected=raw_bytes)
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedLabelsError(f"a compressed part is damaged: {error}", where=where) from error


def _parse_json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedLabelsError(f"damaged JSON: {error}", where=where, fix="Label again.") from error


def _check_index(content: Any, first_block: int, index_offset: int) -> Index:
    offset, blocks = first_block, []
    for num_bytes, frames, entries in content["blocks"]:
        blocks.append((offset, _count(num_bytes), _count(frames), _count(entries)))
        offset += num_bytes
    if offset != index_offset:
        raise ValueError("blocks do not fill the file")
    first_frames = [0, *itertools.accumulate(block[2] for block in blocks)]
    keys: list[str] = []
    starts, failures = [0], {}
    for key, value in content["utterances"]:
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(f"{key!r:.40} is not a valid key")
        keys.append(key)
        if isinstance(value, str):
            failures[key] = value
        starts.append(starts[-1] + (0 if isinstance(value, str) else _count(value)))
    if len(set(keys)) < len(keys):
        raise ValueError("a key is repeated")
    if starts[-1] != first_frames[-1]:
        raise ValueError("utterances and blocks hold different numbers of frames")
    return Index(blocks, first_frames, np.array(keys, np.bytes_), np.array(starts), failures)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError(f"not a count: {value!r:.40}")
    return value
