"""An exported folder in, a model that runs and its units out."""

from __future__ import annotations

from pathlib import Path

from export.contract import WAVE_FORMAT
from export.publish import TOKENS_FILE
from export.runtime import FLOAT_FILE, WAVE_FLOAT_FILE, OnnxChunkModel, OnnxWaveModel, open_session
from export.to_executorch import FLOAT_FILE as EXECUTORCH_FILE
from export.to_executorch import ExecutorchModel
from kdasr.errors import ModelError, UnitsError
from kdasr.text import Units, load_units

ExportedModel = OnnxChunkModel | OnnxWaveModel | ExecutorchModel


def exported_file(path: Path) -> Path | None:
    """The model file that `path` means: itself, or the float32 file of an export folder; None where
    it is neither."""
    if path.suffix in (".onnx", ".pte"):
        return path
    names = (FLOAT_FILE, WAVE_FLOAT_FILE, EXECUTORCH_FILE)
    return next((path / name for name in names if (path / name).is_file()), None)


def load_exported(path: Path, num_threads: int = 1) -> tuple[ExportedModel, Units]:
    """An exported model and its units, checked to belong together.

    Args:
        path: a model file beside its units.

    Raises:
        ModelError: the model cannot be used, or units or tokens.txt beside it are of another model.
    """
    model = _open(path, num_threads)
    folder = model.path.parent
    try:
        units = load_units(folder)
    except UnitsError as error:
        raise ModelError(
            f"its units cannot be used: {error}",
            where=folder,
            fix="Keep the files of an export together; they are one folder.",
        ) from error
    if units.hash != model.facts.units_hash or units.vocab_size != model.vocab_size:
        raise ModelError(
            "the units are of another model",
            where=folder,
            expected=f"units {model.facts.units_hash[:12]}… with {model.vocab_size} classes",
            got=f"{units.hash[:12]}… with {units.vocab_size}",
            fix="Export the model again into an empty folder.",
        )
    check_tokens_file(folder / TOKENS_FILE, units)
    return model, units


def _open(path: Path, num_threads: int) -> ExportedModel:
    if path.suffix == ".pte":
        return ExecutorchModel(path)
    metadata = dict(open_session(path, num_threads).get_modelmeta().custom_metadata_map)
    kind = OnnxWaveModel if metadata.get("kdasr_format") == WAVE_FORMAT else OnnxChunkModel
    return kind(path, num_threads)


def check_tokens_file(path: Path, units: Units) -> None:
    """Checks that `tokens.txt`, which other runtimes read, says what the units say.

    Raises:
        ModelError: it is missing, malformed or different.
    """
    fix = "Export the model again; tokens.txt must not be edited."
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError("the tokens cannot be read", where=path, got=error, fix=fix) from error
    expected = [f"{symbol} {unit}" for unit, symbol in enumerate(units.symbols)]
    for number, (want, got) in enumerate(zip(expected, lines, strict=False), start=1):
        if want != got:
            raise ModelError(
                f"the tokens do not match the units in line {number}",
                where=path,
                expected=repr(want),
                got=repr(got),
                fix=fix,
            )
    if len(lines) != len(expected):
        raise ModelError(
            "the tokens do not match the units",
            where=path,
            expected=f"{len(expected)} lines",
            got=len(lines),
            fix=fix,
        )
