"""One engine measured in a process of its own, so that its memory is its own.

usage: python -m export.bench_worker MODEL AUDIO     prints one JSON object
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from export.measure import measure_chunks
from export.transcribe import open_recogniser
from kdasr.audio import load


def main(model: str, audio: str) -> None:
    """Measures the model file or folder over the audio file and prints the figures."""
    torch.set_num_threads(1)
    samples = load(Path(audio))
    before_kib = _peak_kib()
    began = time.perf_counter()
    chunk_model = open_recogniser(Path(model)).streaming_model()
    load_s = time.perf_counter() - began
    timing = measure_chunks(chunk_model, samples)
    figures = {
        **asdict(timing),
        "load_s": load_s,
        "peak_mib": _peak_kib() / 1024,
        "model_mib": (_peak_kib() - before_kib) / 1024,
    }
    print(json.dumps(figures))


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
