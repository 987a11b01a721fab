"""The models that a session can step: their interface, and its implementation for torch."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kdasr.errors import ConfigError, ModelError
from kdasr.features import FRAME_SHIFT_MS
from kdasr.interfaces import StreamingModel
from kdasr.streaming.windows import FeatureWindows, FrontEnd
from kdasr.symbols import control_ids
from kdasr.text import Units

# Half of the 25 ms analysis window minus half of the 10 ms hop: the audio that a centred feature
# frame needs beyond its own 10 ms (snip_edges=false).
FEATURE_LOOKAHEAD_MS = 7.5
# Far below any logit, yet small enough for float32 to represent it to 2e-5, since exports are compared by it.
_NEVER_LOGIT = -200.0


class ChunkModel(Protocol):
    """A streaming model behind one call, whatever runs it (torch, ONNX Runtime, ExecuTorch).

    Attributes:
        shift: feature frames (10 ms) between the starts of two windows.
        window: feature frames that one call sees; `window - shift` of them are lookahead.
        subsampling: feature frames per output frame.
        vocab_size: classes including blank (id 0).
    """

    shift: int
    window: int
    subsampling: int
    vocab_size: int

    def initial_state(self, batch_size: int = 1) -> Any:
        """The state before the first window."""
        ...

    def front_end(self) -> FrontEnd:
        """A front end that cuts one stream of samples into the windows that `step` takes."""
        ...

    def step(self, window: Any, state: Any) -> tuple[NDArray[np.float32], Any]:
        """Map one window from `front_end` (stacked along the batch axis for several streams) to log-probs
        (B, shift / subsampling, V) and the next state. The state passed in is not changed."""
        ...


def algorithmic_latency_ms(model: ChunkModel) -> float:
    """Milliseconds of audio that must have arrived before the first word of a window can be decoded:
    chunk + lookahead + the reach of the feature window."""
    return model.window * FRAME_SHIFT_MS + FEATURE_LOOKAHEAD_MS


class TorchChunkModel:
    """A torch `StreamingModel` as a `ChunkModel`, in evaluation mode and without gradients.

    Args:
        student: any streaming student.

    Raises:
        ModelError: the model is not a streaming one (a full-context teacher, or a student that
            was set to full context).
    """

    def __init__(self, student: StreamingModel) -> None:
        if not isinstance(student, StreamingModel):
            raise ModelError(
                "this model cannot run chunk by chunk",
                where=type(student).__name__,
                expected="a streaming student with initial_state() and forward(features, state)",
                fix="Choose a streaming student: only these can process live audio and be exported.",
            )
        if student.shift == 0:
            raise ModelError(
                "a full-context student cannot run chunk by chunk",
                where=type(student).__name__,
                expected="a chunk of at least one output frame",
                got="one chunk for the whole utterance",
                fix="Set another chunk size, or transcribe whole utterances.",
            )
        self.student = student
        self.shift, self.window = student.shift, student.window
        self.subsampling, self.vocab_size = student.subsampling, student.vocab_size
        if isinstance(student, torch.nn.Module):
            student.eval()

    def initial_state(self, batch_size: int = 1) -> Any:
        return self.student.initial_state(batch_size)

    def front_end(self) -> FeatureWindows:
        return FeatureWindows(self.window, self.shift)

    @torch.inference_mode()
    def step(self, features_btf: NDArray[np.float32], state: Any) -> tuple[NDArray[np.float32], Any]:
        log_probs_btv, state = self.student.forward(torch.from_numpy(features_btf), state)
        return log_probs_btv.numpy(), state


def silence_controls(student: StreamingModel, units: Units) -> StreamingModel:
    """`student` with a head that never emits classes without text (such as `<unk>` or `<s>` in another
    library's symbol table); the same object if there are none.

    kdasr's units leave such classes out of the text, but other runtimes print their symbols.

    Raises:
        ModelError: it has such classes, but no linear head with a bias.
    """
    controls = control_ids(units.symbols)
    if not controls:
        return student
    silenced: Any = copy.deepcopy(student)
    head = getattr(silenced, "head", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is None:
        raise ModelError(
            "the classes without text cannot be suppressed",
            where=type(student).__name__,
            expected="a student whose `head` is an nn.Linear with a bias",
            got=f"{[units.symbols[unit] for unit in controls][:5]} among its units",
        )
    with torch.no_grad():
        head.weight[controls] = 0.0
        head.bias[controls] = _NEVER_LOGIT
    return silenced


def set_chunk_ms(student: StreamingModel, chunk_ms: int, *, or_whole: bool = False) -> None:
    """Changes how much audio `student` takes at a time; lookahead and left context remain.

    A student trained with one chunk size runs with any, but is at its best only near that size. One
    trained with `dynamic_chunks` works with all of them.

    Args:
        chunk_ms: milliseconds, at least one output frame.
        or_whole: also allow 0, for full context: the student then processes only whole utterances.

    Raises:
        ConfigError: not a multiple of one output frame, or not a chunk size that the student can have.
    """
    frame_ms = FRAME_SHIFT_MS * student.subsampling
    if chunk_ms < (0 if or_whole else frame_ms) or chunk_ms % frame_ms:
        raise ConfigError(
            "a chunk must be a whole number of output frames",
            where="chunk_ms",
            expected=f"a multiple of {frame_ms}, "
            + ("or 0 for full context" if or_whole else f"at least {frame_ms}"),
            got=chunk_ms,
        )
    student.chunk_frames = chunk_ms // frame_ms


def trained_chunks_ms(student: StreamingModel) -> list[int]:
    """The chunk sizes that `student` was trained with, in ms and ascending order, whatever its present one;
    0 is full context. Empty if its output does not depend on the size, as for a recurrent student."""
    config = student.config
    if not {"chunk_frames", "dynamic_chunks"} <= config.keys():
        return []
    frames = config["dynamic_chunks"] or [config["chunk_frames"]]
    return sorted({int(count) * FRAME_SHIFT_MS * student.subsampling for count in frames})
