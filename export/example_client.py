"""An example client that prints the text of a WAV file (mono, 16 kHz, 16 bits), given an `onnx` export.

python export/example_client.py OUT FILE.wav   or a copy of this file, which needs nothing else of kdasr
"""

import json
import math
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime


def log_mel(samples: np.ndarray, f: dict) -> np.ndarray:
    """(N,) samples to (frames, mel bins), as defined by the card's `features`."""
    size, hop, nyquist = f["window_samples"], f["hop_samples"], f["fft_size"] // 2
    around = np.pad(samples.astype(np.float64), ((size - hop) // 2, size), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(around, size)[::hop]
    windows = windows[: (len(samples) + hop // 2) // hop]
    windows = windows - windows.mean(1, keepdims=True)
    windows[:, 1:] -= f["preemphasis"] * windows[:, :-1]
    povey = np.hanning(size) ** f["povey_power"]  # 0 at the first sample, whose predecessor is missing
    power = np.abs(np.fft.rfft(windows * povey, f["fft_size"])) ** 2
    low, high = (1127 * math.log1p(f[name] / 700) for name in ("low_hz", "high_hz"))
    edges = np.linspace(low, high, f["mel_bins"] + 2)
    bins = 1127 * np.log1p(np.arange(nyquist + 1)[:, None] * f["sample_rate_hz"] / f["fft_size"] / 700)
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    energies = power @ np.maximum(np.minimum(rising, falling), 0)
    return np.log(np.maximum(energies, math.exp(f["log_mel_floor"]))).astype(np.float32)


class Client:
    def __init__(self, folder: Path, precision: str = "float32") -> None:
        card = json.loads((folder / "model.json").read_text("utf-8"))
        self.features, self.streaming, self.units = card["features"], card["streaming"], card["units"]
        self.subsampling = int(card["metadata"]["subsampling"])
        self.symbols = [line.split()[0] for line in (folder / "tokens.txt").read_text("utf-8").splitlines()]
        file = str(folder / card["files"][precision]["file"])
        self.model = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def log_probs(self, samples: np.ndarray) -> np.ndarray:
        """(N,) samples to (output frames of audio and tail, classes)."""
        shift, size = self.streaming["shift_feature_frames"], self.streaming["window_feature_frames"]
        tail = np.zeros(self.streaming["tail_ms"] * self.features["sample_rate_hz"] // 1000, np.float32)
        heard = log_mel(np.concatenate([samples, tail]), self.features)
        padded = np.pad(heard, ((0, size), (0, 0)), constant_values=self.features["log_mel_floor"])
        names, states, outputs = [entry.name for entry in self.model.get_inputs()], [], []
        for entry in self.model.get_inputs()[1:]:  # the named axis is the batch axis
            shape = [1 if isinstance(axis, str) else axis for axis in entry.shape]
            states.append(np.zeros(shape, np.int64 if "int64" in entry.type else np.float32))
        for start in range(0, len(heard), shift):
            inputs = [padded[None, start : start + size], *states]
            log_probs, *states = self.model.run(None, dict(zip(names, inputs, strict=True)))
            outputs.append(log_probs[0])
        return np.concatenate(outputs)[: math.ceil(len(heard) / self.subsampling)]

    def text(self, samples: np.ndarray) -> str:
        """The text of (N,) samples in [-1, 1]."""
        hop, blank = self.features["hop_samples"], self.units["blank_id"]
        if not (num_frames := (len(samples) + hop // 2) // hop):
            return ""
        pause = self.units["word_pause_s"] / (self.streaming["output_frame_ms"] / 1000) - 1e-6
        text, before, last = "", math.inf, math.ceil(num_frames / self.subsampling) - 1
        classes = self.log_probs(samples).argmax(1)
        for spike in np.flatnonzero((classes != blank) & (classes != np.append(blank, classes[:-1]))):
            frame = min(int(spike), last)  # spikes in the tail count as in the last frame of the audio
            text += (" " if frame - before - 1 >= pause else "") + self.symbols[classes[spike]]
            before = frame
        return " ".join(text.replace(self.units["word_mark"], " ").split())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python example_client.py OUT FILE.wav")
    with wave.open(sys.argv[2]) as audio:
        channels, bits, rate_hz = audio.getnchannels(), 8 * audio.getsampwidth(), audio.getframerate()
        if (channels, bits, rate_hz) != (1, 16, 16_000):
            found = f"{channels} of {bits} bits at {rate_hz} Hz"
            sys.exit(f"{sys.argv[2]}: expected 1 channel of 16 bits at 16000 Hz; got {found}")
        pcm = np.frombuffer(audio.readframes(audio.getnframes()), "<i2")
    print(Client(Path(sys.argv[1])).text(pcm.astype(np.float32) / 32_768))
