"""List which parts of kdasr work on this machine."""

from __future__ import annotations

import importlib.metadata
import platform

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdasr import version
from kdasr.compat import MISSING_WITHOUT_EXTENSION, import_torchaudio, torchaudio_extension_works
from kdasr.devices import gpu_problem
from kdasr.errors import install_line

_PACKAGES = {
    "torch": "",
    "torchaudio": "",
    "speechbrain": "",
    "sentencepiece": "",
    "soundfile": "",
    "espeakng-loader": "synth",
    "onnx": "export",
    "onnxruntime": "export",
    "matplotlib": "report",
    "transformers": "hf",
    "kaldi-native-fbank": "onnx-teacher",
    "ray": "ray",
    "sounddevice": "mic",
    "num2words": "numbers",
}


def diagnosis() -> list[tuple[str, str]]:
    """(name, status) of each part that kdasr can use."""
    rows = [("kdasr", version()), ("python", platform.python_version())]
    rows += [(name, _version(name, extra)) for name, extra in _PACKAGES.items()]
    import_torchaudio()
    missing = ", ".join(MISSING_WITHOUT_EXTENSION)
    extension = (
        "works"
        if torchaudio_extension_works()
        else f"not available with this torch; without it: no {missing}"
    )
    rows.append(("torchaudio's compiled extension", extension))
    rows.append(("torch threads", str(torch.get_num_threads())))
    rows.append(("accelerator", _accelerator()))
    return rows


def print_diagnosis() -> None:
    """Print `diagnosis` as a table."""
    table = Table(show_header=False)
    for row in diagnosis():
        table.add_row(*map(escape, row))
    Console().print(table)


def _accelerator() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    problem = gpu_problem()
    return "none" if problem is None else f"a GPU that torch cannot use: {problem}"


def _version(name: str, extra: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed: {install_line(extra)}" if extra else "not installed"
