"""Guided CTC: a model learns to spike where another does, which makes their posteriors comparable."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kdasr.interfaces import Batch, ModelOutput, frames_inside
from kdasr.losses import check_delay, check_frames
from kdasr.targets import at_least_float32, best_units, targets_of


def guided_spikes(
    output: ModelOutput, batch: Batch, *, delay_frames: int = 0, teacher: str | None = None
) -> Tensor:
    """The guide loss of Kurata & Audhkhasi 2019 (arXiv 1904.08311, section 3): - sum over M ∘ P.

    The mask M is 1 at the guide's best class of each frame, and 0 everywhere in frames where that is
    blank; P is the student's posterior. The paper adds it to CTC with weight 1 and sums both over the
    frames; here both are means over frames, which keeps the proportion. The guide may be the teacher,
    whose spikes the student then follows. While a teacher is trained, it may be a student of the kind to
    be distilled (`teacher: guide`): the teacher then spikes where such students can, and frame-level
    distillation needs no delay.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher` as guide.
        delay_frames: the student's frame t + delay_frames is guided by frame t.

    Returns:
        The negated mean, over all output frames, of the probability given to the guide's spikes.

    Raises:
        ConfigError: a negative delay.
        LabelMismatchError: the guide has another number of frames.
    """
    check_delay(delay_frames)
    labels = targets_of(batch, teacher)
    check_frames(output.lengths_b, labels.lengths_b, batch.keys)
    units_bt = functional.pad(best_units(labels), (delay_frames, 0))[:, : output.log_probs_btv.shape[1]]
    mask_bt = (units_bt != 0) & frames_inside(output.lengths_b, units_bt.shape[1])
    spikes_bt = at_least_float32(output.log_probs_btv).gather(2, units_bt[:, :, None]).squeeze(2).exp()
    return -(spikes_bt * mask_bt).sum() / output.lengths_b.sum()
