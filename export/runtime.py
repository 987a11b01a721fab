"""An exported ONNX file run chunk by chunk by ONNX Runtime, as a `ChunkModel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import require
from export.contract import read_metadata
from export.packing import BATCH_AXIS, STATE_NAMES
from export.publish import TOKENS_FILE
from kdasr.errors import ModelError, UnitsError
from kdasr.streaming import FeatureWindows
from kdasr.text import Units, load_units

FLOAT_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"

OnnxState = list[NDArray[Any]]


class OnnxChunkModel:
    """An ONNX file in the `zipformer2_ctc` contract, on the CPU.

    Args:
        path: the file, or the folder that holds `model.onnx`.
        num_threads: threads of one call; 1 is what a device has to spare and what is measured.

    Raises:
        ModelError: no file, a damaged or truncated file, one of another origin or version.
        MissingDependencyError: onnxruntime is not installed.

    Attributes:
        path: the file that runs.
        facts: what its metadata says.
    """

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        path = Path(path)
        self.path = path / FLOAT_FILE if path.is_dir() else path
        self._session = _open_session(self.path, num_threads)
        metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self.facts = read_metadata(metadata, self.path)
        self.shift, self.window = self.facts.shift, self.facts.window
        self.subsampling, self.vocab_size = self.facts.subsampling, self.facts.vocab_size
        inputs = self._session.get_inputs()
        self._input_names = [entry.name for entry in inputs]
        if len(inputs) != 1 + len(STATE_NAMES) or len(self._session.get_outputs()) != len(inputs):
            raise ModelError(
                "not the inputs and outputs of a streaming export",
                where=self.path,
                expected=f"features and {len(STATE_NAMES)} states, in and out",
                got=self._input_names,
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
        log_probs_btv, *next_state = self._session.run(
            None, dict(zip(self._input_names, [features_btf, *state], strict=True))
        )
        return log_probs_btv, next_state


def _open_session(path: Path, num_threads: int) -> Any:
    runtime = require("onnxruntime")
    if not path.is_file():
        raise ModelError(
            "no such model file", where=path, fix="Make one with: kdasr export --model DIR --out DIR"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
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


def load_onnx(path: Path, num_threads: int = 1) -> tuple[OnnxChunkModel, Units]:
    """An exported model and its units, checked to belong together.

    Args:
        path: an export folder (then its float32 file is used) or an `.onnx` file in one.

    Raises:
        ModelError: the model cannot be used, or units or tokens.txt beside it are of another model.
    """
    model = OnnxChunkModel(path, num_threads)
    folder = model.path.parent
    try:
        units = load_units(folder)
    except UnitsError as error:
        raise ModelError(
            f"its units cannot be used: {error}",
            where=folder,
            fix="Keep the files of an export together; they are one folder.",
        ) from error
    if units.hash != model.facts.units_hash or units.vocab_size != model.vocab_size:
        raise ModelError(
            "the units are of another model",
            where=folder,
            expected=f"units {model.facts.units_hash[:12]}… with {model.vocab_size} classes",
            got=f"{units.hash[:12]}… with {units.vocab_size}",
            fix="Export the model again into an empty folder.",
        )
    check_tokens_file(folder / TOKENS_FILE, units)
    return model, units


def check_tokens_file(path: Path, units: Units) -> None:
    """Checks that `tokens.txt`, which other runtimes read, says what the units say.

    Raises:
        ModelError: it is missing, malformed or different.
    """
    fix = "Export the model again; tokens.txt must not be edited."
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError("the tokens cannot be read", where=path, got=error, fix=fix) from error
    expected = [f"{symbol} {unit}" for unit, symbol in enumerate(units.symbols)]
    for number, (want, got) in enumerate(zip(expected, lines, strict=False), start=1):
        if want != got:
            raise ModelError(
                f"the tokens do not match the units in line {number}",
                where=path,
                expected=repr(want),
                got=repr(got),
                fix=fix,
            )
    if len(lines) != len(expected):
        raise ModelError(
            "the tokens do not match the units",
            where=path,
            expected=f"{len(expected)} lines",
            got=len(lines),
            fix=fix,
        )
