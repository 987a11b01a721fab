"""Small model outputs and batches for tests of losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdasr.interfaces import Batch, ModelOutput


def output_of(
    logits_btv: Tensor, layers_btd: Sequence[Tensor] = (), lengths: Sequence[int] | None = None
) -> ModelOutput:
    """From logits; all frames are valid unless `lengths` says otherwise."""
    lengths = lengths or [logits_btv.shape[1]] * len(logits_btv)
    return ModelOutput(logits_btv.log_softmax(-1), torch.tensor(lengths), tuple(layers_btd))


def layers_only(*layers_btd: Tensor, lengths: Sequence[int] | None = None) -> ModelOutput:
    """An output whose posteriors do not matter."""
    return output_of(torch.zeros(*layers_btd[0].shape[:2], 2), layers_btd, lengths)


def batch_with(
    size: int, *, transcripts: Sequence[Sequence[int]] | None = None, **teachers: ModelOutput
) -> Batch:
    """A batch with online teachers and perhaps transcripts; its features do not matter."""
    batch = Batch([f"utt{i}" for i in range(size)], torch.zeros(size, 8, 80), torch.full((size,), 8))
    batch.teachers = teachers
    if transcripts is not None:
        batch.token_lengths_b = torch.tensor([len(row) for row in transcripts])
        longest = int(batch.token_lengths_b.max())
        batch.tokens_bu = torch.tensor([[*row, *[0] * (longest - len(row))] for row in transcripts])
    return batch
