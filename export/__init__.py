"""A trained student out, files for on-device runtimes out of it: each checked before it is named.

Nothing in here is needed to train. The packages it uses (onnx, onnxruntime) are the `export` extra.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

from kdasr.errors import MissingDependencyError
from kdasr.storage import is_running


def require(module: str, extra: str = "export") -> Any:
    """The optional package `module`.

    Raises:
        MissingDependencyError: it is not installed; the message holds the pip line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise MissingDependencyError(module.split(".")[0], extra) from error


def temporary_name(path: Path) -> Path:
    """Where to write `path` until it has been checked: same folder, same suffix, hidden."""
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left under the temporary names of `path`."""
    name = re.compile(rf"\.{re.escape(path.stem)}\.(\d+){re.escape(path.suffix)}(\..*)?")
    for left in path.parent.iterdir():
        if (found := name.fullmatch(left.name)) and not is_running(int(found[1])):
            left.unlink(missing_ok=True)


def commit_file(temporary: Path, path: Path) -> None:
    """Gives a complete and checked file its final name, durably."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
