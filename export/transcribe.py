"""Audio files in, text out, by whatever holds the model: a model folder or an exported one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.runtime import FLOAT_FILE, load_onnx
from kdasr.audio import SAMPLE_RATE_HZ, load
from kdasr.decoding import greedy
from kdasr.errors import ConfigError, ModelError
from kdasr.features import log_mel
from kdasr.interfaces import AcousticModel, StreamingModel
from kdasr.models import CARD_FILE, WEIGHTS_FILE, load_model
from kdasr.streaming import ChunkModel, StreamingSession, TorchChunkModel
from kdasr.text import Units

DEFAULT_PIECE_MS = 100

Partial = Callable[[Path, str], None]


@dataclass(frozen=True)
class Recogniser:
    """A model that is ready to transcribe.

    Attributes:
        path: the file or folder it came from.
        units: its units.
        offline_model: the torch model for whole utterances, or None for an exported model.
        chunk_model: the same chunk by chunk, or None for a full-context teacher.
    """

    path: Path
    units: Units
    offline_model: AcousticModel | None
    chunk_model: ChunkModel | None

    def session(self, *, keep_log_probs: bool = False, where: str = "audio stream") -> StreamingSession:
        """A new stream.

        Raises:
            ModelError: the model needs the whole utterance.
        """
        if self.chunk_model is None:
            raise ModelError(
                "this model cannot run chunk by chunk",
                where=self.path,
                expected="a streaming student or an exported model",
                got=type(self.offline_model).__name__,
                fix="Transcribe with it without --stream, or choose a student.",
            )
        return StreamingSession(self.chunk_model, self.units, keep_log_probs=keep_log_probs, where=where)

    def transcribe(self, samples: NDArray[np.float32], where: str = "audio") -> str:
        """The text of a whole utterance. A torch model sees all of it in one pass; an exported
        one, which has no such pass, chunk by chunk, which gives the same."""
        if self.offline_model is None:
            session = self.session(where=where)
            session.accept(samples)
            return session.finish()
        features_btf = log_mel(samples)[None]
        lengths_b = torch.tensor([features_btf.shape[1]])
        if not int(lengths_b):
            return ""
        with torch.inference_mode():
            log_probs_btv, frames_b = self.offline_model.offline(features_btf, lengths_b)
        return self.units.decode([token.id for token in greedy(log_probs_btv, frames_b)[0]])


def open_recogniser(path: Path, num_threads: int = 1) -> Recogniser:
    """Whatever is at `path`: a model folder, an export folder, or an `.onnx` file in one.

    Args:
        num_threads: threads of ONNX Runtime; torch keeps its own setting.

    Raises:
        ModelError: there is no model, or it cannot be used.
        MissingDependencyError: it is an ONNX file, and onnxruntime is not installed.
    """
    path = Path(path)
    if path.suffix == ".onnx" or (path / FLOAT_FILE).is_file():
        model, units = load_onnx(path, num_threads)
        return Recogniser(path, units, None, model)
    if path.is_dir() and ((path / WEIGHTS_FILE).exists() or (path / CARD_FILE).exists()):
        loaded = load_model(path)
        chunk_model = TorchChunkModel(loaded.model) if isinstance(loaded.model, StreamingModel) else None
        return Recogniser(path, loaded.units, loaded.model, chunk_model)
    raise ModelError(
        "there is no model here",
        where=path,
        expected=f"a folder with {WEIGHTS_FILE} or {FLOAT_FILE}, or an .onnx file",
        got="a folder without them" if path.is_dir() else "a file" if path.exists() else "nothing",
        fix="Name a model folder that `kdasr train` or `kdasr export` wrote.",
    )


def transcribe(
    files: Iterable[Path],
    model_path: Path,
    *,
    stream: bool = False,
    on_partial: Partial | None = None,
    piece_ms: int = DEFAULT_PIECE_MS,
) -> Iterator[tuple[Path, str]]:
    """Yields (file, text) for each audio file, in order, as it is done.

    Args:
        files: anything `kdasr.audio.load` reads; other rates and channels are converted.
        model_path: see `open_recogniser`. The model is loaded once, before the first file.
        stream: decode chunk by chunk, as a device would while the audio arrives.
        on_partial: with `stream`, called with (file, text so far) whenever the text has grown.
        piece_ms: with `stream`, how much audio arrives at a time; it has no effect on the text.

    Raises:
        AudioError: a file cannot be read.
        ModelError: the model cannot be used, or not chunk by chunk.
        ConfigError: `piece_ms` is not positive.
    """
    if piece_ms < 1:
        raise ConfigError("a piece of audio must last", where="piece_ms", expected=">= 1", got=piece_ms)
    recogniser = open_recogniser(model_path)
    for file in map(Path, files):
        samples = load(file)
        if stream:
            yield file, _stream_file(recogniser, file, samples, on_partial, piece_ms)
        else:
            yield file, recogniser.transcribe(samples, str(file))


def _stream_file(
    recogniser: Recogniser,
    file: Path,
    samples: NDArray[np.float32],
    on_partial: Partial | None,
    piece_ms: int,
) -> str:
    session = recogniser.session(where=str(file))
    piece_samples = piece_ms * SAMPLE_RATE_HZ // 1000
    before = ""
    for start in range(0, len(samples), piece_samples):
        text = session.accept(samples[start : start + piece_samples])
        if on_partial is not None and text != before:
            on_partial(file, text)
        before = text
    return session.finish()
