"""Write a torch module as an ONNX file with metadata."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export import require
from kdasr.errors import ExportError

OPSET = 17


def write_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic_axes: dict[str, dict[int, str]],
    metadata: dict[str, str],
) -> None:
    """Writes the ONNX graph of `module`. Whether it computes the same is not checked here.

    Args:
        module: returns a tuple of tensors.
        example: inputs of two streams, because with a batch of one an exporter may treat the batch
            axis as constant.

    Raises:
        ExportError: torch or onnx refuses the module.
    """
    onnx = require("onnx")
    try:
        # The TorchScript exporter takes half a second, dynamo 15, and these graphs have no control
        # flow that tracing could miss (shapes are fixed except for the batch). If one had, the
        # comparison with torch would detect it.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = module.eval()(*example)
            torch.onnx.export(
                module,
                example,
                str(path),
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=dynamic_axes,
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(str(path))
        for entry, result in zip(model.graph.output, results, strict=True):
            _set_shape(entry, result, dynamic_axes.get(entry.name, {}))
        set_metadata(model, metadata)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        raise ExportError(
            "torch cannot export this student to ONNX",
            where=type(getattr(module, "student", module)).__name__,
            got=str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__,
            fix="Use operations that torch.onnx supports in forward().",
        ) from error


def _set_shape(entry: Any, result: Tensor, dynamic: dict[int, str]) -> None:
    """Declares the shape of an output, which other tools need to plan memory, and which the exporter leaves
    open if it cannot infer it."""
    shape = entry.type.tensor_type.shape
    del shape.dim[:]
    for axis, size in enumerate(result.shape):
        if axis in dynamic:
            shape.dim.add().dim_param = dynamic[axis]
        else:
            shape.dim.add().dim_value = size


def set_metadata(model: Any, metadata: dict[str, str]) -> None:
    """Replaces the metadata of an ONNX model."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
