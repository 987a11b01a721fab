"""Regularisation that is distillation without a teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from kdasr.alignment import ctc_occupancy
from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, ModelOutput
from kdasr.losses import without_times
from kdasr.methods.pairing import frame_mean
from kdasr.targets import at_least_float32


@without_times
def label_smoothing(output: ModelOutput, batch: Batch) -> Tensor:
    """KL(u || q) to the uniform distribution u (Szegedy et al. 2016, arXiv 1512.00567, section 7), which
    for a CTC model can only be a frame-level term besides CTC.

    Returns:
        -log V - (1 / V) Σ_v log q_v in nats, averaged over the frames.
    """
    vocab_size = output.log_probs_btv.shape[-1]
    divergence_bt = -math.log(vocab_size) - at_least_float32(output.log_probs_btv).mean(-1)
    return frame_mean(divergence_bt, output.lengths_b)


@without_times
def virtual_teacher(
    output: ModelOutput, batch: Batch, *, correct_probability: float = 0.95, temperature: float = 20.0
) -> Tensor:
    """T² KL(p^d(T) || q(T)) to a virtual teacher with p^d = a for the correct class and (1 - a) / (V - 1) for
    each other (Yuan et al. 2019, arXiv 1909.11723, Tf-KD by regularisation); as in Hinton 2015, T² keeps
    its gradient comparable across temperatures.

    The correct class of a frame comes from the student's own alignment of the transcript: the most
    probable class under the CTC occupation probabilities γ (Graves et al. 2006, section 4.1). With
    a = 1 / V this is label smoothing.

    Args:
        output: of the student.
        batch: with `tokens_bu`.
        correct_probability: a.
        temperature: T.

    Returns:
        The mean over the frames, in nats. An utterance that is too short for its transcript counts as 0.

    Raises:
        ConfigError: no transcripts, a probability outside 0 to 1, or a temperature that is not positive.
    """
    if not 0.0 < correct_probability < 1.0 or temperature <= 0:
        raise ConfigError(
            "invalid settings for virtual_teacher",
            expected="0 < correct_probability < 1 and temperature > 0",
            got=f"{correct_probability} and {temperature}",
        )
    log_probs_btv = at_least_float32(output.log_probs_btv)
    vocab_size = log_probs_btv.shape[-1]
    correct_bt, fits_b = aligned_units(output, batch)
    teacher_btv = torch.full_like(log_probs_btv, math.log((1 - correct_probability) / (vocab_size - 1)))
    teacher_btv = teacher_btv.scatter(2, correct_bt[..., None], math.log(correct_probability))
    divergence_btv = functional.kl_div(
        (log_probs_btv / temperature).log_softmax(-1),
        (teacher_btv / temperature).log_softmax(-1),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * frame_mean(divergence_btv.sum(-1) * fits_b[:, None], output.lengths_b)


def aligned_units(output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, T) the class of each frame in the student's alignment of the transcripts (blank is 0), and (B,)
    whether a transcript fits into its frames at all.

    Raises:
        ConfigError: the batch has no transcripts.
    """
    if batch.tokens_bu is None or batch.token_lengths_b is None:
        raise ConfigError(
            "an alignment needs transcripts", where=batch.keys[0], fix="Use this loss in labelled_losses."
        )
    nll_b, occupancy_btv = ctc_occupancy(
        at_least_float32(output.log_probs_btv), batch.tokens_bu, output.lengths_b, batch.token_lengths_b
    )
    return occupancy_btv.argmax(-1), nll_b.isfinite()
