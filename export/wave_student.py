"""A student that takes samples, with the log-mel folded into its graph.

DC removal, preemphasis, the window and the Fourier transform are linear, so together they are one
400 × 2F matrix; the rest is squares, sums, the mel filters and a logarithm. The interface is
made for small runtimes: every tensor is float32 with the batch first.

    in   samples (B, 160 · window + 240)   samples [160 · shift · k − 120, …) of the stream
         valid_frames (B,)                 how many of the window's feature frames are audio
         state (B, N + 1)                  the student's state, packed; zeros at the start
    out  log_probs (B, shift / 4, V)
         new_state (B, N + 1)

`kdasr.streaming.SampleWindows` cuts a stream into such windows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.packing import StateLayout
from kdasr.features import HOP_SAMPLES, LOG_MEL_FLOOR, WINDOW_SAMPLES, mel_filters, spectrum
from kdasr.interfaces import StreamingModel
from kdasr.streaming.windows import EXTRA_SAMPLES

_EPSILON = float(torch.finfo(torch.float32).eps)


def folded_analysis() -> tuple[Tensor, Tensor]:
    """The front end as two matrices: (2F, 400) from samples to the real and imaginary parts of F
    frequencies, and (80, F) from their powers to mel energies. Frequencies that no mel filter
    uses are left out."""
    mel_filters_fm = mel_filters().double()
    used = mel_filters_fm.any(dim=1)
    # Each row of the identity is a window with a single 1; its spectrum is a column of the matrix.
    spectrum_wf = spectrum(torch.eye(WINDOW_SAMPLES, dtype=torch.float64))[:, used]
    analysis = torch.cat([spectrum_wf.real, spectrum_wf.imag], dim=1).T
    return analysis.float(), mel_filters_fm[used].T.float()


class FoldedLogMel(nn.Module):
    """(B, 160 T + 240) samples to (B, T, 80) log-mel, as defined in `kdasr.features`."""

    def __init__(self) -> None:
        super().__init__()
        analysis, mel = folded_analysis()
        # Convolutions, so that quantisation of matrix products does not affect the front end.
        self.analysis = nn.Conv1d(1, len(analysis), WINDOW_SAMPLES, HOP_SAMPLES, bias=False)
        self.mel = nn.Conv1d(mel.shape[1], len(mel), 1, bias=False)
        with torch.no_grad():
            self.analysis.weight.copy_(analysis[:, None])
            self.mel.weight.copy_(mel[:, :, None])

    def forward(self, samples_bn: Tensor) -> Tensor:
        # The matrix ignores a constant; subtracting the mean first avoids cancellation in float32.
        centred = samples_bn - samples_bn.mean(dim=1, keepdim=True)
        spectrum_bft = self.analysis(centred[:, None])
        real, imaginary = spectrum_bft.chunk(2, dim=1)
        power_bft = real * real + imaginary * imaginary
        return self.mel(power_bft).clamp_min(_EPSILON).log().transpose(1, 2)


class WaveStudent(nn.Module):
    """A student with the interface above.

    Args:
        student: a streaming student.
        layout: the layout of its state.
        float_counter: pass the student its counter as float32, which is required by a quantiser that
            turns the numbers in a graph into float32 constants.
    """

    def __init__(self, student: StreamingModel, layout: StateLayout, *, float_counter: bool = False) -> None:
        super().__init__()
        self.student, self.layout, self.float_counter = student, layout, float_counter
        self.log_mel = FoldedLogMel()

    @property
    def num_samples(self) -> int:
        """Samples in a window."""
        return self.student.window * HOP_SAMPLES + EXTRA_SAMPLES

    @property
    def state_size(self) -> int:
        """Floats of state per stream: the student's own, and its counter."""
        return self.layout.num_floats + 1

    def example(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the right shapes: silence, and the initial state."""
        return (
            torch.zeros(batch_size, self.num_samples),
            torch.full((batch_size,), float(self.student.window)),
            torch.zeros(batch_size, self.state_size),
        )

    def forward(self, samples_bn: Tensor, valid_frames_b: Tensor, state_bn: Tensor) -> tuple[Tensor, Tensor]:
        position = torch.arange(self.student.window, dtype=torch.float32)
        beyond = position[None, :, None] >= valid_frames_b[:, None, None]
        features_btf = self.log_mel(samples_bn).masked_fill(beyond, LOG_MEL_FLOOR)
        counter_b = state_bn[:, -1] if self.float_counter else state_bn[:, -1].to(torch.int64)
        state = self.layout.unflatten(state_bn[:, :-1], counter_b)
        log_probs_btv, state = self.student.forward(features_btf, state)
        floats_bn, counter_b = self.layout.flatten(state, counter_b)
        return log_probs_btv, torch.cat([floats_bn, counter_b.to(torch.float32)[:, None]], dim=1)
