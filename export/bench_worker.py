"""One engine measured in a process of its own, so that its memory and its core are its own.

usage: python -m export.bench_worker MODEL AUDIO     prints one JSON object
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from export.measure import measure_chunks
from export.transcribe import open_recogniser
from kdasr.audio import load

_STATUS = Path("/proc/self/status")


def main(model: str, audio: str) -> None:
    """Measures the model file or folder over the audio file and prints the figures: those of
    `export.measure.ChunkTiming`, and `load_s`, `model_mib` (how far memory rose above that of the
    process before it had the model, which has torch), `peak_mib` (all of the process)."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    samples = load(Path(audio))
    _forget_peak()
    before_kib = memory_kib("VmRSS")
    began = time.perf_counter()
    chunk_model = open_recogniser(Path(model)).streaming_model()
    load_s = time.perf_counter() - began
    timing = measure_chunks(chunk_model, samples)
    peak_kib = memory_kib("VmHWM")
    figures = {
        **asdict(timing),
        "load_s": load_s,
        "peak_mib": peak_kib / 1024,
        "model_mib": (peak_kib - before_kib) / 1024,
    }
    print(json.dumps(figures))


def _forget_peak() -> None:
    """Lets the kernel count the highest memory anew: importing torch must not hide the model.
    Where it is not allowed, the figure for the model is an upper bound."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_kib(name: str) -> int:
    """A line of /proc/self/status."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
