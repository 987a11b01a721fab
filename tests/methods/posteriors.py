"""Soft labels and log-probs from probabilities, for losses worked out by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdasr.interfaces import Batch, ModelOutput, SoftLabelBatch


def labels_from(rows: list[list[dict[int, float]]]) -> SoftLabelBatch:
    """Soft labels of utterances of frames {id: p}; what is left of 1 is the tail."""
    frames, kept = max(map(len, rows)), max(len(frame) for row in rows for frame in row)
    ids = torch.zeros(len(rows), frames, kept, dtype=torch.int64)
    log_probs = torch.full((len(rows), frames, kept), -math.inf, dtype=torch.float64)
    tail = torch.full((len(rows), frames), -math.inf, dtype=torch.float64)
    for b, row in enumerate(rows):
        for t, frame in enumerate(row):
            for k, (unit, probability) in enumerate(frame.items()):
                ids[b, t, k], log_probs[b, t, k] = unit, math.log(probability)
            if (rest := 1.0 - sum(frame.values())) > 1e-9:
                tail[b, t] = math.log(rest)
    return SoftLabelBatch(ids, log_probs, tail, torch.tensor([len(row) for row in rows]))


def batch_of(labels: SoftLabelBatch | None = None, size: int = 1) -> Batch:
    size = size if labels is None else len(labels.lengths_b)
    keys = [f"utt{i}" for i in range(size)]
    return Batch(keys, torch.zeros(size, 1, 80), torch.ones(size), soft_labels=labels)


def output_of(log_probs_btv: Tensor, *lengths: int) -> ModelOutput:
    """Log-probs as an output; all frames valid unless told."""
    given = lengths or (log_probs_btv.shape[1],) * len(log_probs_btv)
    return ModelOutput(log_probs_btv, torch.tensor(given))


def logs(*frames: list[float]) -> Tensor:
    """(1, T, V) log-probs of one utterance."""
    return torch.tensor([list(frames)], dtype=torch.float64).log()
