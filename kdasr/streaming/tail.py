"""The silence that a streaming model hears after the end of the audio.

A model that hears no future says a unit some frames after its sound, and one that learnt to lag behind
its teacher later still. What ends with the last sound would end without its last letters.

Students say the last unit up to 80 ms after its sound, and those that lag behind their teacher so much
later: with a lag of 160 ms two output frames of the 320 ms are to spare. More of it changes no text. Chunks
of whatever size need none for themselves: what they see beyond the tail are features of silence too. Zeros
are no silence that is ever recorded, so students hear the tail in training, too (`kdasr.loader.Stream`).
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
    """Whether `model` is a streaming one. One of full context says at once what it hears."""
    return isinstance(model, StreamingModel) and model.shift > 0


def tail_after(num_samples: int) -> NDArray[np.float32]:
    """What is heard after so many samples: (TAIL_MS * 16,) zeros, or nothing where they make no frame."""
    heard = num_frames(num_samples) > 0
    return np.zeros(TAIL_MS * SAMPLE_RATE_HZ // 1000 if heard else 0, np.float32)


def with_tail(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) samples of a whole utterance, and their tail."""
    return np.concatenate([samples, tail_after(len(samples))])


def within_audio(tokens: Iterable[Token], num_samples: int, subsampling: int) -> list[Token]:
    """The tokens, those of the tail in the last output frame of the `num_samples` of audio."""
    last = math.ceil(num_frames(num_samples) / subsampling) - 1
    return [token._replace(frame=min(token.frame, last)) for token in tokens]
