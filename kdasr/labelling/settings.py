"""How to label, the result for a shard, and the header of its labels."""

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
# The names in training recipes; labels keep the long names.
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Settings:
    """How to label.

    Attributes:
        codec: what to keep of the posteriors.
        batch_seconds: audio in one forward pass, padding included; less if it does not fit into memory.
        window_seconds: longer utterances are labelled in windows of this length …
        overlap_seconds: … that overlap by this much.
        precision: of the forward pass (fp32, bf16 and fp16 are short names); log-probs are always converted
            to float32. float32 is exact on a GPU too, but several times slower there than bfloat16.
        threads: CPU threads for one worker's forward pass; None divides torch's default among the
            workers.
        decoders: threads that decode audio ahead of the teacher and compute its features (a GPU computes
            log-mel features itself). One is enough for a teacher on the CPU (a core does 1,500 × real time
            or more). None means one there; on an accelerator, the machine's cores divided among the workers
            of `engine: processes` or the machine's `torchrun` processes, but at most 4, because threads wait
            for one another (recipes/RESULTS-gpu.md).
        filters: which utterances to drop; see `kdasr.labelling.filters`.
        words: store posteriors given that words of a lexicon were said, instead of the teacher's own.
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
                raise ConfigError(
                    "at least one thread is needed", where=name, expected="1 or more", got=count
                )
        sizes = (self.overlap_seconds, self.window_seconds, self.batch_seconds)
        fit = 0 < self.overlap_seconds < self.window_seconds and self.batch_seconds > 0
        if not fit or not all(map(math.isfinite, sizes)):
            raise ConfigError(
                "invalid lengths of overlap, window or batch",
                expected="0 < overlap_seconds < window_seconds, batch_seconds > 0, all finite",
                got=f"overlap_seconds {self.overlap_seconds}, window_seconds {self.window_seconds}, "
                f"batch_seconds {self.batch_seconds}",
            )

    def decoders_for(self, device: torch.device, workers: int | None = None) -> int:
        """Decoding threads for each of `workers` teachers on this machine, which run on `device`; None counts
        the job's processes on this machine."""
        if self.decoders is not None:
            return self.decoders
        workers = ranks().local_count if workers is None else workers
        return 1 if device.type == "cpu" else max(1, min(4, usable_cores() // workers))

    def check_windows(self, subsampling: int) -> None:
        """Raise ConfigError if windows would not advance, after rounding to frames of this subsampling."""
        if self.window_frames(subsampling) <= self.overlap_frames(subsampling):
            raise ConfigError(
                "in whole frames of this teacher, windows are no longer than their overlap",
                where="window_seconds, overlap_seconds",
                expected=f"{2 * subsampling * FRAME_SHIFT_MS / 1000:g} s of difference or more",
                got=f"{self.window_seconds:g}, {self.overlap_seconds:g}",
            )

    def window_frames(self, subsampling: int) -> int:
        return _whole_frames(self.window_seconds, subsampling)

    def overlap_frames(self, subsampling: int) -> int:
        return _whole_frames(self.overlap_seconds, subsampling)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """A context in which forward passes on `device` run in this precision."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(device.type, dtype) if dtype is not None else exact_float32()

    @property
    def batch_frames(self) -> int:
        return int(self.batch_seconds * 1000 / FRAME_SHIFT_MS)


@dataclass
class ShardResult:
    """The result of labelling one audio shard.

    Attributes:
        audio: name of the audio shard.
        manifest: of the label shard.
        seconds: audio in the shard.
        labelled_seconds: of these, in utterances that got labels.
        heard_seconds: of these, in utterances that the teacher heard, with or without success.
        wall_s, teacher_s, encode_s: time in all, in the forward pass, in the codec.
        fetch_s: part of `wall_s` spent fetching the audio to the worker's machine.
        padding: share of the frames that were padding.
        halved: batches that did not fit into memory.
        batch_seconds: largest batch allowed after the shard, in seconds of audio.
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
    """Seconds of audio in the utterances that have labels, according to the label shard's manifest."""
    failed = {key for key, _ in manifest["failed"]}
    return sum(entry.num_samples for entry in shard.entries if entry.key not in failed) / SAMPLE_RATE_HZ


def make_header(teacher: Teacher, settings: Settings, audio_file: str, audio_sha256: str) -> Header:
    """The header of the labels by `teacher` for an audio shard."""
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
    """Feature frames in `seconds`, rounded up to a multiple of twice the subsampling."""
    unit = 2 * subsampling
    return -(-int(seconds * 1000 / FRAME_SHIFT_MS) // unit) * unit
