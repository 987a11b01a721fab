"""A chunk-wise streaming Conformer: maps windows of log-mel and a state to log-probs and the next state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdasr.interfaces import frames_inside
from kdasr.layers import ConformerLayer, shared_rotation
from kdasr.students.streaming import FULL_CONTEXT, StreamingStudent, cache_mask, chunk_mask


class ConformerState(NamedTuple):
    """The state passed from one chunk to the next. Zeros before the first.

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


class ChunkConformer(StreamingStudent):
    """Conformer CTC student: attention within a chunk and a limited left context, causal
    convolutions, and lookahead in one convolution after the subsampling.

    A frame sees its chunk, `left_context_frames` before the chunk, and `lookahead_frames` after
    it, so the algorithmic latency is (chunk + lookahead) * 40 ms plus 7.5 ms of feature window.

    Args:
        vocab_size: classes including blank.
        width: D; a multiple of 2 * num_heads.
        num_layers, num_heads, expansion, kernel_frames, dropout: of the Conformer layers.
        chunk_frames, left_context_frames, lookahead_frames, dynamic_chunks: see `StreamingStudent`.
    """

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
        dynamic_chunks: Sequence[int] = (),
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(
            vocab_size=vocab_size,
            width=width,
            chunk_frames=chunk_frames,
            left_context_frames=left_context_frames,
            lookahead_frames=lookahead_frames,
            dynamic_chunks=dynamic_chunks,
        )
        self.config = {**config, "dynamic_chunks": self.dynamic_chunks}
        self.kernel_frames, self.width = kernel_frames, width
        self.layers = nn.ModuleList(
            ConformerLayer(
                width, num_heads=num_heads, expansion=expansion, kernel_frames=kernel_frames, dropout=dropout
            )
            for _ in range(num_layers)
        )
        self.head = nn.Linear(width, vocab_size)

    def initial_state(self, batch_size: int = 1) -> ConformerState:
        cache = (batch_size, len(self.layers))
        like = self.head.weight
        return ConformerState(
            self._context(batch_size),
            like.new_zeros(*cache, self.left_context_frames, self.width),
            like.new_zeros(*cache, self.left_context_frames, self.width),
            like.new_zeros(*cache, self.kernel_frames - 1, self.width),
            torch.zeros(batch_size, dtype=torch.int64, device=like.device),
        )

    def encode(self, x_btd: Tensor, lengths_b: Tensor, chunk_frames: int) -> Tensor:
        if chunk_frames == FULL_CONTEXT:
            mask = frames_inside(lengths_b, x_btd.shape[1])[:, None, None, :]
        else:
            mask = chunk_mask(x_btd.shape[1], chunk_frames, self.left_context_frames, x_btd.device)
        rotation_2td = shared_rotation(self.layers, x_btd.shape[1], x_btd.dtype)
        for layer in self.layers:
            x_btd = layer(x_btd, mask, rotation_2td)
        return x_btd

    def encode_chunk(self, x_btd: Tensor, state: ConformerState) -> tuple[Tensor, ConformerState]:
        mask = cache_mask(state.processed, self.left_context_frames, self.chunk_frames)
        rotation_2kd = shared_rotation(self.layers, mask.shape[-1], x_btd.dtype)
        caches: list[tuple[Tensor, Tensor, Tensor]] = []
        for n, layer in enumerate(self.layers):
            assert isinstance(layer, ConformerLayer)
            keys, values, gated = state.keys_bntd[:, n], state.values_bntd[:, n], state.gated_bntd[:, n]
            x_btd, *cache = layer.step(x_btd, keys, values, gated, mask, rotation_2kd)
            caches.append((cache[0], cache[1], cache[2]))
        keys, values, gated = (torch.stack(parts, dim=1) for parts in zip(*caches, strict=True))
        processed = torch.clamp(state.processed + self.chunk_frames, max=self.left_context_frames)
        return x_btd, ConformerState(state.features_bcf, keys, values, gated, processed)
