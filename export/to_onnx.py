"""A streaming student in, a folder that stock sherpa-onnx and ONNX Runtime decode out of it.

    OUT/model.onnx        float32, the `zipformer2_ctc` contract (see docs/streaming-export.md)
    OUT/model.int8.onnx   the same, weights of matrix products in 8 bits
    OUT/tokens.txt        symbol and id of every class, for sherpa-onnx
    OUT/units.json        the units as kdasr saves them (and units.model for SentencePiece)
    OUT/model.json        the card: what this is, how exact it is, how to run it

A file gets its name only after it has been run against torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export import commit_file, require, temporary_name
from export.card import build_card, write_card
from export.contract import build_metadata, set_metadata
from export.packing import BATCH_AXIS, STATE_NAMES, PackedState, StateLayout
from export.parity import Agreement, compare, require_parity
from export.quantise import quantise_dynamic
from export.runtime import CARD_FILE, FLOAT_FILE, INT8_FILE, TOKENS_FILE, OnnxChunkModel
from kdasr.errors import ExportError
from kdasr.interfaces import StreamingModel
from kdasr.models import file_sha256
from kdasr.streaming import ChunkModel, TorchChunkModel
from kdasr.text import Units, write_tokens_txt

OPSET = 17
MAX_WER_RISE = 0.5

Gate = Callable[[ChunkModel], float]


@dataclass(frozen=True)
class Export:
    """What `export_onnx` wrote.

    Attributes:
        float_path: `model.onnx`.
        int8_path: `model.int8.onnx`, or None where it was not asked for.
        card: the content of `model.json`.
    """

    float_path: Path
    int8_path: Path | None
    card: dict[str, Any]


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
    if units.vocab_size != student.vocab_size:
        raise ExportError(
            "the units do not fit the student",
            expected=f"{student.vocab_size} units",
            got=units.vocab_size,
            fix="Give the units that the student was trained with.",
        )
    reference = TorchChunkModel(student)
    layout = StateLayout(student)
    metadata = build_metadata(student, layout, units_hash=units.hash, weights_sha256=weights_sha256)
    out_dir.mkdir(parents=True, exist_ok=True)
    float_path, int8_path = out_dir / FLOAT_FILE, out_dir / INT8_FILE
    float_temporary, int8_temporary = temporary_name(float_path), temporary_name(int8_path)
    try:
        write_graph(student, layout, float_temporary, metadata)
        parity = compare(reference, OnnxChunkModel(float_temporary))
        require_parity(parity, str(float_path))
        figures: dict[str, Any] = {"float32": {"parity_with_torch": parity.as_dict()}}
        if int8:
            quantise_dynamic(float_temporary, int8_temporary, metadata)
            agreement = compare(reference, OnnxChunkModel(int8_temporary))
            figures["int8"] = {"agreement_with_torch": agreement.as_dict()}
            _check_int8(agreement, str(int8_path))
        if gate is not None:
            figures["float32"]["wer_percent"] = gate(OnnxChunkModel(float_temporary))
        if gate is not None and int8:
            figures["int8"]["wer_percent"] = gate(OnnxChunkModel(int8_temporary))
            _check_wer(figures, max_wer_rise, str(int8_path))
        _retire(out_dir)
        units.save(out_dir)
        write_tokens_txt(units, out_dir / TOKENS_FILE)
        commit_file(float_temporary, float_path)
        figures["float32"].update(_file_facts(float_path))
        if int8:
            commit_file(int8_temporary, int8_path)
            figures["int8"].update(_file_facts(int8_path))
    finally:
        float_temporary.unlink(missing_ok=True)
        int8_temporary.unlink(missing_ok=True)
    card = build_card(student, units, name=name, metadata=metadata, figures=figures)
    write_card(card, out_dir / CARD_FILE)
    return Export(float_path, int8_path if int8 else None, card)


def write_graph(student: StreamingModel, layout: StateLayout, path: Path, metadata: dict[str, str]) -> None:
    """Writes the ONNX graph of `student`, with metadata and a free batch size, and checks that it
    is well formed. Parity is not checked here.

    Raises:
        ExportError: torch or onnx refuses the student.
    """
    onnx = require("onnx")
    inputs = ["x", *STATE_NAMES]
    outputs = ["log_probs", *(f"new_{state}" for state in STATE_NAMES)]
    axes: dict[str, dict[int, str]] = {"x": {0: "batch"}, "log_probs": {0: "batch"}}
    for state, axis in BATCH_AXIS.items():
        axes[state] = axes[f"new_{state}"] = {axis: "batch"}
    # Two streams, because a batch of one lets an exporter take the batch axis for a constant.
    example = (torch.zeros(2, student.window, 80), *layout.initial(2))
    try:
        # The TorchScript exporter: half a second against 15 for dynamo, and this graph has no
        # control flow that tracing could miss (shapes are fixed but for the batch). `compare`
        # would find it if it had.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _ContractModule(student, layout).eval(),
                example,
                str(path),
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(str(path))
        set_metadata(model, metadata)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        raise ExportError(
            "torch cannot export this student to ONNX",
            where=type(student).__name__,
            got=str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__,
            fix="Use operations that torch.onnx supports in forward().",
        ) from error


def _check_int8(agreement: Agreement, where: str) -> None:
    """A quantised model may differ, but one that agrees on fewer than half of the frames is broken."""
    if agreement.same_argmax < 0.5:
        raise ExportError(
            "the int8 model is not the float32 model any more",
            where=where,
            expected="the same class in at least half of all frames",
            got=f"{agreement.same_argmax:.1%}",
            fix="Export without int8, or train longer: weights with outliers do not quantise.",
        )


def _check_wer(figures: dict[str, Any], max_wer_rise: float, where: str) -> None:
    rise = figures["int8"]["wer_percent"] - figures["float32"]["wer_percent"]
    figures["int8"]["wer_rise_points"] = rise
    if not rise <= max_wer_rise:
        raise ExportError(
            "int8 costs too much accuracy",
            where=where,
            expected=f"at most {max_wer_rise:g} points of WER more than float32",
            got=f"{rise:.2f} points ({figures['float32']['wer_percent']:.2f} % to "
            f"{figures['int8']['wer_percent']:.2f} %)",
            fix="No file was written. Export without int8, or raise the limit.",
        )


def _retire(out_dir: Path) -> None:
    """Takes away the card first: a folder without one is not a finished export."""
    for name in (CARD_FILE, FLOAT_FILE, INT8_FILE, TOKENS_FILE):
        (out_dir / name).unlink(missing_ok=True)


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
