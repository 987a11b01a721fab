"""Pairing of two models' frames of the same audio.

Student and teacher may have different frame rates and widths, and a student without future context
emits later than its teacher: it may lag by `delay_frames` of its own frames.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from kdasr.errors import ConfigError
from kdasr.interfaces import ModelOutput, frames_inside
from kdasr.losses import check_delay


class FramePairs(NamedTuple):
    """Paired frames.

    Attributes:
        student_btd, teacher_btd: (B, T, ·); frame t of one corresponds to frame t of the other.
        valid_bt: (B, T) False where either has no such frame.
    """

    student_btd: Tensor
    teacher_btd: Tensor
    valid_bt: Tensor

    def mean(self, value_bt: Tensor) -> Tensor:
        """Mean of (B, T) values over the valid frames; 0 if there are none."""
        return value_bt.masked_fill(~self.valid_bt, 0.0).sum() / self.valid_bt.sum().clamp_min(1)


def pair_frames(
    student_btd: Tensor,
    lengths_b: Tensor,
    teacher_btd: Tensor,
    teacher_lengths_b: Tensor,
    delay_frames: int = 0,
) -> FramePairs:
    """Pair student frame t + delay_frames with the teacher's output at the time of student frame t.

    Raises:
        ConfigError: a negative delay.
    """
    check_delay(delay_frames)
    frames = max(0, student_btd.shape[1] - delay_frames)
    teacher_btd = resample_frames(teacher_btd, teacher_lengths_b, lengths_b, student_btd.shape[1])
    valid_bt = frames_inside(lengths_b - delay_frames, frames)
    return FramePairs(student_btd[:, delay_frames:], teacher_btd[:, :frames], valid_bt)


def resample_frames(x_btd: Tensor, lengths_b: Tensor, to_lengths_b: Tensor, frames: int) -> Tensor:
    """(B, T, D) frames resampled to (B, frames, D), by linear interpolation between frame centres.

    Each utterance's `lengths_b` frames become `to_lengths_b`; its last frame is repeated beyond.
    """
    if x_btd.shape[1] == frames and torch.equal(lengths_b, to_lengths_b):
        return x_btd
    ratio_b = lengths_b / to_lengths_b.clamp_min(1)
    centre_t = torch.arange(frames, device=x_btd.device) + 0.5
    last_b1 = (lengths_b - 1).clamp_min(0)[:, None]
    place_bt = (centre_t * ratio_b[:, None] - 0.5).clamp_min(0.0).minimum(last_b1)
    below_bt = place_bt.long()
    share_bt1 = (place_bt - below_bt)[..., None].to(x_btd.dtype)
    above_bt = (below_bt + 1).minimum(last_b1)
    return _taken(x_btd, below_bt) * (1 - share_bt1) + _taken(x_btd, above_bt) * share_bt1


def frame_mean(value_bt: Tensor, lengths_b: Tensor) -> Tensor:
    """The mean of (B, T) values over the frames of all utterances."""
    return (value_bt * frames_inside(lengths_b, value_bt.shape[1])).sum() / lengths_b.sum()


def pooled(x_btd: Tensor, lengths_b: Tensor) -> Tensor:
    """(B, D) mean of each utterance's frames."""
    return (x_btd * frames_inside(lengths_b, x_btd.shape[1])[..., None]).sum(1) / lengths_b.clamp_min(1)[
        :, None
    ]


def layer_of(output: ModelOutput, layer: int, whose: str) -> Tensor:
    """(B, T, D) the output of a layer; negative numbers count from the last.

    Raises:
        ConfigError: the model has no such layer.
    """
    count = len(output.layers_btd)
    if not -count <= layer < count:
        raise ConfigError(
            f"{whose} has no layer {layer}",
            where="layers",
            expected=f"a number from {-count} to {count - 1}" if count else "a model that exposes its layers",
            got=layer,
        )
    return output.layers_btd[layer]


class WidthAdapter(LazyModuleMixin, nn.Module):
    """A linear layer whose input width is that of its first input, and whose output width that call gives."""

    weight: UninitializedParameter
    bias: UninitializedParameter

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = UninitializedParameter(), UninitializedParameter()

    def initialize_parameters(self, x_btd: Tensor, width: int) -> None:
        """Called by torch before the first forward."""
        if self.has_uninitialized_params():
            self.weight.materialize((width, x_btd.shape[-1]))
            self.bias.materialize((width,))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as torch.nn.Linear does."""
        if not self.has_uninitialized_params():
            bound = 1.0 / math.sqrt(self.weight.shape[1])
            nn.init.uniform_(self.weight, -bound, bound)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x_btd: Tensor, width: int) -> Tensor:
        """(B, T, D) to (B, T, width)."""
        return functional.linear(x_btd, self.weight, self.bias)


def _taken(x_btd: Tensor, frame_bs: Tensor) -> Tensor:
    """(B, S, D) frames of `x_btd` (B, T, D), with the indices `frame_bs` (B, S)."""
    return x_btd.gather(1, frame_bs[..., None].expand(-1, -1, x_btd.shape[-1]))
