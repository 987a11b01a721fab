"""Soft-label shards on disk: commit one, open one, find the one beside an audio shard.

`DIR/shard-000007.kdsl` holds the labels of the audio shard `shard-000007.tar`, and
`DIR/shard-000007.json`, its manifest, is written last: a shard without manifest does not exist.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from kdasr.errors import DamagedLabelsError, LabelMismatchError, SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels import container
from kdasr.soft_labels.container import FORMAT_VERSION, Failure
from kdasr.soft_labels.header import Header, check_header, parse_header
from kdasr.soft_labels.runs import concatenate, cut, frame_starts
from kdasr.storage import Location, Place, locate

SUFFIX = ".kdsl"
MANIFEST_FORMAT = "kdasr-soft-labels"
_CACHED_BLOCKS = 64


def write_label_shard(
    path: Place | Location,
    header: Header,
    items: Iterable[tuple[str, SoftLabels | Failure]],
    *,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Commit the labels of one audio shard, then their manifest.

    Args:
        path: where to; ends in `.kdsl`.
        items: key with labels or the reason why there are none, in the audio shard's order.
        extra: more for the manifest (seconds of audio, …); must not depend on time or machine.

    Returns:
        The manifest as written.

    Raises:
        StorageError, OSError: it could not be stored; what was there before is still there.
    """
    items, file = list(items), locate(path)
    layout = header.make_codec().layout(header.vocab_size)
    data = container.build(asdict(header), layout, items)
    _check_reads_back(str(path), data, items)
    labels = [item for _, item in items if isinstance(item, SoftLabels)]
    manifest = {
        "format": MANIFEST_FORMAT,
        "version": FORMAT_VERSION,
        "file": file.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "config_hash": header.config_hash,
        "header": asdict(header),
        "utterances": len(items),
        "labelled": len(labels),
        "frames": sum(item.num_frames for item in labels),
        "failed": [[key, item.reason] for key, item in items if isinstance(item, Failure)],
        **(extra or {}),
    }
    _commit(file, data, json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
    return manifest


def open_label_shard(
    path: Place | Location, expect: Mapping[str, object] | None = None, *, verify: bool = False
) -> LabelShard:
    """Open a finished label shard.

    Args:
        expect: header fields and the values they must have, such as `units_hash`.
        verify: also hash the whole file.

    Raises:
        DamagedLabelsError: no manifest, or the file is not what the manifest says.
        LabelMismatchError: a field differs from `expect`; the message names it and the remedy.
    """
    file, manifest = locate(path), read_manifest(path)
    file_bytes = file.size()
    if file_bytes is None or file_bytes != manifest["bytes"]:
        raise DamagedLabelsError(
            "the file's size is not what its manifest says",
            where=str(file),
            expected=f"{manifest['bytes']} bytes",
            got="no file" if file_bytes is None else f"{file_bytes} bytes",
            fix="Run `kdasr label` again: it redoes damaged shards only.",
        )
    if verify and hashlib.sha256(file.read_all()).hexdigest() != manifest["sha256"]:
        raise DamagedLabelsError(
            "the file's sha256 is not what its manifest says",
            where=str(file),
            fix="Run `kdasr label` again: it redoes damaged shards only.",
        )
    shard = LabelShard(file.read_range, file_bytes, str(file))
    if asdict(shard.header) != manifest.get("header"):
        raise DamagedLabelsError(
            "file and manifest have different headers", where=str(file), fix="Label again."
        )
    check_header(shard.header, expect or {}, str(file))
    return shard


class LabelShard:
    """One label shard, read by key; opens lazily, keeps decoded blocks.

    Attributes:
        header: what the labels are.
        keys: all keys in the audio shard's order, failed ones included.
        failures: key to reason.
    """

    def __init__(self, read: container.ReadRange, file_bytes: int, where: str) -> None:
        self._read, self._where = read, where
        self.header = parse_header(container.read_header(read, where), where)
        self._layout = self.header.make_codec().layout(self.header.vocab_size)
        self._index = container.read_index(read, file_bytes, where)
        self.keys = self._index.keys
        self.failures = self._index.failures
        self._blocks: OrderedDict[int, tuple[SoftLabels, np.ndarray[Any, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._index.utterances

    def num_frames(self, key: str) -> int:
        """Label frames of an utterance that has labels."""
        return self._find(key)[1]

    def read(self, key: str) -> SoftLabels:
        """The labels of one utterance.

        Raises:
            SoftLabelError: there is no such key, or it was not labelled (the message says why).
            DamagedLabelsError: the block is damaged.
        """
        first, num_frames = self._find(key)
        last = first + num_frames
        number = bisect.bisect_right(self._index.first_frames, first) - 1
        parts = []
        while first < last:
            end = min(last, self._index.first_frames[number + 1])
            run, starts = self._block(number)
            offset = self._index.first_frames[number]
            parts.append(cut(run, starts, first - offset, end - offset))
            first, number = end, number + 1
        return concatenate(parts) if parts else _no_frames()

    def __iter__(self) -> Iterator[tuple[str, SoftLabels]]:
        for key in self._index.utterances:
            yield key, self.read(key)

    def _find(self, key: str) -> tuple[int, int]:
        if key in self.failures:
            raise SoftLabelError(f"utterance {key} was not labelled: {self.failures[key]}", where=self._where)
        if key not in self._index.utterances:
            raise SoftLabelError(
                f"no utterance {key}", where=self._where, fix="Label this audio shard again."
            )
        return self._index.utterances[key]

    def _block(self, number: int) -> tuple[SoftLabels, np.ndarray[Any, Any]]:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        run = container.read_block(self._read, self._index, number, self._layout, self._where)
        starts = frame_starts(run)
        self._blocks[number] = (run, starts)
        if len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return run, starts


class LabelFolder:
    """A folder of label shards beside a folder of audio shards.

    Args:
        folder: where `shard-*.kdsl` and their manifests are.
        expect: header fields and the values they must have in every shard.

    Raises:
        SoftLabelError: no such folder.
    """

    def __init__(self, folder: Place, *, expect: Mapping[str, object] | None = None) -> None:
        self.folder, self._expect = locate(folder), dict(expect or {})
        if not self.folder.is_folder():
            raise SoftLabelError(
                "no such folder of soft labels", where=str(folder), fix="Run `kdasr label` first."
            )

    def shard_for(self, audio_path: Place, audio_sha256: str) -> LabelShard:
        """The labels of an audio shard, checked to be of exactly that audio.

        Raises:
            DamagedLabelsError, LabelMismatchError: see `open_label_shard`.
        """
        file = label_file(self.folder, locate(audio_path).name)
        return open_label_shard(file, {**self._expect, "audio_sha256": audio_sha256})


def label_file(folder: Place | Location, audio_name: str) -> Location:
    """Where in `folder` the labels of the audio shard named `audio_name` are."""
    return locate(folder).child(audio_name.removesuffix(".tar") + SUFFIX)


def manifest_of(path: Place | Location) -> Location:
    """The manifest of a label shard."""
    file = locate(path)
    return file.sibling(file.name.removesuffix(SUFFIX) + ".json")


def read_manifest(path: Place | Location) -> dict[str, Any]:
    """The manifest of the label shard `path`.

    Raises:
        DamagedLabelsError: there is none, or it is none.
        LabelMismatchError: it is of another format version.
    """
    file = manifest_of(path)
    manifest = str(file)
    fix = "Run `kdasr label` (again): it does what is missing or damaged."
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
            "soft labels of another format version",
            where=manifest,
            expected=FORMAT_VERSION,
            got=content.get("version"),
            fix="Use the kdasr that wrote them, or label again.",
        )
    if not isinstance(content.get("bytes"), int) or not isinstance(content.get("sha256"), str):
        raise DamagedLabelsError("a manifest without size or sha256", where=manifest, fix=fix)
    return content


def _commit(file: Location, data: bytes, manifest: bytes) -> None:
    """Labels first, their manifest last; what is there already is left alone."""
    manifest_file = manifest_of(file)
    found = _bytes_at(manifest_file)
    if found is not None and found != manifest:
        # An old manifest must not vouch for new bytes, not even for a moment.
        manifest_file.remove()
    if _bytes_at(file) != data:
        file.commit(data)
    if found != manifest:
        manifest_file.commit(manifest, create_only=True)


def _bytes_at(file: Location) -> bytes | None:
    try:
        return file.read_all()
    except FileNotFoundError:
        return None


def _check_reads_back(where: str, data: bytes, items: list[tuple[str, SoftLabels | Failure]]) -> None:
    """What is about to be stored must decode to the very labels that were given."""

    def read(start: int, num_bytes: int) -> bytes:
        return data[start : start + num_bytes]

    shard = LabelShard(read, len(data), where)
    for key, item in items:
        if isinstance(item, SoftLabels):
            got = shard.read(key)
            same = all(
                np.array_equal(getattr(got, name), getattr(item, name))
                for name in ("kept_counts", "ids", "log_probs", "tail_log_probs")
            )
            if not same:
                raise SoftLabelError(
                    f"the labels of {key} do not survive storing",
                    where=where,
                    fix="Encode them with the codec that the header names.",
                )


def _no_frames() -> SoftLabels:
    nothing_int, nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return SoftLabels(nothing_int, nothing_int, nothing, nothing)
