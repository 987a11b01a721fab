"""The kernels for GPUs, in Triton's interpreter where there is one; tests/test_gpu.py runs them on a GPU."""

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
from kdasr.depthwise import depthwise, kernels_work
torch.manual_seed(0)
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
    assert kernels_work(torch.device("cpu"), torch.bfloat16)
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

# Frames that lie across memory, weights of more digits than they have, and a gradient that is one number.
x = torch.randn(2, 24, 12).bfloat16().transpose(1, 2).requires_grad_()
weight, bias = torch.randn(24, 1, 5, requires_grad=True), torch.randn(24, requires_grad=True)
found = depthwise(x, weight, bias)
found = [found, *torch.autograd.grad(found.sum(), (x, weight, bias))]
inputs = [one.detach().double().requires_grad_() for one in (x, weight, bias)]
wanted = torch.nn.functional.conv1d(inputs[0].transpose(1, 2), *inputs[1:], groups=24).transpose(1, 2)
wanted = [wanted, *torch.autograd.grad(wanted.sum(), inputs)]
assert [one.dtype for one in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
for one, other in zip(found, wanted, strict=True):
    assert float(((one.double() - other).norm() / other.norm()).detach()) <= 1e-2

# What does not run is said once, and not used.
import kdasr.depthwise, warnings
kdasr.depthwise.depthwise = lambda *_: 1 / 0
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    assert not any(kernels_work(torch.device("cpu"), torch.float16) for _ in range(2))
assert len(heard) == 1 and "cannot compile for cpu (division by zero)" in str(heard[0].message)
"""

# Layers as on a GPU, compiled for lengths that vary, against those of a CPU.
COMPILED = """
import functools, torch
import kdasr.layers
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.training.compiled import compiled

def as_on_a_gpu(convolution, x):
    assert kdasr.layers.kernels_work(x.device, x.dtype)
    return kdasr.layers.depthwise(x, convolution.weight, convolution.bias)

torch.manual_seed(0)
sizes = dict(width=16, num_layers=2, num_heads=2, kernel_frames=5, dropout=0.0, chunked_share=0.0)
model = ConformerTeacher(vocab_size=20, **sizes).train()
heard = [torch.randn(batch, frames, 80) for batch, frames in ((3, 40), (2, 64), (4, 52))]

def outputs_and_gradients():
    found = []
    for features in heard:
        model.zero_grad()
        out, _ = model.offline(features, torch.full((len(features),), features.shape[1]))
        out[..., 3].square().sum().backward()
        found += [out.detach(), *(weight.grad.clone() for weight in model.parameters())]
    return found

wanted = outputs_and_gradients()
kdasr.layers._over_time = as_on_a_gpu
torch.compile = functools.partial(torch.compile, backend="aot_eager")  # all but the C++ compiler
with compiled(model, True):
    found = outputs_and_gradients()
for one, other in zip(found, wanted, strict=True):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
"""


@pytest.mark.parametrize("script", [SCRIPT, COMPILED], ids=["alone", "in compiled layers"])
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, a gigabyte that a CPU has no use for")
def test_the_kernels_convolve_and_their_gradients_are_right(script: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
