"""The folder that labels go to: what of its content labels must never replace."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdasr.errors import ConfigError, LabelMismatchError, SoftLabelError
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
from kdasr.storage import Location, Place, is_url, locate, refuse_file


def refuse_audio(out: Place) -> None:
    """Raise ConfigError if `out` is a file, or holds audio shards: labels would replace their manifests."""
    if not is_url(out):
        refuse_file(Path(str(out)), "labels go into a folder")
    if any(name.endswith(".tar") for name in locate(out).names()):
        raise ConfigError(
            "labels cannot lie in a folder of audio shards", where=str(out), fix="Give another `out`."
        )


def write_labels(
    out: Place,
    shard: Shard,
    header: Header,
    items: Iterable[tuple[str, SoftLabels | Failure]],
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the labels of an audio shard to `out`; their manifest.

    Raises:
        LabelMismatchError: `out` holds labels with another configuration, or of other audio, in the place of
            these, and not `overwrite`.
    """
    file = label_file(out, shard.path.name)
    if not overwrite:
        _refuse_other_labels(file, header, shard)
    return write_label_shard(file, header, items, extra={"seconds": round(shard.seconds, 3)})


def _refuse_other_labels(file: Location, header: Header, shard: Shard) -> None:
    try:
        manifest = read_manifest(file)
    except LabelMismatchError:
        raise
    except SoftLabelError:  # none, or none that can be read
        return
    if manifest.get("config_hash") != header.config_hash:
        raise_difference(manifest, header, str(file), fix="Give another `out`.")
    try:
        labels = open_label_shard(file)
    except SoftLabelError:  # damaged: nothing is lost with them
        return
    refuse_other_audio(labels, shard, str(file), fix="Give another `out`.")


def refuse_other_audio(labels: LabelShard, shard: Shard, where: str, fix: str) -> None:
    """Raise LabelMismatchError if not one utterance of the audio shard is among those of the labels.

    Audio that was prepared anew keeps the keys of what is still in it; another corpus has its own.
    """
    keys = [entry.key for entry in shard.entries]
    if labels.keys and set(labels.keys).isdisjoint(keys):
        raise LabelMismatchError(
            "these are labels of other audio: they have no utterance of this audio shard",
            where=where,
            expected=f"utterances of {shard.path.name}, such as {', '.join(keys[:2])}",
            got=", ".join(labels.keys[:2]),
            fix=fix,
        )


def raise_difference(manifest: dict[str, Any], expect: Header, where: str, fix: str) -> None:
    """Raise LabelMismatchError with the fields in which labels differ from those expected, and no others."""
    header = manifest.get("header")
    found = _by_dotted_name(header) if isinstance(header, dict) else {}
    wanted = _by_dotted_name(json.loads(json.dumps(asdict(expect))))
    differing = [
        name
        for name in dict.fromkeys([*wanted, *found])
        if not name.startswith("audio_") and found.get(name) != wanted.get(name)
    ]
    raise LabelMismatchError(
        "this folder holds labels of another configuration: " + (", ".join(differing) or "config_hash"),
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
