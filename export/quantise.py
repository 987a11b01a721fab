"""Weights of matrix products to 8 bits."""

from __future__ import annotations

import logging
from pathlib import Path

from export import require
from export.graph import set_metadata


def quantise_dynamic(source: Path, target: Path, metadata: dict[str, str]) -> None:
    """Writes a dynamically quantised copy of an ONNX file: int8 weights with one scale for each
    output channel, activations quantised as they come. Only MatMul with constant weights: the
    front end, convolutions and recurrent layers stay float32 (one scale for a whole tensor cost
    other models several points of WER).
    """
    onnx = require("onnx")
    quantization = require("onnxruntime.quantization")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a pre-processing step that dynamic quantisation has no use for
    try:
        quantization.quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
    finally:
        root.setLevel(level)
    model = onnx.load(str(target))
    set_metadata(model, metadata)
    onnx.save(model, str(target))
