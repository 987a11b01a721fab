"""What is heard around an utterance in use, where nobody cuts it: noise or silence before it, another one,
silence after it; and what frame-level labels say there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.features import FRAME_SHIFT_MS, HOP_SAMPLES, LOG_MEL_FLOOR, NUM_MEL_BINS, TAIL_MS, log_mel
from kdasr.interfaces import BLANK_ID, SoftLabels
from kdasr.noise import moving_noise
from kdasr.soft_labels import concatenate
from kdasr.soft_labels.runs import best_classes, split_run
from kdasr.symbols import WORD_START

TAIL_FRAMES = TAIL_MS // FRAME_SHIFT_MS
# The longest that is heard before the speech: by then a streaming student's memory holds little else. And the
# longest pause between utterances: after a longer one the segment of a stream has ended, and its last word.
LONGEST_LEAD_FRAMES = 1500 // FRAME_SHIFT_MS
LONGEST_PAUSE_FRAMES = 1000 // FRAME_SHIFT_MS
_QUIET_FRAMES = 100 // FRAME_SHIFT_MS
# Output frames from a word mark to the next unit where no utterance tells; teachers of 40 ms have 2 or 3.
_MARK_LEAD = 2
# Shares of these leads and pauses: digital silence, as some programs put before what they hear; and noise
# that moves, which models that never heard it alone take for words. The rest is drawn from the utterance.
_SILENT_LEADS, _MOVING_LEADS = 0.125, 0.5
# Nats by which that may be louder than the quietest 100 ms of the utterance.
_MOVING_LEVELS = (-0.5, 2.5)


def after_quiet(features_tf: Tensor, frames: int, seed: int) -> Tensor:
    """(frames + T, 80) log-mel: before the (T, 80) of an utterance frames drawn from its quietest 100 ms,
    noise about as loud as these, or silence."""
    if not frames:
        return features_tf
    rng = np.random.default_rng(seed)
    kind = rng.random()
    if kind < _SILENT_LEADS:
        return torch.cat([silence(frames), features_tf])
    length = min(_QUIET_FRAMES, len(features_tf))
    levels = features_tf.mean(1).unfold(0, length, 1).mean(1)
    first = int(levels.argmin())
    if kind < _SILENT_LEADS + _MOVING_LEADS:
        noise_tf = log_mel(moving_noise(rng, frames * HOP_SAMPLES, SAMPLE_RATE_HZ))
        louder = float(levels[first] - noise_tf.mean()) + rng.uniform(*_MOVING_LEVELS)
        return torch.cat([(noise_tf + louder).clamp_min(LOG_MEL_FLOOR), features_tf])
    chosen = torch.from_numpy(rng.integers(first, first + length, frames))
    return torch.cat([features_tf[chosen], features_tf])


def silence(frames: int) -> Tensor:
    """(frames, 80) log-mel of digital silence."""
    return torch.full((frames, NUM_MEL_BINS), LOG_MEL_FLOOR)


def labels_after(
    before: Sequence[SoftLabels], frames: int | None, own: SoftLabels, symbols: Sequence[str]
) -> SoftLabels:
    """Labels of an utterance behind those of what comes before it.

    Behind another utterance, its words are parted from the words of that one, in case they do not begin with
    such a mark themselves: as long before the first unit as the teacher puts marks within utterances. At
    the end of the pause, where the utterance was cut, no student could foresee it.

    Args:
        before: labels of the utterances before it, none for the first.
        frames: output frames between them and the utterance, which are blank; None of labels without times.
        own: labels of the utterance.
        symbols: the student's units.
    """
    mark = _between_words(before, own, symbols) if before else BLANK_ID
    blanks = int(mark != BLANK_ID) if frames is None else frames
    labels = concatenate([_certain(np.full(blanks, BLANK_ID)), own])
    if mark == BLANK_ID:
        return labels
    first = int(np.flatnonzero(best_classes(labels))[0])
    return _with_unit(labels, max(0, first - _mark_lead([*before, own], mark)), mark)


def _between_words(before: Sequence[SoftLabels], own: SoftLabels, symbols: Sequence[str]) -> int:
    """The unit that parts words from those before them; blank where there is none, or no need of it."""
    first = next((unit for unit in best_classes(own).tolist() if unit != BLANK_ID), BLANK_ID)
    is_said = first != BLANK_ID and any(best_classes(one).any() for one in before)
    is_apart = is_said and WORD_START in symbols and not symbols[first].startswith(WORD_START)
    return symbols.index(WORD_START) if is_apart else BLANK_ID


def _mark_lead(utterances: Sequence[SoftLabels], mark: int) -> int:
    """How many frames before its first unit a teacher says that a new word has begun: the median in some
    utterances."""
    leads = []
    for labels in utterances:
        units = best_classes(labels)
        starts = np.flatnonzero((units != BLANK_ID) & (np.diff(units, prepend=BLANK_ID) != 0))
        leads += np.diff(starts)[units[starts[:-1]] == mark].tolist()
    return round(float(np.median(leads))) if leads else _MARK_LEAD


def _with_unit(labels: SoftLabels, frame: int, unit: int) -> SoftLabels:
    """Labels with a unit, without doubt, in place of what a frame had."""
    before, _, behind = split_run(labels, [frame, 1, labels.num_frames - frame - 1])
    return concatenate([before, _certain(np.array([unit])), behind])


def _certain(ids: NDArray[np.int64]) -> SoftLabels:
    """Labels without doubt: one class a frame."""
    count = len(ids)
    nothing = np.full(count, -np.inf, np.float32)
    return SoftLabels(np.ones(count, np.int64), ids, np.zeros(count, np.float32), nothing)
