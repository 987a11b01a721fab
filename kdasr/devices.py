"""Choose the device: the one requested, else a GPU that torch can use, else the CPU."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kdasr.errors import ConfigError
from kdasr.ranks import ranks

_GPU = Path("/dev/nvidia0")


def usable_device(device: str | None, *, touch: bool = True) -> str:
    """The requested device, else the GPU if torch can use one, else the CPU.

    If a GPU is idle because torch cannot use it, a line on stderr says so. Unless `touch` is False, this
    process checks a device by creating a context on it, which takes GPU memory until the process ends, and
    blocks a GPU in exclusive mode; a process that only starts others there passes False.

    Raises:
        ConfigError: this machine has no such device.
    """
    if device is None:
        if (problem := gpu_problem()) is not None and ranks().first:
            print(
                f"torch cannot use the GPU of this machine ({problem}), so the CPU is used; "
                "`kdasr doctor` shows what is available",
                file=sys.stderr,
            )
        return "cuda" if torch.cuda.is_available() else "cpu"
    if (reason := _refusal(device, touch)) is not None:
        fix = "`kdasr doctor` shows what is available."
        raise ConfigError("the device cannot be used", where="device", got=f"{device} ({reason})", fix=fix)
    return device


def gpu_problem() -> str | None:
    """Why torch cannot use the NVIDIA GPU of this machine; None if it can, or if there is none."""
    if not _GPU.exists() or torch.cuda.is_available():
        return None
    return _refusal("cuda", touch=True) or "no reason given"


def device_text(device: str) -> str:
    """A device for display, a GPU with its name."""
    is_gpu = torch.device(device).type == "cuda"
    return f"{device} ({torch.cuda.get_device_name(device)})" if is_gpu else device


def free_gpu_memory() -> None:
    """Release GPU memory that this process no longer uses: torch caches it, and reference cycles hold it
    until the garbage collector runs, which it does without regard to their size."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _refusal(device: str, touch: bool) -> str | None:
    """Torch's reason why a device cannot be used; None if it can."""
    try:
        named = torch.device(device)
        if not touch and named.type == "cuda" and (named.index or 0) < torch.cuda.device_count():
            return None
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built for CPUs raises the latter
        return str(error).splitlines()[0]
    return None


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside the block, a GPU computes float32 in full precision. TensorFloat-32, which torch allows for
    convolutions, and SpeechBrain (once imported) for everything, keeps only ten bits of the mantissa."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
