"""Soft-label shards on disk: open one, find the one for an audio shard.

`DIR/shard-000007.kdsl` holds the labels of the audio shard `shard-000007.tar`, and
`DIR/shard-000007.json`, its manifest, is written last: a shard without manifest is not labelled.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np

from kdasr.errors import DamagedLabelsError, LabelMismatchError, SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels import container
from kdasr.soft_labels.container import FORMAT_VERSION
from kdasr.soft_labels.header import check_header, parse_header
from kdasr.soft_labels.runs import concatenate, cut, frame_starts
from kdasr.storage import Location, Place, locate

SUFFIX = ".kdsl"
MANIFEST_FORMAT = "kdasr-soft-labels"
# Labels, and the first entry of each frame (see `frame_starts`).
Block = tuple[SoftLabels, np.ndarray[Any, Any]]


def open_label_shard(
    path: Place | Location,
    expect: Mapping[str, object] | None = None,
    *,
    verify: bool = False,
    blocks: BlockCache | None = None,
) -> LabelShard:
    """Open a finished label shard.

    Args:
        expect: header fields and the values they must have, such as `teacher_hash`.
        verify: also hash the whole file.
        blocks: a cache of decoded blocks, which shards may share; None creates one for this shard.

    Raises:
        DamagedLabelsError: there is no manifest, or it does not match the file.
        LabelMismatchError: a field differs from `expect`; the message names it and the remedy.
    """
    file, manifest = locate(path), read_manifest(path)
    file_bytes = file.size()
    if file_bytes is None or file_bytes != manifest["bytes"]:
        raise DamagedLabelsError(
            "the file's size does not match its manifest",
            where=str(file),
            expected=f"{manifest['bytes']} bytes",
            got="no file" if file_bytes is None else f"{file_bytes} bytes",
            fix="Run `kdasr label` again: it redoes damaged shards only.",
        )
    if verify and hashlib.sha256(file.read_all()).hexdigest() != manifest["sha256"]:
        raise DamagedLabelsError(
            "the file's sha256 does not match its manifest",
            where=str(file),
            fix="Run `kdasr label` again: it redoes damaged shards only.",
        )
    shard = LabelShard(file.read_range, file_bytes, str(file), blocks)
    if asdict(shard.header) != manifest.get("header"):
        raise DamagedLabelsError(
            "file and manifest have different headers", where=str(file), fix="Label again."
        )
    check_header(shard.header, expect or {}, str(file))
    return shard


class LabelShard:
    """One label shard, read by key; blocks are decoded on demand and cached.

    Attributes:
        header: what the labels depend on.
        keys: all keys in the audio shard's order, including those without labels.
        failures: reasons by key, for utterances without labels.
    """

    def __init__(
        self, read: container.ReadRange, file_bytes: int, where: str, blocks: BlockCache | None = None
    ) -> None:
        self._read, self._where = read, where
        self.header = parse_header(container.read_header(read, where), where)
        self._layout = self.header.make_codec().layout(self.header.vocab_size)
        self._index = container.read_index(read, file_bytes, where)
        self.failures = self._index.failures
        self._blocks = BlockCache() if blocks is None else blocks

    def __len__(self) -> int:
        return len(self._index.starts) - 1

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    @property
    def keys(self) -> list[str]:
        return [key.decode() for key in self._index.keys.tolist()]

    def rows(self) -> dict[str, int]:
        """The row number of each utterance that has labels, in order. With many shards open, keep only rows
        and use `read_row`: `read` makes each shard keep a dictionary of all its keys."""
        return {key: row for row, key in enumerate(self.keys) if key not in self.failures}

    def forget_names(self) -> None:
        """Drop keys and failures, which take gigabytes for millions of utterances; from then on, labels can
        only be read by row number."""
        self.failures = {}
        self._index = replace(self._index, keys=np.array([], np.bytes_), failures={})

    def num_frames_of_row(self, row: int) -> int:
        """Number of label frames of an utterance, by its row number."""
        return int(self._index.starts[row + 1] - self._index.starts[row])

    def lengths(self) -> dict[str, int]:
        """Number of label frames of every utterance that has labels, in order."""
        return {key: self.num_frames_of_row(row) for key, row in self.rows().items()}

    def run(self) -> SoftLabels:
        """All frames of all utterances, in order."""
        return concatenate([self._block(number)[0] for number in range(len(self._index.blocks))])

    def read(self, key: str) -> SoftLabels:
        """The labels of one utterance.

        Raises:
            SoftLabelError: there is no such key, or it was not labelled (the message says why).
            DamagedLabelsError: the block is damaged.
        """
        return self.read_row(self._find(key))

    def read_row(self, row: int) -> SoftLabels:
        """The labels of one utterance that has labels, by its row number; see `rows`.

        Raises:
            DamagedLabelsError: the block is damaged.
        """
        first, last = self._index.starts[row : row + 2].tolist()
        number = bisect.bisect_right(self._index.first_frames, first) - 1
        parts = []
        while first < last:
            end = min(last, self._index.first_frames[number + 1])
            run, starts = self._block(number)
            offset = self._index.first_frames[number]
            parts.append(cut(run, starts, first - offset, end - offset))
            first, number = end, number + 1
        return concatenate(parts)

    def __iter__(self) -> Iterator[tuple[str, SoftLabels]]:
        for key, row in self.rows().items():
            yield key, self.read_row(row)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return self.rows()

    def _find(self, key: str) -> int:
        if key in self.failures:
            raise SoftLabelError(f"utterance {key} was not labelled: {self.failures[key]}", where=self._where)
        if key not in self._rows:
            raise SoftLabelError(
                f"there are no labels for utterance {key}",
                where=self._where,
                fix="Label this audio shard again.",
            )
        return self._rows[key]

    def _block(self, number: int) -> Block:
        def read() -> Block:
            run = container.read_block(self._read, self._index, number, self._layout, self._where)
            # What is read is a part of it: changed in place, it would change all later reads.
            for array in (run.kept_counts, run.ids, run.log_probs, run.tail_log_probs):
                array.flags.writeable = False
            return run, frame_starts(run)

        return self._blocks.get((self._where, number), read)


class BlockCache:
    """The most recently used decoded blocks of one or more shards. An epoch in random order reads every block
    of every shard, and the decoded blocks of a thousand hours take gigabytes, so not all are kept."""

    def __init__(self, max_blocks: int = 64) -> None:
        self._max_blocks = max_blocks
        self._kept: OrderedDict[tuple[str, int], Block] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: tuple[str, int], read: Callable[[], Block]) -> Block:
        """The block of this name; `read` is called if it is not cached."""
        # Taken out and put back: another thread may drop any block that is in the cache meanwhile.
        block = self._kept.pop(name, None)
        block = read() if block is None else block
        self._kept[name] = block
        if len(self._kept) > self._max_blocks:
            self._kept.popitem(last=False)
        return block


class LabelFolder:
    """The label shards for a folder of audio shards. All must be of one teacher and one configuration, which
    is not so after a relabelling was killed.

    Args:
        folder: where `shard-*.kdsl` and their manifests are.
        expect: header fields and the values they must have in every shard.

    Raises:
        SoftLabelError: there is no such folder.
    """

    def __init__(self, folder: Place, *, expect: Mapping[str, object] | None = None) -> None:
        self.folder, self._expect, self._blocks = locate(folder), dict(expect or {}), BlockCache()
        self._first: dict[str, str] = {}  # for each configuration, the first shard that has it
        if not self.folder.is_folder():
            raise SoftLabelError(
                "the folder of soft labels does not exist", where=str(folder), fix="Run `kdasr label` first."
            )

    def shard_for(self, audio_path: Place, audio_sha256: str) -> LabelShard:
        """The labels of an audio shard, checked to be of exactly that audio.

        Raises:
            DamagedLabelsError, LabelMismatchError: see `open_label_shard`; or a shard that was opened before
                has another configuration.
        """
        file = label_file(self.folder, locate(audio_path).name)
        expect = {**self._expect, "audio_sha256": audio_sha256}
        shard = open_label_shard(file, expect, blocks=self._blocks)
        first = self._first.setdefault(shard.header.config_hash, str(file))
        if len(self._first) > 1:
            others = [name for name in self._first.values() if name != first]
            raise LabelMismatchError(
                "the shards in this folder have labels of different teachers or settings",
                where=str(file),
                expected=f"labels like those of {others[0]}",
                fix="Label the folder again: `kdasr label … --overwrite true` redoes the shards that differ.",
            )
        return shard


def label_file(folder: Place | Location, audio_name: str) -> Location:
    """The location in `folder` of the labels of the audio shard named `audio_name`."""
    return locate(folder).child(audio_name.removesuffix(".tar") + SUFFIX)


def manifest_of(path: Place | Location) -> Location:
    """The manifest of a label shard."""
    file = locate(path)
    return file.sibling(file.name.removesuffix(SUFFIX) + ".json")


def read_manifest(path: Place | Location) -> dict[str, Any]:
    """The manifest of the label shard `path`.

    Raises:
        DamagedLabelsError: there is none, or it is damaged.
        LabelMismatchError: it has another format version.
    """
    file = manifest_of(path)
    manifest = str(file)
    fix = "Run `kdasr label` (again): it labels what is missing or damaged."
    try:
        content = json.loads(file.read_all())
    except FileNotFoundError as error:
        raise DamagedLabelsError("not labelled: there is no manifest", where=manifest, fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise DamagedLabelsError(f"damaged manifest: {error}", where=manifest, fix=fix) from error
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
        raise DamagedLabelsError("not a manifest of soft labels", where=manifest, fix=fix)
    if content.get("version") != FORMAT_VERSION:
        raise LabelMismatchError(
            "unsupported soft-label format version",
            where=manifest,
            expected=FORMAT_VERSION,
            got=content.get("version"),
            fix="Use the version of kdasr that wrote them, or label again.",
        )
    if not isinstance(content.get("bytes"), int) or not isinstance(content.get("sha256"), str):
        raise DamagedLabelsError("the manifest has no size or no sha256", where=manifest, fix=fix)
    return content
