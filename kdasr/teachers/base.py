"""The interface between teachers and labelling, and what pretrained teachers have in common.

A teacher that was trained elsewhere has its own input (samples, or its own kind of mel features), its own
units and its own frame rate. `Teacher` describes them, so that labels can state what they depend on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ModelError
from kdasr.features import FRAME_SHIFT_MS, HOP_SAMPLES, LOG_MEL_FLOOR, feature_hash, log_mel
from kdasr.interfaces import BLANK_ID, AcousticModel
from kdasr.symbols import TableUnits, blank_path
from kdasr.text import Units

# Largest difference between a pretrained teacher's frame count and the one expected from the audio.
_SLACK_FRAMES = 2
# Both are whole numbers of frames of 10, 20, 30, 40, 60, 80 and 120 ms.
_PROBE_SECONDS = (0.96, 0.96 + 2.4)


@dataclass(frozen=True)
class FrontEnd:
    """Computes a teacher's input from audio.

    Attributes:
        name: for people; stored with the labels.
        hash: of the definition.
        rows_per_frame: rows of input for each 10 ms: 1 for features, 160 for samples.
        padding: value that fills up the shorter inputs of a batch.
        compute: (N,) samples at 16 kHz to (rows, …).
        rows_beyond: rows after its last frame's that a segment of the audio also needs.
    """

    name: str
    hash: str
    rows_per_frame: int
    padding: float
    compute: Callable[[NDArray[np.float32]], Tensor]
    rows_beyond: int = 0


LOG_MEL = FrontEnd("80 log-mel of kdasr", feature_hash(), 1, LOG_MEL_FLOOR, log_mel)
WAVEFORM = FrontEnd(
    "waveform at 16 kHz",
    hashlib.sha256(b"waveform 16000 Hz float32 [-1, 1]").hexdigest()[:16],
    HOP_SAMPLES,
    0.0,
    torch.from_numpy,
)


@dataclass
class Room:
    """How large a batch fits into the memory of a teacher's device, as found while labelling.

    Attributes:
        frames: most feature frames in a batch, padding included; None as long as no batch was too large.
    """

    frames: int | None = None


@dataclass(frozen=True)
class Teacher:
    """A teacher that is ready to label.

    Attributes:
        model: in eval mode, on `device`; its `offline` takes batches of inputs from `front_end` and
            their lengths in rows. Blank is class 0.
        name: for people.
        weights_hash: sha256 of its weights (and of whatever else its posteriors depend on).
        units: of its classes; stored with its labels.
        device: where it runs.
        front_end: computes its input.
        pads: whether inputs of different lengths may share a batch without changing its posteriors.
        slack_frames: largest difference of an utterance's frame count from
            `ceil(feature frames / subsampling)`.
        level: "frame": posteriors for each frame; "sequence": a transcript, spelled as the shortest
            CTC path, without times; it has no frames if there are no words.
        max_seconds: the longest utterance for a teacher of level "sequence", for which utterances cannot be
            cut; shorter ones cost as much.
        facts: other information to store with labels; empty for kdasr's own models.
        room: which batches fit into its device's memory; determined while labelling.
    """

    model: AcousticModel
    name: str
    weights_hash: str
    units: Units
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable
    front_end: FrontEnd = LOG_MEL
    pads: bool = True
    slack_frames: int = 0
    level: Literal["frame", "sequence"] = "frame"
    max_seconds: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    room: Room = field(default_factory=Room)


@runtime_checkable
class TeacherSource(Protocol):
    """Description of a teacher, cheap to send to another process."""

    def load(self, device: str) -> Teacher: ...


class Pretrained(torch.nn.Module):
    """Base of the models behind pretrained teachers: an `AcousticModel` over samples or features.

    Subclasses define `posteriors` with classes in the model's own order; `offline` moves blank to the front.

    Args:
        blank_id: class of blank in the model's own order.
    """

    def __init__(self, blank_id: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.blank_id = blank_id
        self.vocab_size, self.subsampling = 0, 0

    def posteriors(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, …) inputs and (B,) rows to (B, T, V) log-probs, blank at `blank_id`, and (B,) frames."""
        raise NotImplementedError

    def offline(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, …) inputs and (B,) rows to (B, T, V) log-probs, blank first, and (B,) frames."""
        log_probs_btv, frames_b = self.posteriors(inputs, lengths_b)
        return blank_first(log_probs_btv, self.blank_id), frames_b

    def measure(self, compute: Callable[[NDArray[np.float32]], Tensor], device: torch.device) -> None:
        """Determine `vocab_size` and `subsampling` by running the model on noise of two lengths.

        Raises:
            ModelError: the frame shift is not a multiple of 10 ms.
        """
        frames: list[int] = []
        for seconds in _PROBE_SECONDS:
            noise = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE_HZ))
            inputs = compute((0.01 * noise).astype(np.float32))[None].to(device)
            with torch.inference_mode():
                log_probs, frames_b = self.offline(inputs, torch.tensor([inputs.shape[1]], device=device))
            frames.append(int(frames_b[0]))
            self.vocab_size = log_probs.shape[-1]
        feature_frames = round((_PROBE_SECONDS[1] - _PROBE_SECONDS[0]) * 1000 / FRAME_SHIFT_MS)
        more = frames[1] - frames[0]
        if more <= 0 or feature_frames % more:
            raise ModelError(
                "the teacher's frame shift is not a multiple of 10 ms",
                got=f"{more} frames in {feature_frames * FRAME_SHIFT_MS} ms",
            )
        self.subsampling = feature_frames // more


def blank_first(log_probs_btv: Tensor, blank_id: int) -> Tensor:
    """(…, V) with class `blank_id` moved to the front and the others in their order."""
    if blank_id == BLANK_ID:
        return log_probs_btv
    blank = log_probs_btv[..., blank_id : blank_id + 1]
    return torch.cat([blank, log_probs_btv[..., :blank_id], log_probs_btv[..., blank_id + 1 :]], -1)


def pretrained_teacher(
    model: Pretrained,
    *,
    kind: str,
    symbols: Sequence[str],
    weights_hash: str,
    device: str,
    source: str = "",
    front_end: FrontEnd = WAVEFORM,
    pads: bool = True,
    model_bytes: bytes | None = None,
) -> Teacher:
    """A `Teacher` from a model and its symbols, in the model's order; runs `model.measure` first.

    Args:
        kind: of teacher, e.g. "Wav2Vec2ForCTC".
        source: public name of the loaded model; empty for a folder or file, since labels must not
            depend on paths.
        model_bytes: the SentencePiece model of the symbols, if there is one.

    Raises:
        ModelError: the numbers of symbols and classes differ, or the frame shift is no multiple of 10 ms.
        UnitsError: a symbol is repeated.
    """
    model.eval().to(device).requires_grad_(False)
    model.measure(front_end.compute, torch.device(device))
    if len(symbols) != model.vocab_size:
        raise ModelError(
            "the model's classes and symbols differ in number",
            where=source or kind,
            expected=f"{len(symbols)} symbols",
            got=f"{model.vocab_size} classes",
            fix="Give the symbols that the model was trained with.",
        )
    units = TableUnits.from_foreign(symbols, model.blank_id, model_bytes)
    facts = {
        "kind": kind,
        "source": source,
        "blank_id": model.blank_id,
        "hears": front_end.name,
        "frame_shift_ms": float(FRAME_SHIFT_MS * model.subsampling),
        "slack_frames": _SLACK_FRAMES,
        "level": "frame",
    }
    return Teacher(
        model,
        f"{kind} {source}".strip(),
        weights_hash,
        units,
        torch.device(device),
        front_end,
        pads,
        _SLACK_FRAMES,
        facts=facts,
    )


def spell(ids: Sequence[int], score: float, vocab_size: int) -> Tensor:
    """Units of a transcript as (L, V) log-probs of the shortest CTC path that spells it.

    The path's class has probability exp(`score`) in each frame, but at least twice that of any other, so
    that it stays the best; the others share the rest equally.
    """
    path = torch.tensor(blank_path(ids), dtype=torch.int64)
    certain = min(max(math.exp(score), 2 / (vocab_size + 1)), 1 - 1e-6)
    log_probs = torch.full((len(path), vocab_size), math.log((1 - certain) / (vocab_size - 1)))
    log_probs[torch.arange(len(path)), path] = math.log(certain)
    return log_probs


def normalise_samples(samples_n: Tensor, epsilon: float) -> Tensor:
    """(N,) samples scaled to mean 0 and variance 1, the input of large wav2vec 2.0 models."""
    return torch.nn.functional.layer_norm(samples_n, samples_n.shape, eps=epsilon)


def rows(inputs: Tensor, lengths_b: Tensor) -> list[Tensor]:
    """The inputs of a padded batch without their padding."""
    return [item[:length] for item, length in zip(inputs, lengths_b.tolist(), strict=True)]


def hash_files(paths: Sequence[Path], *options: object) -> str:
    """sha256 of files and options."""
    digest = hashlib.sha256(repr(options).encode() if options else b"")
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def options_of(*configs: Any) -> dict[str, Any]:
    """The options in transformers' configurations, without the path and release they were read with."""
    said = {name: value for config in configs for name, value in config.to_dict().items()}
    return {name: said[name] for name in sorted(said.keys() - {"transformers_version", "_name_or_path"})}


def not_in_cache(what: str, path: str | Path) -> ModelError:
    """The error if `what` of a model is neither in a folder nor in the hub's cache. If `path` cannot be a
    name on the hub or begins like a local path, it does not say how to fetch the model."""
    if str(path).startswith((".", "/", "~")) or len(Path(path).parts) > 2:
        expected = "a model folder, or a name on the hub: OWNER/NAME"
        return ModelError("the model was not found", where=path, expected=expected, got="no such folder")
    fetch = (
        f"With network access, `hf download {path}` fetches it into the hub's cache if that is its name on "
        "the hub; there is no local folder of this name."
    )
    return not_there(what, path, fetch)


def not_there(what: str, where: str | Path, fetch: str) -> ModelError:
    """The error for weights that are not on this machine; kdasr never fetches any unasked."""
    return ModelError(
        f"{what} is not on this machine", where=where, fix=f"{fetch} Nothing is downloaded automatically."
    )
