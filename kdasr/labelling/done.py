"""Which audio shards are labelled already, and what there is to do of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from kdasr.errors import LabelMismatchError, SoftLabelError
from kdasr.labelling.audio_source import local_copy
from kdasr.labelling.out_folder import raise_difference, refuse_other_audio
from kdasr.manifest import Shard
from kdasr.manifest import read_manifest as read_audio_manifest
from kdasr.soft_labels import Header, LabelShard, label_file, open_label_shard, read_manifest
from kdasr.storage import Location, Place, is_url

#: Shards that are looked at together where they lie in a store.
_JOURNEYS = 16
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        todo: audio shards without usable labels.
        done: audio shards that are labelled already.
        damaged: why labels that exist must be made again, by audio shard.
        seconds: audio in `todo`.
    """

    todo: list[str]
    done: list[str]
    damaged: dict[str, str]
    seconds: float


def find_work(
    shards: Sequence[str], out: Place, expect: Header, *, verify: bool = False, overwrite: bool = False
) -> Plan:
    """Sort shards into done and to do.

    Done means: a manifest exists, it is of this configuration and this audio, and the file has the
    manifest's size (with `verify`: its sha256, and every utterance decodes).

    Raises:
        LabelMismatchError: labels of another configuration or of other audio, unless `overwrite`.
    """
    plan = Plan([], [], {}, 0.0)
    seconds = 0.0

    def look(audio: str) -> tuple[float, str | None]:
        with local_copy(audio, manifest_only=True) as path:
            shard = read_audio_manifest(path)
        return shard.seconds, _why_not_done(out, shard, expect, verify, overwrite)

    for audio, (shard_s, problem) in zip(shards, each(look, shards, out), strict=True):
        if problem is None:
            plan.done.append(audio)
            continue
        plan.todo.append(audio)
        seconds += shard_s
        if problem:
            plan.damaged[audio] = problem
    return Plan(plan.todo, plan.done, plan.damaged, seconds)


def _why_not_done(out: Place, shard: Shard, expect: Header, verify: bool, overwrite: bool) -> str | None:
    """None if done; "" if there are no labels; otherwise what is wrong with them."""
    file = label_file(out, shard.path.name)
    try:
        manifest = read_manifest(file)
    except LabelMismatchError as error:
        if overwrite:
            return str(error)
        raise
    except SoftLabelError as error:
        return "" if file.size() is None else str(error)
    fix = "Give another `--out`, or `--overwrite true` to replace these labels."
    if manifest.get("config_hash") != expect.config_hash:
        if overwrite:
            return "labelled with another configuration"
        raise_difference(manifest, expect, str(file), fix)
    try:
        labels = open_whole(file) if verify else open_label_shard(file)
    except SoftLabelError as error:
        return str(error)
    if labels.header.audio_sha256 == shard.sha256:
        return None
    if not overwrite:
        refuse_other_audio(labels, shard, str(file), fix)
    return "the audio is not what was labelled"


def open_whole(file: Location, expect: Mapping[str, object] | None = None) -> LabelShard:
    """Labels of which every byte was hashed and every label decoded."""
    labels = open_label_shard(file, expect, verify=True)
    for _ in labels:
        pass
    return labels


def each(look: Callable[[str], _T], shards: Sequence[str], out: Place) -> Iterator[_T]:
    """`look` at every shard; at many at once where each takes journeys to a store."""
    if not (is_url(out) or (shards and is_url(shards[0]))):
        yield from map(look, shards)
        return
    with ThreadPoolExecutor(_JOURNEYS) as pool:
        yield from pool.map(look, shards)
