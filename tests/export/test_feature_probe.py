"""What features does stock sherpa-onnx really feed? A probe reads them back: a "student" without
weights whose tokens are the values that it was given.

Output frame n names one cell of its window, the value of one mel bin in one feature frame, as a
token; a frame without a token repeats the one before, because CTC collapses repetitions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.parity import probe_sound
from export.to_onnx import OnnxFormat
from kdasr.features import log_mel
from kdasr.text import CharUnits

PROGRAM = Path(__file__).with_name("sherpa_decode.py")
LOWEST, STEP, LEVELS = -16.5, 0.008, 4_000
CHUNK_FRAMES, LOOKAHEAD_FRAMES = 4, 2
NUM_SAMPLES = 64_000


class ProbeState(NamedTuple):
    nothing_bn: Tensor
    processed: Tensor


class FeatureProbe(nn.Module):
    """Log-mel in, the values of some of its cells out, as classes: class c stands for a value of
    LOWEST + (c - 1) * STEP.

    Args:
        phase: which cells; 0, 1, … see other mel bins in other feature frames.
    """

    subsampling, vocab_size = 4, 1 + LEVELS
    chunk_frames, lookahead_frames = CHUNK_FRAMES, LOOKAHEAD_FRAMES
    shift, window = 4 * CHUNK_FRAMES, 4 * (CHUNK_FRAMES + LOOKAHEAD_FRAMES)

    def __init__(self, phase: int) -> None:
        super().__init__()
        self.phase, self.config = phase, {"phase": phase}

    def cell(self, frame: Any) -> tuple[Any, Any]:
        """For output frame n of the stream: how far beyond its own first feature frame it looks,
        lookahead included, and into which bin."""
        return (frame + self.phase) % (self.window - self.shift + 4), (37 * frame + 20 * self.phase) % 80

    def initial_state(self, batch_size: int = 1) -> ProbeState:
        return ProbeState(torch.zeros(batch_size, 1), torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, features_btf: Tensor, state: ProbeState) -> tuple[Tensor, ProbeState]:
        in_chunk_t = torch.arange(self.chunk_frames)
        beyond_bt, bin_bt = self.cell(state.processed[:, None] + in_chunk_t)
        place_bt = (4 * in_chunk_t + beyond_bt) * 80 + bin_bt
        value_bt = features_btf.flatten(1).gather(1, place_bt)
        distance_btv = ((value_bt[..., None] - LOWEST) / STEP + 1 - torch.arange(self.vocab_size)).abs()
        no_blank_v = torch.where(torch.arange(self.vocab_size) == 0, -100.0, 0.0)
        log_probs_btv = (no_blank_v - distance_btv.clamp(max=50.0)).log_softmax(-1)
        return log_probs_btv, ProbeState(state.nothing_bn + 0, state.processed + self.chunk_frames)

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a probe streams")


def read_back(folder: Path, phase: int, samples: NDArray[np.float32], mode: str) -> dict[int, float]:
    """Output frame to the value that sherpa fed into its cell."""
    model, tokens, wav = folder / "probe.onnx", folder / "tokens.txt", folder / "probe.wav"
    OnnxFormat(FeatureProbe(phase), CharUnits(), "").write_float(model)
    tokens.write_text("<blk> 0\n" + "".join(f"v{level} {level}\n" for level in range(1, LEVELS + 1)))
    soundfile.write(wav, samples, 16_000, subtype="FLOAT")
    command = [sys.executable, PROGRAM, model, tokens, "", mode, wav]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    (result,) = json.loads(done.stdout.splitlines()[-1])
    frames = [round(time / 0.04) for time in result["timestamps"]]
    levels = [int(token.strip().removeprefix("v")) for token in result["tokens"]]
    values: dict[int, float] = {}
    for frame, end, level in zip(frames, [*frames[1:], frames[-1] + 1], levels, strict=True):
        values |= dict.fromkeys(range(frame, end), LOWEST + (level - 1) * STEP)
    return values


def differences(values: dict[int, float], phase: int, samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of what was read back from what `kdasr.features` computes."""
    features_tf, cell = log_mel(samples).numpy(), FeatureProbe(phase).cell
    expected = {
        frame: features_tf[4 * frame + cell(frame)[0], cell(frame)[1]]
        for frame in values
        if 4 * frame + cell(frame)[0] < len(features_tf)
    }
    assert len(expected) >= 90
    return np.array([values[frame] - float(value) for frame, value in expected.items()])


@pytest.mark.parametrize(("phase", "mode"), [(0, "whole"), (1, "ragged"), (2, "batch")])
def test_sherpa_feeds_the_features_of_this_project(tmp_path: Path, phase: int, mode: str) -> None:
    samples = probe_sound(NUM_SAMPLES, 30 + phase)
    values = read_back(tmp_path, phase, samples, mode)
    assert len(set(values.values())) > 60 and list(values) == list(range(len(values)))
    assert np.abs(differences(values, phase, samples)).max() < STEP / 2 + 2e-3


def test_the_probe_notices_other_features(tmp_path: Path) -> None:
    """The negative control: the same audio a tenth louder."""
    samples = 0.5 * probe_sound(NUM_SAMPLES, 30)
    values = read_back(tmp_path, 0, samples, "whole")
    assert np.median(np.abs(differences(values, 0, 1.1 * samples))) == pytest.approx(
        2 * np.log(1.1), abs=STEP
    )
