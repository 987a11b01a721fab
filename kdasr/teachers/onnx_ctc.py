"""ONNX models with a CTC head in the offline formats of sherpa-onnx, as teachers.

    teacher: !new:kdasr.teachers.onnx_ctc.OnnxCTC
        model: sherpa-onnx-nemo-fast-conformer-ctc/model.onnx

The format is read from the metadata and the features are computed, both as in sherpa-onnx: NeMo (mel
with librosa's filters, normalised per feature), zipformer (Kaldi's, as in kdasr), WeNet (the same for
samples in the 16-bit range), SenseVoice (stacked frames, normalised with stored mean and variance),
wav2vec 2.0 (normalised samples). Needs `kdasr[onnx-teacher]`.
"""

from __future__ import annotations

import functools
import mmap
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.errors import ConfigError, MissingDependencyError, ModelError
from kdasr.teachers.base import (
    Pretrained,
    Teacher,
    hash_files,
    normalise_samples,
    not_there,
    pretrained_teacher,
)
from kdasr.teachers.sherpa_features import Format, front_end, stack_frames

# By `model_type` in the metadata.
_FORMATS: dict[str, Format] = {
    "EncDecCTCModel": "nemo",
    "EncDecCTCModelBPE": "nemo",
    "EncDecHybridRNNTCTCBPEModel": "nemo",
    "zipformer_ctc": "zipformer",
    "zipformer2_ctc": "zipformer",
    "wenet_ctc": "wenet",
    "sense_voice": "sense_voice",
    "sense_voice_ctc": "sense_voice",
}
_INPUTS = {"nemo": 2, "zipformer": 2, "wenet": 2, "sense_voice": 4, "wav2vec2": 1}
_BLANKS = ("<blk>", "<eps>", "<blank>", "<pad>", "[PAD]")
_SENSE_VOICE = ("lfr_window_size", "lfr_window_shift", "neg_mean", "inv_stddev", "without_itn")
# SenseVoice's first frames are for language, emotion, event and whether numbers are written out.
_SENSE_VOICE_TAGS = 4


@dataclass(frozen=True)
class OnnxCTC:
    """An offline CTC model of sherpa-onnx.

    Attributes:
        model: the .onnx file.
        tokens: its tokens.txt; None for the one in the same folder.
        format: None to read it from the metadata.
        language: for SenseVoice: auto, zh, en, ja, ko or yue.
        sentencepiece: the SentencePiece model of its tokens (bpe.model, tokenizer.model), so that students
            with these units split transcripts as in the teacher's training.
        pads: whether the model is known to ignore padding; several utterances then share a batch.
    """

    model: str | Path
    tokens: str | Path | None = None
    format: Format | None = None
    language: str = "auto"
    sentencepiece: str | Path | None = None
    pads: bool = False

    def load(self, device: str) -> Teacher:
        """The teacher on `device`.

        Raises:
            MissingDependencyError: onnxruntime or kaldi-native-fbank is not installed.
            ConfigError: onnxruntime cannot use the device.
            ModelError: a file is missing, or the model's format is unknown.
        """
        path = Path(self.model)
        tokens_path = Path(self.tokens) if self.tokens is not None else path.with_name("tokens.txt")
        for file in (path, tokens_path, self.sentencepiece):
            if file is not None and not Path(file).is_file():
                raise not_there(
                    "a file of the model",
                    file,
                    "Unpack a model from sherpa-onnx's list of offline CTC models, and name its files.",
                )
        session = _open(path, device)
        metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        kind = self.format or _find_format(session, metadata, path)
        _check(session, kind, metadata, self.language, path)
        symbols = _read_tokens(tokens_path)
        model = _Model(
            session, kind, metadata, _find_blank(symbols, kind, metadata, tokens_path), self.language, path
        )
        return pretrained_teacher(
            model,
            kind=f"ONNX {kind} CTC",
            symbols=symbols,
            weights_hash=hash_files([path, *_external(path), tokens_path], kind, self.language),
            device=device,
            front_end=front_end(kind, model.num_mel_bins, metadata),
            pads=self.pads,
            model_bytes=Path(self.sentencepiece).read_bytes() if self.sentencepiece is not None else None,
        )


# Padded inputs and their lengths to logits and frames.
_Forward = Callable[[NDArray[np.float32], NDArray[np.int64]], tuple[Any, Any]]


class _Model(Pretrained):
    def __init__(
        self,
        session: Any,
        kind: Format,
        metadata: Mapping[str, str],
        blank_id: int,
        language: str,
        path: Path,
    ) -> None:
        super().__init__(blank_id)
        self.session, self.kind, self.path = session, kind, path
        self.inputs = [one.name for one in session.get_inputs()]
        self.num_mel_bins = _num_mel_bins(session, kind)
        forward: dict[str, _Forward] = {
            "nemo": functools.partial(self._nemo, metadata=metadata),
            "zipformer": self._with_lengths,
            "wenet": self._with_lengths,
            "sense_voice": functools.partial(self._sense_voice, metadata=metadata, language=language),
            "wav2vec2": self._wav2vec2,
        }
        self.forward_as = forward[kind]

    def posteriors(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        heard = inputs.float().cpu().numpy()
        logits, frames = self.forward_as(heard, lengths_b.cpu().numpy())
        log_probs_btv = torch.from_numpy(np.asarray(logits, np.float32)).log_softmax(-1)
        frames_b = torch.from_numpy(np.asarray(frames, np.int64)).clamp_max(log_probs_btv.shape[1])
        return log_probs_btv.to(inputs.device), frames_b.to(lengths_b.device)

    def _run(self, *values: Any) -> Any:
        return self.session.run(None, dict(zip(self.inputs, values, strict=True)))

    def _with_lengths(self, x_btf: NDArray[np.float32], lengths_b: NDArray[np.int64]) -> tuple[Any, Any]:
        log_probs, frames = self._run(x_btf, lengths_b)[:2]
        return log_probs, frames

    def _nemo(
        self, x_btf: NDArray[np.float32], lengths_b: NDArray[np.int64], metadata: Mapping[str, str]
    ) -> tuple[Any, Any]:
        x_btf = x_btf.copy()
        if metadata.get("normalize_type", "") == "per_feature":
            for item, length in zip(x_btf, lengths_b, strict=True):
                heard = item[:length]
                heard[:] = (heard - heard.mean(0)) / (heard.std(0) + 1e-5)
                item[length:] = 0.0
        logits = self._run(np.ascontiguousarray(x_btf.transpose(0, 2, 1)), lengths_b)[0]
        return logits, lengths_b // int(metadata["subsampling_factor"])

    def _sense_voice(
        self,
        x_btf: NDArray[np.float32],
        lengths_b: NDArray[np.int64],
        metadata: Mapping[str, str],
        language: str,
    ) -> tuple[Any, Any]:
        window, shift = int(metadata["lfr_window_size"]), int(metadata["lfr_window_shift"])
        mean, scale = _floats(metadata, "neg_mean"), _floats(metadata, "inv_stddev")
        frames_b = -(-lengths_b // shift)
        x = np.zeros((len(x_btf), int(frames_b.max()), mean.size), np.float32)
        for out, item, length in zip(x, x_btf, lengths_b, strict=True):
            stacked = stack_frames(item[:length], window, shift)
            out[: len(stacked)] = (stacked + mean) * scale
        language_id, norm_id = (
            np.full(len(x_btf), int(metadata[name]), np.int32) for name in (f"lang_{language}", "without_itn")
        )
        logits = self._run(x, frames_b.astype(np.int32), language_id, norm_id)[0]
        return logits[:, _SENSE_VOICE_TAGS:], frames_b

    def _wav2vec2(self, samples_bn: NDArray[np.float32], lengths_b: NDArray[np.int64]) -> tuple[Any, Any]:
        heard = np.zeros_like(samples_bn)
        for out, item, length in zip(heard, samples_bn, lengths_b, strict=True):
            out[:length] = normalise_samples(torch.from_numpy(item[:length]), 1e-5).numpy()
        logits = self._run(heard)[0]
        # The graph takes no lengths, so compute each input's share of the frames.
        return logits, np.ceil(lengths_b * logits.shape[1] / samples_bn.shape[1]).astype(np.int64)


def _open(path: Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "onnx-teacher") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ConfigError(
            "this onnxruntime cannot use the accelerator",
            where=f"device {device}",
            expected=provider,
            got=", ".join(onnxruntime.get_available_providers()),
            fix="Install onnxruntime-gpu instead, or label with --device cpu.",
        )
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        # Without an index onnxruntime would use the first GPU, whichever one torch uses.
        providers.insert(0, (provider, {"device_id": torch.device(device).index or 0}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime does not export its types of error
        raise ModelError("onnxruntime cannot load the model", where=path, got=error) from error


def _find_format(session: Any, metadata: Mapping[str, str], path: Path) -> Format:
    name = metadata.get("model_type", "")
    if (
        name in _FORMATS
        and not int(metadata.get("is_giga_am", "0"))
        and "Nano" not in metadata.get("comment", "")
    ):
        return _FORMATS[name]
    inputs = session.get_inputs()
    if len(inputs) == 1 and len(inputs[0].shape) == 2:
        return "wav2vec2"
    raise ModelError(
        "not an offline CTC model in a known format",
        where=path,
        expected=f"model_type {', '.join(_FORMATS)}, or samples as the only input",
        got=name or "no model_type in the metadata",
        fix="Add the metadata with sherpa-onnx's script for this model, or set its `format`.",
    )


def _check(session: Any, kind: Format, metadata: Mapping[str, str], language: str, path: Path) -> None:
    if len(session.get_inputs()) != _INPUTS[kind]:
        raise ModelError(
            f"not an offline {kind} model",
            where=path,
            expected=f"{_INPUTS[kind]} inputs",
            got=", ".join(one.name for one in session.get_inputs()),
            fix="A model with states is a streaming one: use the offline model."
            if kind == "zipformer"
            else None,
        )
    needed = {"nemo": ["subsampling_factor"], "sense_voice": [*_SENSE_VOICE, f"lang_{language}"]}
    if missing := [name for name in needed.get(kind, []) if name not in metadata]:
        raise ModelError(
            f"the metadata of this {kind} model lacks {', '.join(missing)}",
            where=path,
            got=", ".join(sorted(metadata)),
            fix="Choose another `language`, or add the metadata with sherpa-onnx's script for this model.",
        )


def _num_mel_bins(session: Any, kind: Format) -> int:
    shape = session.get_inputs()[0].shape
    bins = shape[1] if kind == "nemo" else 80
    return bins if isinstance(bins, int) else 80


def _read_tokens(path: Path) -> list[str]:
    """The symbols of a tokens.txt with lines of `symbol id`; a line with only an id is the space."""
    symbols: dict[int, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ModelError("the symbols are not UTF-8 text", where=path, got=error.reason) from error
    for number, line in enumerate(lines, 1):
        *symbol, unit = line.rsplit(maxsplit=1) or [""]
        if not re.fullmatch("[0-9]{1,9}", unit) or int(unit) in symbols:
            raise ModelError("not a symbol and a unique id", where=f"{path}:{number}", got=repr(line))
        symbols[int(unit)] = symbol[0].strip() if symbol else " "
    if sorted(symbols) != list(range(len(symbols))):
        raise ModelError("some ids are missing", where=path, expected=f"0 to {len(symbols) - 1}")
    return [symbols[unit] for unit in range(len(symbols))]


def _find_blank(symbols: list[str], kind: Format, metadata: Mapping[str, str], path: Path) -> int:
    if kind == "sense_voice" or "blank_id" in metadata:
        return int(metadata.get("blank_id", "0"))
    for blank in _BLANKS:
        if blank in symbols:
            return symbols.index(blank)
    raise ModelError("there is no blank among the symbols", where=path, expected=" or ".join(_BLANKS))


def _floats(metadata: Mapping[str, str], name: str) -> NDArray[np.float32]:
    return np.array(metadata[name].split(","), np.float32)


def _external(path: Path) -> list[Path]:
    """Files with external weights of large models: those in the same folder whose names occur in it."""
    beside = sorted(one for one in path.parent.iterdir() if one.is_file() and one.suffix != ".onnx")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        return [one for one in beside if graph.find(os.fsencode(one.name)) >= 0]
