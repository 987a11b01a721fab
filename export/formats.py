"""The formats that `kdasr export --format` knows."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from export.publish import Export
from export.to_executorch import export_executorch
from export.to_onnx import export_onnx
from export.to_wave_onnx import export_wave_onnx
from kdasr.errors import ConfigError

Exporter = Callable[..., Export]

FORMATS: dict[str, Exporter] = {
    "onnx": export_onnx,
    "wave-onnx": export_wave_onnx,
    "executorch": export_executorch,
}
_PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "wave-onnx": ("onnx", "onnxruntime"),
    "executorch": ("executorch", "torchao"),
}


def exporter(name: str) -> Exporter:
    """The function that writes the format called `name`: (student, units, folder, **settings).

    Raises:
        ConfigError: there is no such format.
    """
    if name not in FORMATS:
        raise ConfigError("unknown export format", where="format", expected=" or ".join(FORMATS), got=name)
    return FORMATS[name]


def available_formats() -> list[str]:
    """The formats whose packages are installed."""
    return [name for name in FORMATS if all(find_spec(package) for package in _PACKAGES[name])]
