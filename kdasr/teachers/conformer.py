"""A full-context Conformer CTC teacher: log-mel features of whole utterances in, log-probs out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.interfaces import frames_inside
from kdasr.layers import (
    SUBSAMPLING,
    SUBSAMPLING_CONTEXT,
    ConformerLayer,
    Normalise,
    Subsampling,
    output_lengths,
    pad_features,
    shared_rotation,
    whole_frames,
)


class ConformerTeacher(nn.Module):
    """Every frame attends to the whole utterance.

    In training, attention is masked to chunks in a share of the batches, as in a streaming student (two-pass
    training, arXiv 2012.05481). A CTC model that always sees the future may place its spikes anywhere,
    280 ms early for example, and differently at the end of an utterance than in its middle. A streaming
    student learns nothing frame by frame from such posteriors. Weights that must also work on chunks
    keep the spikes near the sounds. For the same reason the convolutions are causal.

    Args:
        vocab_size: classes including blank.
        width: D; a multiple of 2 * num_heads.
        num_layers, num_heads, expansion, kernel_frames, dropout: of the Conformer layers.
        chunked_share: share of the training batches that are masked to chunks of `chunk_frames`.
        chunk_frames: output frames (40 ms) of such a chunk.

    Raises:
        ConfigError: `chunk_frames` is less than 1.
    """

    subsampling = SUBSAMPLING

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int = 192,
        num_layers: int = 5,
        num_heads: int = 4,
        expansion: int = 4,
        kernel_frames: int = 15,
        dropout: float = 0.1,
        chunked_share: float = 0.5,
        chunk_frames: int = 8,
    ) -> None:
        super().__init__()
        if chunk_frames < 1:
            raise ConfigError(
                "a chunk needs at least one frame",
                where="chunk_frames of ConformerTeacher",
                expected="1 or more (for no chunk masks: `chunked_share: 0`)",
                got=chunk_frames,
            )
        self.config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.vocab_size = vocab_size
        self.chunked_share, self.chunk_frames = chunked_share, chunk_frames
        self.normalise = Normalise()
        self.subsample = Subsampling(width)
        self.layers = nn.ModuleList(
            ConformerLayer(
                width, num_heads=num_heads, expansion=expansion, kernel_frames=kernel_frames, dropout=dropout
            )
            for _ in range(num_layers)
        )
        self.head = nn.Linear(width, vocab_size)

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 80) raw log-mel and (B,) feature frames to (B, T', V) log-probs and (B,) frames."""
        lengths_out = output_lengths(lengths_b)
        # From the shape of the padded batch: reading the lengths would make the host wait for a GPU.
        longest = -(-features_btf.shape[1] // SUBSAMPLING)
        frames = whole_frames(longest, 1, features_btf.device)
        features = self.normalise(pad_features(features_btf, lengths_b, frames * SUBSAMPLING))
        x_btd = self.subsample(functional.pad(features, (0, 0, SUBSAMPLING_CONTEXT, 0)))
        mask = frames_inside(lengths_out, frames)[:, None, None, :]
        if self.training and float(torch.rand(())) < self.chunked_share:
            chunk_t = torch.arange(frames, device=x_btd.device) // self.chunk_frames
            mask = mask & (chunk_t <= chunk_t[:, None])
        rotation_2td = shared_rotation(self.layers, frames, x_btd.dtype)
        for layer in self.layers:
            x_btd = layer(x_btd, mask, rotation_2td)
        return self.head(x_btd[:, :longest]).float().log_softmax(dim=-1), lengths_out

    def set_statistics(self, mean_f: Tensor, std_f: Tensor) -> None:
        """Mean and standard deviation of each mel bin over the training audio."""
        self.normalise.set_statistics(mean_f, std_f)
