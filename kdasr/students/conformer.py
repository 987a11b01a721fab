"""A chunk-wise streaming Conformer: log-mel in windows with state in, log-probs with state out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdasr.features import NUM_MEL_BINS
from kdasr.layers import (
    SUBSAMPLING,
    SUBSAMPLING_CONTEXT,
    ConformerLayer,
    Normalise,
    Subsampling,
    output_lengths,
    pad_features,
)


class ConformerState(NamedTuple):
    """What one chunk hands to the next. Zeros before the first.

    Attributes:
        features_bcf: (B, SUBSAMPLING_CONTEXT, 80) normalised features before the window.
        keys_bntd, values_bntd: (B, layers, left_context_frames, D), oldest first.
        gated_bntd: (B, layers, kernel_frames - 1, D) inputs of the depthwise convolutions.
        processed: (B,) int64, how many of the cached keys are real, at most left_context_frames.
    """

    features_bcf: Tensor
    keys_bntd: Tensor
    values_bntd: Tensor
    gated_bntd: Tensor
    processed: Tensor


class ChunkConformer(nn.Module):
    """Conformer CTC student: attention within a chunk and a limited left context, causal
    convolutions, and lookahead in one convolution after the subsampling.

    A frame sees its chunk, `left_context_frames` before the chunk, and `lookahead_frames` after
    it, so the algorithmic latency is (chunk + lookahead) * 40 ms and a window of audio.

    Args:
        vocab_size: classes including blank.
        width: D; a multiple of 2 * num_heads.
        num_layers, num_heads, expansion, kernel_frames, dropout: of the Conformer layers.
        chunk_frames: output frames (40 ms) in a chunk.
        left_context_frames: cached output frames that a chunk may attend to.
        lookahead_frames: output frames of future audio beyond the chunk.
    """

    subsampling = SUBSAMPLING

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int = 144,
        num_layers: int = 4,
        num_heads: int = 4,
        expansion: int = 4,
        kernel_frames: int = 9,
        dropout: float = 0.1,
        chunk_frames: int = 8,
        left_context_frames: int = 32,
        lookahead_frames: int = 2,
    ) -> None:
        super().__init__()
        self.config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.vocab_size = vocab_size
        self.chunk_frames = chunk_frames
        self.left_context_frames = left_context_frames
        self.lookahead_frames = lookahead_frames
        self.kernel_frames, self.width = kernel_frames, width
        self.normalise = Normalise()
        self.subsample = Subsampling(width)
        self.lookahead = nn.Conv1d(width, width, kernel_size=1 + lookahead_frames)
        self.layers = nn.ModuleList(
            ConformerLayer(
                width, num_heads=num_heads, expansion=expansion, kernel_frames=kernel_frames, dropout=dropout
            )
            for _ in range(num_layers)
        )
        self.head = nn.Linear(width, vocab_size)

    @property
    def shift(self) -> int:
        """Feature frames between the starts of two windows."""
        return self.chunk_frames * SUBSAMPLING

    @property
    def window(self) -> int:
        """Feature frames in a window."""
        return (self.chunk_frames + self.lookahead_frames) * SUBSAMPLING

    def initial_state(self, batch_size: int = 1) -> ConformerState:
        cache = (batch_size, len(self.layers))
        like = self.head.weight
        return ConformerState(
            like.new_zeros(batch_size, SUBSAMPLING_CONTEXT, NUM_MEL_BINS),
            like.new_zeros(*cache, self.left_context_frames, self.width),
            like.new_zeros(*cache, self.left_context_frames, self.width),
            like.new_zeros(*cache, self.kernel_frames - 1, self.width),
            torch.zeros(batch_size, dtype=torch.int64, device=like.device),
        )

    def forward(self, features_btf: Tensor, state: ConformerState) -> tuple[Tensor, ConformerState]:
        """One window (B, window, 80) of raw log-mel to (B, chunk_frames, V) log-probs and the
        next state."""
        features = torch.cat([state.features_bcf, self.normalise(features_btf)], dim=1)
        x_btd = self._look_ahead(self.subsample(features))
        mask = self._step_mask(state.processed)
        caches: list[tuple[Tensor, Tensor, Tensor]] = []
        for n, layer in enumerate(self.layers):
            assert isinstance(layer, ConformerLayer)
            keys, values, gated = state.keys_bntd[:, n], state.values_bntd[:, n], state.gated_bntd[:, n]
            x_btd, *cache = layer.step(x_btd, keys, values, gated, mask)
            caches.append((cache[0], cache[1], cache[2]))
        keys, values, gated = (torch.stack(parts, dim=1) for parts in zip(*caches, strict=True))
        processed = torch.clamp(state.processed + self.chunk_frames, max=self.left_context_frames)
        context = features[:, self.shift : self.shift + SUBSAMPLING_CONTEXT]
        return self._log_probs(x_btd), ConformerState(context, keys, values, gated, processed)

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances under a chunk mask; the same log-probs as chunk by chunk.

        Args:
            features_btf: (B, T, 80) raw log-mel.
            lengths_b: (B,) feature frames.

        Returns:
            (B, T', V) log-probs and (B,) output frames; T' = the longest of them.
        """
        lengths_out = output_lengths(lengths_b)
        longest = int(lengths_out.max())
        chunks = -(-longest // self.chunk_frames)
        num_features = chunks * self.shift + self.lookahead_frames * SUBSAMPLING
        features = self.normalise(pad_features(features_btf, lengths_b, num_features))
        x_btd = self._look_ahead(self.subsample(functional.pad(features, (0, 0, SUBSAMPLING_CONTEXT, 0))))
        mask = self._offline_mask(x_btd.shape[1], x_btd.device)
        for layer in self.layers:
            x_btd = layer(x_btd, mask, (self.kernel_frames - 1, 0), None)
        return self._log_probs(x_btd[:, :longest]), lengths_out

    def set_statistics(self, mean_f: Tensor, std_f: Tensor) -> None:
        """Mean and standard deviation of each mel bin over the training audio."""
        self.normalise.set_statistics(mean_f, std_f)

    def _look_ahead(self, x_btd: Tensor) -> Tensor:
        """(B, T + lookahead, D) to (B, T, D); a residual keeps it harmless at the start."""
        ahead = functional.silu(self.lookahead(x_btd.transpose(1, 2))).transpose(1, 2)
        return x_btd[:, : ahead.shape[1]] + ahead

    def _step_mask(self, processed_b: Tensor) -> Tensor:
        left = self.left_context_frames
        position = torch.arange(left + self.chunk_frames, device=processed_b.device)
        return (position >= left - processed_b[:, None])[:, None, None, :]

    def _offline_mask(self, num_frames: int, device: Any) -> Tensor:
        position = torch.arange(num_frames, device=device)
        chunk_start = position // self.chunk_frames * self.chunk_frames
        first, end = chunk_start - self.left_context_frames, chunk_start + self.chunk_frames
        return (position >= first[:, None]) & (position < end[:, None])

    def _log_probs(self, x_btd: Tensor) -> Tensor:
        return self.head(x_btd).log_softmax(dim=-1)
