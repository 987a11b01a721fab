"""Map labels to other classes or to other frames; see `kdasr.contract`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from kdasr.interfaces import BLANK_ID, SoftLabels
from kdasr.soft_labels.runs import best_classes, frame_starts

Ints = NDArray[np.int64]


def map_classes(labels: SoftLabels, class_map: Sequence[int], *, timed: bool = True) -> SoftLabels:
    """Map labels to the classes in `class_map`; probabilities of merged classes are added in each frame.

    Blank stays first in each frame.

    The best path spells the same text as the teacher's, if adding does not change a frame's best class.
    Two merged classes in a row would collapse to one unit under CTC: "née" would become "ne". So a
    blank frame is inserted between them, and the nearest dispensable frame (a repeat or a blank) is
    removed; the frames between the two move by one. Only an utterance with more units than frames
    loses any.

    Args:
        class_map: (V of the teacher,) the new id of each class; blank stays blank.
        timed: whether frames have times, so that their number must not change; a transcript without
            times becomes longer instead.
    """
    mapped = _add_up(labels, class_map)
    units = [unit for unit in class_map if unit != BLANK_ID]
    if len(set(units)) == len(units):
        return mapped
    (own, _), (best, blank) = _best_and_blank(labels), _best_and_blank(mapped)
    spoken = (best != BLANK_ID) & (best == np.asarray(class_map, np.int64)[own])
    one = spoken[1:] & spoken[:-1] & (best[1:] == best[:-1]) & (own[1:] != own[:-1])
    if not one.any():
        return mapped
    seconds = 1 + np.flatnonzero(one)
    gaps = seconds + np.arange(len(seconds))
    frames = np.insert(np.arange(len(best)), seconds, int(blank.argmax()))
    if not timed:
        return _blanked(take_frames(mapped, frames), gaps)
    stay = _make_room(np.insert(best, seconds, BLANK_ID), gaps)
    return _blanked(take_frames(mapped, frames[stay]), np.flatnonzero(np.isin(stay, gaps)))


def _add_up(labels: SoftLabels, class_map: Sequence[int]) -> SoftLabels:
    """Each frame over the new classes: blank first, the others from most to least likely.

    If a frame has kept every class in the map's range, its tail can only be of classes that became one of
    those: it goes to blank, as struck-out classes do. Otherwise a loss would compare it with probability that
    none of the student's classes has left.
    """
    frame = np.repeat(np.arange(labels.num_frames), labels.kept_counts)
    ids = np.asarray(class_map, np.int64)[labels.ids]
    width = int(max(class_map)) + 1
    places, inverse = np.unique(frame * width + ids, return_inverse=True)
    mass = np.bincount(inverse, np.exp(labels.log_probs.astype(np.float64)), minlength=len(places))
    new_frame, new_ids = places // width, places % width
    counts = np.bincount(new_frame, minlength=labels.num_frames).astype(np.int64)
    has_every = counts == len(set(class_map))
    mass += np.where(
        (new_ids == BLANK_ID) & has_every[new_frame], np.exp(labels.tail_log_probs[new_frame]), 0
    )
    order = np.lexsort((-mass, new_ids != BLANK_ID, new_frame))
    with np.errstate(divide="ignore"):
        log_probs = np.log(mass[order]).astype(np.float32)
    tails = np.where(has_every, np.float32(-np.inf), labels.tail_log_probs)
    return SoftLabels(counts, new_ids[order], log_probs, tails)


def _make_room(units: Ints, gaps: Ints) -> Ints:
    """The indices of a path that remain when one is removed for each of its `gaps`: the dispensable one
    nearest to the gap (the later of two equally near), or the gap itself if none is dispensable."""
    stay = list(range(len(units)))
    for gap in gaps.tolist():
        here = stay.index(gap)
        spare = _spare([BLANK_ID, *units[stay].tolist(), BLANK_ID])
        del stay[min(spare, key=lambda place: (abs(place - here), -place), default=here)]
    return np.asarray(stay, np.int64)


def _blanked(labels: SoftLabels, places: Ints) -> SoftLabels:
    """The labels with blank as the best class of these frames: it swaps probabilities with the best one."""
    starts, log_probs = frame_starts(labels), labels.log_probs.copy()
    for first, end in zip(starts[places].tolist(), starts[places + 1].tolist(), strict=True):
        top = first + int(log_probs[first:end].argmax())
        log_probs[[first, top]] = log_probs[[top, first]]
    return SoftLabels(labels.kept_counts, labels.ids, log_probs, labels.tail_log_probs)


def take_frames(labels: SoftLabels, chosen: Ints) -> SoftLabels:
    """Labels whose frame s is frame `chosen[s]` of `labels`."""
    starts = frame_starts(labels)
    counts = labels.kept_counts[chosen]
    first = np.cumsum(counts) - counts
    entries = np.arange(counts.sum()) + np.repeat(starts[chosen] - first, counts)
    return SoftLabels(counts, labels.ids[entries], labels.log_probs[entries], labels.tail_log_probs[chosen])


def pool_frames(labels: SoftLabels, student_frames: int, ratio: Fraction) -> Ints:
    """(student_frames,) which frame of a teacher with a higher frame rate each student frame takes.

    The best path over these frames collapses to the same units as the teacher's: a spike is moved to
    the next student frame if its own is taken, two equal units keep a blank between them, and if the
    utterance ends too early for that, earlier blank frames are removed. Only an utterance with more
    units than student frames loses any.

    Args:
        ratio: teacher frames for each student frame, more than 1.
    """
    best, blank = _best_and_blank(labels)
    owner = np.minimum(centres(labels.num_frames, 1 / ratio), student_frames - 1)
    edges = np.searchsorted(owner, np.arange(student_frames + 1))
    onsets = np.flatnonzero((best != BLANK_ID) & (best != np.concatenate(([BLANK_ID], best[:-1]))))
    waiting: list[int] = []
    taken: list[int] = []
    for first, last in itertools.pairwise(edges.tolist()):
        waiting += [_peak(onset, last, best, blank) for onset in onsets[(onsets >= first) & (onsets < last)]]
        held = best[taken[-1]] if taken else BLANK_ID
        if waiting and best[waiting[0]] != held:
            taken.append(waiting.pop(0))
        elif waiting:
            taken.append(_blank_before(waiting[0], best))
        elif last > first:
            taken.append(first + int(blank[first:last].argmin()))
        else:
            taken.append(taken[-1])
    _squeeze(taken, waiting, best)
    return np.asarray(taken, np.int64)


def _best_and_blank(labels: SoftLabels) -> tuple[Ints, NDArray[np.float32]]:
    """Each frame's most probable class, and each frame's log-probability of blank."""
    blank = np.full(labels.num_frames, -np.inf, np.float32)
    is_blank = labels.ids == BLANK_ID
    blank[np.repeat(np.arange(labels.num_frames), labels.kept_counts)[is_blank]] = labels.log_probs[is_blank]
    return best_classes(labels), blank


def _peak(onset: int, last: int, best: Ints, blank: NDArray[np.float32]) -> int:
    """The frame with the least blank in the spike that begins at `onset`, before frame `last`."""
    end = onset + 1
    while end < last and best[end] == best[onset]:
        end += 1
    return onset + int(blank[onset:end].argmin())


def _blank_before(frame: int, best: Ints) -> int:
    """The last blank frame before `frame`."""
    while best[frame] != BLANK_ID:
        frame -= 1
    return frame


def _squeeze(taken: list[int], waiting: list[int], best: Ints) -> None:
    """Append the spikes still waiting at the end, each time removing the last dispensable frame."""
    for spike in waiting:
        again = best[taken[-1]] == best[spike]
        for frame in [_blank_before(spike, best), spike] if again else [spike]:
            spare = _spare([BLANK_ID, *best[taken].tolist(), int(best[frame])])
            if not spare:
                return
            del taken[spare[-1]]
            taken.append(frame)


def _spare(units: list[int]) -> list[int]:
    """The dispensable places of a path, without its two ends and counted from the second: repeats, and blanks
    that do not separate equal units. Without one of them, the path collapses to the same units."""
    return [
        place
        for place, (before, unit, after) in enumerate(zip(units, units[1:], units[2:], strict=False))
        if unit in (before, after) or (unit == BLANK_ID and before != after)
    ]


def centres(count: int, scale: Fraction) -> Ints:
    """(count,) floor((i + 1/2) * scale): the frame of a `scale` times longer sequence at the centre of i."""
    return (np.arange(count) * 2 + 1) * scale.numerator // (2 * scale.denominator)
