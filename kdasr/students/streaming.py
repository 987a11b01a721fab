"""What all students share: front end, lookahead, head, and processing in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.features import NUM_MEL_BINS
from kdasr.layers import (
    SUBSAMPLING,
    SUBSAMPLING_CONTEXT,
    Normalise,
    Subsampling,
    output_lengths,
    pad_features,
    whole_frames,
)

# Value of `chunk_frames` for one chunk that is the whole utterance. Such a student runs offline only.
FULL_CONTEXT = 0
# A minute. Text appears only at the end of a chunk, and attention needs memory quadratic in its size.
MAX_CHUNK_FRAMES = 1_500


class StreamingStudent(nn.Module, ABC):
    """Base of the students: log-mel to frames of width D, D to log-probs, offline or chunk by chunk.

    A subclass encodes frames (B, T, D) in two ways that must agree: `encode` for whole utterances, and
    `encode_chunk` with the previous chunk's state, a NamedTuple with `features_bcf`
    (B, SUBSAMPLING_CONTEXT, 80) first and `processed` (B,) int64 last.

    Args:
        vocab_size: classes including blank.
        width: D, the width of the encoder's input frames.
        chunk_frames: output frames (40 ms) in a chunk, or FULL_CONTEXT. May be changed at any time.
        left_context_frames: output frames before its chunk that a frame may attend to.
        lookahead_frames: output frames of future audio beyond the chunk.
        dynamic_chunks: chunk sizes from which training draws one for each batch, so that the student
            works with all (U2, arXiv 2012.05481, which draws FULL_CONTEXT for half of the batches: list
            it as often as all others together). Empty: always `chunk_frames`.
        chunk_multiple: chunk sizes must be multiples of this.

    Raises:
        ConfigError: a negative context, or a chunk size that is not such a multiple or exceeds
            MAX_CHUNK_FRAMES.
    """

    subsampling = SUBSAMPLING

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int,
        chunk_frames: int,
        left_context_frames: int,
        lookahead_frames: int,
        dynamic_chunks: Sequence[int] = (),
        chunk_multiple: int = 1,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.chunk_multiple = chunk_multiple
        self.chunk_frames = chunk_frames
        if left_context_frames < 0 or lookahead_frames < 0:
            raise ConfigError(
                "the context of a student cannot be negative",
                where=f"left_context_frames, lookahead_frames of {type(self).__name__}",
                expected="0 or more output frames",
                got=f"{left_context_frames}, {lookahead_frames}",
            )
        self.left_context_frames = left_context_frames
        self.lookahead_frames = lookahead_frames
        self.dynamic_chunks = [self._checked(frames, "dynamic_chunks") for frames in dynamic_chunks]
        self.normalise = Normalise()
        self.subsample = Subsampling(width)
        self.lookahead = nn.Conv1d(width, width, kernel_size=1 + lookahead_frames)

    head: nn.Linear

    @abstractmethod
    def encode(self, x_btd: Tensor, lengths_b: Tensor, chunk_frames: int) -> Tensor:
        """Encode whole utterances (B, T, D) of `lengths_b` valid frames, in chunks, to (B, T, input width
        of the head). T is a multiple of the chunk size, or of `chunk_multiple` with FULL_CONTEXT. Padding
        within an utterance's last chunk may be attended to, as it is chunk by chunk."""

    @abstractmethod
    def encode_chunk(self, x_btd: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Encode one chunk; returns the encoding and the next state, with `features_bcf` not yet updated."""

    @abstractmethod
    def initial_state(self, batch_size: int = 1) -> Any:
        """The initial state: zeros."""

    @property
    def chunk_frames(self) -> int:
        """Output frames (40 ms) in a chunk; FULL_CONTEXT for whole utterances."""
        return self._chunk_frames

    @chunk_frames.setter
    def chunk_frames(self, frames: int) -> None:
        self._chunk_frames = self._checked(frames, "chunk_frames")

    @property
    def shift(self) -> int:
        """Feature frames between the starts of two windows."""
        return self.chunk_frames * SUBSAMPLING

    @property
    def window(self) -> int:
        """Feature frames in a window."""
        return (self.chunk_frames + self.lookahead_frames) * SUBSAMPLING

    def forward(self, features_btf: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Map one window (B, window, 80) of raw log-mel to (B, chunk_frames, V) log-probs and the next
        state."""
        features = torch.cat([state.features_bcf, self.normalise(features_btf)], dim=1)
        x_btd, state = self.encode_chunk(self._look_ahead(self.subsample(features)), state)
        context = features[:, self.shift : self.shift + SUBSAMPLING_CONTEXT]
        return self._log_probs(x_btd), state._replace(features_bcf=context)

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """Process whole utterances under a chunk mask; gives the same log-probs as chunk by chunk.

        Args:
            features_btf: (B, T, 80) raw log-mel.
            lengths_b: (B,) feature frames.

        Returns:
            (B, T', V) log-probs and (B,) output frames; T' is that of the padded batch.
        """
        lengths_out = output_lengths(lengths_b)
        # Length of the padded batch: reading the longest of `lengths_b` would wait for the GPU.
        longest = -(-features_btf.shape[1] // SUBSAMPLING)
        chunk = self._training_chunk() if self.training and self.dynamic_chunks else self.chunk_frames
        frames = whole_frames(longest, chunk or self.chunk_multiple, features_btf.device)
        features = pad_features(features_btf, lengths_b, (frames + self.lookahead_frames) * SUBSAMPLING)
        features = functional.pad(self.normalise(features), (0, 0, SUBSAMPLING_CONTEXT, 0))
        x_btd = self.encode(self._look_ahead(self.subsample(features)), lengths_out, chunk)
        return self._log_probs(x_btd[:, :longest]), lengths_out

    def set_statistics(self, mean_f: Tensor, std_f: Tensor) -> None:
        """Set the mean and standard deviation of each mel bin over the training audio."""
        self.normalise.set_statistics(mean_f, std_f)

    def _training_chunk(self) -> int:
        return self.dynamic_chunks[int(torch.randint(len(self.dynamic_chunks), ()))]

    def _checked(self, frames: int, where: str) -> int:
        if not 0 <= frames <= MAX_CHUNK_FRAMES or frames % self.chunk_multiple:
            raise ConfigError(
                "invalid chunk size for this student",
                where=f"{where} of {type(self).__name__}",
                expected=f"a multiple of {self.chunk_multiple} output frames "
                f"({10 * SUBSAMPLING * self.chunk_multiple} ms) up to {MAX_CHUNK_FRAMES} "
                f"({10 * SUBSAMPLING * MAX_CHUNK_FRAMES} ms), or {FULL_CONTEXT} for the whole utterance",
                got=f"{frames} ({10 * SUBSAMPLING * frames} ms)",
            )
        return frames

    def _context(self, batch_size: int) -> Tensor:
        """`features_bcf` before the first chunk."""
        return self.head.weight.new_zeros(batch_size, SUBSAMPLING_CONTEXT, NUM_MEL_BINS)

    def _look_ahead(self, x_btd: Tensor) -> Tensor:
        """Map (B, T + lookahead, D) to (B, T, D), with a residual, so that it does no harm initially."""
        ahead = functional.silu(self.lookahead(x_btd.transpose(1, 2))).transpose(1, 2)
        return x_btd[:, : ahead.shape[1]] + ahead

    def _log_probs(self, x_btd: Tensor) -> Tensor:
        # In float32 even under bf16, for precision near zero.
        return self.head(x_btd).float().log_softmax(dim=-1)


def chunk_mask(num_frames: int, chunk_frames: int, left_context_frames: int, device: Any) -> Tensor:
    """(T, T) bool: each frame may attend to its chunk and `left_context_frames` before the chunk."""
    position = torch.arange(num_frames, device=device)
    chunk_start = position // chunk_frames * chunk_frames
    first, end = chunk_start - left_context_frames, chunk_start + chunk_frames
    return (position >= first[:, None]) & (position < end[:, None])


def cache_mask(processed_b: Tensor, left_context_frames: int, chunk_frames: int) -> Tensor:
    """(B, 1, 1, L + C) bool: which of the cached frames and the chunk after them are real."""
    position = torch.arange(left_context_frames + chunk_frames, device=processed_b.device)
    return (position >= left_context_frames - processed_b[:, None])[:, None, None, :]
