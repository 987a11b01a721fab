"""The features that sherpa-onnx computes for its offline CTC models."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import MissingDependencyError
from kdasr.features import log_mel
from kdasr.teachers.base import LOG_MEL, WAVEFORM, FrontEnd

Format = Literal["nemo", "zipformer", "wenet", "sense_voice", "wav2vec2"]
_16_BIT = 32768.0


def front_end(kind: Format, num_mel_bins: int, metadata: Mapping[str, str]) -> FrontEnd:
    """The front end of models of this format.

    WeNet's samples have the 16-bit range; NeMo uses librosa's mel filters (Slaney scale) and Hann
    windows; SenseVoice uses Hamming windows that lie entirely within the audio.
    """
    if kind == "wav2vec2":
        return WAVEFORM
    if kind == "zipformer":
        return LOG_MEL
    if kind == "wenet":
        name, scaled = (
            f"{LOG_MEL.name}, of 16-bit samples",
            _hash({"log_mel": LOG_MEL.hash, "scale": _16_BIT}),
        )
        return FrontEnd(name, scaled, 1, LOG_MEL.padding, _log_mel_16_bit)
    frame: dict[str, Any] = {"dither": 0.0, "snip_edges": kind == "sense_voice"}
    if kind == "nemo":
        frame |= {"window_type": "hann", "remove_dc_offset": False}
        mel = {"num_bins": num_mel_bins, "low_freq": 0.0, "high_freq": 0.0, "is_librosa": True}
        scale = 1.0
    else:
        frame |= {"window_type": "hamming"}
        mel = {"num_bins": num_mel_bins, "low_freq": 20.0, "high_freq": 0.0}
        scale = 1.0 if int(metadata.get("normalize_samples", "0")) else _16_BIT
    name = f"{num_mel_bins} log-mel as sherpa-onnx makes them for {kind}"
    compute = functools.partial(_fbank, frame=frame, mel=mel, scale=scale)
    return FrontEnd(name, _hash({**frame, **mel, "scale": scale}), 1, 0.0, compute)


def stack_frames(features_tf: NDArray[np.float32], window: int, shift: int) -> NDArray[np.float32]:
    """(T, F) to (ceil(T / shift), window * F): every `shift`-th frame with its neighbours; the first and last
    frame are repeated beyond the ends (low frame rate, Pundak & Sainath 2016, as in FunASR)."""
    first = np.arange(-(-len(features_tf) // shift))[:, None] * shift - (window - 1) // 2
    place = (first + np.arange(window)).clip(0, len(features_tf) - 1)
    return features_tf[place].reshape(len(place), -1)


def _hash(definition: Mapping[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(definition.items())).encode()).hexdigest()[:16]


def _log_mel_16_bit(samples: NDArray[np.float32]) -> Tensor:
    return log_mel(samples * np.float32(_16_BIT))


def _fbank(
    samples: NDArray[np.float32], frame: Mapping[str, Any], mel: Mapping[str, Any], scale: float
) -> Tensor:
    """(N,) samples to (T, bins) log-mel by kaldi-native-fbank, which sherpa-onnx uses."""
    try:
        import kaldi_native_fbank
    except ImportError as error:
        raise MissingDependencyError("kaldi-native-fbank", "onnx-teacher") from error
    options = kaldi_native_fbank.FbankOptions()
    for name, value in frame.items():
        setattr(options.frame_opts, name, value)
    for name, value in mel.items():
        setattr(options.mel_opts, name, value)
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(SAMPLE_RATE_HZ, (samples * np.float32(scale)).tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(number) for number in range(fbank.num_frames_ready)]
    return torch.from_numpy(np.stack(frames)) if frames else torch.empty(0, int(mel["num_bins"]))
