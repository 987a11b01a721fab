"""The folder that labels are written to: what it holds already, and what labels must never replace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdasr.errors import ConfigError, DamagedLabelsError, LabelMismatchError, SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.manifest import Shard
from kdasr.soft_labels import (
    Failure,
    Header,
    LabelShard,
    label_file,
    open_label_shard,
    read_manifest,
    write_label_shard,
)
from kdasr.soft_labels.shard import SUFFIX
from kdasr.storage import Location, Place, is_url, locate, refuse_file, remove_leftovers


def enter(out: Place) -> list[str]:
    """Check that labels may go into `out`, remove what killed writers left there, and list the names in it,
    sorted.

    Raises:
        ConfigError: it is a file, or holds audio shards, whose manifests labels would replace.
    """
    if not is_url(out):
        refuse_file(Path(str(out)), "labels go into a folder")
        remove_leftovers(Path(str(out)))
    names = locate(out).names()
    if any(name.endswith(".tar") for name in names):
        raise ConfigError(
            "labels cannot go into a folder of audio shards", where=str(out), fix="Choose another --out."
        )
    return names


def refuse_other_labels(out: Place, names: Iterable[str], expect: Header, *, fix: str) -> None:
    """Raise LabelMismatchError if the first labels among the `names` in `out` are of another configuration.

    Otherwise a job of an array would check only its own shards, none of which may have labels yet.
    """
    for name in names:
        if name.endswith(SUFFIX):
            file = locate(out).child(name)
            try:
                manifest = read_manifest(file)
            except DamagedLabelsError:  # unfinished: the job it belongs to labels it again
                continue
            if manifest.get("config_hash") != expect.config_hash:
                _raise_difference(manifest, expect, str(file), fix)
            return


def write_labels(
    out: Place,
    shard: Shard,
    header: Header,
    items: Iterable[tuple[str, SoftLabels | Failure]],
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the labels of an audio shard to `out` and return their manifest.

    Raises:
        LabelMismatchError: `out` holds labels of this name with another configuration or of other audio,
            and `overwrite` is not set.
    """
    file = label_file(out, shard.path.name)
    if not overwrite:
        labels_there(file, shard, header, fix="Choose another --out.")
    return write_label_shard(file, header, items, extra={"seconds": round(shard.seconds, 3)})


def labels_there(
    file: Location, shard: Shard, expect: Header, *, fix: str, verify: bool = False, overwrite: bool = False
) -> dict[str, Any] | str:
    """The manifest of the labels of an audio shard, or what is wrong with them; "" if there are none.

    The manifest is written last, so it is trusted if the file has the size it states; with `verify` the
    labels are read in full.

    Raises:
        LabelMismatchError: they are of another configuration or of other audio, unless `overwrite`.
    """
    try:
        manifest = read_manifest(file)
    except LabelMismatchError as error:
        if overwrite:
            return str(error)
        raise
    except SoftLabelError as error:
        return "" if file.size() is None else str(error)
    if manifest.get("config_hash") != expect.config_hash:
        if overwrite:
            return "labelled with a different configuration"
        _raise_difference(manifest, expect, str(file), fix)
    if not verify and _audio_of(manifest) == shard.sha256:
        file_bytes = file.size()
        return _counted(manifest) if file_bytes == manifest["bytes"] else _other_size(manifest, file_bytes)
    try:
        labels = open_whole(file) if verify else open_label_shard(file)
    except SoftLabelError as error:
        return str(error)
    if labels.header.audio_sha256 == shard.sha256:
        return _counted(manifest)
    if not overwrite:
        _refuse_other_audio(labels, shard, str(file), fix)
    return "the labels are of different audio"


def _counted(manifest: dict[str, Any]) -> dict[str, Any] | str:
    """The manifest of labels if it has its counts and they fit each other, else what is wrong."""
    labelled, failed, frames = (manifest.get(name) for name in ("labelled", "failed", "frames"))
    if type(labelled) is int and type(frames) is int and isinstance(failed, list):
        pairs = all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in failed)
        if pairs and labelled + len(failed) == manifest.get("utterances"):
            return manifest
    return "the counts in their manifest are damaged"


def _audio_of(manifest: Mapping[str, Any]) -> object:
    """The sha256 of the audio in the manifest of labels."""
    header = manifest.get("header")
    return header.get("audio_sha256") if isinstance(header, dict) else None


def _other_size(manifest: Mapping[str, Any], file_bytes: int | None) -> str:
    if file_bytes is None:
        return "the manifest is there, but its labels are missing"
    return f"the labels have {file_bytes} bytes, but their manifest says {manifest['bytes']}"


def open_whole(file: Location, expect: Mapping[str, object] | None = None) -> LabelShard:
    """Open labels, checking the hash of the file and decoding every label."""
    labels = open_label_shard(file, expect, verify=True)
    for _ in labels:
        pass
    return labels


def _refuse_other_audio(labels: LabelShard, shard: Shard, where: str, fix: str) -> None:
    """Raise LabelMismatchError if the labels share no utterance with the audio shard.

    Audio that was prepared again keeps the keys of remaining utterances; another corpus has other keys.
    """
    keys = [entry.key for entry in shard.entries]
    if labels.keys and set(labels.keys).isdisjoint(keys):
        raise LabelMismatchError(
            "these are labels of other audio: they have none of this audio shard's utterances",
            where=where,
            expected=f"utterances of {shard.path.name}, such as {', '.join(keys[:2])}",
            got=", ".join(labels.keys[:2]),
            fix=fix,
        )


def _raise_difference(manifest: dict[str, Any], expect: Header, where: str, fix: str) -> None:
    """Raise LabelMismatchError with the header fields that differ from the expected ones."""
    header = manifest.get("header")
    found = _by_dotted_name(header) if isinstance(header, dict) else {}
    wanted = _by_dotted_name(json.loads(json.dumps(asdict(expect))))
    differing = [
        name
        for name in dict.fromkeys([*wanted, *found])
        if not name.startswith("audio_") and found.get(name) != wanted.get(name)
    ]
    raise LabelMismatchError(
        "this folder holds labels with a different configuration: " + (", ".join(differing) or "config_hash"),
        where=where,
        expected=_values(wanted, differing),
        got=_values(found, differing),
        fix=fix,
    )


def _by_dotted_name(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= (
            _by_dotted_name(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def _values(fields: dict[str, Any], names: list[str]) -> str | None:
    return ", ".join(f"{name} {fields.get(name, 'not given')}" for name in names) or None
