"""A recurrent streaming student: maps windows of log-mel and a state to log-probs and the next state."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError
from kdasr.students.streaming import StreamingStudent


class RecurrentState(NamedTuple):
    """The state passed from one chunk to the next. Zeros before the first.

    Attributes:
        features_bcf: (B, SUBSAMPLING_CONTEXT, 80) normalised features before the window.
        hidden_bnh, cell_bnh: (B, layers, hidden_width) of the LSTMs.
        processed: (B,) int64, frames so far, for the caller; the LSTMs do not need it.
    """

    features_bcf: Tensor
    hidden_bnh: Tensor
    cell_bnh: Tensor
    processed: Tensor


class RecurrentLayer(nn.Module):
    """x + W LSTM(LayerNorm(x)), with frames of width D in and out. The residual allows stacking many layers,
    and the projection W an LSTM wider than the frames between layers."""

    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.recurrent = nn.LSTM(width, hidden_width, batch_first=True)
        self.out = nn.Linear(hidden_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Process whole utterances (B, T, D), from a state of zeros."""
        hidden_bth, _ = self.recurrent(self.norm(x_btd))
        return x_btd + self.dropout(self.out(hidden_bth))

    def step(self, x_btd: Tensor, hidden_bh: Tensor, cell_bh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Process one chunk, given the LSTM's state (B, H); returns output and next state."""
        before = (hidden_bh[None].contiguous(), cell_bh[None].contiguous())
        hidden_bth, (hidden, cell) = self.recurrent(self.norm(x_btd), before)
        return x_btd + self.dropout(self.out(hidden_bth)), hidden[0], cell[0]


class RecurrentStudent(StreamingStudent):
    """Unidirectional LSTM CTC student, as in the million-hour system (Parthasarathi and Strom, "Lessons
    from building acoustic models with a million hours of speech", arXiv 1904.01624), with residuals and
    LayerNorm between its layers.

    A frame sees all the past and `lookahead_frames` of the future, in chunks of any size: the log-probs
    do not depend on `chunk_frames`, which only determines how much audio is run at a time.

    Args:
        vocab_size: classes including blank.
        width: D, of the frames between layers.
        num_layers: number of LSTMs.
        hidden_width: of an LSTM; None for D.
        dropout: after the projection of each layer.
        chunk_frames, lookahead_frames: see `StreamingStudent`.

    Raises:
        ConfigError: no layers, or as for `StreamingStudent`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int = 192,
        num_layers: int = 4,
        hidden_width: int | None = None,
        dropout: float = 0.1,
        chunk_frames: int = 8,
        lookahead_frames: int = 2,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(
            vocab_size=vocab_size,
            width=width,
            chunk_frames=chunk_frames,
            left_context_frames=0,
            lookahead_frames=lookahead_frames,
        )
        self.config = config
        if num_layers < 1:
            raise ConfigError(
                "a student needs at least one layer",
                where="num_layers of RecurrentStudent",
                expected="1 or more",
                got=num_layers,
            )
        self.hidden_width = width if hidden_width is None else hidden_width
        self.layers = nn.ModuleList(
            RecurrentLayer(width, self.hidden_width, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)

    def initial_state(self, batch_size: int = 1) -> RecurrentState:
        like = self.head.weight
        shape = (batch_size, len(self.layers), self.hidden_width)
        return RecurrentState(
            self._context(batch_size),
            like.new_zeros(shape),
            like.new_zeros(shape),
            torch.zeros(batch_size, dtype=torch.int64, device=like.device),
        )

    def encode(self, x_btd: Tensor, lengths_b: Tensor, chunk_frames: int) -> Tensor:
        for layer in self.layers:
            x_btd = layer(x_btd)
        return self.norm(x_btd)

    def encode_chunk(self, x_btd: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        hidden, cell = [], []
        for n, layer in enumerate(self.layers):
            assert isinstance(layer, RecurrentLayer)
            x_btd, hidden_bh, cell_bh = layer.step(x_btd, state.hidden_bnh[:, n], state.cell_bnh[:, n])
            hidden.append(hidden_bh)
            cell.append(cell_bh)
        processed = state.processed + self.chunk_frames
        return self.norm(x_btd), RecurrentState(
            state.features_bcf, torch.stack(hidden, dim=1), torch.stack(cell, dim=1), processed
        )
