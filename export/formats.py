"""The formats of `kdasr export --format`, and the interface that they implement."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from export.to_executorch import ExecutorchFormat
from export.to_onnx import OnnxFormat
from export.to_wave_onnx import WaveOnnxFormat
from kdasr.errors import ConfigError
from kdasr.streaming import ChunkModel


class Format(Protocol):
    """A file format for one student.

    Attributes:
        name: the format's name in `kdasr export --format`.
        extra: extra in pyproject.toml with the packages below.
        packages: packages that writing the format imports.
        float_file, int8_file: file names in the folder.
        tolerance: largest difference of a float32 log-probability from torch's.
        batch_sizes: supported batch sizes, at which files are compared.
        run: for the card: what runs the file, and the command.
        facts: the file's metadata, for the card.
    """

    name: str
    extra: str
    packages: tuple[str, ...]
    float_file: str
    int8_file: str
    tolerance: float
    batch_sizes: tuple[int, ...]
    run: dict[str, str]
    facts: dict[str, str]

    def write_float(self, path: Path) -> None:
        """Writes the student in float32. Raises ExportError if it cannot be exported."""
        ...

    def write_int8(self, path: Path, float_path: Path) -> None:
        """Writes it with 8-bit weights; `float_path` is the float32 file, which some are made from."""
        ...

    def open(self, path: Path) -> ChunkModel:
        """Opens a written file."""
        ...


FORMATS = {kind.name: kind for kind in (OnnxFormat, WaveOnnxFormat, ExecutorchFormat)}


def format_class(name: str) -> type[OnnxFormat] | type[WaveOnnxFormat] | type[ExecutorchFormat]:
    """The class of the format called `name`.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in FORMATS:
        raise ConfigError("unknown export format", where="format", expected=" or ".join(FORMATS), got=name)
    return FORMATS[name]


def available_formats() -> list[str]:
    """The formats whose packages are installed."""
    return [name for name, kind in FORMATS.items() if all(find_spec(package) for package in kind.packages)]
