"""Export of a streaming student to a folder that stock sherpa-onnx and ONNX Runtime can run.

    OUT/model.onnx        float32, the `zipformer2_ctc` contract (see docs/streaming-export.md)
    OUT/model.int8.onnx   the same, weights of matrix products in 8 bits
    OUT/tokens.txt        symbol and id of every class, for sherpa-onnx
    OUT/units.json        the units as kdasr saves them (and units.model for SentencePiece)
    OUT/model.json        the card: what this is, how exact it is, how to run it

A file gets its name only after it has been compared with torch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from export.contract import build_metadata
from export.graph import write_graph
from export.packing import BATCH_AXIS, STATE_NAMES, PackedState, StateLayout
from export.parity import BATCH_SIZES, TOLERANCE
from export.quantise import quantise_dynamic
from export.runtime import FLOAT_FILE, INT8_FILE, OnnxChunkModel
from kdasr.features import NUM_MEL_BINS
from kdasr.interfaces import StreamingModel
from kdasr.streaming import TAIL_MS
from kdasr.text import Units


class OnnxFormat:
    """`export.formats.Format` of the `zipformer2_ctc` contract."""

    name, extra = "onnx", "export"
    packages: tuple[str, ...] = ("onnx", "onnxruntime")
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
            # By default it would put half a second of silence before the audio. The right padding provides
            # the tail and flushes the last window (one frame more, since its test for readiness is strict).
            "sherpa-onnx": f"sherpa-onnx --tokens=tokens.txt --zipformer2-ctc-model={FLOAT_FILE} "
            f"--left-padding=0 --right-padding={TAIL_MS / 1000 + (student.window + 2) / 100:g} FILE.wav",
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
    """A student with the positional inputs and outputs of the contract."""

    def __init__(self, student: StreamingModel, layout: StateLayout) -> None:
        super().__init__()
        self.student, self.layout = student, layout

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        packed = PackedState(*states)
        log_probs_btv, state = self.student.forward(x, self.layout.unpack(packed))
        return (log_probs_btv, *self.layout.pack(state, packed))
