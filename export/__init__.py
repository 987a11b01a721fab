"""A trained student out, files for on-device runtimes out of it: each checked before it is named.

Nothing in here is needed to train. The packages it uses (onnx, onnxruntime) are the `export` extra.
"""

from __future__ import annotations

import importlib
from typing import Any

from kdasr.errors import MissingDependencyError


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
