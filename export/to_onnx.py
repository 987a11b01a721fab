"""A streaming student in, a folder that stock sherpa-onnx and ONNX Runtime decode out of it.

    OUT/model.onnx        float32, the `zipformer2_ctc` contract (see docs/streaming-export.md)
    OUT/model.int8.onnx   the same, weights of matrix products in 8 bits
    OUT/tokens.txt        symbol and id of every class, for sherpa-onnx
    OUT/units.json        the units as kdasr saves them (and units.model for SentencePiece)
    OUT/model.json        the card: what this is, how exact it is, how to run it

A file gets its name only after it has been run against torch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from export import require
from export.contract import build_metadata
from export.graph import write_graph
from export.packing import BATCH_AXIS, STATE_NAMES, PackedState, StateLayout
from export.parity import BATCH_SIZES, TOLERANCE
from export.publish import MAX_WER_RISE, Export, Gate, check_units, publish
from export.quantise import quantise_dynamic
from export.runtime import FLOAT_FILE, INT8_FILE, OnnxChunkModel
from kdasr.features import NUM_MEL_BINS
from kdasr.interfaces import StreamingModel
from kdasr.text import Units


class OnnxFormat:
    """`export.publish.Format` of the `zipformer2_ctc` contract."""

    name = "onnx"
    float_file, int8_file = FLOAT_FILE, INT8_FILE
    tolerance = TOLERANCE
    batch_sizes: tuple[int, ...] = BATCH_SIZES

    def __init__(self, student: StreamingModel, units: Units, weights_sha256: str) -> None:
        self._student, self._layout = student, StateLayout(student)
        self.facts = build_metadata(
            student, self._layout, units_hash=units.hash, weights_sha256=weights_sha256
        )
        self.run = {
            "kdasr": "kdasr transcribe --model . --stream FILE.wav",
            # Its defaults put half a second of silence before the audio; the right padding
            # flushes the last window (the test for a ready window is strict, so one frame more).
            "sherpa-onnx": f"sherpa-onnx --tokens=tokens.txt --zipformer2-ctc-model={FLOAT_FILE} "
            f"--left-padding=0 --right-padding={(student.window + 2) / 100:g} FILE.wav",
        }

    def write_float(self, path: Path) -> None:
        axes: dict[str, dict[int, str]] = {"x": {0: "batch"}, "log_probs": {0: "batch"}}
        for state, axis in BATCH_AXIS.items():
            axes[state] = axes[f"new_{state}"] = {axis: "batch"}
        write_graph(
            _ContractModule(self._student, self._layout),
            (torch.zeros(2, self._student.window, NUM_MEL_BINS), *self._layout.initial(2)),
            path,
            inputs=["x", *STATE_NAMES],
            outputs=["log_probs", *(f"new_{state}" for state in STATE_NAMES)],
            dynamic_axes=axes,
            metadata=self.facts,
        )

    def write_int8(self, path: Path, float_path: Path) -> None:
        quantise_dynamic(float_path, path, self.facts)

    def open(self, path: Path) -> OnnxChunkModel:
        return OnnxChunkModel(path)


class _ContractModule(nn.Module):
    """A student behind the positional inputs and outputs of the contract."""

    def __init__(self, student: StreamingModel, layout: StateLayout) -> None:
        super().__init__()
        self.student, self.layout = student, layout

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        packed = PackedState(*states)
        log_probs_btv, state = self.student.forward(x, self.layout.unpack(packed))
        return (log_probs_btv, *self.layout.pack(state, packed))


def export_onnx(
    student: StreamingModel,
    units: Units,
    out_dir: Path,
    *,
    weights_sha256: str = "",
    name: str = "student",
    int8: bool = True,
    gate: Gate | None = None,
    max_wer_rise: float = MAX_WER_RISE,
) -> Export:
    """Exports `student`, checks every file against it, and writes the folder.

    Args:
        student: a streaming student; it is put into evaluation mode.
        units: its units.
        out_dir: made if need be; files of an earlier export are replaced.
        weights_sha256: hash of the weights it was loaded from, for the card.
        name: what the card calls it.
        int8: whether to write the int8 file too.
        gate: a function from a `ChunkModel` to its WER in percent on development audio. With it,
            an int8 file that is more than `max_wer_rise` points worse than float32 is refused.

    Raises:
        ExportError: the state does not fit the contract, parity is missed, or the gate is missed;
            the message holds the figure. Files of an earlier export are then left as they were.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    require("onnx")
    require("onnxruntime")
    check_units(student, units)
    return publish(
        OnnxFormat(student, units, weights_sha256),
        student,
        units,
        out_dir,
        name=name,
        int8=int8,
        gate=gate,
        max_wer_rise=max_wer_rise,
    )
