"""The types that the parts of kdasr exchange.

Axes are named by suffix: b batch, t output frames (with f: feature frames), f feature bins,
u units of a transcript, k kept classes, v vocabulary. Lengths are integers, never fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.errors import ConfigError

# The class of CTC's blank in all of kdasr's models, unit lists and soft labels; the classes of teachers from
# elsewhere are mapped to match.
BLANK_ID = 0


def frames_inside(lengths_b: Tensor, frames: int) -> Tensor:
    """(B, frames) True within each utterance, False in its padding."""
    return torch.arange(frames, device=lengths_b.device) < lengths_b[:, None]


@dataclass(frozen=True, slots=True)
class Utterance:
    """A piece of audio and what is known about it.

    Attributes:
        key: unique name; letters, digits, `-`, `_` only (it becomes a tar member name).
        samples: (N,) float32 in [-1, 1] at `kdasr.audio.SAMPLE_RATE_HZ`, mono.
        text: normalised transcript, or None if there is none.
        speaker: who speaks, or None if unknown.
        language: a BCP 47 tag such as `en` or `pt-BR`, or None if unknown.
    """

    key: str
    samples: NDArray[np.float32]
    text: str | None = None
    speaker: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class SoftLabels:
    """A teacher's posteriors for one utterance: the kept classes, and the mass of all others.

    Frame t owns the next `kept_counts[t]` entries of `ids` and `log_probs`; blank is among them.

    Attributes:
        kept_counts: (T,) int64, classes kept in each output frame.
        ids: (sum of kept_counts,) int64 class ids.
        log_probs: (sum of kept_counts,) float32 natural-log probabilities at T = 1.
        tail_log_probs: (T,) float32 log of the mass not kept; -inf if all of it was kept.
    """

    kept_counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    tail_log_probs: NDArray[np.float32]

    @property
    def num_frames(self) -> int:
        return len(self.kept_counts)


class SoftLabelBatch(NamedTuple):
    """Soft labels of a batch, padded.

    Attributes:
        ids_btk: int64 class ids; 0 where padded.
        log_probs_btk: float32; -inf where padded.
        tail_log_probs_bt: float32; -inf if all mass was kept or the frame is padding.
        lengths_b: int64 frames of each utterance.
    """

    ids_btk: Tensor
    log_probs_btk: Tensor
    tail_log_probs_bt: Tensor
    lengths_b: Tensor

    def to(self, device: Any, *, non_blocking: bool = False) -> SoftLabelBatch:
        return SoftLabelBatch(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    def pin_memory(self) -> SoftLabelBatch:
        return SoftLabelBatch(*(tensor.pin_memory() for tensor in self))


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """A model's output for a batch.

    Attributes:
        log_probs_btv: (B, T, V) natural-log probabilities, as of `log_softmax`; not logits.
        lengths_b: (B,) int64 output frames, at most T.
        layers_btd: the outputs (B, T, D) of the model's `layers`, at the output frame rate; empty if
            the model exposes no layers.

    Raises:
        ConfigError: other axes, lengths that are no integers or, on the CPU (elsewhere it would wait for the
            device), exceed T.
    """

    log_probs_btv: Tensor
    lengths_b: Tensor
    layers_btd: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        shape, lengths_b = tuple(self.log_probs_btv.shape), self.lengths_b
        fractions = lengths_b.is_floating_point() and lengths_b.numel() > 0  # an empty list has no type
        if len(shape) != 3 or tuple(lengths_b.shape) != shape[:1] or fractions:
            raise ConfigError(
                "the output of a model has the wrong axes",
                expected="log_probs_btv (B, T, V) and lengths_b (B,), whole numbers of frames",
                got=f"{shape} and {tuple(lengths_b.shape)} of {lengths_b.dtype}",
            )
        if lengths_b.device.type == "cpu" and len(lengths_b) and (longest := int(lengths_b.max())) > shape[1]:
            raise ConfigError(
                "the output of a model has fewer frames than its lengths say",
                expected=f"{longest} frames",
                got=f"{shape[1]}",
            )


@dataclass(slots=True)
class Batch:
    """The input of one training or labelling step.

    Attributes:
        keys: one key for each utterance.
        features_btf: (B, T, 80) float32 raw log-mel, padded with `LOG_MEL_FLOOR`.
        feature_lengths_b: (B,) int64 feature frames (10 ms each).
        tokens_bu: (B, U) int64 transcript units padded with 0, or None on unlabelled audio.
        token_lengths_b: (B,) int64, or None.
        soft_labels: the teacher's stored posteriors, or None if there are none.
        teacher_features_btf: the clean features for an online teacher when the student hears the same
            audio spoilt, shaped as `features_btf`; None if both hear the same.
        teachers: in training, each online teacher's output for the batch, computed on access.
        views: in training, the student's outputs for new augmentations of the batch, numbered from 0;
            computed on access.
        decode: in training, maps unit ids (collapsed, without blanks) to the text they spell.
    """

    keys: list[str]
    features_btf: Tensor
    feature_lengths_b: Tensor
    tokens_bu: Tensor | None = None
    token_lengths_b: Tensor | None = None
    soft_labels: SoftLabelBatch | None = None
    teacher_features_btf: Tensor | None = None
    teachers: Mapping[str, ModelOutput] = field(default_factory=dict)
    views: Mapping[int, ModelOutput] = field(default_factory=dict)
    decode: Callable[[Sequence[int]], str] | None = None

    def to(self, device: Any, *, non_blocking: bool = False) -> Self:
        """Move all tensors; with `non_blocking`, copying to an accelerator may overlap computation."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Pin all tensors in memory, for asynchronous copies to a GPU; DataLoader calls this."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> Self:
        for name in _ON_DEVICE:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, change(value))
        return self


_ON_DEVICE = (
    "features_btf",
    "feature_lengths_b",
    "tokens_bu",
    "token_lengths_b",
    "soft_labels",
    "teacher_features_btf",
)

# From the student's output for a batch, and the batch, to a scalar. A loss with parameters is an nn.Module
# with the same call.
Loss = Callable[[ModelOutput, Batch], Tensor]


@runtime_checkable
class AcousticModel(Protocol):
    """A CTC acoustic model for whole utterances: every teacher, and every student offline.

    Attributes:
        config: the constructor's keyword arguments, JSON-serialisable: class path + config +
            weights rebuild the model.
        vocab_size: classes including blank; blank is id 0.
        subsampling: feature frames for each output frame.
    """

    config: dict[str, Any]
    vocab_size: int
    subsampling: int

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw log-mel (B, T, 80) and feature lengths to log-probs (B, T', V) and frame counts
        `ceil(lengths / subsampling)`. Padding never affects the frames before it."""
        ...


class TrainableModel(AcousticModel, Protocol):
    """An acoustic model, an nn.Module, that normalises its own input."""

    def set_statistics(self, mean_f: Tensor, std_f: Tensor) -> None:
        """Set the mean and standard deviation (80,) of each mel bin over the training audio."""
        ...


class Reasons(Sized, Protocol):
    """Names of things, each with a reason."""

    def items(self) -> Iterable[tuple[str, str]]: ...


class BatchSource(Protocol):
    """An endless source of batches, each determined by its position.

    Attributes:
        items: the utterances that are used.
        left_out: names of those that are not used, and why.
    """

    @property
    def items(self) -> Sized: ...

    @property
    def left_out(self) -> Reasons: ...

    def batch(self, position: int) -> Batch:
        """The `position`-th batch since the beginning of training."""
        ...

    def next_utterance(self, position: int) -> dict[str, Any]:
        """The state of the source before its `position`-th batch, for logs and checks."""
        ...

    def fingerprint(self) -> list[Any]:
        """Everything that determines the batches."""
        ...


class OnlineTeacher(Protocol):
    """A teacher that runs beside the student during training. If it changes meanwhile, it is an nn.Module:
    its state goes into the checkpoints, and parameters that require gradients are optimised.

    Attributes:
        config: what determines its output; part of the fingerprint of a training run.
    """

    @property
    def config(self) -> dict[str, Any]: ...

    def attach(self, student: TrainableModel, *, units_hash: str, statistics: tuple[Tensor, Tensor]) -> None:
        """Called once before the first step.

        Args:
            student: the student to teach, with its initial weights.
            units_hash: hash of the student's units.
            statistics: arguments for `set_statistics` of a model trained alongside the student. When a run
                resumes, all state is loaded after this call.

        Raises:
            LabelMismatchError: it cannot teach this student.
        """
        ...

    def __call__(self, batch: Batch, student_features_btf: Tensor) -> ModelOutput:
        """The teacher's output for a batch; `student_features_btf` is what the student hears of it."""
        ...

    def after_step(self, student: TrainableModel) -> None:
        """Called after each step of the optimiser."""
        ...


@runtime_checkable
class StreamingModel(AcousticModel, Protocol):
    """A student, which also runs chunk by chunk with the same weights and an explicit state.

    A state is a NamedTuple of tensors, each with the batch on axis 0: float32 tensors, and one
    int64 tensor `processed` (B,), the number of valid left-context frames.

    Attributes:
        chunk_frames: output frames that one call emits (40 ms each).
        lookahead_frames: output frames of future audio that one call needs beyond its chunk.
    """

    chunk_frames: int
    lookahead_frames: int

    @property
    def shift(self) -> int:
        """Feature frames that the window moves by: chunk_frames * subsampling."""
        ...

    @property
    def window(self) -> int:
        """Feature frames that one call sees: (chunk_frames + lookahead_frames) * subsampling."""
        ...

    def initial_state(self, batch_size: int = 1) -> Any:
        """The state before the first frame: all zeros."""
        ...

    def forward(self, features_btf: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Map one window (B, window, 80) of raw log-mel to log-probs (B, chunk_frames, V) and the
        next state. Call k sees feature frames [k * shift, k * shift + window)."""
        ...
