"""A model that says a given script: for tests of what happens to its words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdasr.streaming import FeatureWindows
from kdasr.text import CharUnits

UNITS = CharUnits()
FRAME_SAMPLES = 640


class Scripted:
    """Says `script[frame]` in each output frame and blank elsewhere, whatever the audio.

    Args:
        script: symbol by output frame.
    """

    shift = window = 8
    subsampling = 4
    vocab_size = UNITS.vocab_size

    def __init__(self, script: dict[int, str]) -> None:
        self.script = script

    def initial_state(self, batch_size: int = 1) -> int:
        return 0

    def front_end(self) -> FeatureWindows:
        return FeatureWindows(self.window, self.shift)

    def step(self, features_btf: NDArray[np.float32], state: Any) -> tuple[NDArray[np.float32], Any]:
        log_probs = np.full((1, 2, self.vocab_size), -20.0, np.float32)
        for row in range(2):
            symbol = self.script.get(state + row, "<blk>")
            log_probs[0, row, UNITS.symbols.index(symbol)] = -0.5
        return log_probs, state + 2


def spell(text: str, start_frame: int, spacing: int = 2) -> dict[int, str]:
    """A script that spells `text` from a frame on, one letter every `spacing` frames."""
    return {start_frame + spacing * n: "▁" if char == " " else char for n, char in enumerate(text)}


def silence(num_frames: int) -> NDArray[np.float32]:
    """Audio of so many output frames."""
    return np.zeros(num_frames * FRAME_SAMPLES, np.float32)
