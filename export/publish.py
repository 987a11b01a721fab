"""The one way an export is written, whatever the format: write, compare, gate, name, card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from export import commit_file, temporary_name
from export.card import CARD_FILE, build_card, write_card
from export.parity import Agreement, compare, require_parity
from kdasr.errors import ExportError
from kdasr.interfaces import StreamingModel
from kdasr.models import file_sha256
from kdasr.streaming import ChunkModel, TorchChunkModel
from kdasr.text import Units, write_tokens_txt

TOKENS_FILE = "tokens.txt"
MAX_WER_RISE = 0.5

Gate = Callable[[ChunkModel], float]


class Format(Protocol):
    """A file format for one student.

    Attributes:
        name: as `kdasr export --format` calls it.
        float_file, int8_file: names in the folder.
        tolerance: largest difference of a log-probability from torch that float32 may show.
        batch_sizes: batch sizes that it takes and is compared at.
        run: for the card: what runs the file, and the command.
        facts: what the file says of itself, for the card.
    """

    name: str
    float_file: str
    int8_file: str
    tolerance: float
    batch_sizes: tuple[int, ...]
    run: dict[str, str]
    facts: dict[str, str]

    def write_float(self, path: Path) -> None:
        """Writes the student in float32. Raises ExportError where it cannot be."""
        ...

    def write_int8(self, path: Path, float_path: Path) -> None:
        """Writes it with 8-bit weights; `float_path` is what `write_float` wrote."""
        ...

    def open(self, path: Path) -> ChunkModel:
        """A file that was written, ready to run."""
        ...


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


def check_units(student: StreamingModel, units: Units) -> None:
    """Raises:
    ExportError: `units` are not those of `student`."""
    if units.vocab_size != student.vocab_size:
        raise ExportError(
            "the units do not fit the student",
            expected=f"{student.vocab_size} units",
            got=units.vocab_size,
            fix="Give the units that the student was trained with.",
        )


def publish(
    format: Format,
    student: StreamingModel,
    units: Units,
    out_dir: Path,
    *,
    name: str,
    int8: bool,
    gate: Gate | None,
    max_wer_rise: float,
) -> Export:
    """Writes `student` in `format`, runs every file against torch, and only then names them.

    Files of an earlier export in `out_dir` are replaced at the end, or not at all.

    Raises:
        ExportError: the format has no room for the student, parity is missed, or the gate is
            missed; the message holds the figure.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    reference = TorchChunkModel(student)
    float_path, int8_path = out_dir / format.float_file, out_dir / format.int8_file
    float_temporary, int8_temporary = temporary_name(float_path), temporary_name(int8_path)
    try:
        format.write_float(float_temporary)
        candidate = format.open(float_temporary)
        parity = compare(reference, candidate, batch_sizes=format.batch_sizes)
        require_parity(parity, str(float_path), format.tolerance)
        figures: dict[str, Any] = {"float32": {"parity_with_torch": parity.as_dict()}}
        if gate is not None:
            figures["float32"]["wer_percent"] = gate(candidate)
        if int8:
            format.write_int8(int8_temporary, float_temporary)
            candidate = format.open(int8_temporary)
            agreement = compare(reference, candidate, batch_sizes=format.batch_sizes)
            _require_resemblance(agreement, int8_path)
            figures["int8"] = {"agreement_with_torch": agreement.as_dict()}
            if gate is not None:
                before = figures["float32"]["wer_percent"]
                figures["int8"].update(_gated(candidate, gate, before, max_wer_rise, int8_path))
        _retire(format, out_dir)
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
    card = build_card(student, units, name=name, format=format, figures=figures)
    write_card(card, out_dir / CARD_FILE)
    return Export(float_path, int8_path if int8 else None, card)


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
