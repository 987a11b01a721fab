"""Compare all ways of ONNX Runtime to quantise the matrix products of a student.

    python -m benchmarks.quantisation --model DIR --dev SHARDS --test SHARDS

(with the extra `dev`) prints WER, share of frames with the same class as in float32, speed, size and
memory for float32 and each way. Static quantisation is calibrated on the dev shards, including the
student's states. All take turns, each in its own process on one core; the speed is that of the fastest round,
shown with its CPU time, which does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization import quantize_static as onnx_quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.bench import time_engines
from export.graph import set_metadata
from export.publish import export_student
from export.quantise import only_errors
from export.runtime import OnnxChunkModel
from export.transcribe import open_recogniser
from kdasr.error_rates import count_errors
from kdasr.errors import ExportError
from kdasr.interfaces import Utterance
from kdasr.models import load_model
from kdasr.shards import list_shards, read_shard

# Takes (float32 file, file to write, dev utterances).
Quantiser = Callable[[Path, Path, Sequence[Utterance]], None]

SHIPPED = "dynamic, per channel"
# accuracy_level of MatMulNBits: compute in float32, or quantise activations to 8 bits too.
_FLOAT, _INT8 = 1, 4


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Measure and print; returns the figures of each way by name."""
    parser = argparse.ArgumentParser(description="compare ways to quantise a student")
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained student")
    parser.add_argument("--dev", type=Path, required=True, help="labelled shards to calibrate on")
    parser.add_argument("--test", type=Path, required=True, help="labelled shards to measure with")
    parser.add_argument("--calibrate", type=int, default=50, help="utterances to calibrate on (default 50)")
    parser.add_argument("--rounds", type=int, default=3, help="how often to time each variant (default 3)")
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    options = parser.parse_args(arguments)
    calibration = list(islice(_utterances(options.dev), options.calibrate))
    with tempfile.TemporaryDirectory() as folder, only_errors():
        files = write_variants(options.model, Path(folder), calibration)
        figures = measure(files, list(_utterances(options.test)), Path(folder), options.rounds)
    print("\n".join(table(figures)))
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def write_variants(model: Path, folder: Path, calibration: Sequence[Utterance]) -> dict[str, Path]:
    """Write the student in float32 and quantised in every way to one export folder."""
    loaded = load_model(model)
    exported = export_student(loaded.model, loaded.units, folder)
    if exported.int8_path is None:
        raise ExportError(
            "the export has no int8 file to compare the others with", where=model, got=exported.refused
        )
    files = {"float32": exported.float_path, SHIPPED: exported.int8_path}
    metadata = {entry.key: entry.value for entry in onnx.load(exported.float_path).metadata_props}
    for number, (name, quantise) in enumerate(VARIANTS.items()):
        files[name] = folder / f"variant-{number}.onnx"
        quantise(exported.float_path, files[name], calibration)
        written = onnx.load(files[name])
        set_metadata(written, metadata)
        onnx.save(written, files[name])
    return files


def measure(
    files: dict[str, Path], utterances: Sequence[Utterance], folder: Path, rounds: int
) -> dict[str, dict[str, Any]]:
    """For each file `wer` and `wer_rise` in percent, `same_class` (the fraction of frames with the same most
    probable class as in float32), `bytes`, and the figures of `export.bench.time_engines`."""
    timed = time_engines(files, utterances, folder, rounds)
    heard = {name: _heard(path, utterances) for name, path in files.items()}
    float_wer, float_classes = heard["float32"]
    return {
        name: {
            "wer": wer,
            "wer_rise": wer - float_wer,
            "same_class": float((classes == float_classes).mean()),
            "bytes": files[name].stat().st_size,
            **timed[name],
        }
        for name, (wer, classes) in heard.items()
    }


def table(figures: dict[str, dict[str, Any]]) -> list[str]:
    """The figures as a table in Markdown."""
    lines = [
        "| weights of matrix products | WER % | rise | same class | MB | RTF, CPU | P50 ms | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        lines.append(
            f"| {name} | {row['wer']:.2f} | {row['wer_rise']:+.2f} | {100 * row['same_class']:.1f} % "
            f"| {row['bytes'] / 1e6:.2f} | {row['rtf']:.4f}, {row['cpu_rtf']:.4f} "
            f"| {row['p50_ms']:.2f} | {row['model_mib']:.0f} |"
        )
    return lines


def _dynamic(**settings: Any) -> Quantiser:
    def quantise(source: Path, target: Path, calibration: Sequence[Utterance]) -> None:
        # As in export.quantise, which gives the reasons.
        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, reduce_range=True, **settings)

    return quantise


def _static(method: CalibrationMethod) -> Quantiser:
    """Activations have precomputed scales, too. As with dynamic quantisation, only products with constant
    weights are quantised: attention's products of two activations stay float32."""

    def quantise(source: Path, target: Path, calibration: Sequence[Utterance]) -> None:
        prepared = target.with_suffix(".prepared.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        onnx_quantize_static(
            str(prepared),
            str(target),
            _Windows(source, calibration),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            extra_options={"MatMulConstBOnly": True},
        )

    return quantise


def _weight_only(bits: int, block: int, compute: int) -> Quantiser:
    """Only weights are quantised, with one scale per `block`; `compute` is the accuracy level."""

    def quantise(source: Path, target: Path, calibration: Sequence[Utterance]) -> None:
        quantiser = MatMulNBitsQuantizer(
            str(source), bits=bits, block_size=block, is_symmetric=True, accuracy_level=compute
        )
        quantiser.process()
        quantiser.model.save_model_to_file(str(target), False)

    return quantise


_MATMUL = ["MatMul"]
VARIANTS: dict[str, Quantiser] = {
    "dynamic, per tensor": _dynamic(op_types_to_quantize=_MATMUL, per_channel=False),
    "dynamic, per channel, convolutions too": _dynamic(per_channel=True),
    "static, smallest to largest": _static(CalibrationMethod.MinMax),
    "static, percentile 99.999": _static(CalibrationMethod.Percentile),
    "weights only, 8 bit": _weight_only(8, 128, _FLOAT),
    "weights only, 8 bit, int8 products": _weight_only(8, 128, _INT8),
    "weights only, 4 bit": _weight_only(4, 32, _FLOAT),
    "weights only, 4 bit, int8 products": _weight_only(4, 32, _INT8),
}


class _Windows(CalibrationDataReader):
    """All inputs of the float32 model while streaming utterances, including states."""

    def __init__(self, model: Path, utterances: Sequence[Utterance]) -> None:
        self._inputs = self._all_inputs(OnnxChunkModel(model), utterances)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._inputs, None)

    @staticmethod
    def _all_inputs(
        model: OnnxChunkModel, utterances: Sequence[Utterance]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        for utterance in utterances:
            front_end, state = model.front_end(), model.initial_state()
            for window in [*front_end.accept(utterance.samples), *front_end.finish()]:
                yield dict(zip(model.input_names, (window, *state), strict=True))
                _, state = model.step(window, state)


def _heard(model: Path, utterances: Sequence[Utterance]) -> tuple[float, NDArray[np.int64]]:
    """WER in percent, and the most probable class of every frame of all utterances."""
    recogniser, texts, classes = open_recogniser(model), [], []
    for utterance in utterances:
        session = recogniser.session(keep_log_probs=True, where=utterance.key)
        texts.append(session.hear(utterance.samples))
        classes.append(session.log_probs_tv.argmax(axis=1))
    errors = count_errors([utterance.text or "" for utterance in utterances], texts)
    return errors.wer, np.concatenate(classes)


def _utterances(folder: Path) -> Iterator[Utterance]:
    return (one for shard in list_shards(folder) for one in read_shard(shard) if one.text)


if __name__ == "__main__":
    main()
