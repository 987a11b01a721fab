"""Commits the labels of one audio shard: the file first, its manifest last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from kdasr.errors import SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels import container
from kdasr.soft_labels.container import FORMAT_VERSION, Failure
from kdasr.soft_labels.header import Header, parse_header
from kdasr.soft_labels.runs import concatenate
from kdasr.soft_labels.shard import MANIFEST_FORMAT, SUFFIX, LabelShard, manifest_of
from kdasr.storage import Location, Place, locate


def write_label_shard(
    path: Place | Location,
    header: Header,
    items: Iterable[tuple[str, SoftLabels | Failure]],
    *,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Commit the labels of one audio shard, then their manifest.

    Args:
        path: of the file to write; ends in `.kdsl`.
        items: each key with labels or the reason why there are none, in the audio shard's order.
        extra: more for the manifest (seconds of audio, …); must not depend on time or machine.

    Returns:
        The manifest as written.

    Raises:
        SoftLabelError: the path is not one of labels or would replace something else, a field of the
            header or an item is invalid, or the labels are not those of the header's codec.
        StorageError, OSError: it could not be stored; no file is left half-written.
    """
    items, file = list(items), locate(path)
    if not file.name.endswith(SUFFIX):
        raise SoftLabelError(
            "not a name for labels", where=str(file), expected=f"a name that ends in {SUFFIX}"
        )
    data = _built(header, items, str(file))
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


def _commit(file: Location, data: bytes, manifest: bytes) -> None:
    """Write the labels, then their manifest; files with the same bytes are not written again."""
    manifest_file = manifest_of(file)
    found = _bytes_at(manifest_file)
    if found is not None and _is_of_others(found):
        raise SoftLabelError(
            "the manifest of these labels would replace a file of something else",
            where=str(manifest_file),
            fix="Write labels to a folder of their own, not beside the audio.",
        )
    if found is not None and found != manifest:
        # An old manifest must never exist next to new labels, even briefly.
        manifest_file.remove()
    if _bytes_at(file) != data:
        file.commit(data)
    if found != manifest:
        manifest_file.commit(manifest, create_only=True)


def _is_of_others(manifest: bytes) -> bool:
    """Whether this is a JSON file of another kind, such as the manifest of an audio shard; a damaged file may
    be replaced."""
    try:
        content = json.loads(manifest)
    except (ValueError, RecursionError):
        return False
    return not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT


def _built(header: Header, items: list[tuple[str, SoftLabels | Failure]], where: str) -> bytes:
    """The content of the file, once every field and item has a type that can be read back."""
    content = asdict(header)
    try:
        container.canonical_json(content)
    except (TypeError, ValueError) as error:
        raise SoftLabelError(
            "the header cannot be written as JSON",
            where=where,
            expected="strings, Python's own numbers, and lists and dicts of these",
            got=error,
        ) from error
    try:
        layout = parse_header(content, where).make_codec().layout(header.vocab_size)
    except SoftLabelError as error:  # nothing is damaged yet, and no labels are there
        raise SoftLabelError(error.what, where=where, expected=error.expected, got=error.got) from error
    for key, item in items:
        if not isinstance(key, str) or not isinstance(item, (SoftLabels, Failure)):
            raise SoftLabelError(
                "not an utterance with its labels",
                where=where,
                expected="a key, and what `encode` of the codec returns, or a Failure",
                got=f"{key!r:.80} and {type(item).__name__}",
            )
    try:
        return container.build(content, layout, items)
    except SoftLabelError as error:
        raise error.told_of(where) from error


def _bytes_at(file: Location) -> bytes | None:
    try:
        return file.read_all()
    except FileNotFoundError:
        return None


def _check_reads_back(where: str, data: bytes, items: list[tuple[str, SoftLabels | Failure]]) -> None:
    """Raise SoftLabelError unless `data` decodes to exactly the labels in `items`."""

    def read(start: int, num_bytes: int) -> bytes:
        return data[start : start + num_bytes]

    shard = LabelShard(read, len(data), where)
    labels = {key: item for key, item in items if isinstance(item, SoftLabels)}
    # All at once: comparing each utterance would take longer than the rest of a commit.
    frames = {key: item.num_frames for key, item in labels.items()}
    if shard.lengths() == frames and _equal(shard.run(), concatenate(list(labels.values()))):
        return
    differing = [key for key, item in labels.items() if key not in shard or not _equal(shard.read(key), item)]
    raise SoftLabelError(
        f"the labels of {', '.join(differing[:3])} cannot be stored exactly",
        where=where,
        fix="Encode them with the codec that the header names.",
    )


def _equal(one: SoftLabels, other: SoftLabels) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("kept_counts", "ids", "log_probs", "tail_log_probs")
    )
