"""A labelling job that kills its own process at a given step; run by test_label_kill.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdasr.labelling import label, shard_job
from kdasr.soft_labels import container
from kdasr.storage import local
from tests.labelling.tiny import TinySource

#: Every step of the commit protocol, and the work before it: where it is called and by what name.
STEPS: dict[str, tuple[Any, str]] = {
    "forget-manifest": (local.LocalLocation, "remove"),
    "build": (container, "build"),
    "write": (local, "_write_through"),
    "fsync": (os, "fsync"),
    "read-back": (local, "compare"),
    "rename": (Path, "replace"),
    "sync-folder": (local, "sync_path"),
    "decode": (shard_job, "read_utterance"),
}


def kill_before(owner: Any, name: str, count: int) -> None:
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, step)


def half_written(count: int) -> None:
    """Die in the middle of a write: the first half of the bytes is on disk."""
    original, calls = local._write_through, 0

    def write(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            path.write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, data)

    local._write_through = write


def label_and_die(audio: Path, out: Path, step: str, count: int) -> None:
    """Label, and SIGKILL this process just before the `count`-th time that `step` is reached.

    With `count` 0 nothing is killed.
    """
    torch.set_num_threads(1)
    if step == "half-write":
        half_written(count)
    elif count:
        kill_before(*STEPS[step], count)
    label(teacher=TinySource(), audio=audio, out=out, overwrite=True)
