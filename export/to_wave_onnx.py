"""Export of a streaming student to an ONNX file that takes 16 kHz samples, for runtimes without Kaldi
features, such as the web page. `export.wave_student` describes the interface.

    OUT/model.wave.onnx, OUT/model.wave.int8.onnx, OUT/tokens.txt, OUT/units.json, OUT/model.json
"""

from __future__ import annotations

from pathlib import Path

from export.contract import WAVE_FORMAT, own_metadata
from export.graph import write_graph
from export.packing import StateLayout
from export.parity import BATCH_SIZES, WAVE_TOLERANCE
from export.quantise import quantise_dynamic
from export.runtime import WAVE_FLOAT_FILE, WAVE_INPUTS, WAVE_INT8_FILE, WAVE_OUTPUTS, OnnxWaveModel
from export.wave_student import WaveStudent
from kdasr.interfaces import StreamingModel
from kdasr.text import Units


class WaveOnnxFormat:
    """`export.formats.Format` of the waveform-in graph."""

    name, extra = "wave-onnx", "export"
    packages: tuple[str, ...] = ("onnx", "onnxruntime")
    float_file, int8_file = WAVE_FLOAT_FILE, WAVE_INT8_FILE
    tolerance = WAVE_TOLERANCE
    batch_sizes: tuple[int, ...] = BATCH_SIZES

    def __init__(self, student: StreamingModel, units: Units, weights_sha256: str) -> None:
        layout = StateLayout(student)
        self._module = WaveStudent(student, layout)
        self.facts = {
            "kdasr_format": WAVE_FORMAT,
            **own_metadata(student, layout, units_hash=units.hash, weights_sha256=weights_sha256),
            "num_samples": str(self._module.num_samples),
        }
        self.run = {
            "kdasr": f"kdasr transcribe --model {WAVE_FLOAT_FILE} --stream FILE.wav",
            "web": "kdasr demo-page --model .",
        }

    def write_float(self, path: Path) -> None:
        write_graph(
            self._module,
            self._module.example(2),
            path,
            inputs=WAVE_INPUTS,
            outputs=WAVE_OUTPUTS,
            dynamic_axes={name: {0: "batch"} for name in (*WAVE_INPUTS, *WAVE_OUTPUTS)},
            metadata=self.facts,
        )

    def write_int8(self, path: Path, float_path: Path) -> None:
        quantise_dynamic(float_path, path, self.facts)

    def open(self, path: Path) -> OnnxWaveModel:
        return OnnxWaveModel(path)
