"""What surrounds an utterance in a real audio stream: noise, silence or another utterance before it, and
silence after it; and the frame-level labels there."""

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
# The longest lead before speech: by then a streaming student's context holds little else. And the longest
# pause between utterances: a longer one ends a segment of a stream, and so its last word.
LONGEST_LEAD_FRAMES = 1500 // FRAME_SHIFT_MS
LONGEST_PAUSE_FRAMES = 1000 // FRAME_SHIFT_MS
_QUIET_FRAMES = 100 // FRAME_SHIFT_MS
# Output frames from a word mark to the next unit if no utterance shows it; teachers at 40 ms have 2 or 3.
_MARK_LEAD = 2
# Shares of leads and pauses with digital silence, which some programs put before audio, and with moving
# noise, which models take for words if never trained on it alone. The rest is drawn from the utterance.
_SILENT_LEADS, _MOVING_LEADS = 0.125, 0.5
# Range in nats of the level of moving noise relative to the quietest 100 ms of the utterance.
_MOVING_LEVELS = (-0.5, 2.5)


def after_quiet(features_tf: Tensor, frames: int, seed: int) -> Tensor:
    """(frames + T, 80) log-mel: the (T, 80) of an utterance after frames drawn from its quietest 100 ms,
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
    """The labels of an utterance with those of the pause before it.

    After another utterance, a word mark is inserted unless the utterance begins with one: as long before the
    first unit as the teacher emits marks within utterances. The end of the pause, where the utterance was
    cut, would be too early: no student could foresee the word there.

    Args:
        before: labels of the utterances before it; none for the first.
        frames: output frames of the pause, which are blank; None for labels without times.
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
    """The word mark if one is needed between the utterances; blank if the units have none or it is not."""
    first = next((unit for unit in best_classes(own).tolist() if unit != BLANK_ID), BLANK_ID)
    is_said = first != BLANK_ID and any(best_classes(one).any() for one in before)
    is_apart = is_said and WORD_START in symbols and not symbols[first].startswith(WORD_START)
    return symbols.index(WORD_START) if is_apart else BLANK_ID


def _mark_lead(utterances: Sequence[SoftLabels], mark: int) -> int:
    """How many frames before the next unit a teacher emits a word mark: the median over these utterances."""
    leads = []
    for labels in utterances:
        units = best_classes(labels)
        starts = np.flatnonzero((units != BLANK_ID) & (np.diff(units, prepend=BLANK_ID) != 0))
        leads += np.diff(starts)[units[starts[:-1]] == mark].tolist()
    return round(float(np.median(leads))) if leads else _MARK_LEAD


def _with_unit(labels: SoftLabels, frame: int, unit: int) -> SoftLabels:
    """The labels with one frame replaced by a unit of probability 1."""
    before, _, behind = split_run(labels, [frame, 1, labels.num_frames - frame - 1])
    return concatenate([before, _certain(np.array([unit])), behind])


def _certain(ids: NDArray[np.int64]) -> SoftLabels:
    """Labels with one class of probability 1 in each frame."""
    count = len(ids)
    nothing = np.full(count, -np.inf, np.float32)
    return SoftLabels(np.ones(count, np.int64), ids, np.zeros(count, np.float32), nothing)
