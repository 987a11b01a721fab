"""Pseudo-data for an online teacher to label: features derived from those of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, frames_inside
from kdasr.methods.pairing import pooled


class Munge:
    """MUNGE (Buciluǎ, Caruana & Niculescu-Mizil 2006, algorithm 1) on log-mel.

    Each utterance is paired with its nearest neighbour in the batch. With probability p, each attribute,
    here a mel bin in a block of time, is drawn from a normal distribution around the neighbour's value with
    standard deviation |difference| / s. The result has about the marginals of real data but is no real
    utterance, so it has neither a transcript nor stored labels: it needs an online teacher.

    Args:
        probability: p.
        local_variance: s; larger is closer to the neighbour.
        block_frames: length of an attribute in feature frames (10 ms).

    Raises:
        ConfigError: a probability outside 0 to 1, or s or a block that is not positive.
    """

    def __init__(
        self, *, probability: float = 0.2, local_variance: float = 1.0, block_frames: int = 20
    ) -> None:
        self.config: dict[str, Any] = {
            "probability": probability, "local_variance": local_variance, "block_frames": block_frames,
        }  # fmt: skip
        if not 0.0 <= probability <= 1.0 or local_variance <= 0 or block_frames < 1:
            raise ConfigError(
                "invalid settings for Munge",
                expected="0 <= probability <= 1, local_variance > 0, block_frames >= 1",
                got=self.config,
            )
        self.probability, self.local_variance, self.block_frames = probability, local_variance, block_frames

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with new features of the same lengths."""
        features_btf = batch.features_btf
        if len(features_btf) < 2:
            return batch
        lengths_b = batch.feature_lengths_b
        nearest_b = nearest(features_btf, lengths_b)
        neighbour_btf = features_btf[nearest_b]
        blocks = -(-features_btf.shape[1] // self.block_frames)
        size = (len(features_btf), blocks, features_btf.shape[2])
        drawn_bkf = torch.rand(size, generator=generator) < self.probability
        drawn_btf = drawn_bkf.repeat_interleave(self.block_frames, 1)[:, : features_btf.shape[1]]
        spread_btf = (features_btf - neighbour_btf).abs() / self.local_variance
        normal_btf = torch.randn(features_btf.shape, generator=generator)
        # Exchange nothing beyond the end of the shorter utterance.
        shorter_b = torch.minimum(lengths_b, lengths_b[nearest_b])
        inside_bt = frames_inside(shorter_b, features_btf.shape[1])
        exchanged_btf = drawn_btf & inside_bt[..., None]
        batch.features_btf = torch.where(exchanged_btf, neighbour_btf + spread_btf * normal_btf, features_btf)
        return batch


def nearest(features_btf: Tensor, lengths_b: Tensor) -> Tensor:
    """(B,) the nearest other utterance of each, by mean log-mel."""
    mean_bf = pooled(features_btf, lengths_b)
    distance_bb = torch.cdist(mean_bf, mean_bf)
    return distance_bb.fill_diagonal_(torch.inf).argmin(1)
