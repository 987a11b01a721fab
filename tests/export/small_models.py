"""Small untrained students that emit text, for tests of streaming and export."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.parity import probe_sound
from kdasr.features import LOG_MEL_FLOOR, log_mel
from kdasr.students.conformer import ChunkConformer
from kdasr.students.recurrent import RecurrentStudent as LstmStudent
from kdasr.students.zipformer import Zipformer
from kdasr.text import CharUnits

UNITS = CharUnits()


class RecurrentState(NamedTuple):
    features_bcf: Tensor
    hidden_bd: Tensor
    unused_bn: Tensor
    processed: Tensor


class RecurrentStudent(nn.Module):
    """A strided convolution and a GRU: a state that has nothing in common with the Conformer's,
    an empty tensor in it, a counter that never stops, and lookahead by a shifted output."""

    subsampling = 4

    def __init__(
        self, *, vocab_size: int, width: int = 24, chunk_frames: int = 3, lookahead_frames: int = 1
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"vocab_size": vocab_size, "width": width}
        self.vocab_size, self.width = vocab_size, width
        self.chunk_frames, self.lookahead_frames = chunk_frames, lookahead_frames
        self.shift, self.window = 4 * chunk_frames, 4 * (chunk_frames + lookahead_frames)
        self.front = nn.Conv1d(80, width, kernel_size=8, stride=4)
        self.ahead = nn.Conv1d(width, width, kernel_size=1 + lookahead_frames)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab_size)

    def initial_state(self, batch_size: int = 1) -> RecurrentState:
        return RecurrentState(
            torch.zeros(batch_size, 4, 80),
            torch.zeros(batch_size, self.width),
            torch.zeros(batch_size, 0, 5),
            torch.zeros(batch_size, dtype=torch.int64),
        )

    def forward(self, features_btf: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        scaled = torch.cat([state.features_bcf, (features_btf + 8) / 4], dim=1)
        hidden, last = self.recurrent(self._encode(scaled), state.hidden_bd[None].contiguous())
        context = scaled[:, self.shift : self.shift + 4]
        return self._log_probs(hidden), RecurrentState(
            context, last[0], state.unused_bn, state.processed + self.chunk_frames
        )

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        frames_b = (lengths_b + 3) // 4
        size = (int(frames_b.max()) + self.lookahead_frames) * 4
        padded = functional.pad(
            features_btf[:, :size], (0, 0, 0, max(0, size - features_btf.shape[1])), value=LOG_MEL_FLOOR
        )
        beyond = torch.arange(size)[None, :, None] >= lengths_b[:, None, None]
        scaled = (padded.masked_fill(beyond, LOG_MEL_FLOOR) + 8) / 4
        hidden, _ = self.recurrent(self._encode(functional.pad(scaled, (0, 0, 4, 0))))
        return self._log_probs(hidden), frames_b

    def _encode(self, scaled_btf: Tensor) -> Tensor:
        return functional.silu(self.ahead(functional.silu(self.front(scaled_btf.transpose(1, 2))))).transpose(
            1, 2
        )

    def _log_probs(self, hidden_btd: Tensor) -> Tensor:
        return self.head(hidden_btd).log_softmax(-1)


def make_talkative(student: Any, lead_nats: float) -> Any:
    """Makes an untrained student emit: centres its classes so that each has its moments, scales
    its head until the best class leads by `lead_nats` on average, and sets its blank so that about half
    of the frames are blank. Then text, tokens and times are worth comparing, and ties are rare."""
    student.eval()
    features = log_mel(probe_sound(96_000, seed=11))[None]
    with torch.no_grad():
        student.head.bias.sub_(_log_probs_tv(student, features).mean(0))
        best_two = _log_probs_tv(student, features).topk(2, dim=1).values
        scale = lead_nats / (best_two[:, 0] - best_two[:, 1]).mean()
        student.head.weight.mul_(scale)
        student.head.bias.mul_(scale)
        log_probs_tv = _log_probs_tv(student, features)
        others = log_probs_tv[:, 1:].max(dim=1).values
        student.head.bias[0] += (others - log_probs_tv[:, 0]).median() + 0.05
    return student


def _log_probs_tv(student: Any, features_btf: Tensor) -> Tensor:
    log_probs_btv, _ = student.offline(features_btf, torch.tensor([features_btf.shape[1]]))
    return log_probs_btv[0]


def conformer(lead_nats: float = 2.0, **changes: Any) -> ChunkConformer:
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "vocab_size": UNITS.vocab_size,
        "width": 32,
        "num_layers": 2,
        "num_heads": 2,
        "expansion": 2,
        "kernel_frames": 5,
        "chunk_frames": 4,
        "left_context_frames": 8,
        "lookahead_frames": 1,
        **changes,
    }
    student = ChunkConformer(**config)
    student.set_statistics(torch.full((80,), -8.0), torch.full((80,), 4.0))
    return make_talkative(student, lead_nats)


def recurrent(lead_nats: float = 2.0, **changes: Any) -> RecurrentStudent:
    torch.manual_seed(4)
    student = RecurrentStudent(vocab_size=UNITS.vocab_size, **changes)
    with torch.no_grad():
        for parameter in student.recurrent.parameters():
            parameter.mul_(3.0)
    return make_talkative(student, lead_nats)


def lstm(lead_nats: float = 2.0) -> LstmStudent:
    torch.manual_seed(5)
    student = LstmStudent(vocab_size=UNITS.vocab_size, width=32, num_layers=2, chunk_frames=4)
    student.set_statistics(torch.full((80,), -8.0), torch.full((80,), 4.0))
    with torch.no_grad():
        for parameter in student.layers.parameters():
            parameter.mul_(2.0)
    return make_talkative(student, lead_nats)


def zipformer(lead_nats: float = 2.0) -> Zipformer:
    torch.manual_seed(6)
    student = Zipformer(
        vocab_size=UNITS.vocab_size, widths=[24, 40, 32], num_heads=2, kernel_frames=5, chunk_frames=4,
        left_context_frames=8, lookahead_frames=1,
    )  # fmt: skip
    student.set_statistics(torch.full((80,), -8.0), torch.full((80,), 4.0))
    return make_talkative(student, lead_nats)


STUDENTS = {"conformer": conformer, "recurrent": recurrent}
ALL = {**STUDENTS, "lstm": lstm, "zipformer": zipformer}
# The kinds that every runtime is tested with; all but two are left to `make test`.
KINDS = [pytest.param(kind, marks=[] if kind in STUDENTS else pytest.mark.slow) for kind in sorted(ALL)]
