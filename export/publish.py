"""The one way an export is written, whatever the format: write, compare, gate, name, card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export import commit_file, temporary_name
from export.card import CARD_FILE, build_card, write_card
from export.formats import FORMATS, Format, format_class
from export.parity import Agreement, compare, require_parity
from export.to_onnx import OnnxFormat
from kdasr.errors import ConfigError, ExportError, MissingDependencyError
from kdasr.interfaces import StreamingModel
from kdasr.models import WEIGHTS_FILE, file_sha256
from kdasr.streaming import ChunkModel, TorchChunkModel, silence_controls
from kdasr.text import Units, write_tokens_txt

TOKENS_FILE = "tokens.txt"
MAX_WER_RISE = 0.5
NOT_MEASURED = "not measured: exported without development shards (--dev)"


@dataclass(frozen=True)
class Measured:
    """The WER of a file on development audio, and which audio that was.

    Attributes:
        wer_percent: word errors for each hundred words.
        words: words of the transcripts.
        folders: where the shards lie.
    """

    wer_percent: float
    words: int
    folders: tuple[str, ...]


Gate = Callable[[ChunkModel], Measured]


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

    One folder holds one export: the files of an earlier one in `out_dir`, of whatever format, are
    replaced at the end, or not at all. Classes that stand for no text are never emitted by the files
    (`kdasr.streaming.silence_controls`).

    Args:
        student: a streaming student; it is put into evaluation mode.
        units: its units.
        out_dir: made if need be; not the folder of a model.
        format: one of `export.formats.FORMATS`.
        weights_sha256: hash of the weights it was loaded from, for the card.
        name: what the card calls it.
        int8: whether to write the int8 file too.
        gate: a function from a `ChunkModel` to its WER on development audio. With it, an int8 file
            that is more than `max_wer_rise` points worse than float32 is refused; without it, the
            card says that WER was not measured.

    Raises:
        ConfigError: there is no such format, or `out_dir` holds a model.
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
    _check_folder(out_dir)
    _check_units(student, units)
    student = silence_controls(student, units)
    TorchChunkModel(student)  # which refuses a student of full context
    written = kind(student, units, weights_sha256)
    out_dir.mkdir(parents=True, exist_ok=True)
    float_path, int8_path = out_dir / written.float_file, out_dir / written.int8_file
    float_temporary, int8_temporary = temporary_name(float_path), temporary_name(int8_path)
    try:
        figures = {"float32": _write_float(written, student, float_temporary, float_path, gate)}
        if int8:
            figures["int8"] = _write_int8(written, student, int8_temporary, float_temporary, int8_path)
            measured = _measured(gate, written.open(int8_temporary))
            if gate is not None:
                before = figures["float32"]["wer_percent"]
                measured["wer_rise_points"] = _rise(measured["wer_percent"], before, max_wer_rise, int8_path)
            figures["int8"].update(measured)
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
    card = build_card(student, units, name=name, format=written, figures=figures)
    write_card(card, out_dir / CARD_FILE)
    return Export(float_path, int8_path if int8 else None, card)


def _check_folder(out_dir: Path) -> None:
    """Raises:
    ConfigError: the export would write over the card and the units of a model."""
    if (out_dir / WEIGHTS_FILE).exists():
        raise ConfigError(
            "this is the folder of a model, and an export there would destroy it",
            where=out_dir,
            expected="a folder of its own for the export",
            got=f"a folder with {WEIGHTS_FILE}",
            fix="Choose another --out.",
        )


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
    return {"parity_with_torch": parity.as_dict(), **_measured(gate, candidate)}


def _write_int8(
    format: Format, student: StreamingModel, path: Path, float_path: Path, final: Path
) -> dict[str, Any]:
    """Writes the int8 file to `path`; its figures. Raises ExportError as `export_student` does."""
    format.write_int8(path, float_path)
    agreement = compare(TorchChunkModel(student), format.open(path), batch_sizes=format.batch_sizes)
    _require_resemblance(agreement, final)
    return {"agreement_with_torch": agreement.as_dict()}


def _measured(gate: Gate | None, candidate: ChunkModel) -> dict[str, Any]:
    """The WER of a model and its audio, for the card."""
    if gate is None:
        return {"wer_percent": None, "wer_data": NOT_MEASURED}
    data = asdict(gate(candidate))
    return {"wer_percent": data.pop("wer_percent"), "wer_data": data}


def _rise(wer: float, float_wer: float, max_wer_rise: float, where: Path) -> float:
    """How many points the WER of int8 is above that of float32.

    Raises:
        ExportError: too many.
    """
    rise = wer - float_wer
    if not rise <= max_wer_rise:
        raise ExportError(
            "int8 costs too much accuracy",
            where=where,
            expected=f"at most {max_wer_rise:g} points of WER more than float32",
            got=f"{rise:.2f} points ({float_wer:.2f} % to {wer:.2f} %)",
            fix="No file was written. Export without int8, or raise the limit.",
        )
    return rise


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


def _retire(out_dir: Path) -> None:
    """Takes away an export of any format, for the card will describe the new one alone. The card goes
    first: a folder without one is not a finished export."""
    models = [name for kind in FORMATS.values() for name in (kind.float_file, kind.int8_file)]
    for name in (CARD_FILE, *models, TOKENS_FILE):
        (out_dir / name).unlink(missing_ok=True)


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
