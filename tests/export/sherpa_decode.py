"""Runs stock sherpa-onnx over WAV files and prints what it heard as JSON. A program of its own,
because a bad model ends sherpa's process.

usage: sherpa_decode.py MODEL TOKENS GRAPH MODE WAV…     GRAPH: or "" for none; MODE: whole | ragged | batch
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import sherpa_onnx
import soundfile


def main(model: str, tokens: str, graph: str, mode: str, wavs: list[str]) -> None:
    recogniser = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=tokens, model=model, ctc_graph=graph, num_threads=1
    )
    audio = [soundfile.read(wav, dtype="float32")[0] for wav in wavs]
    streams = [recogniser.create_stream() for _ in audio]
    if mode == "batch":
        for stream, samples in zip(streams, audio, strict=True):
            stream.accept_waveform(16_000, samples)
            stream.input_finished()
        while ready := [stream for stream in streams if recogniser.is_ready(stream)]:
            recogniser.decode_streams(ready)
    else:
        for stream, samples in zip(streams, audio, strict=True):
            _feed(recogniser, stream, samples, ragged=mode == "ragged")
    results = [
        {
            "text": recogniser.get_result(stream),
            "tokens": recogniser.tokens(stream),
            "timestamps": recogniser.timestamps(stream),
        }
        for stream in streams
    ]
    print(json.dumps(results))


def _feed(recogniser: Any, stream: Any, samples: Any, *, ragged: bool) -> None:
    random = np.random.default_rng(0)
    start = 0
    while start < len(samples):
        size = int(random.integers(37, 5_000)) if ragged else len(samples)
        stream.accept_waveform(16_000, samples[start : start + size])
        start += size
        while recogniser.is_ready(stream):
            recogniser.decode_stream(stream)
    stream.input_finished()
    while recogniser.is_ready(stream):
        recogniser.decode_stream(stream)


if __name__ == "__main__":
    main(*sys.argv[1:5], sys.argv[5:])
