"""Compute log-mel features on a teacher's device instead of in the decoding threads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdasr.devices import exact_float32
from kdasr.features import (
    HOP_SAMPLES,
    LOG_MEL_FLOOR,
    WINDOW_SAMPLES,
    batch_log_mel,
    samples_under_windows,
)
from kdasr.interfaces import AcousticModel, frames_inside
from kdasr.teachers.base import LOG_MEL, FrontEnd, Teacher

_UNDER_WINDOWS = FrontEnd(
    LOG_MEL.name,
    LOG_MEL.hash,
    HOP_SAMPLES,
    0.0,
    samples_under_windows,
    rows_beyond=WINDOW_SAMPLES - HOP_SAMPLES,
)


def with_log_mel_on_its_device(teacher: Teacher) -> Teacher:
    """The same teacher with log-mel features computed on its device; teachers of other inputs unchanged.

    Threads that compute log-mel features need Python's interpreter lock a dozen times for each 2.5 seconds of
    audio and wait for one another (recipes/RESULTS-gpu.md), which is too slow to keep a GPU busy.
    """
    if teacher.front_end != LOG_MEL:
        return teacher
    return replace(teacher, model=_HearsSamples(teacher.model), front_end=_UNDER_WINDOWS)


class _HearsSamples:
    """Makes a model with log-mel input take the samples under the feature windows."""

    def __init__(self, model: AcousticModel) -> None:
        self._model = model
        self.config, self.vocab_size, self.subsampling = model.config, model.vocab_size, model.subsampling

    def offline(self, samples_bn: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """The model's `offline` for (B, N) samples and (B,) sample counts."""
        # Always exact float32: at lower precision quiet audio would be lost, and labels would depend on
        # imports (SpeechBrain enables TensorFloat-32).
        with torch.autocast(samples_bn.device.type, enabled=False), exact_float32():
            features_btf = batch_log_mel(samples_bn)
        frames_b = (lengths_b - _UNDER_WINDOWS.rows_beyond) // HOP_SAMPLES
        padding_bt = ~frames_inside(frames_b, features_btf.shape[1])
        return self._model.offline(features_btf.masked_fill(padding_bt[..., None], LOG_MEL_FLOOR), frames_b)
