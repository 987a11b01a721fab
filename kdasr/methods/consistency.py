"""Consistency between a model's outputs for two augmented views of the same audio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from kdasr.interfaces import Batch, Loss, ModelOutput, frames_inside
from kdasr.losses import without_times
from kdasr.targets import at_least_float32

_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def with_views(loss: _Loss) -> _Loss:
    """Mark a loss as using a second view of each batch, which is then computed along with the first."""
    loss.asks_for_views = True  # type: ignore[attr-defined]
    return loss


@with_views
@without_times
def consistency(output: ModelOutput, batch: Batch) -> Tensor:
    """Symmetric KL between the posteriors of two views, each learning from the other (CR-CTC).

    Yao et al. 2024 (arXiv 2410.05101), with sg as stop-gradient:

        L_CR = 1/2 sum over t of KL(sg(z_b,t) || z_a,t) + KL(sg(z_a,t) || z_b,t)

    The paper trains on 1/2 (CTC(z_a) + CTC(z_b)) + 0.2 L_CR, with 2.5 times the usual time masking;
    `both_views` with `kdasr.losses.ctc` is the first part. L_CR itself needs no transcript.

    Args:
        output: for the first view; the second is augmented independently.

    Returns:
        L_CR in nats per output frame; 0 if nothing is augmented.
    """
    other = batch.views[0]
    valid_bt = frames_inside(output.lengths_b, output.log_probs_btv.shape[1])
    one_btv, two_btv = at_least_float32(output.log_probs_btv), at_least_float32(other.log_probs_btv)
    divergence_bt = 0.5 * (_kl(two_btv.detach(), one_btv) + _kl(one_btv.detach(), two_btv))
    return torch.where(valid_bt, divergence_bt, 0.0).sum() / output.lengths_b.sum()


@with_views
def both_views(output: ModelOutput, batch: Batch, *, loss: Loss) -> Tensor:
    """The mean of any loss over both views."""
    return 0.5 * (loss(output, batch) + loss(batch.views[0], batch))


def _kl(target_btv: Tensor, log_probs_btv: Tensor) -> Tensor:
    """(B, T) Kullback-Leibler divergences of log-probs from target log-probs."""
    return (target_btv.exp() * (target_btv - log_probs_btv)).sum(-1)
