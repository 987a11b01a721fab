"""How to label, what became of a shard, and the header that follows from both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.beside import usable_cores
from kdasr.devices import exact_float32
from kdasr.errors import ConfigError
from kdasr.features import FRAME_SHIFT_MS
from kdasr.labelling.filters import Filter
from kdasr.labelling.teachers import Teacher
from kdasr.labelling.words import Words
from kdasr.manifest import Shard
from kdasr.ranks import ranks
from kdasr.soft_labels import Codec, Header, TopP

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# As trainings name them; labels keep the long names.
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Settings:
    """How to label.

    Attributes:
        codec: what to keep of the posteriors.
        batch_seconds: audio in one forward pass, padding included; less where the memory does not hold it.
        window_seconds: longer utterances are labelled in windows of this length …
        overlap_seconds: … that overlap by this much.
        precision: of the forward pass (fp32, bf16 and fp16 are short for these); log-probs are always made
            float32. float32 is exact on a GPU too, and several times slower there than bfloat16.
        threads: CPU threads of the forward pass of one worker; None shares torch's own choice among
            the workers.
        decoders: threads that decode audio ahead of the teacher, and compute its features but for log-mel
            on a GPU, which does that itself. One is enough for a teacher on the CPU (a core does 1,500 × real
            time and more); None takes one there, and on an accelerator the machine's cores, at most 4, shared
            by the workers of `engine: processes` or the processes that `torchrun` has started on it: threads
            wait for one another (recipes/RESULTS-gpu.md).
        filters: what not to keep; see `kdasr.labelling.filters`.
        words: the posteriors given that words of a lexicon were said, instead of the teacher's own.
    """

    codec: Codec = field(default_factory=TopP)
    batch_seconds: float = 120.0
    window_seconds: float = 40.0
    overlap_seconds: float = 4.8
    precision: Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"] = "float32"
    threads: int | None = None
    decoders: int | None = None
    filters: tuple[Filter, ...] = ()
    words: Words | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", _SHORT_NAMES.get(self.precision, self.precision))
        if self.precision not in PRECISIONS:
            expected = ", ".join([*PRECISIONS, *_SHORT_NAMES])
            raise ConfigError("unknown precision", where="precision", expected=expected, got=self.precision)
        for name in ("decoders", "threads"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ConfigError("no thread", where=name, expected="1 or more", got=count)
        sizes = (self.overlap_seconds, self.window_seconds, self.batch_seconds)
        fit = 0 < self.overlap_seconds < self.window_seconds and self.batch_seconds > 0
        if not fit or not all(map(math.isfinite, sizes)):
            raise ConfigError(
                "window, overlap and batch do not fit each other",
                expected="0 < overlap_seconds < window_seconds, batch_seconds > 0, all finite",
                got=f"{self.overlap_seconds}, {self.window_seconds}, {self.batch_seconds}",
            )

    def decoders_for(self, device: torch.device, workers: int | None = None) -> int:
        """How many threads decode for each teacher on `device`, of so many on this machine; None: of one for
        each process of the job."""
        if self.decoders is not None:
            return self.decoders
        workers = ranks().local_count if workers is None else workers
        return 1 if device.type == "cpu" else max(1, min(4, usable_cores() // workers))

    def check_windows(self, subsampling: int) -> None:
        """Raise ConfigError where a teacher of this subsampling gets no further from window to window."""
        if self.window_frames(subsampling) <= self.overlap_frames(subsampling):
            raise ConfigError(
                "windows and their overlap are equally many frames of this teacher",
                where="window_seconds, overlap_seconds",
                expected=f"{2 * subsampling * FRAME_SHIFT_MS / 1000:g} s of difference, at least",
                got=f"{self.window_seconds:g}, {self.overlap_seconds:g}",
            )

    def window_frames(self, subsampling: int) -> int:
        return _whole_frames(self.window_seconds, subsampling)

    def overlap_frames(self, subsampling: int) -> int:
        return _whole_frames(self.overlap_seconds, subsampling)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Inside, a forward pass on `device` has the precision."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(device.type, dtype) if dtype is not None else exact_float32()

    @property
    def batch_frames(self) -> int:
        return int(self.batch_seconds * 1000 / FRAME_SHIFT_MS)


@dataclass
class ShardResult:
    """What became of one audio shard.

    Attributes:
        audio: name of the audio shard.
        manifest: of the label shard.
        seconds: audio in the shard.
        labelled_seconds: of these, in utterances that got labels.
        heard_seconds: of these, in utterances that the teacher heard, whatever came of it.
        wall_s, teacher_s, encode_s: time in all, in the forward pass, in the codec.
        fetch_s: of the time in all, until the audio was on the worker's machine.
        padding: share of the frames that were padding.
        halved: batches that the memory did not hold.
        batch_seconds: audio in a batch, at most, once all was done.
    """

    audio: str
    manifest: dict[str, Any]
    seconds: float
    labelled_seconds: float
    heard_seconds: float
    wall_s: float = 0.0
    teacher_s: float = 0.0
    encode_s: float = 0.0
    padding: float = 0.0
    halved: int = 0
    batch_seconds: float = 0.0
    fetch_s: float = 0.0


def labelled_seconds(shard: Shard, manifest: Mapping[str, Any]) -> float:
    """Seconds of the audio shard's utterances that have labels, by the manifest of its label shard."""
    failed = {key for key, _ in manifest["failed"]}
    return sum(entry.num_samples for entry in shard.entries if entry.key not in failed) / SAMPLE_RATE_HZ


def make_header(teacher: Teacher, settings: Settings, audio_file: str, audio_sha256: str) -> Header:
    """The header of labels that `teacher` gives to an audio shard."""
    facts = {"teacher": dict(teacher.facts)} if teacher.facts else {}
    return Header(
        teacher=teacher.name,
        teacher_hash=teacher.weights_hash,
        units_hash=teacher.units.hash,
        vocab_size=teacher.model.vocab_size,
        feature_hash=teacher.front_end.hash,
        # A transcript has no times.
        frame_shift_ms=float(FRAME_SHIFT_MS) if teacher.level == "frame" else 0.0,
        subsampling=teacher.model.subsampling,
        codec=settings.codec.name,
        codec_params=settings.codec.params,
        audio_file=audio_file,
        audio_sha256=audio_sha256,
        settings={
            "precision": settings.precision,
            "window_seconds": settings.window_seconds,
            "overlap_seconds": settings.overlap_seconds,
            "filters": [[item.name, item.params] for item in settings.filters],
            **({"words": settings.words.params} if settings.words is not None else {}),
            **facts,
        },
    )


def _whole_frames(seconds: float, subsampling: int) -> int:
    """Feature frames of `seconds`, up to a multiple of twice the subsampling."""
    unit = 2 * subsampling
    return -(-int(seconds * 1000 / FRAME_SHIFT_MS) // unit) * unit
