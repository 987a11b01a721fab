"""Exported ONNX files run chunk by chunk by ONNX Runtime, as `ChunkModel`s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import require
from export.contract import WAVE_FORMAT, read_metadata
from export.packing import BATCH_AXIS, STATE_NAMES
from kdasr.errors import ModelError
from kdasr.streaming import FeatureWindows, SampleWindow, SampleWindows

FLOAT_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
WAVE_FLOAT_FILE = "model.wave.onnx"
WAVE_INT8_FILE = "model.wave.int8.onnx"
WAVE_INPUTS = ["samples", "valid_frames", "state"]
WAVE_OUTPUTS = ["log_probs", "new_state"]

OnnxState = list[NDArray[Any]]


class OnnxChunkModel:
    """An ONNX file in the `zipformer2_ctc` contract, on the CPU.

    Args:
        path: the file.
        session: the file's session, if it is open already; None to open it.

    Raises:
        ModelError: no file, a damaged or truncated file, one of another origin or version.
        MissingDependencyError: onnxruntime is not installed.

    Attributes:
        path: the file that runs.
        facts: its metadata.
        input_names: names of the features and of every state, in order.
    """

    def __init__(self, path: Path, session: Any = None) -> None:
        self.path = path
        self._session = open_session(path) if session is None else session
        self.facts = read_metadata(session_metadata(self._session), path)
        self.shift, self.window = self.facts.shift, self.facts.window
        self.subsampling, self.vocab_size = self.facts.subsampling, self.facts.vocab_size
        inputs = self._session.get_inputs()
        self.input_names = [entry.name for entry in inputs]
        if len(inputs) != 1 + len(STATE_NAMES) or len(self._session.get_outputs()) != len(inputs):
            raise ModelError(
                "the file does not have the inputs and outputs of a streaming export",
                where=self.path,
                expected=f"features and {len(STATE_NAMES)} states, in and out",
                got=self.input_names,
            )
        self._state_entries = inputs[1:]

    def initial_state(self, batch_size: int = 1) -> OnnxState:
        """Zeros in the shapes that the file declares."""
        state: OnnxState = []
        for name, entry in zip(STATE_NAMES, self._state_entries, strict=True):
            shape = list(entry.shape)
            shape[BATCH_AXIS[name]] = batch_size
            state.append(np.zeros(shape, np.int64 if entry.type == "tensor(int64)" else np.float32))
        return state

    def front_end(self) -> FeatureWindows:
        return FeatureWindows(self.window, self.shift)

    def step(
        self, features_btf: NDArray[np.float32], state: OnnxState
    ) -> tuple[NDArray[np.float32], OnnxState]:
        inputs = dict(zip(self.input_names, [features_btf, *state], strict=True))
        log_probs_btv, *next_state = run_session(self._session, None, inputs, self.path)
        return log_probs_btv, next_state


class OnnxWaveModel:
    """A waveform-in ONNX file, on the CPU, as a `ChunkModel`.

    Args:
        path: the file.
        session: as for `OnnxChunkModel`.

    Raises:
        ModelError: no file, a damaged one, or one of another kind.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, session: Any = None) -> None:
        self.path = path
        self._session = open_session(path) if session is None else session
        self.facts = read_metadata(session_metadata(self._session), path, WAVE_FORMAT)
        self.shift, self.window = self.facts.shift, self.facts.window
        self.subsampling, self.vocab_size = self.facts.subsampling, self.facts.vocab_size
        names = [entry.name for entry in self._session.get_inputs()]
        if names != WAVE_INPUTS:
            raise ModelError(
                "the file does not have the inputs of a waveform model",
                where=path,
                expected=WAVE_INPUTS,
                got=names,
            )

    def initial_state(self, batch_size: int = 1) -> NDArray[np.float32]:
        return np.zeros((batch_size, self.facts.state_floats + 1), np.float32)

    def front_end(self) -> SampleWindows:
        return SampleWindows(self.window, self.shift)

    def step(
        self, window: SampleWindow, state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        inputs = dict(zip(WAVE_INPUTS, (window.samples_bn, window.valid_frames_b, state), strict=True))
        log_probs_btv, state = run_session(self._session, WAVE_OUTPUTS, inputs, self.path)
        return log_probs_btv, state


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU, with one thread.

    Raises:
        ModelError: no file, or one that ONNX Runtime cannot read.
        MissingDependencyError: onnxruntime is not installed.
    """
    runtime = require("onnxruntime")
    if not path.is_file():
        raise ModelError(
            "the model file does not exist",
            where=path,
            fix="Create one with: kdasr export --model DIR --out DIR",
        )
    options = runtime.SessionOptions()
    # One thread, as on a device, and as is measured.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors have no common base class
        raise ModelError(
            "ONNX Runtime cannot read the file",
            where=path,
            got=str(error).strip().splitlines()[0][:200],
            fix="It is damaged, truncated or not an ONNX file: export or copy it again.",
        ) from error


def session_metadata(session: Any) -> dict[str, str]:
    """The metadata of a session's file; see `export.contract`."""
    return dict(session.get_modelmeta().custom_metadata_map)


def run_session(
    session: Any, outputs: list[str] | None, inputs: dict[str, NDArray[Any]], path: Path
) -> list[NDArray[Any]]:
    """The outputs of a session.

    Raises:
        ModelError: the graph does not accept the inputs that the file's metadata promises.
    """
    try:
        results: list[NDArray[Any]] = session.run(outputs, inputs)
    except Exception as error:  # as above
        raise ModelError(
            "ONNX Runtime cannot run the file",
            where=path,
            got=str(error).strip().splitlines()[0][:200],
            fix="Its metadata and its graph do not belong together: export or copy it again.",
        ) from error
    return results
