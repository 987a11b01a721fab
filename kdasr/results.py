"""Result rows to results.json and back: the measurements of every model of a work folder.

WORK_DIR/results.json                  one row for each (model, seed), and test set if there are several;
                                       for a model that is missing, the reason instead of figures
WORK_DIR/hypotheses/MODEL-SEED.jsonl   reference and hypothesis of each utterance; in a folder for each
                                       test set if there are several
WORK_DIR/results.before.json           replaced rows that were measured in another way than the current ones;
                                       their hypotheses are in results.before/, named in `hypotheses`
WORK_DIR/spike_offsets.json            see kdasr/spikes.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kdasr.errors import ConfigError, printable
from kdasr.storage import commit_json, locked

RESULTS_FILE = "results.json"
HYPOTHESES_FOLDER = "hypotheses"
MISSING = "missing"
# Null if unknown, as for a pretrained teacher, or undefined, as the latency of a full-context model.
_MAY_BE_NULL = ("params", "bytes", "rtf", "latency_ms")
ROW_FIELDS = ("model", "wer", "cer", "params", "bytes", "rtf", "latency_ms", "seed", "train_steps")

# What every line of a file of hypotheses has.
_HEARD = {"key": str, "reference": str, "hypothesis": str, "errors": int}


def hypotheses_file(results: Path, row: Mapping[str, Any]) -> Path:
    """The file of hypotheses, beside a results.json, of one of its rows."""
    folder = results.parent / HYPOTHESES_FOLDER
    return folder / str(row.get("test") or "") / f"{row['model']}-{row['seed']}.jsonl"


def read_hypotheses(path: Path) -> list[dict[str, Any]]:
    """For each utterance of a file of hypotheses: key, reference, hypothesis, word errors as `errors`, and
    `speaker`, `source`, `offset_s`, `duration_s` and `channel` if known. Older files have none of these five,
    and no errors by kind.

    Raises:
        ConfigError: the file is something else.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        complete = all(isinstance(row.get(name), kind) for row in rows for name, kind in _HEARD.items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError("not a file of hypotheses", where=path, got=str(error)) from error
    if not complete:
        raise ConfigError(
            "not a file of hypotheses", where=path, expected="key, reference, hypothesis, errors"
        )
    return rows


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of a results.json; none if there is no such file.

    Raises:
        ConfigError: the file is not a list of rows, or one names a file elsewhere.
    """
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("the results cannot be read", where=path, got=str(error)) from error
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and set(_fields(row)) <= set(row) for row in rows
    ):
        raise ConfigError(
            "not a list of result rows",
            where=path,
            expected=f"objects with {', '.join(ROW_FIELDS)}",
            fix="Move the file away; evaluation writes a new one.",
        )
    for row in rows:
        _check_row(path, row)
    return rows


def append_result(
    path: Path,
    row: Mapping[str, Any],
    measured: Mapping[str, Any] = MappingProxyType({}),
    write_hypotheses: Callable[[Path], None] | None = None,
) -> Path | None:
    """Add a row to a results.json, replacing any row of the same model, seed and test set, after rows that
    were measured otherwise are set aside.

    Args:
        path: created if missing. Several processes of one machine may add to it at once.
        row: at least the ROW_FIELDS; `wer` and `cer` in percent, `bytes` the size of the model on disk;
            those in `_MAY_BE_NULL` may be None; `test` names the test set if there are several. For a
            missing model: `model`, `seed` and, as `missing`, the reason.
        measured: see `set_aside_others`.
        write_hypotheses: writes the row's file of hypotheses at a path, or removes it. Nothing of another
            evaluation comes in between: they would be those of another row.

    Returns:
        as `set_aside_others`.

    Raises:
        ConfigError: a field is missing or not a finite number, or the file is not one of results.
    """
    _check_row(path, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        kept = set_aside_others(path, row.get("test"), row["seed"], measured)
        if write_hypotheses is not None:
            write_hypotheses(hypotheses_file(path, row))
        rows = read_results(path)
        identity = ("model", "seed", "test")
        same = [
            index for index, old in enumerate(rows) if all(old.get(key) == row.get(key) for key in identity)
        ]
        if same:
            rows[same[0]] = dict(row)
        else:
            rows.append(dict(row))
        commit_json(path, rows)
    return kept


def set_aside_others(path: Path, test: str | None, seed: int, measured: Mapping[str, Any]) -> Path | None:
    """Move rows of a test set that were measured in another way than `measured`, with their hypotheses, out
    of a results.json: in one table they would invite wrong comparisons. Only for one process at a time.

    Args:
        seed: seed of the new rows; rows of another seed may have other test audio.
        measured: fields `decoder`, `words` and `test_audio` of the new rows. Rows that lack one stay.

    Returns:
        the file to which they were appended; None if there were none.

    Raises:
        ConfigError: the file is not one of results.
    """
    if not path.exists():
        return None
    rows = read_results(path)
    own = [row for row in rows if row.get("test") != test or not _is_other(row, seed, measured)]
    if len(own) == len(rows):
        return None
    kept = path.with_suffix(".before.json")
    before = read_results(kept)
    for row in rows:
        if row not in own and not any(_same_but_for_hypotheses(row, other) for other in before):
            before.append(_with_hypotheses_moved(path, row, kept.with_suffix(""), len(before)))
    # `kept` first: a process killed in between leaves a row in both files rather than in neither.
    for file, content in ((kept, before), (path, own)):
        commit_json(file, content)
    return kept


def _with_hypotheses_moved(results: Path, row: Mapping[str, Any], folder: Path, place: int) -> dict[str, Any]:
    """Move the row's file of hypotheses to a unique name in `folder`; the row with that name."""
    file = hypotheses_file(results, row)
    moved = folder / f"{place}-{file.name}"
    if file.exists():
        folder.mkdir(exist_ok=True)
        file.replace(moved)
    # A process that was killed before it recorded the move may have moved it already.
    return {**row, HYPOTHESES_FOLDER: f"{folder.name}/{moved.name}"} if moved.exists() else dict(row)


def _same_but_for_hypotheses(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a killed process has moved the row already."""
    return {**row, HYPOTHESES_FOLDER: None} == {**other, HYPOTHESES_FOLDER: None}


def _is_other(row: Mapping[str, Any], seed: int, measured: Mapping[str, Any]) -> bool:
    differing = {key for key, value in measured.items() if row.get(key, value) != value}
    return bool(differing - {"test_audio"} if row.get("seed") != seed else differing)


def _fields(row: Mapping[str, Any]) -> tuple[str, ...]:
    return ("model", "seed") if MISSING in row else ROW_FIELDS


def _check_row(path: Path, row: Mapping[str, Any]) -> None:
    for name in (*_fields(row), *(("left_out", "listed") if row.get("left_out") else ())):
        if name not in row:
            raise ConfigError("a result row lacks a field", where=path, expected=name, got=", ".join(row))
        value = row[name]
        optional = name in _MAY_BE_NULL and value is None
        if name != "model" and not optional and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ConfigError(
                f"the field {name} of a result row is not a finite number", where=path, got=repr(value)
            )
    for name in ("model", "test"):
        if name == "model" or row.get(name) is not None:
            check_name(f"the field {name} of a result row", row[name], path)
    lexicon = row.get("lexicon") or []
    if not isinstance(lexicon, list) or not all(isinstance(place, str) for place in lexicon):
        raise ConfigError(
            "the field lexicon of a result row is no list of names", where=path, got=repr(lexicon)
        )


def check_name(what: str, value: object, where: str | Path) -> None:
    """Raise ConfigError if a model or a test set cannot be called `value`: files of hypotheses, which are
    moved and replaced, have these names."""
    is_name = isinstance(value, str) and printable(value) == value
    if not is_name or ".." in Path(str(value)).parts or Path(str(value)).is_absolute():
        raise ConfigError(
            f"{what} is not a name",
            where=where,
            expected="text without control characters, and no path from / or through ..",
            got=repr(value),
        )
