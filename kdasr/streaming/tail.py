"""The silence that a streaming model is fed after the end of the audio.

A model without future context emits a unit some frames after its sound, and one trained to lag behind its
teacher later still. Without a tail, audio that ends with the last sound would lose its last letters.

Students emit the last unit up to 80 ms after its sound, and those that lag behind their teacher later by
that lag: with a lag of 160 ms, two output frames of the 320 ms are to spare. A longer tail does not change
the text. The tail does not depend on the chunk size, since features beyond it are silence too. No recorded
silence is all zeros, so students hear the tail in training, too (`kdasr.loader.Stream`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import Token
from kdasr.features import TAIL_MS, num_frames
from kdasr.interfaces import AcousticModel, StreamingModel


def hears_tail(model: AcousticModel) -> bool:
    """Whether `model` needs a tail, as streaming models do. Full-context ones emit units without delay."""
    return isinstance(model, StreamingModel) and model.shift > 0


def tail_after(num_samples: int) -> NDArray[np.float32]:
    """The tail after `num_samples`: (TAIL_MS * 16,) zeros, or empty if the samples make no frame."""
    heard = num_frames(num_samples) > 0
    return np.zeros(TAIL_MS * SAMPLE_RATE_HZ // 1000 if heard else 0, np.float32)


def with_tail(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) samples of a whole utterance, followed by their tail."""
    return np.concatenate([samples, tail_after(len(samples))])


def within_audio(tokens: Iterable[Token], num_samples: int, subsampling: int) -> list[Token]:
    """The tokens, with those in the tail moved to the last output frame of the `num_samples` of audio."""
    last = math.ceil(num_frames(num_samples) / subsampling) - 1
    return [token._replace(frame=min(token.frame, last)) for token in tokens]
