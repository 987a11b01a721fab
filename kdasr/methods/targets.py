"""What a loss learns from: stored soft labels, or what an online teacher makes of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, SoftLabelBatch


def targets_of(batch: Batch, teacher: str | None = None) -> SoftLabelBatch:
    """The posteriors to learn from, without gradients.

    Args:
        teacher: name of an online teacher, which keeps all classes; None for the stored labels.

    Raises:
        ConfigError: stored labels are wanted and the batch has none.
    """
    if teacher is None:
        if batch.soft_labels is None:
            raise ConfigError(
                "a loss asks for soft labels, and this audio has none",
                where=batch.keys[0] if batch.keys else None,
                fix="Give the recipe `labels`, name an online `teacher` in the loss, or move it to "
                "unlabelled_losses.",
            )
        return batch.soft_labels
    output = batch.teachers[teacher]
    log_probs_btv = output.log_probs_btv.detach()
    ids_btv = torch.arange(log_probs_btv.shape[2], device=log_probs_btv.device).expand_as(log_probs_btv)
    nothing_bt = torch.full_like(log_probs_btv[:, :, 0], -torch.inf)
    return SoftLabelBatch(ids_btv, log_probs_btv, nothing_bt, output.lengths_b)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision made single; all else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
