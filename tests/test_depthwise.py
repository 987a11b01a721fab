"""The kernels for GPUs, in the interpreter of Triton if there is one; `make test-gpu` runs them on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Shapes with frames and channels that fill no block, that fill blocks, and one of a single frame.
SCRIPT = """
import torch
from kdasr.depthwise import depthwise
torch.manual_seed(0)
for batch, frames, channels, taps, dtype, most in (
    (2, 37, 24, 5, torch.float32, 1e-6),
    (2, 129, 130, 15, torch.float64, 1e-14),
    (1, 64, 128, 31, torch.bfloat16, 6e-3),
    (3, 1, 8, 9, torch.float32, 1e-6),
):
    shapes = (batch, frames + taps - 1, channels), (channels, 1, taps), (channels,)
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    found = depthwise(*inputs)
    upstream = torch.randn_like(found)
    found = [found, *torch.autograd.grad(found, inputs, upstream)]
    x, weight, bias = (one.detach().double().requires_grad_() for one in inputs)
    wanted = torch.nn.functional.conv1d(x.transpose(1, 2), weight, bias, groups=channels).transpose(1, 2)
    wanted = [wanted, *torch.autograd.grad(wanted, (x, weight, bias), upstream.double())]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        error = (one.detach().double() - other).norm() / other.norm()
        assert float(error.detach()) <= most, (frames, channels, taps, dtype, error)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, a gigabyte that a CPU has no use for")
def test_the_kernels_convolve_and_their_gradients_are_right() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
