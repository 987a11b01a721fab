"""The formats that `kdasr export --format` knows, and what each of them has to be able to do."""

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
        name: as `kdasr export --format` calls it.
        extra: of pyproject.toml, with the packages below.
        packages: what writing the format imports.
        float_file, int8_file: names in the folder.
        tolerance: largest difference of a log-probability from torch that float32 may show.
        batch_sizes: batch sizes that it takes and is compared at.
        int8_from_float: whether int8 is made of the float32 file; otherwise both can be made side by side.
        run: for the card: what runs the file, and the command.
        facts: what the file says of itself, for the card.
    """

    name: str
    extra: str
    packages: tuple[str, ...]
    float_file: str
    int8_file: str
    tolerance: float
    batch_sizes: tuple[int, ...]
    int8_from_float: bool
    run: dict[str, str]
    facts: dict[str, str]

    def write_float(self, path: Path) -> None:
        """Writes the student in float32. Raises ExportError where it cannot be."""
        ...

    def write_int8(self, path: Path, float_path: Path) -> None:
        """Writes it with 8-bit weights; `float_path` is what `write_float` wrote, if that is asked for."""
        ...

    def open(self, path: Path) -> ChunkModel:
        """A file that was written, ready to run."""
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
