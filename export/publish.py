"""The one way an export is written, whatever the format: write, compare, gate, name, card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export import commit_file, temporary_name
from export.card import CARD_FILE, build_card, write_card
from export.formats import Format, format_class
from export.parity import Agreement, compare, require_parity
from export.to_onnx import OnnxFormat
from kdasr.errors import ExportError, MissingDependencyError
from kdasr.interfaces import StreamingModel
from kdasr.models import file_sha256
from kdasr.streaming import ChunkModel, TorchChunkModel
from kdasr.text import Units, write_tokens_txt

TOKENS_FILE = "tokens.txt"
MAX_WER_RISE = 0.5

Gate = Callable[[ChunkModel], float]


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        float_path: the float32 file.
        int8_path: the int8 file, or None where it was not asked for.
        card: the content of `model.json`.
    """

    float_path: Path
    int8_path: Path | None
    card: dict[str, Any]


def export_student(
    student: StreamingModel,
    units: Units,
    out_dir: Path,
    *,
    format: str = OnnxFormat.name,
    weights_sha256: str = "",
    name: str = "student",
    int8: bool = True,
    gate: Gate | None = None,
    max_wer_rise: float = MAX_WER_RISE,
) -> Export:
    """Writes `student` in a format, runs every file against torch, and only then names them.

    Files of an earlier export in `out_dir` are replaced at the end, or not at all.

    Args:
        student: a streaming student; it is put into evaluation mode.
        units: its units.
        out_dir: made if need be.
        format: one of `export.formats.FORMATS`.
        weights_sha256: hash of the weights it was loaded from, for the card.
        name: what the card calls it.
        int8: whether to write the int8 file too.
        gate: a function from a `ChunkModel` to its WER in percent on development audio. With it,
            an int8 file that is more than `max_wer_rise` points worse than float32 is refused.

    Raises:
        ConfigError: there is no such format.
        ExportError: the units are not the student's, its state or an operation does not fit the
            format, parity is missed, or the gate is missed; the message holds the figure.
        ModelError: the student cannot run chunk by chunk.
        MissingDependencyError: a package that the format needs is not installed.
    """
    kind = format_class(format)
    for package in kind.packages:
        # Not imported here: some packages are talkative, and the format knows how to hush them.
        if find_spec(package) is None:
            raise MissingDependencyError(package, kind.extra)
    _check_units(student, units)
    TorchChunkModel(student)  # which refuses a student of full context
    written = kind(student, units, weights_sha256)
    out_dir.mkdir(parents=True, exist_ok=True)
    float_path, int8_path = out_dir / written.float_file, out_dir / written.int8_file
    float_temporary, int8_temporary = temporary_name(float_path), temporary_name(int8_path)
    try:
        figures = {"float32": _write_float(written, student, float_temporary, float_path, gate)}
        if int8:
            figures["int8"] = _write_int8(written, student, int8_temporary, float_temporary, int8_path)
            if gate is not None:
                before = figures["float32"]["wer_percent"]
                candidate = written.open(int8_temporary)
                figures["int8"].update(_gated(candidate, gate, before, max_wer_rise, int8_path))
        _retire(written, out_dir)
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
    card = build_card(student, units, name=name, format=written, figures=figures)
    write_card(card, out_dir / CARD_FILE)
    return Export(float_path, int8_path if int8 else None, card)


def _check_units(student: StreamingModel, units: Units) -> None:
    """Raises:
    ExportError: `units` are not those of `student`."""
    if units.vocab_size != student.vocab_size:
        raise ExportError(
            "the units do not fit the student",
            expected=f"{student.vocab_size} units",
            got=units.vocab_size,
            fix="Give the units that the student was trained with.",
        )


def _write_float(
    format: Format, student: StreamingModel, path: Path, final: Path, gate: Gate | None
) -> dict[str, Any]:
    """Writes the float32 file to `path`; its figures. Raises ExportError as `export_student` does."""
    format.write_float(path)
    candidate = format.open(path)
    parity = compare(TorchChunkModel(student), candidate, batch_sizes=format.batch_sizes)
    require_parity(parity, str(final), format.tolerance)
    figures: dict[str, Any] = {"parity_with_torch": parity.as_dict()}
    if gate is not None:
        figures["wer_percent"] = gate(candidate)
    return figures


def _write_int8(
    format: Format, student: StreamingModel, path: Path, float_path: Path, final: Path
) -> dict[str, Any]:
    """Writes the int8 file to `path`; its figures. Raises ExportError as `export_student` does."""
    format.write_int8(path, float_path)
    agreement = compare(TorchChunkModel(student), format.open(path), batch_sizes=format.batch_sizes)
    _require_resemblance(agreement, final)
    return {"agreement_with_torch": agreement.as_dict()}


def _gated(
    candidate: ChunkModel, gate: Gate, float_wer: float, max_wer_rise: float, where: Path
) -> dict[str, Any]:
    """The WER of an int8 model, and how much it is above that of float32.

    Raises:
        ExportError: it is too much.
    """
    wer = gate(candidate)
    rise = wer - float_wer
    if not rise <= max_wer_rise:
        raise ExportError(
            "int8 costs too much accuracy",
            where=where,
            expected=f"at most {max_wer_rise:g} points of WER more than float32",
            got=f"{rise:.2f} points ({float_wer:.2f} % to {wer:.2f} %)",
            fix="No file was written. Export without int8, or raise the limit.",
        )
    return {"wer_percent": wer, "wer_rise_points": rise}


def _require_resemblance(agreement: Agreement, where: Path) -> None:
    """A quantised model may differ, but one that agrees on fewer than half of the frames is broken."""
    if agreement.same_argmax < 0.5:
        raise ExportError(
            "the int8 model is not the float32 model any more",
            where=where,
            expected="the same class in at least half of all frames",
            got=f"{agreement.same_argmax:.1%}",
            fix="Export without int8, or train longer: weights with outliers do not quantise.",
        )


def _retire(format: Format, out_dir: Path) -> None:
    """Takes away the card first: a folder without one is not a finished export."""
    for name in (CARD_FILE, format.float_file, format.int8_file, TOKENS_FILE):
        (out_dir / name).unlink(missing_ok=True)


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
