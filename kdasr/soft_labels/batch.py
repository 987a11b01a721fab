"""Soft labels of several utterances as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kdasr.errors import SoftLabelError
from kdasr.interfaces import SoftLabelBatch, SoftLabels
from kdasr.soft_labels.runs import concatenate


def pad_soft_labels(items: Sequence[SoftLabels]) -> SoftLabelBatch:
    """Pad utterances to one batch, (B, T, K): T is the most frames of any, K the most kept classes.

    K is at least 1 even if none has a frame.

    Raises:
        SoftLabelError: there are no utterances.
    """
    if not items:
        raise SoftLabelError("a batch needs at least one utterance")
    run = concatenate(items)
    lengths = np.array([item.num_frames for item in items], np.int64)
    num_steps, num_kept = int(lengths.max()), int(run.kept_counts.max(initial=1))
    # Row of every frame in the flattened (B * T) batch, then (row, column) of every entry.
    first_frames = np.cumsum(lengths) - lengths
    rows = np.arange(run.num_frames) + np.repeat(np.arange(len(items)) * num_steps - first_frames, lengths)
    starts = np.cumsum(run.kept_counts) - run.kept_counts
    cells = np.arange(len(run.ids)) + np.repeat(rows * num_kept - starts, run.kept_counts)
    shape = (len(items), num_steps, num_kept)
    ids = np.zeros(shape, np.int64)
    log_probs = np.full(shape, -np.inf, np.float32)
    tail = np.full(shape[:2], -np.inf, np.float32)
    ids.reshape(-1)[cells] = run.ids
    log_probs.reshape(-1)[cells] = run.log_probs
    tail.reshape(-1)[rows] = run.tail_log_probs
    return SoftLabelBatch(*(torch.from_numpy(array) for array in (ids, log_probs, tail, lengths)))
