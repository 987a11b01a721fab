"""The targets of a loss: stored soft labels, or an online teacher's output for the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kdasr.errors import ConfigError, MissingLabelsError
from kdasr.interfaces import Batch, ModelOutput, SoftLabelBatch, frames_inside


def targets_of(batch: Batch, teacher: str | None = None) -> SoftLabelBatch:
    """The posteriors to learn from, without gradients.

    Args:
        teacher: name of an online teacher, which keeps all classes; None for the stored labels.

    Raises:
        MissingLabelsError: stored labels are needed and the batch has none.
        ConfigError: there is no such teacher, or it has other classes.
    """
    if teacher is None:
        if batch.soft_labels is None:
            key = "labels" if batch.tokens_bu is None else "labelled_soft_labels"
            raise MissingLabelsError(
                "a loss needs soft labels, but this audio has none",
                where=batch.keys[0] if batch.keys else None,
                fix=f"Name an online `teacher` in the loss, or set `{key}` in the recipe.",
            )
        return batch.soft_labels
    output = online(batch, teacher)
    check_posteriors(output, teacher)
    log_probs_btv = output.log_probs_btv
    ids_btv = torch.arange(log_probs_btv.shape[2], device=log_probs_btv.device).expand_as(log_probs_btv)
    nothing_bt = torch.full_like(log_probs_btv[:, :, 0], -torch.inf)
    return SoftLabelBatch(ids_btv, log_probs_btv, nothing_bt, output.lengths_b)


def check_posteriors(output: ModelOutput, teacher: str) -> None:
    """Raise ConfigError if an online teacher gives no posteriors over the student's units."""
    if output.log_probs_btv.shape[2] == 0:
        raise ConfigError(
            "a loss compares posteriors with a teacher that has other units or another frame rate",
            where=f"teachers.{teacher}",
            fix="Use only losses that compare layers, or a teacher with the student's units.",
        )


def online(batch: Batch, teacher: str) -> ModelOutput:
    """The output of the online teacher of this name for the batch, without gradients.

    Raises:
        ConfigError: there is no such teacher.
    """
    output = heard_by(batch, teacher)
    return ModelOutput(
        output.log_probs_btv.detach(), output.lengths_b, tuple(layer.detach() for layer in output.layers_btd)
    )


def heard_by(batch: Batch, teacher: str) -> ModelOutput:
    """The output of the online teacher of this name for the batch, with any gradients.

    Raises:
        ConfigError: there is no such teacher.
    """
    try:
        return batch.teachers[teacher]
    except KeyError:
        raise ConfigError(
            f"this training has no online teacher {teacher!r}",
            where="teachers",
            fix="Add it under `teachers:`.",
        ) from None


def best_units(labels: SoftLabelBatch) -> Tensor:
    """(B, T) the teacher's most probable class in each frame; 0, blank, in padding, for which an online
    teacher may output anything."""
    best_bt1 = labels.log_probs_btk.argmax(-1, keepdim=True)
    units_bt = labels.ids_btk.gather(2, best_bt1).squeeze(2)
    return units_bt * frames_inside(labels.lengths_b, units_bt.shape[1])


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to single; leave other types as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
