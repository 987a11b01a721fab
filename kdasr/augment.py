"""Augment the features of a batch, in training only.

The time axis is left alone, so that soft labels stay aligned with their audio. Random numbers come from
torch's global generator, which training reseeds at each step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError
from kdasr.features import NUM_MEL_BINS

_MOST = {
    **dict.fromkeys(("num_frequency_masks", "num_time_masks", "max_time_frames", "max_gain_nats"), math.inf),
    "max_frequency_bins": NUM_MEL_BINS,
    "max_time_share": 1,
    "max_warp": 0.9,
}


class SpecAugment(nn.Module):
    """Frequency and time masks (arXiv 1904.08779), drawn for each utterance, after a warp of the
    frequency axis (vocal tract length perturbation, Jaitly & Hinton 2013).

    Args:
        num_frequency_masks, max_frequency_bins: number of masks, and their largest width in mel bins.
        num_time_masks, max_time_frames: number of masks, and their longest in feature frames (10 ms).
        max_time_share: longest time mask as a share of the batch's frames, so that short utterances are
            not masked completely (arXiv 1912.05533).
        max_warp: bins are read at up to (1 +- max_warp) times their position; 0 for no warp.
        max_gain_nats: a random constant of up to +- this is added to all bins (loudness).

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        *,
        num_frequency_masks: int = 2,
        max_frequency_bins: int = 20,
        num_time_masks: int = 2,
        max_time_frames: int = 20,
        max_time_share: float = 1.0,
        max_warp: float = 0.0,
        max_gain_nats: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        for name, most in _MOST.items():
            if not 0 <= self.config[name] <= most:
                raise ConfigError(
                    "the value is out of range",
                    where=f"{name} of {type(self).__name__}",
                    expected="0 or more" if most == math.inf else f"from 0 to {most}",
                    got=self.config[name],
                )
        self.num_frequency_masks, self.max_frequency_bins = num_frequency_masks, max_frequency_bins
        self.num_time_masks, self.max_time_frames = num_time_masks, max_time_frames
        self.max_time_share, self.max_warp, self.max_gain_nats = max_time_share, max_warp, max_gain_nats

    def forward(self, features_btf: Tensor) -> Tensor:
        """(B, T, 80) raw log-mel to the same shape."""
        if self.max_warp > 0:
            features_btf = warp_frequency(features_btf, self.max_warp)
        if self.max_gain_nats > 0:
            features_btf = features_btf + _uniform(features_btf, self.max_gain_nats)[:, None, None]
        batch, frames, bins = features_btf.shape
        most_frames = min(self.max_time_frames, int(self.max_time_share * frames))
        device = features_btf.device
        masked_bt = _masked(self.num_time_masks, most_frames, (batch, frames), device)
        masked_bf = _masked(self.num_frequency_masks, self.max_frequency_bins, (batch, bins), device)
        # Masked values become the batch mean, which carries no information.
        return torch.where(masked_bt[:, :, None] | masked_bf[:, None, :], features_btf.mean(), features_btf)


def _masked(count: int, most: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    """(B, N) bool: in each row, `count` stretches of 0 to `most` positions that begin anywhere.

    Drawn together, since a GPU waits for the host to launch kernels: torchaudio's masks, drawn one by one,
    took 126 of the 3,600 kernels in a step of `recipes/librispeech/100h`, for each view.
    """
    batch, places = shape
    width, begin = torch.rand(2, count, batch, 1, device=device)
    width = (width * (most + 1)).long()  # each width from 0 to `most` alike
    first = (begin * (places - width)).long()
    place = torch.arange(places, device=device)
    return ((place >= first) & (place < first + width)).any(dim=0)


def warp_frequency(features_btf: Tensor, max_warp: float) -> Tensor:
    """(B, T, 80) with each utterance's bins read at a random multiple of their position, linearly
    interpolated, which simulates longer and shorter vocal tracts."""
    factor_b = 1.0 + _uniform(features_btf, max_warp)
    bins = torch.arange(NUM_MEL_BINS, device=features_btf.device)
    place_bf = (bins * factor_b[:, None]).clamp(0, NUM_MEL_BINS - 1)
    weights_bff = (1.0 - (place_bf[:, None, :] - bins[None, :, None]).abs()).clamp_min(0.0)
    # With bf16 autocast, log-mel would be rounded to two or three digits before the model normalises it.
    with torch.autocast(features_btf.device.type, enabled=False):
        return features_btf @ weights_bff


def _uniform(features_btf: Tensor, bound: float) -> Tensor:
    return (torch.rand(len(features_btf), device=features_btf.device) * 2 - 1) * bound
