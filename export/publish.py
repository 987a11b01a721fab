"""Write an export of any format: write, compare with torch, apply the gate, rename, add the card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export.card import CARD_FILE, build_card, write_card
from export.formats import FORMATS, Format, format_class
from export.parity import Agreement, Reference, require_parity
from export.to_onnx import OnnxFormat
from kdasr.errors import ConfigError, ExportError, MissingDependencyError, ModelError
from kdasr.interfaces import StreamingModel
from kdasr.models import EXPORT_FORMAT, WEIGHTS_FILE, file_sha256
from kdasr.storage import commit_file, locked, refuse_file, remove_leftovers, temporary_name
from kdasr.streaming import ChunkModel, TorchChunkModel, silence_controls
from kdasr.symbols import FORMAT as UNITS_FORMAT
from kdasr.symbols import SENTENCEPIECE_FILE
from kdasr.text import UNITS_FILE, Units, write_tokens_txt

TOKENS_FILE = "tokens.txt"
_MODEL_FILES = [name for kind in FORMATS.values() for name in (kind.float_file, kind.int8_file)]
MAX_WER_RISE = 0.5
# For the card: what its WER means.
GATE_PURPOSE = (
    "to compare int8 with float32; if this audio was also used in training, the figure does not show "
    "how good the student is"
)
NOT_MEASURED = "not measured: exported without development shards (--dev)"


@dataclass(frozen=True)
class Measured:
    """The WER of a file on development audio, and which audio that was.

    Attributes:
        wer_percent: word errors per hundred words.
        words: number of words in the transcripts.
        folders: names of the shards' folders.
    """

    wer_percent: float
    words: int
    folders: tuple[str, ...]


Gate = Callable[[ChunkModel], Measured]


@dataclass(frozen=True)
class Export:
    """The files of an export.

    Attributes:
        float_path: the float32 file.
        int8_path: the int8 file, or None if it was not requested or is refused.
        card: the content of `model.json`.
        refused: why the int8 file is refused; None if it is not.
    """

    float_path: Path
    int8_path: Path | None
    card: dict[str, Any]
    refused: str | None


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
    """Writes `student` in a format; each file is compared with torch before it gets its name.

    One folder holds one export: the files of an earlier one in `out_dir`, of whatever format, are
    replaced once the float32 file has passed its check. The float32 file and the card are written even if
    int8 fails. The files never emit classes without text (`kdasr.streaming.silence_controls`).

    Args:
        student: a streaming student; it is put into evaluation mode.
        units: its units.
        out_dir: created if needed; not the folder of a model.
        format: one of `export.formats.FORMATS`.
        weights_sha256: hash of the weights it was loaded from, for the card.
        name: its name in the card.
        int8: whether to write the int8 file too.
        gate: a function from a `ChunkModel` to its WER on development audio. With it, an int8 file
            that is more than `max_wer_rise` points worse than float32 is refused: it is not written,
            and the card gives the reason and the figures. Without it, the card says that it was not measured.

    Raises:
        ConfigError: there is no such format, `out_dir` contains a model or files of another program, or
            another export is writing there.
        ExportError: the units are not the student's, its state or an operation does not fit the
            format, or float32 fails the parity check; the message includes the figure.
        ModelError: the student cannot run chunk by chunk.
        MissingDependencyError: a package that the format needs is not installed.
    """
    kind = format_class(format)
    for package in kind.packages:
        # Not imported here, since some packages print messages, which the format suppresses.
        if find_spec(package) is None:
            raise MissingDependencyError(package, kind.extra)
    refuse_file(out_dir, "an export is a folder")
    _check_folder(out_dir)
    _check_units(student, units)
    student = silence_controls(student, units)
    original = TorchChunkModel(student)  # refuses a full-context student
    written = kind(student, units, weights_sha256)
    out_dir.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(
        "another command is writing to this folder",
        where=out_dir,
        fix="Wait until it has finished, or choose another folder with --out.",
    )
    with locked(out_dir, busy=busy):
        remove_leftovers(out_dir)
        float_path, int8_path = out_dir / written.float_file, out_dir / written.int8_file
        float_temporary, int8_temporary = temporary_name(float_path), temporary_name(int8_path)
        try:
            reference = Reference(original, batch_sizes=written.batch_sizes)
            figures = _write_float(written, reference, float_temporary, float_path, gate)
            _retire(out_dir)
            units.save(out_dir)
            write_tokens_txt(units, out_dir / TOKENS_FILE)
            commit_file(float_temporary, float_path)
            figures.update(_file_facts(float_path))
            card = build_card(student, units, name=name, format=written, figures={"float32": figures})
            write_card(card, out_dir / CARD_FILE)
            if not int8:
                return Export(float_path, None, card, None)
            int8_figures, refused = _write_int8(
                written, reference, int8_temporary, float_path, gate, figures["wer_percent"], max_wer_rise
            )
            if refused is None:
                commit_file(int8_temporary, int8_path)
                card["files"]["int8"] = {**int8_figures, **_file_facts(int8_path)}
            else:
                card["refused"]["int8"] = {"file": int8_path.name, "reason": refused, **int8_figures}
        finally:
            float_temporary.unlink(missing_ok=True)
            int8_temporary.unlink(missing_ok=True)
        write_card(card, out_dir / CARD_FILE)
        return Export(float_path, int8_path if refused is None else None, card, refused)


def _check_folder(out_dir: Path) -> None:
    """Raises:
    ConfigError: the export would overwrite a model, or files of another program."""
    if (out_dir / WEIGHTS_FILE).exists():
        raise ConfigError(
            "this is the folder of a model, and an export there would destroy it",
            where=out_dir,
            expected="a separate folder for the export",
            got=f"a folder with {WEIGHTS_FILE}",
            fix="Choose another --out.",
        )
    if others := sorted(path.name for kind in ("*.kdsl", "*.tar") for path in out_dir.glob(kind)):
        raise ConfigError(
            "this folder holds labels or audio, and an export would replace its units",
            where=out_dir,
            expected="a separate folder for the export",
            got=others[0],
            fix="Choose another --out.",
        )
    exported = [name for name in (*_MODEL_FILES, TOKENS_FILE) if (out_dir / name).exists()]
    if exported and not any((out_dir / name).exists() for name in (CARD_FILE, UNITS_FILE)):
        raise ConfigError(
            "the folder holds model files that no export wrote, and an export would replace them",
            where=out_dir,
            expected="a separate folder for the export",
            got=", ".join(exported),
            fix="Choose another --out.",
        )
    for name, format in ((CARD_FILE, EXPORT_FORMAT), (UNITS_FILE, UNITS_FORMAT)):
        if (out_dir / name).exists() and (found := _format_of(out_dir / name)) != format:
            raise ConfigError(
                "this file was not written by an export, and an export would overwrite it",
                where=out_dir / name,
                expected=f"{format}, or a folder without {name}",
                got=found,
                fix="Choose another --out.",
            )


def _format_of(path: Path) -> object:
    """The `format` entry of a JSON file."""
    try:
        return json.loads(path.read_bytes())["format"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "something else"


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
    format: Format, reference: Reference, path: Path, final: Path, gate: Gate | None
) -> dict[str, Any]:
    """Writes the float32 file to `path`; returns its figures. Raises ExportError as `export_student` does."""
    format.write_float(path)
    candidate = format.open(path)
    parity = reference.compare(candidate)
    require_parity(parity, str(final), format.tolerance)
    return {"parity_with_torch": parity.as_dict(), **_measured(gate, candidate)}


def _write_int8(
    format: Format,
    reference: Reference,
    path: Path,
    float_path: Path,
    gate: Gate | None,
    float_wer: float | None,
    max_wer_rise: float,
) -> tuple[dict[str, Any], str | None]:
    """Writes the int8 file to `path`; returns its figures, as far as they were measured, and the reason if it
    is refused."""
    figures: dict[str, Any] = {}
    try:
        format.write_int8(path, float_path)
        candidate = format.open(path)
        agreement = reference.compare(candidate)
        figures["agreement_with_torch"] = agreement.as_dict()
        _require_resemblance(agreement)
        figures.update(_measured(gate, candidate))
        if float_wer is not None:
            figures["wer_rise_points"] = figures["wer_percent"] - float_wer
            _require_accuracy(figures, float_wer, max_wer_rise)
    except (ExportError, ModelError) as error:  # it fails a check, or does not even run
        return figures, str(error)
    return figures, None


def _measured(gate: Gate | None, candidate: ChunkModel) -> dict[str, Any]:
    """The WER of a model and its audio, for the card."""
    if gate is None:
        return {"wer_percent": None, "wer_data": NOT_MEASURED}
    data = asdict(gate(candidate))
    return {"wer_percent": data.pop("wer_percent"), "wer_data": {**data, "purpose": GATE_PURPOSE}}


def _require_accuracy(figures: dict[str, Any], float_wer: float, max_wer_rise: float) -> None:
    """Raises:
    ExportError: the WER of int8 is more than `max_wer_rise` points above that of float32."""
    rise, wer, words = figures["wer_rise_points"], figures["wer_percent"], figures["wer_data"]["words"]
    if not rise <= max_wer_rise:
        raise ExportError(
            "int8 costs too much accuracy",
            expected=f"at most {max_wer_rise:g} points of WER more than float32",
            got=f"{rise:.2f} points ({float_wer:.2f} % to {wer:.2f} % of {words} words)",
            fix="Use float32, or raise max_wer_rise if there are too few words for a reliable WER.",
        )


def _require_resemblance(agreement: Agreement) -> None:
    """A quantised model may differ, but one that agrees on fewer than half of the frames is broken."""
    if agreement.same_argmax < 0.5:
        raise ExportError(
            "the int8 model differs too much from the original",
            expected="the same class in at least half of all frames",
            got=f"{agreement.same_argmax:.1%}",
            fix="Use float32, or train longer: weights with outliers do not quantise.",
        )


def _retire(out_dir: Path) -> None:
    """Removes an earlier export of any format, since the card will describe only the new one. The card goes
    first: a folder without one is not a finished export. `units.json` is always overwritten, but not the
    SentencePiece file, which not all units have."""
    for name in (CARD_FILE, *_MODEL_FILES, TOKENS_FILE, SENTENCEPIECE_FILE):
        (out_dir / name).unlink(missing_ok=True)


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
