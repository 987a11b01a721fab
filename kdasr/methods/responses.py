"""Losses on a teacher's outputs, softened or as logits, from stored labels or an online teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from kdasr.errors import ConfigError, LabelMismatchError
from kdasr.interfaces import Batch, ModelOutput, SoftLabelBatch, frames_inside
from kdasr.losses import BlankPolicy, check_frames, frame_weights, framewise
from kdasr.methods.pairing import pair_frames
from kdasr.targets import at_least_float32, best_units, targets_of

# Stands for log 0 where -inf would make NaN gradients.
_LOG_ZERO = -1e30


def soft_targets(
    output: ModelOutput,
    batch: Batch,
    *,
    teacher: str | None = None,
    temperature: float = 1.0,
    delay_frames: int = 0,
    blank_policy: BlankPolicy = "all",
    blank_weight: float = 0.1,
    spike_margin_frames: int = 1,
) -> Tensor:
    """Cross-entropy to softened targets: -T² Σ ŷ_i(T) log y_i(T), the first term of Hinton, Vinyals &
    Dean 2015 (arXiv 1503.02531), section 2, with y(T) = softmax(z / T).

    Without the factor T², its gradient with respect to a logit z_i is (y_i(T) - ŷ_i(T)) / T, which for
    large T and logits of zero mean approaches (z_i - v_i) / (V T²). Their second term, on hard labels, is
    here a separate CTC loss with its own weight.

    Stored labels lack the classes that were not kept, so the temperature applies to the partition kept
    classes + tail, for both models; with T = 1 this is `soft_cross_entropy`.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with `teachers`.
        teacher: an online teacher with the student's units; None for the stored labels.
        temperature: T.
        delay_frames, blank_policy, blank_weight, spike_margin_frames: as for `soft_cross_entropy`.

    Returns:
        T² times the cross-entropy in nats, per frame that counts.

    Raises:
        ConfigError: a temperature that is not positive, a negative delay, an unknown blank policy, or an
            unknown teacher.
        LabelMismatchError: the labels of an utterance have another number of frames.
    """
    if temperature <= 0:
        raise ConfigError(
            "the temperature is out of range", where="temperature", expected="more than 0", got=temperature
        )

    def softened(log_probs_btv: Tensor, labels: SoftLabelBatch) -> Tensor:
        student_btc, teacher_btc = cells(log_probs_btv, labels)
        target_btc = (teacher_btc / temperature).softmax(-1)
        soft_btc = (student_btc / temperature).log_softmax(-1)
        return -torch.where(target_btc > 0, target_btc * soft_btc, 0.0).sum(-1)

    labels = targets_of(batch, teacher)
    weights_bt = frame_weights(labels, blank_policy, blank_weight, spike_margin_frames)
    return temperature**2 * framewise(output, batch, labels, softened, weights_bt, delay_frames)


def logit_regression(
    output: ModelOutput, batch: Batch, *, teacher: str | None = None, delay_frames: int = 0
) -> Tensor:
    """½ |z - v|² between logits of zero mean (Buciluǎ, Caruana & Niculescu-Mizil 2006; Ba & Caruana 2014,
    arXiv 1312.6184), the high-temperature limit of `soft_targets` times V.

    Logits are defined up to a constant for each frame; log-probabilities minus their mean over the
    classes are the logits of zero mean.

    Args:
        output: of the student.
        batch: with `soft_labels` of the codec `Full`, or with `teachers`.
        teacher: an online teacher with the student's units; None for the stored labels.
        delay_frames: student frames that the student may lag behind the teacher.

    Returns:
        The loss, summed over the classes and averaged over the frames.

    Raises:
        LabelMismatchError: stored labels that did not keep every class.
    """
    labels = targets_of(batch, teacher)
    check_frames(output.lengths_b, labels.lengths_b, batch.keys)
    student_btv = at_least_float32(output.log_probs_btv)
    teacher_btv = _dense(labels, student_btv.shape[-1], batch.keys[0])
    pairs = pair_frames(student_btv, output.lengths_b, teacher_btv, labels.lengths_b, delay_frames)
    z_btv, v_btv = (x - x.mean(-1, keepdim=True) for x in (pairs.student_btd, pairs.teacher_btd))
    return pairs.mean(0.5 * (z_btv - v_btv).square().sum(-1))


def cells(log_probs_btv: Tensor, labels: SoftLabelBatch) -> tuple[Tensor, Tensor]:
    """(B, T, K + 1) log-probs of student and teacher over the same partition: kept classes and the tail.

    Memory per frame grows with V + k, never with V * k.
    """
    frames = log_probs_btv.shape[1]
    best_bt1 = best_units(labels)[:, :frames, None]
    # Padding, or a blank that was listed but never drawn, is no separate cell: its mass is in the tail.
    kept_btk = labels.log_probs_btk[:, :frames].isfinite()
    ids_btk = torch.where(kept_btk, labels.ids_btk[:, :frames], best_bt1)
    cells_btk = log_probs_btv.gather(2, ids_btk).masked_fill(~kept_btk, _LOG_ZERO)
    tail_bt1 = log_probs_btv.scatter(2, ids_btk, _LOG_ZERO).logsumexp(-1, keepdim=True)
    teacher_btc = torch.cat([labels.log_probs_btk, labels.tail_log_probs_bt[..., None]], dim=-1)[:, :frames]
    # Frames beyond an utterance have no cells; without the clamp their softmax would be NaN.
    return torch.cat([cells_btk, tail_bt1], dim=-1), teacher_btc.clamp_min(_LOG_ZERO)


def _dense(labels: SoftLabelBatch, vocab_size: int, where: str) -> Tensor:
    """(B, T, V) log-probs of labels that kept every class."""
    kept_btk = labels.log_probs_btk.isfinite()
    inside_bt = frames_inside(labels.lengths_b, kept_btk.shape[1])
    kept_bt = torch.where(inside_bt, kept_btk.sum(-1), vocab_size)
    if (least := int(kept_bt.min())) < vocab_size:
        raise LabelMismatchError(
            "a loss on logits needs labels that have kept every class",
            where=where,
            expected=f"{vocab_size} classes in each frame",
            got=f"{least} in one frame",
            fix="Label with the codec `Full`, or use an online teacher.",
        )
    dense_btv = labels.log_probs_btk.new_zeros(*kept_bt.shape, vocab_size)
    return dense_btv.scatter(2, labels.ids_btk, labels.log_probs_btk.nan_to_num(neginf=0.0))
