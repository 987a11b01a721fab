"""Measures one engine in a process of its own, so that memory and core are not shared.

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
    """Measures the model file or folder on the audio file and prints the figures: those of
    `export.measure.ChunkTiming`, and `load_s`, `model_mib` (the rise in memory from before loading the
    model, when torch is already loaded, to the peak), `peak_mib` (peak memory of the process)."""
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
    """Resets the kernel's peak memory count, so that importing torch does not hide the model. If that is
    not permitted, the figure for the model is an upper bound."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_kib(name: str) -> int:
    """An entry of /proc/self/status."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
