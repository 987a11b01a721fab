"""Runs of frames: join utterances into one and split them again; separate blank from other classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdasr.errors import SoftLabelError
from kdasr.interfaces import BLANK_ID, SoftLabels

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parts:
    """Labels with blank separated from the other classes ("entries")."""

    blank: Floats
    tail: Floats
    entries: Floats
    extra_counts: Ints
    ids: Ints
    starts: Ints


def split_blank(labels: SoftLabels) -> Parts:
    """Separate blank, the first class of every frame, from the others."""
    counts = labels.kept_counts
    starts = np.cumsum(counts) - counts
    if counts.size and (int(counts.min()) < 1 or not np.all(labels.ids[starts] == BLANK_ID)):
        raise SoftLabelError("every frame must keep blank, as its first class")
    is_entry = np.ones(len(labels.ids), bool)
    is_entry[starts] = False
    extra = counts - 1
    return Parts(
        labels.log_probs[starts],
        labels.tail_log_probs,
        labels.log_probs[is_entry],
        extra,
        labels.ids[is_entry],
        np.cumsum(extra) - extra,
    )


def join_blank(blank: Floats, tail: Floats, entries: Floats, extra_counts: Ints, ids: Ints) -> SoftLabels:
    """The inverse of `split_blank`."""
    counts = extra_counts + 1
    starts = np.cumsum(counts) - counts
    is_entry = np.ones(len(blank) + len(entries), bool)
    is_entry[starts] = False
    all_ids = np.full(len(is_entry), BLANK_ID, np.int64)
    all_ids[is_entry] = ids
    values = np.empty(len(is_entry), np.float32)
    values[starts] = blank
    values[is_entry] = entries
    return SoftLabels(counts, all_ids, values, tail)


def concatenate(items: Sequence[SoftLabels]) -> SoftLabels:
    """Several utterances, or none, as one run of frames."""
    if len(items) == 1:
        return items[0]
    if not items:
        no_ints, no_floats = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return SoftLabels(no_ints, no_ints, no_floats, no_floats)
    return SoftLabels(
        np.concatenate([item.kept_counts for item in items]),
        np.concatenate([item.ids for item in items]),
        np.concatenate([item.log_probs for item in items]),
        np.concatenate([item.tail_log_probs for item in items]),
    )


def cut(run: SoftLabels, starts: Ints, first: int, last: int) -> SoftLabels:
    """Frames [first, last) of a run whose frame t begins at entry `starts[t]`."""
    entries = slice(int(starts[first]), int(starts[last]))
    return SoftLabels(
        run.kept_counts[first:last], run.ids[entries], run.log_probs[entries], run.tail_log_probs[first:last]
    )


def frame_starts(run: SoftLabels) -> Ints:
    """(T + 1,) first entry of every frame, then the number of entries."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(run.kept_counts)])


def best_classes(run: SoftLabels) -> Ints:
    """(T,) the most probable class of every frame; of equally probable ones, the first."""
    if run.num_frames == 0:
        return np.zeros(0, np.int64)
    highest = np.maximum.reduceat(run.log_probs, frame_starts(run)[:-1])
    entries = np.flatnonzero(run.log_probs == np.repeat(highest, run.kept_counts))
    frames = np.repeat(np.arange(run.num_frames), run.kept_counts)[entries]
    _, first = np.unique(frames, return_index=True)
    return np.asarray(run.ids[entries[first]], np.int64)


def best_path(run: SoftLabels) -> list[int]:
    """The units of the best path, with repeats merged and blanks removed."""
    best = best_classes(run)
    changes = np.flatnonzero(np.diff(best, prepend=BLANK_ID))
    return [unit for unit in best[changes].tolist() if unit != BLANK_ID]


def split_run(run: SoftLabels, lengths: Sequence[int]) -> list[SoftLabels]:
    """The inverse of `concatenate`, given the number of frames of each utterance."""
    starts, edges = frame_starts(run), [0, *itertools.accumulate(lengths)]
    return [cut(run, starts, first, last) for first, last in itertools.pairwise(edges)]
