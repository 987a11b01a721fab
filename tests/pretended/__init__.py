"""A plugin of pytest for machines without an accelerator: torch is given one that is pretended.

    python -m pytest -p tests.pretended -m gpu tests/test_gpu.py tests/test_gpu_training.py

The device `pretended` is the memory of the CPU under another name (device.cpp). It computes what the CPU
computes, and refuses what a GPU refuses: operations on tensors of which some lie on it and some on the CPU.
So a tensor that someone forgot to move is found where there is no GPU. Precision, speed, streams, kernels of
a real one and what the library does for CUDA alone are not, and LSTMs do not run. It needs a C++ compiler.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.utils import backend_registration, cpp_extension

NAME = "pretended"
_SOURCE = Path(__file__).with_name("device.cpp")
_BUILD = Path(__file__).parents[2] / "build" / NAME


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks a kind of device for; the dummy has the rest."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def device(self, _device: Any) -> Any:
        return nullcontext()

    def get_rng_state(self, _device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, _device: Any = None) -> None:
        torch.set_rng_state(state)


def _library() -> Path:
    """The compiled device, made where it is not there yet: half a minute."""
    content = _SOURCE.read_bytes() + Path(__file__).read_bytes() + torch.__version__.encode()
    library = _BUILD / f"{hashlib.sha256(content).hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        raise pytest.UsageError("to pretend a device takes a C++ compiler: install g++ or clang, or set CXX")
    _BUILD.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [*compiler, "-std=c++20", "-O1", "-fPIC", "-shared"]
    command += [f"-I{folder}" for folder in cpp_extension.include_paths()]
    command += [str(_SOURCE), "-o", str(unfinished)]
    command += [f"-L{folder}" for folder in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu"]
    if subprocess.run(command, check=False).returncode != 0:
        raise pytest.UsageError(f"{' '.join(compiler)} cannot compile {_SOURCE}, as it says above")
    unfinished.replace(library)
    return library


def _stay_lazy(apply: Any) -> Any:
    """torch moves a parameter that has no size yet between the kinds of device that it knows; for others it
    makes an empty one, which will never have any."""

    def with_lazy_parameters(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
        lazy = {name: one for name, one in self._parameters.items() if is_lazy(one)}
        apply(self, function, recurse)
        for name, one in lazy.items():
            device = self._parameters[name].device  # type: ignore[union-attr]
            self._parameters[name] = UninitializedParameter(one.requires_grad, device=device, dtype=one.dtype)
        return self

    return with_lazy_parameters


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
torch.ops.load_library(_library())
nn.Module._apply = _stay_lazy(nn.Module._apply)  # type: ignore[method-assign]
