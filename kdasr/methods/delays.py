"""Frame-level distillation into a student that spikes later, by as much as suits each utterance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, ModelOutput, frames_inside
from kdasr.losses import BlankPolicy, check_frames, frame_weights, partition_cross_entropy
from kdasr.methods.targets import at_least_float32, targets_of


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
    """Cross-entropy to the teacher at the delay within a buffer at which the two agree best.

    After Delayed-KD (arXiv 2505.22069), whose temporal alignment buffer allows the student the delays
    D = {0, …, d} against a teacher that hears everything. Here each utterance takes

        d* = argmin over d in D of sum over t of w_t H(p_t, q_{t+d}),

    summed over the teacher's frames that have a partner at every delay, and the loss is that of
    `kdasr.losses.soft_cross_entropy` with delay d*, over all frames that have a partner there. No
    gradient flows through the choice. An utterance of no more than `max_delay_frames` frames takes the
    smallest delay.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher`.
        min_delay_frames, max_delay_frames: ends of the buffer, in student frames.
        blank_policy, blank_weight, spike_margin_frames: which teacher frames count; see
            `kdasr.losses.soft_cross_entropy`.

    Returns:
        Cross-entropy in nats for each frame that counts; 0 where none does.

    Raises:
        ConfigError: a window that is none.
        LabelMismatchError: the labels of an utterance have another number of frames.
    """
    if not 0 <= min_delay_frames <= max_delay_frames:
        raise ConfigError(
            "no window of delays",
            where="windowed_cross_entropy",
            expected="0 <= min_delay_frames <= max_delay_frames",
            got=f"{min_delay_frames} and {max_delay_frames}",
        )
    labels = targets_of(batch, teacher)
    log_probs_btv, lengths_b = at_least_float32(output.log_probs_btv), output.lengths_b
    check_frames(lengths_b, labels.lengths_b, batch.keys)
    weights_bt = frame_weights(labels, blank_policy, blank_weight, spike_margin_frames)
    frame_t = torch.arange(log_probs_btv.shape[1], device=lengths_b.device)

    def weighted_bt(delay_frames: int, longest: int) -> tuple[Tensor, Tensor]:
        """Cross-entropies at one delay times weights, and these, of frames before length - longest."""
        frames = log_probs_btv.shape[1] - delay_frames
        paired_bt = frame_t[:frames] < (lengths_b - longest)[:, None]
        weight_bt = weights_bt[:, :frames] * paired_bt
        return partition_cross_entropy(log_probs_btv[:, delay_frames:], labels) * weight_bt, weight_bt

    last = min(max_delay_frames, log_probs_btv.shape[1] - 1)
    delays = range(min(min_delay_frames, last), last + 1)
    with torch.no_grad():
        scores_bd = torch.stack([weighted_bt(delay, max_delay_frames)[0].sum(1) for delay in delays], 1)
    chosen_b = scores_bd.argmin(1) + delays[0]
    total, count = log_probs_btv.sum() * 0.0, weights_bt.new_zeros(())
    for delay in sorted(set(chosen_b.tolist())):
        loss_bt, weight_bt = weighted_bt(delay, delay)
        mine_b1 = (chosen_b == delay)[:, None]
        total = total + torch.where(mine_b1, loss_bt, 0.0).sum()
        count = count + (weight_bt * mine_b1).sum()
    return total / count.clamp_min(1.0)


def spikewise_cross_entropy(
    output: ModelOutput,
    batch: Batch,
    *,
    max_delay_frames: int = 4,
    blank_policy: BlankPolicy = "eliminate",
    blank_weight: float = 0.1,
    spike_margin_frames: int = 1,
    teacher: str | None = None,
) -> Tensor:
    """Cross-entropy to the teacher, each of its frames at the delay at which the student agrees best.

        L = sum over t of w_t min over d in 0 … D of H(p_t, q_{t+d}) / sum over t of w_t

    With w_t = 1 where the teacher spikes it passes on what the teacher took a sound for and what else it
    may have been, and leaves to CTC when the student says so: a student that is made to spike in one
    frame, and is not sure which, spreads its probability over two, and in each of them blank wins.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher`.
        max_delay_frames: D, in student frames.
        blank_policy, blank_weight, spike_margin_frames: which teacher frames count; see
            `kdasr.losses.soft_cross_entropy`.

    Returns:
        Cross-entropy in nats for each frame that counts; 0 where none does.

    Raises:
        ConfigError: a negative delay.
        LabelMismatchError: the labels of an utterance have another number of frames.
    """
    if max_delay_frames < 0:
        raise ConfigError(
            "a negative delay", where="spikewise_cross_entropy", expected="max_delay_frames >= 0"
        )
    labels = targets_of(batch, teacher)
    log_probs_btv, lengths_b = at_least_float32(output.log_probs_btv), output.lengths_b
    check_frames(lengths_b, labels.lengths_b, batch.keys)
    frames = log_probs_btv.shape[1]
    inside_bt = frames_inside(lengths_b, frames)
    weights_bt = frame_weights(labels, blank_policy, blank_weight, spike_margin_frames) * inside_bt
    best_bt = partition_cross_entropy(log_probs_btv, labels)
    for delay in range(1, min(max_delay_frames, frames - 1) + 1):
        later_bt = partition_cross_entropy(log_probs_btv[:, delay:], labels)
        later_bt = torch.where(inside_bt[:, delay:], later_bt, torch.inf)
        best_bt = torch.minimum(best_bt, functional.pad(later_bt, (0, delay), value=torch.inf))
    return torch.where(inside_bt, best_bt * weights_bt, 0.0).sum() / weights_bt.sum().clamp_min(1.0)
