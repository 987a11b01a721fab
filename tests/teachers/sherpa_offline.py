"""Runs stock sherpa-onnx's offline recogniser over WAV files and prints the tokens as JSON. A program of
its own, because a bad model ends sherpa's process.

usage: sherpa_offline.py FORMAT MODEL TOKENS WAV…
"""

from __future__ import annotations

import json
import sys

import sherpa_onnx
import soundfile

FROM = {
    "nemo": "from_nemo_ctc",
    "zipformer": "from_zipformer_ctc",
    "wenet": "from_wenet_ctc",
    "sense_voice": "from_sense_voice",
    "wav2vec2": "from_omnilingual_asr_ctc",
}


def main(kind: str, model: str, tokens: str, wavs: list[str]) -> None:
    recogniser = getattr(sherpa_onnx.OfflineRecognizer, FROM[kind])(model=model, tokens=tokens)
    found = []
    for wav in wavs:
        stream = recogniser.create_stream()
        stream.accept_waveform(16_000, soundfile.read(wav, dtype="float32")[0])
        recogniser.decode_stream(stream)
        found.append([stream.result.tokens, list(stream.result.timestamps)])
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
