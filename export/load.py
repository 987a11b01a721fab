"""Load an exported model and its units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.card import PRECISIONS, read_export_card, refusal
from export.contract import WAVE_FORMAT
from export.publish import TOKENS_FILE
from export.runtime import (
    FLOAT_FILE,
    WAVE_FLOAT_FILE,
    OnnxChunkModel,
    OnnxWaveModel,
    open_session,
    session_metadata,
)
from export.to_executorch import FLOAT_FILE as EXECUTORCH_FILE
from export.to_executorch import ExecutorchModel
from kdasr.errors import ModelError, UnitsError
from kdasr.models import file_sha256
from kdasr.text import Units, load_units, tokens_text

ExportedModel = OnnxChunkModel | OnnxWaveModel | ExecutorchModel


def exported_file(path: Path) -> Path | None:
    """The model file for `path`: `path` itself if it is one; for an export folder, its float32 file, or its
    int8 file if only that exists; None for anything else.

    Raises:
        ModelError: the card cannot be used.
    """
    if not path.is_dir():
        return path if path.suffix in (".onnx", ".pte") else None
    if (card := read_export_card(path)) is not None:
        named = [path / str(card["files"][name]["file"]) for name in PRECISIONS if name in card["files"]]
        return next((file for file in named if file.is_file()), named[0])
    names = (FLOAT_FILE, WAVE_FLOAT_FILE, EXECUTORCH_FILE)
    return next((path / name for name in names if (path / name).is_file()), None)


def load_exported(path: Path) -> tuple[ExportedModel, Units]:
    """An exported model and its units, checked to belong together and, if there is a card, to be the
    exported files.

    Args:
        path: a model file, in the folder of its units.

    Raises:
        ModelError: the model cannot be used, or its folder's card, units or tokens.txt are of another one.
    """
    folder = path.parent
    if (reason := refusal(path)) is not None:
        raise ModelError("the export does not include this file", where=path, got=reason)
    card = read_export_card(folder)
    if card is not None:
        _check_hash(path, card)
    model = _open(path)
    if card is not None:
        _check_student(model, card)
    try:
        units = load_units(folder)
    except UnitsError as error:
        raise ModelError(
            error.what,
            where=error.where,
            expected=error.expected,
            got=error.got,
            fix="Keep all files of an export together in one folder.",
        ) from error
    if units.hash != model.facts.units_hash or units.vocab_size != model.vocab_size:
        raise ModelError(
            "the units belong to another model",
            where=folder,
            expected=f"units {model.facts.units_hash[:12]}… with {model.vocab_size} classes",
            got=f"{units.hash[:12]}… with {units.vocab_size}",
            fix="Export the model again into an empty folder.",
        )
    check_tokens_file(folder / TOKENS_FILE, units)
    return model, units


def _check_hash(path: Path, card: dict[str, Any]) -> None:
    """Raises:
    ModelError: the card has a hash for this file, and it differs."""
    known = {facts["file"]: facts["sha256"] for facts in card["files"].values()}
    if path.is_file() and path.name in known and (found := file_sha256(path)) != known[path.name]:
        raise ModelError(
            "the file is not the one that was exported",
            where=path,
            expected=f"sha256 {known[path.name]}, as its card says",
            got=found,
            fix="It is damaged, truncated or changed: copy the folder or export the model again.",
        )


def _check_student(model: ExportedModel, card: dict[str, Any]) -> None:
    """Checks that the file, even if the card does not list it, is of the card's student.

    Raises:
        ModelError: it is of another student."""
    expected, got = card["student"]["weights_sha256"], model.facts.weights_sha256
    if got != expected:
        raise ModelError(
            "the card beside the file belongs to another student",
            where=model.path,
            expected=f"weights {expected[:12]}…",
            got=f"{got[:12]}…",
            fix="Keep each export in its own folder.",
        )


def _open(path: Path) -> ExportedModel:
    if path.suffix == ".pte":
        return ExecutorchModel(path)
    # The file's metadata gives the kind of model; the same session then runs it.
    session = open_session(path)
    waves = session_metadata(session).get("kdasr_format") == WAVE_FORMAT
    return (OnnxWaveModel if waves else OnnxChunkModel)(path, session)


def check_tokens_file(path: Path, units: Units) -> None:
    """Checks that `tokens.txt`, which other runtimes read, agrees with the units.

    Raises:
        ModelError: it is missing, malformed or different.
    """
    fix = "Export the model again; tokens.txt must not be edited."
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError("the tokens cannot be read", where=path, got=error, fix=fix) from error
    if lines != tokens_text(units).splitlines():
        raise ModelError("the tokens do not match the units", where=path, fix=fix)
