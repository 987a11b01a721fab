"""Models on disk: a folder with the weights, the units and a card that rebuilds them.

    DIR/model.safetensors   weights
    DIR/units.json …        units (kdasr/text.py)
    DIR/model.json          the card, written last: class, config, hashes, how it was trained

No pickle: loading a model from an untrusted source runs none of its code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import nn

from kdasr.errors import ConfigError, KdasrError, MissingDependencyError, ModelError
from kdasr.features import feature_hash
from kdasr.manifest import sha256_of
from kdasr.storage import refuse_file, remove_leftovers, sync_path, temporary_name
from kdasr.text import SENTENCEPIECE_FILE, UNITS_FILE, Units, load_units

FORMAT, VERSION = "kdasr-model", 1
# The format of an export's card, which has the same file name.
EXPORT_FORMAT = "kdasr-export"
CARD_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"
# The class is named in a file, so only classes of our own packages are accepted, and of those that the user
# names in this environment variable, separated by commas.
_CLASS_PREFIXES = ("kdasr.teachers.", "kdasr.students.")
_PACKAGES_VARIABLE = "KDASR_PACKAGES"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for inference, its units, and its card as a dict."""

    model: Any
    units: Units
    card: dict[str, Any]


def refuse_other_content(folder: Path) -> None:
    """Check that a model may be written to `folder`, replacing its content.

    Raises:
        ConfigError: `folder` is a file, or holds anything but a model.
    """
    refuse_file(folder, "a model is a folder")
    own = {WEIGHTS_FILE, CARD_FILE, UNITS_FILE, SENTENCEPIECE_FILE}
    others = sorted(path.name for path in folder.iterdir() if path.name not in own) if folder.is_dir() else []
    if others:
        raise ConfigError(
            "the model would replace this folder, which holds other files",
            where=folder,
            expected="a folder of its own for the model",
            got=", ".join(others[:5]) + (", …" if len(others) > 5 else ""),
            fix="Choose another --out.",
        )


def save_model(folder: Path, model: Any, units: Units, *, extra: dict[str, Any] | None = None) -> None:
    """Write `model` (with `.config`) and its units to `folder` atomically.

    `extra` goes into the card: training settings, results and the like.

    Raises:
        ConfigError: `folder` holds anything but a model.
        ModelError: the disk does not take it; a model that was in `folder` is still there.
    """
    folder = Path(folder).absolute()  # "." has no name
    refuse_other_content(folder)
    temporary = temporary_name(folder)
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        _write_model(temporary, model, units, extra)
        # One folder cannot replace another atomically; the old one is deleted once the new one is in place.
        with contextlib.suppress(FileNotFoundError):
            folder.replace(old)
        temporary.replace(folder)
        sync_path(folder.parent)
    except OSError as error:
        raise _cannot_be_written(folder, error) from error
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
    # Only now: a killed process may have left the only model under such a name.
    remove_leftovers(folder.parent, folder.name)


def _write_model(temporary: Path, model: Any, units: Units, extra: dict[str, Any] | None) -> None:
    temporary.mkdir(parents=True)
    weights = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    try:
        safetensors.torch.save_file(weights, temporary / WEIGHTS_FILE)
    except safetensors.SafetensorError as error:  # a full disk, for example; it is no OSError
        raise _cannot_be_written(temporary / WEIGHTS_FILE, error) from error
    units.save(temporary)
    card = {
        "format": FORMAT,
        "version": VERSION,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "config": model.config,
        "config_sha256": _hash_of(json.loads(json.dumps(model.config))),  # as it is read, its keys strings
        "parameters": count_parameters(model),
        "weights_sha256": file_sha256(temporary / WEIGHTS_FILE),
        "units_hash": units.hash,
        "feature_hash": feature_hash(),
        **(extra or {}),
    }
    (temporary / CARD_FILE).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    # Synced before the rename, or a power cut could leave empty files under the final name.
    for written in (*temporary.iterdir(), temporary):
        sync_path(written)


def _cannot_be_written(path: Path, error: Exception) -> ModelError:
    fix = "Free some space, or check the disk and its permissions, then run it again."
    return ModelError("the model cannot be written", where=path, got=error, fix=fix)


def weights_file(path: Path) -> Path:
    """The weights file of a model that is a folder; or the model itself if it is a file."""
    return path / WEIGHTS_FILE if path.is_dir() else path


def load_model(folder: Path, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Load the model in `folder`, in eval mode on `device`.

    Raises:
        ModelError: there is no model, or it is damaged, foreign or trained on other features.
    """
    folder = Path(folder)
    card = read_card(folder)
    if card["feature_hash"] != feature_hash():
        raise ModelError(
            "the model was trained on different features",
            where=folder,
            expected=feature_hash(),
            got=card["feature_hash"],
            fix="Train it again, or use the release of kdasr that made it.",
        )
    # Read once: a training may replace the folder at any moment.
    weights = _of_file(folder / WEIGHTS_FILE, Path.read_bytes)
    _check_hash(
        "the weights do not match the model card",
        folder / WEIGHTS_FILE,
        card["weights_sha256"],
        hashlib.sha256(weights).hexdigest(),
    )
    if "config_sha256" in card:  # older releases wrote none
        # Other settings, such as the chunk size, may fit the same weights.
        what = "the config in the model card is not what was written"
        _check_hash(what, folder / CARD_FILE, card["config_sha256"], _hash_of(card["config"]))
    model = _build(folder, card)
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(
            "the weights do not fit the model",
            where=folder,
            got=error,
            fix="Copy the model folder again, or use the release of kdasr that made it.",
        ) from error
    units = load_units(folder)
    if units.hash != card["units_hash"]:
        raise ModelError(
            "the units are not those the model was trained with",
            where=folder,
            expected=card["units_hash"],
            got=units.hash,
            fix="Copy the model folder again.",
        )
    return LoadedModel(model.eval().to(device), units, card)


def _check_hash(what: str, where: Path, written: str, found: str) -> None:
    if found != written:
        fix = "Copy the model folder again."
        raise ModelError(what, where=where, expected=f"sha256 {written}", got=found, fix=fix)


def _hash_of(config: object) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def file_sha256(path: Path) -> str:
    """`kdasr.manifest.sha256_of` for a file of a model.

    Raises:
        ModelError: it cannot be read.
    """
    return _of_file(path, sha256_of)


def _of_file(path: Path, read: Callable[[Path], _T]) -> _T:
    try:
        return read(path)
    except OSError as error:
        raise ModelError("the file cannot be read", where=path, got=error.strerror) from error


def read_card(folder: Path) -> dict[str, Any]:
    """The card of the model in `folder`, without loading the model.

    Raises:
        ModelError: there is no card of this version of kdasr, or it is an export's.
    """
    path = folder / CARD_FILE
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        found = (card["format"], card["version"])
        missing = {"class", "config", "weights_sha256", "units_hash", "feature_hash"} - set(card)
    except FileNotFoundError:
        raise ModelError(
            "there is no model in this folder",
            where=folder,
            expected=CARD_FILE,
            fix="Train one with `kdasr train`, or name the folder that holds it.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError("the model card cannot be read", where=path, got=repr(error)) from error
    if found[0] == EXPORT_FORMAT:
        fix = "Name the folder of the model that was exported."
        raise ModelError("this is an export, but a model is needed", where=folder, fix=fix)
    if found != (FORMAT, VERSION) or missing:
        raise ModelError(
            "this is not a model of this version of kdasr",
            where=path,
            expected=f"{FORMAT} version {VERSION}",
            got=f"{found[0]} version {found[1]}" + (f" without {sorted(missing)}" if missing else ""),
        )
    return card


def _build(folder: Path, card: dict[str, Any]) -> nn.Module:
    name = str(card["class"])
    module_name, _, class_name = name.rpartition(".")
    package = name.partition(".")[0]
    trusted = [one.strip() for one in os.environ.get(_PACKAGES_VARIABLE, "").split(",")]
    ours = "Copy the model folder again, or use the release of kdasr that made it."
    others = package != "kdasr" and bool(module_name)
    if not name.startswith(_CLASS_PREFIXES) and not (others and package in trusted):
        trust = f"If you trust the package {package}, set {_PACKAGES_VARIABLE}={package} in the environment."
        raise ModelError(
            f"the model's class, {name}, is not one of kdasr",
            where=folder / CARD_FILE,
            expected=f"a class in {' or '.join(prefix.removesuffix('.') for prefix in _CLASS_PREFIXES)}",
            fix=trust if others else ours,
        )
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"{name} is not an nn.Module")
        model: nn.Module = kind(**card["config"])
    except MissingDependencyError:
        raise
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, KdasrError) as error:
        raise ModelError(
            "the model cannot be built",
            where=folder / CARD_FILE,
            got=error,
            fix=f"Put the folder that holds {package} on PYTHONPATH." if others else ours,
        ) from error
    return model
