"""Which audio shards are labelled already, and what there is to do of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from kdasr.labelling.audio_source import local_copy
from kdasr.labelling.out_folder import why_not_done
from kdasr.manifest import read_manifest as read_audio_manifest
from kdasr.soft_labels import Header, label_file
from kdasr.storage import Place, is_url

#: Shards that are looked at together where they lie in a store.
_JOURNEYS = 16
_FIX = "Give another `--out`, or `--overwrite true` to replace these labels."
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
        file = label_file(out, shard.path.name)
        return shard.seconds, why_not_done(file, shard, expect, fix=_FIX, verify=verify, overwrite=overwrite)

    for audio, (shard_s, problem) in zip(shards, each(look, shards, out), strict=True):
        if problem is None:
            plan.done.append(audio)
            continue
        plan.todo.append(audio)
        seconds += shard_s
        if problem:
            plan.damaged[audio] = problem
    return Plan(plan.todo, plan.done, plan.damaged, seconds)


def each(look: Callable[[str], _T], shards: Sequence[str], out: Place) -> Iterator[_T]:
    """`look` at every shard; at many at once where each takes journeys to a store."""
    if not (is_url(out) or (shards and is_url(shards[0]))):
        yield from map(look, shards)
        return
    with ThreadPoolExecutor(_JOURNEYS) as pool:
        yield from pool.map(look, shards)
