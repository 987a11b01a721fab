"""A tiny teacher and tiny audio shards for the tests of labelling; importable by workers."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdasr.interfaces import Utterance
from kdasr.labelling import Teacher
from kdasr.shards import write_shards
from kdasr.text import CharUnits

VOCAB_SIZE = 12
SUBSAMPLING = 4
_LOUD = 0.9


class TinyTeacher(nn.Module):
    """Looks at each stack of four frames alone: what lies beyond a length changes nothing.

    Args:
        seed: of the weights.
        die_once: a file; if it is not there yet, make it and kill the process.
        poison: what utterances louder than `_LOUD` do: nothing, `raise`, `nan`, break the `device`,
            or `kill` the process.
    """

    subsampling = SUBSAMPLING
    vocab_size = VOCAB_SIZE

    def __init__(self, seed: int = 0, poison: str = "", die_once: str = "", pause_s: float = 0.0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"seed": seed}
        self.poison, self.die_once, self.pause_s = poison, die_once, pause_s
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(80 * SUBSAMPLING, VOCAB_SIZE, generator=generator) * 0.02)

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        frames_b = (lengths_b + SUBSAMPLING - 1) // SUBSAMPLING
        padding = -features_btf.shape[1] % SUBSAMPLING
        x = torch.nn.functional.pad(features_btf, (0, 0, 0, padding), value=-15.9424)
        stacked = x.reshape(len(x), -1, SUBSAMPLING * 80)
        log_probs = (stacked @ self.weight).log_softmax(-1)
        time.sleep(self.pause_s)
        if self.die_once and _first_to_make(self.die_once):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.poison:
            self._poison(features_btf, log_probs)
        return log_probs, frames_b

    def _poison(self, features_btf: Tensor, log_probs_btv: Tensor) -> None:
        for row, features in enumerate(features_btf):
            if float(features.max()) < 6.0:
                continue
            if self.poison == "device":
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")
            if self.poison == "raise":
                raise RuntimeError("a poison utterance")
            if self.poison == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            log_probs_btv[row, 0] = torch.nan


def _first_to_make(path: str) -> bool:
    """Whether this process made the file: of several workers at once, exactly one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class TinySource:
    """Describes a `TinyTeacher`; with `driver_pid` it cannot be loaded in any other process."""

    seed: int = 0
    poison: str = ""
    die_once: str = ""
    driver_pid: int = 0
    pause_s: float = 0.0

    def load(self, device: str) -> Teacher:
        if self.driver_pid not in (0, os.getpid()):
            raise RuntimeError("no such device")
        name = hashlib.sha256(f"tiny {self.seed}".encode()).hexdigest()
        model = TinyTeacher(self.seed, self.poison, self.die_once, self.pause_s).eval()
        return Teacher(model, "TinyTeacher", name, CharUnits())


def make_audio(
    folder: Path,
    num_utterances: int = 12,
    per_shard: int = 4,
    seed: int = 0,
    loud: tuple[int, ...] = (),
    name: str = "utt",
) -> list[Path]:
    """Shards of quiet noise and tones of 0.3 to 1.5 s; those numbered in `loud` are square waves."""
    rng = np.random.default_rng(seed)

    def utterances() -> Any:
        for number in range(num_utterances):
            size = int(rng.integers(4800, 24000))
            time_s = np.arange(size) / 16000
            samples = 0.05 * rng.standard_normal(size) + 0.1 * np.sin(2 * np.pi * 200 * (1 + number) * time_s)
            if number in loud:
                samples = np.sign(np.sin(2 * np.pi * 500 * time_s)) * _LOUD
            yield Utterance(f"{name}-{number:03d}", samples.astype(np.float32))

    return write_shards(utterances(), folder, max_utterances=per_shard, description="test")
