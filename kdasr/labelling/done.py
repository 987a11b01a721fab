"""Which audio shards are labelled already, and which still have to be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from kdasr.errors import ShardError
from kdasr.labelling.audio_source import local_copy
from kdasr.labelling.out_folder import labels_there
from kdasr.labelling.progress import Totals
from kdasr.labelling.settings import ShardResult, labelled_seconds
from kdasr.manifest import read_manifest as read_audio_manifest
from kdasr.reasons import counted
from kdasr.soft_labels import Header, label_file
from kdasr.storage import Place

#: Shards checked concurrently: each takes several round trips to an object store or a file server.
_JOURNEYS = 16
#: Shards whose results are held in memory before they are added up.
_AT_A_TIME = 1000
#: From this many shards on, a message says that they are being checked.
_MANY = 1000
FIX = "Choose another `--out`, or use `--overwrite true` to replace these labels."
_T = TypeVar("_T")


@dataclass
class Plan:
    """The work of a job.

    Attributes:
        todo: audio shards without usable labels.
        done: audio shards that are labelled already.
        damaged: why existing labels must be made again, by audio shard.
        seconds: audio in `todo`.
        before: sums over the labels of `done`, without processing times and `heard_seconds`, which are
            not stored.
    """

    todo: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    before: Totals = field(default_factory=lambda: Totals(0, 0))


class _Found(NamedTuple):
    """The state of one audio shard: its labels, or what is wrong with them ("" if there are none)."""

    seconds: float
    labels: ShardResult | str


def find_work(
    shards: Sequence[str], out: Place, expect: Header, *, verify: bool = False, overwrite: bool = False
) -> Plan:
    """Sort shards into done and to do.

    A shard is done if its labels have a manifest for this configuration and this audio, and their file has
    the size in the manifest (with `verify`: also the sha256, and every utterance decodes). A shard
    whose audio manifest cannot be read is to do: the worker reports what is wrong.

    Raises:
        LabelMismatchError: labels are of another configuration or of other audio, unless `overwrite`.
    """
    plan = Plan()

    def look(audio: str) -> _Found:
        try:
            with local_copy(audio, manifest_only=True) as path:
                shard = read_audio_manifest(path)
        except ShardError:
            return _Found(0.0, "")
        file = label_file(out, path.name)
        found = labels_there(file, shard, expect, fix=FIX, verify=verify, overwrite=overwrite)
        if isinstance(found, str):
            return _Found(shard.seconds, found)
        labelled_s = labelled_seconds(shard, found)
        return _Found(shard.seconds, ShardResult(path.name, found, shard.seconds, labelled_s, 0.0))

    for audio, (seconds, labels) in zip(shards, each(look, shards), strict=True):
        if isinstance(labels, ShardResult):
            plan.done.append(audio)
            plan.before.add_labels(labels)
            continue
        plan.todo.append(audio)
        plan.seconds += seconds
        if labels:
            plan.damaged[audio] = labels
    return plan


def each(look: Callable[[str], _T], shards: Sequence[str]) -> Iterator[_T]:
    """Call `look` on every shard in a thread pool; results come in the order of the shards."""
    with ThreadPoolExecutor(_JOURNEYS) as pool:
        for start in range(0, len(shards), _AT_A_TIME):
            yield from pool.map(look, shards[start : start + _AT_A_TIME])


def say_looking(shards: Sequence[str]) -> None:
    """Say that shards are being checked if there are enough of them for it to take long."""
    if len(shards) >= _MANY:
        print(f"checking {counted(len(shards), 'shard')}", file=sys.stderr)
