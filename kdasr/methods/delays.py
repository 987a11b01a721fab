"""Frame-level distillation into a student that spikes later, with a delay for each utterance."""

from __future__ import annotations

import torch
from torch import Tensor

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, ModelOutput, SoftLabelBatch
from kdasr.losses import (
    BlankPolicy,
    check_frames,
    check_pair,
    frame_weights,
    partition_cross_entropy,
    weighted_mean,
)
from kdasr.targets import at_least_float32, targets_of

# Floor of the mass of the classes that were not kept, in cross-entropies that are only compared.
_LEAST_MASS = 1e-6


def windowed_cross_entropy(
    output: ModelOutput,
    batch: Batch,
    *,
    min_delay_frames: int = 0,
    max_delay_frames: int = 8,
    blank_policy: BlankPolicy = "all",
    blank_weight: float = 0.1,
    spike_margin_frames: int = 1,
    teacher: str | None = None,
) -> Tensor:
    """Cross-entropy to the teacher at the delay, within a window, at which the two agree best.

    After Delayed-KD (arXiv 2505.22069), whose temporal alignment buffer allows the student the delays
    D = {0, …, d} relative to a full-context teacher. Here each utterance takes

        d* = argmin over d in D of sum over t of w_t H(p_t, q_{t+d}),

    summed over the teacher frames that have a student frame at every delay. The loss is
    `kdasr.losses.soft_cross_entropy` with delay d*, over all teacher frames that have a student frame
    there. No gradient flows through the choice. An utterance of at most `max_delay_frames` frames takes
    the smallest delay.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher`.
        min_delay_frames, max_delay_frames: ends of the window, in student frames.
        blank_policy, blank_weight, spike_margin_frames: which teacher frames count; see
            `kdasr.losses.soft_cross_entropy`.

    Returns:
        Cross-entropy in nats per frame that counts; 0 if none does.

    Raises:
        ConfigError: an invalid window.
        LabelMismatchError: the labels of an utterance have another number of frames.
    """
    if not 0 <= min_delay_frames <= max_delay_frames:
        raise ConfigError(
            "invalid delay window",
            where="windowed_cross_entropy",
            expected="0 <= min_delay_frames <= max_delay_frames",
            got=f"{min_delay_frames} and {max_delay_frames}",
        )
    labels = targets_of(batch, teacher)
    log_probs_btv, lengths_b = at_least_float32(output.log_probs_btv), output.lengths_b
    check_frames(lengths_b, labels.lengths_b, batch.keys)
    check_pair(output, labels, min_delay_frames)
    frames = log_probs_btv.shape[1]
    if frames <= min_delay_frames:  # no teacher frame has a student frame so late
        return log_probs_btv.sum() * 0.0
    weights_bt = frame_weights(labels, blank_policy, blank_weight, spike_margin_frames)[:, :frames]
    frame_t = torch.arange(frames, device=lengths_b.device)
    common_bt = weights_bt * (frame_t < (lengths_b - max_delay_frames)[:, None])
    last = min(max_delay_frames, frames - 1)
    rough_btd = _rough_cross_entropies(log_probs_btv, labels, min_delay_frames, last)
    delay_b = min_delay_frames + (rough_btd * common_bt[:, :, None]).sum(1).argmin(1)
    partner_bt = frame_t + delay_b[:, None]
    place_bt1 = partner_bt.clamp_max(frames - 1)[:, :, None]
    later_btv = log_probs_btv.gather(1, place_bt1.expand(-1, -1, log_probs_btv.shape[2]))
    cross_entropy_bt = partition_cross_entropy(later_btv, labels)
    return weighted_mean(cross_entropy_bt, weights_bt * (partner_bt < lengths_b[:, None]))


@torch.no_grad()
def _rough_cross_entropies(log_probs_btv: Tensor, labels: SoftLabelBatch, first: int, last: int) -> Tensor:
    """(B, T, D) cross-entropies of label frame t and student frame t + d, for d from `first` to `last`; 0
    where there is no such frame.

    They only serve for comparison: the student's tail mass is 1 minus that of the kept classes, which
    spares a pass over all classes for each delay, and is inaccurate below one in a million.
    """
    frames = log_probs_btv.shape[1]
    kept_p, tail_p = labels.log_probs_btk.exp(), labels.tail_log_probs_bt.exp()
    is_kept_btk = labels.log_probs_btk.isfinite()
    # Blank counts as kept even if it has no entry.
    blank_apart_bt = ~((labels.ids_btk == 0) & is_kept_btk).any(2)
    rough_btd = log_probs_btv.new_zeros(*log_probs_btv.shape[:2], last - first + 1)
    for place, delay in enumerate(range(first, last + 1)):
        span = slice(0, frames - delay)
        later_btv = log_probs_btv[:, delay:]
        later_btk = later_btv.gather(2, labels.ids_btk[:, span])
        kept_q = (later_btk.exp() * is_kept_btk[:, span]).sum(2)
        kept_q += later_btv[..., 0].exp() * blank_apart_bt[:, span]
        tail = tail_p[:, span] * (1.0 - kept_q).clamp_min(_LEAST_MASS).log()
        rough_btd[:, span, place] = -(kept_p[:, span] * later_btk).sum(2) - tail
    return rough_btd
