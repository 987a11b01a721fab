"""Which device does the work: the one that is asked for, else the GPU that torch can use, else the CPU."""

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
    """The device that is asked for, else the accelerator where there is one.

    Where a GPU is left idle because torch cannot use it, a line on stderr says so. To see that a device is
    there this process makes itself a place on it, which takes memory of a GPU until it ends, and all of one
    that serves one process alone: not where `touch` is False, for the driver of others that work there.

    Raises:
        ConfigError: this machine has no such device.
    """
    if device is None:
        if (problem := gpu_problem()) is not None and ranks().first:
            print(
                f"torch cannot use the GPU of this machine ({problem}), so the CPU does the work; "
                "`kdasr doctor` says what there is",
                file=sys.stderr,
            )
        return "cuda" if torch.cuda.is_available() else "cpu"
    if (reason := _refusal(device, touch)) is not None:
        fix = "`kdasr doctor` says what there is."
        raise ConfigError("no such device", where="device", got=f"{device} ({reason})", fix=fix)
    return device


def gpu_problem() -> str | None:
    """Why torch cannot use the NVIDIA GPU of this machine; None if it can, or if there is none."""
    if not _GPU.exists() or torch.cuda.is_available():
        return None
    return _refusal("cuda", touch=True) or "no reason given"


def device_text(device: str) -> str:
    """A device for people, a GPU by its name."""
    is_gpu = torch.device(device).type == "cuda"
    return f"{device} ({torch.cuda.get_device_name(device)})" if is_gpu else device


def free_gpu_memory() -> None:
    """Give back the memory of a GPU that this process no longer uses: torch keeps it for itself, and
    objects that refer to one another keep it until the garbage collector comes, which counts no bytes."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Hold torch to one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _refusal(device: str, touch: bool) -> str | None:
    """What torch says against a device."""
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
    """Inside, a GPU computes float32 in float32. With TensorFloat-32, which torch allows for convolutions and
    SpeechBrain once it is imported for everything, ten bits of a number are left."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
