"""Quantisation of the weights of matrix products to 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export import require
from export.graph import set_metadata


def quantise_dynamic(source: Path, target: Path, metadata: dict[str, str]) -> None:
    """Writes a dynamically quantised copy of an ONNX file: weights use 7 of 8 bits with one scale per output
    channel, activations are quantised at run time. Only LSTM, and MatMul with constant weights, are
    quantised: the front end and convolutions stay float32 (one scale for a whole tensor cost other models
    several points of WER).
    """
    onnx = require("onnx")
    quantization = require("onnxruntime.quantization")
    recurrent = any(node.op_type == "LSTM" for node in onnx.load(str(source)).graph.node)
    prepared = target.with_name(f"{target.name}.prepared") if recurrent else source
    with only_errors():
        try:
            if recurrent:
                # The weights of an LSTM are constants only after its reshapes have been folded.
                shapes = require("onnxruntime.quantization.shape_inference")
                shapes.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_dynamic(
                str(prepared),
                str(target),
                op_types_to_quantize=["MatMul", "LSTM"],
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                # x86 without VNNI adds pairs of products in 16 bits, which 8-bit weights can overflow.
                reduce_range=True,
            )
        finally:
            if recurrent:
                prepared.unlink(missing_ok=True)
    model = onnx.load(str(target))
    set_metadata(model, metadata)
    onnx.save(model, str(target))


@contextmanager
def only_errors() -> Iterator[None]:
    """Silences ONNX Runtime's quantisers, which log every node, and useless advice, to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
