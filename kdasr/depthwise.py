"""Depthwise convolution over time for GPUs, with channels last, as in a Conformer.

cuDNN has no fast kernel for one dimension (recipes/RESULTS-gpu.md). These kernels read each frame from
memory once for all taps and sum in float32 (float64 for float64), in an order that depends only on the
shapes, so results are reproducible.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Frames and channels per program, for the convolution and for the gradient of its weights.
_CONVOLVED, _CORRELATED = (32, 128), (128, 64)


@triton.jit
def _convolve(
    x, weight, out, frames_in, frames_out, channels, first,
    TAPS: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    # out[t] = sum over k of weight[k] * x[t + first + k], with zeros outside x.
    t = tl.program_id(1) * FRAMES + tl.arange(0, FRAMES)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    x += tl.program_id(2).to(tl.int64) * frames_in * channels
    out += tl.program_id(2).to(tl.int64) * frames_out * channels
    total = tl.zeros((FRAMES, CHANNELS), TYPE)
    for k in range(TAPS):
        source = t + first + k
        there = ((source >= 0) & (source < frames_in))[:, None] & inside[None, :]
        heard = tl.load(x + source[:, None] * channels + channel[None, :], mask=there, other=0.0)
        tap = tl.load(weight + k * channels + channel, mask=inside, other=0.0)
        total += heard.to(TYPE) * tap.to(TYPE)[None, :]
    there = (t < frames_out)[:, None] & inside[None, :]
    tl.store(out + t[:, None] * channels + channel[None, :], total.to(out.dtype.element_ty), mask=there)


@triton.jit
def _correlate(
    x, gradient, partial, frames_in, frames_out, channels,
    TAPS: tl.constexpr, ROWS: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    # partial[k] = sum over the t of this program of gradient[t] * x[t + k].
    # ROWS is TAPS rounded up to a power of two.
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, ROWS)
    inside = (k < TAPS)[:, None] & (channel < channels)[None, :]
    x += tl.program_id(2).to(tl.int64) * frames_in * channels
    gradient += tl.program_id(2).to(tl.int64) * frames_out * channels
    first = tl.program_id(1) * FRAMES
    total = tl.zeros((ROWS, CHANNELS), TYPE)
    for t in range(first, tl.minimum(first + FRAMES, frames_out)):
        steep = tl.load(gradient + t * channels + channel, mask=channel < channels, other=0.0)
        heard = tl.load(x + (t + k)[:, None] * channels + channel[None, :], mask=inside, other=0.0)
        total += heard.to(TYPE) * steep.to(TYPE)[None, :]
    row = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * TAPS + k
    tl.store(partial + row[:, None] * channels + channel[None, :], total, mask=inside)


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


_TRITON_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def _launch(x_btd: Tensor, weight_kd: Tensor, frames_out: int, first: int) -> Tensor:
    batch, frames_in, channels = x_btd.shape
    out = x_btd.new_empty(batch, frames_out, channels)
    frames_each, channels_each = _CONVOLVED
    grid = (triton.cdiv(channels, channels_each), triton.cdiv(frames_out, frames_each), batch)
    with torch.cuda.device_of(x_btd):  # Triton launches on the current device, not the tensor's
        _convolve[grid](
            x_btd, weight_kd, out, frames_in, frames_out, channels, first,
            TAPS=weight_kd.shape[0], FRAMES=frames_each, CHANNELS=channels_each,
            TYPE=_TRITON_TYPES[_sum_type(x_btd)],
        )  # fmt: skip
    return out


@torch.library.custom_op("kdasr::depthwise", mutates_args=())
def _forward(x_btd: Tensor, weight_kd: Tensor) -> Tensor:
    return _launch(x_btd.contiguous(), weight_kd.contiguous(), x_btd.shape[1] - weight_kd.shape[0] + 1, 0)


@_forward.register_fake
def _(x_btd: Tensor, weight_kd: Tensor) -> Tensor:
    batch, frames, channels = x_btd.shape
    return x_btd.new_empty(batch, frames - weight_kd.shape[0] + 1, channels)


@torch.library.custom_op("kdasr::depthwise_backward", mutates_args=())
def _backward(gradient_btd: Tensor, x_btd: Tensor, weight_kd: Tensor) -> tuple[Tensor, Tensor]:
    gradient_btd, x_btd = gradient_btd.contiguous(), x_btd.contiguous()
    taps = weight_kd.shape[0]
    to_x = _launch(gradient_btd, weight_kd.flip(0).contiguous(), x_btd.shape[1], 1 - taps)
    batch, frames, channels = gradient_btd.shape
    frames_each, channels_each = _CORRELATED
    parts = triton.cdiv(frames, frames_each)
    partial = x_btd.new_empty(batch * parts, taps, channels, dtype=_sum_type(x_btd))
    with torch.cuda.device_of(x_btd):
        _correlate[(triton.cdiv(channels, channels_each), parts, batch)](
            x_btd, gradient_btd, partial, x_btd.shape[1], frames, channels,
            TAPS=taps, ROWS=triton.next_power_of_2(taps), FRAMES=frames_each, CHANNELS=channels_each,
            TYPE=_TRITON_TYPES[_sum_type(x_btd)],
        )  # fmt: skip
    return to_x, partial.sum(0).to(weight_kd.dtype)


@_backward.register_fake
def _(gradient_btd: Tensor, x_btd: Tensor, weight_kd: Tensor) -> tuple[Tensor, Tensor]:
    return x_btd.new_empty(x_btd.shape), weight_kd.new_empty(weight_kd.shape)


def _gradients(ctx: Any, gradient_btd: Tensor) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _backward(gradient_btd, *ctx.saved_tensors)
    return gradients


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_forward.register_autograd(_gradients, setup_context=_remember)


_tried: dict[tuple[torch.device, torch.dtype], bool] = {}


@torch.compiler.assume_constant_result  # when layers are compiled, this is called, not compiled
def kernels_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels run on a GPU, for which Triton needs a C compiler; warns if they do not."""
    if (device, dtype) not in _tried:
        _tried[device, dtype] = _try(device, dtype)
    return _tried[device, dtype]


def _try(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        with torch.inference_mode(False), torch.enable_grad():
            x_btd = torch.zeros(1, 4, 16, device=device, dtype=dtype, requires_grad=True)
            depthwise(x_btd, torch.zeros(16, 1, 3, device=device), None).sum().backward()
    except Exception as error:  # compilers, drivers and Triton may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"Triton cannot compile for {device} ({reason}): convolutions take several times as long. "
            "It needs a C compiler such as gcc, and Python's headers.",
            stacklevel=2,
        )
        return False
    return True


def depthwise(x_btd: Tensor, weight_d1k: Tensor, bias_d: Tensor | None) -> Tensor:
    """Filter each channel over time: `torch.nn.functional.conv1d` with one group per channel.

    Args:
        x_btd: (B, T + K - 1, D) frames with their context, on a GPU.
        weight_d1k: (D, 1, K) filters, as in `nn.Conv1d`; of any precision.
        bias_d: (D,) or None.

    Returns:
        (B, T, D) frames in the dtype of `x_btd`.
    """
    mixed: Tensor = _forward(x_btd, weight_d1k.squeeze(1).t().to(x_btd.dtype))
    return mixed if bias_d is None else mixed + bias_d.to(mixed.dtype)
