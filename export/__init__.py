"""Export of trained students to files for on-device runtimes, each checked before it gets its name.

Training needs nothing from here. The packages used (onnx, onnxruntime) are the `export` extra.
"""

from __future__ import annotations

import importlib
from typing import Any

from kdasr.errors import MissingDependencyError


def require(module: str, extra: str = "export") -> Any:
    """The optional package `module`.

    Raises:
        MissingDependencyError: it is not installed; the message includes the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise MissingDependencyError(module.split(".")[0], extra) from error
