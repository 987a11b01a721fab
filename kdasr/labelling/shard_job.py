"""One audio shard in, its label shard out: the one idempotent function that every engine runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import KdasrError, SoftLabelError
from kdasr.features import LOG_MEL_FLOOR, log_mel, num_frames
from kdasr.interfaces import SoftLabels
from kdasr.labelling.batches import Segment, cut_segments, make_batches, padding_share
from kdasr.labelling.settings import PRECISIONS, Settings, ShardResult, make_header
from kdasr.labelling.teachers import Teacher
from kdasr.shards import Shard, open_shard, read_utterance
from kdasr.soft_labels import Failure, concatenate, label_file, write_label_shard
from kdasr.storage import Place


def label_shard(
    teacher: Teacher,
    audio_path: Path,
    out_dir: Place,
    settings: Settings,
    *,
    exclude: Mapping[str, str] | None = None,
) -> ShardResult:
    """Label the audio shard at `audio_path` into `out_dir`.

    The bytes written depend on the shard, the teacher and the settings alone. An utterance that
    cannot be labelled gets a placeholder with its reason; nothing is written before all are done.

    Args:
        exclude: keys not to be tried, with the reasons.

    Raises:
        ShardError: the audio shard is damaged or has no manifest.
        StorageError, OSError: the labels could not be stored.
    """
    started = time.perf_counter()
    shard = open_shard(audio_path, verify=True)
    run = _ShardRun(teacher, shard, settings, dict(exclude or {}))
    items = run.label()
    manifest = write_label_shard(
        label_file(out_dir, audio_path.name),
        make_header(teacher, settings, audio_path.name, shard.sha256),
        items,
        extra={"seconds": round(shard.seconds, 3)},
    )
    wall_s = time.perf_counter() - started
    return ShardResult(
        audio_path.name, manifest, shard.seconds, wall_s, run.teacher_s, run.encode_s, run.padding
    )


def probe(teacher: Teacher, audio_path: Path, key: str, settings: Settings) -> None:
    """Take one utterance through everything that labelling does, and keep nothing.

    For finding out which utterance of a shard kills the process.
    """
    shard = open_shard(audio_path)
    others = {entry.key: "not asked for" for entry in shard.entries if entry.key != key}
    _ShardRun(teacher, shard, settings, others).label()


class _Loaded(NamedTuple):
    """A batch ready for the teacher; `segments` lacks those whose audio could not be read."""

    segments: list[Segment]
    features: list[Tensor]


class _ShardRun:
    """The labelling of one shard: decode and features in a thread, the teacher in this one."""

    def __init__(self, teacher: Teacher, shard: Shard, settings: Settings, failures: dict[str, str]) -> None:
        self._teacher, self._shard, self._settings = teacher, shard, settings
        self._failures = failures
        self._pieces: dict[int, dict[int, SoftLabels]] = {}
        self._num_segments: dict[int, int] = {}
        self._cache: tuple[int, Tensor] | None = None
        self.teacher_s = self.encode_s = self.padding = 0.0

    def label(self) -> list[tuple[str, SoftLabels | Failure]]:
        batches = make_batches(self._segments(), self._settings.batch_frames)
        self.padding = padding_share(batches)
        for loaded in self._prefetched(batches):
            self._forward_all(loaded)
        return [
            (entry.key, self._outcome(number, entry.key)) for number, entry in enumerate(self._shard.entries)
        ]

    def _outcome(self, number: int, key: str) -> SoftLabels | Failure:
        if key in self._failures:
            return Failure(self._failures[key])
        pieces = self._pieces[number]
        assert len(pieces) == self._num_segments[number], key
        labels = concatenate([pieces[first] for first in sorted(pieces)])
        reason = next((why for item in self._settings.filters if (why := item.after(labels))), None)
        return labels if reason is None else Failure(reason)

    def _segments(self) -> Iterator[Segment]:
        subsampling = self._teacher.model.subsampling
        window = self._settings.window_frames(subsampling)
        overlap = self._settings.overlap_frames(subsampling)
        for number, entry in enumerate(self._shard.entries):
            frames = num_frames(entry.num_samples)
            if entry.key in self._failures:
                continue
            if reason := self._unwanted(frames, entry.num_samples / SAMPLE_RATE_HZ):
                self._failures[entry.key] = reason
                continue
            segments = cut_segments(number, frames, window, overlap, subsampling)
            self._num_segments[number] = len(segments)
            yield from segments

    def _unwanted(self, frames: int, seconds: float) -> str | None:
        if frames == 0:
            return f"too short: {seconds:.4f} s are less than one frame"
        return next((why for item in self._settings.filters if (why := item.before(seconds))), None)

    # -- audio ------------------------------------------------------------------------------

    def _prefetched(self, batches: Sequence[list[Segment]]) -> Iterator[_Loaded]:
        """Batches with features; the next one is decoded while the teacher works on this one."""
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
            waiting: Future[_Loaded] | None = None
            for batch in batches:
                upcoming = pool.submit(self._load, batch)
                if waiting is not None:
                    yield waiting.result()
                waiting = upcoming
            if waiting is not None:
                yield waiting.result()

    def _load(self, batch: list[Segment]) -> _Loaded:
        loaded = _Loaded([], [])
        for segment in batch:
            try:
                features = self._features(segment.number)
            except (KdasrError, RuntimeError, ValueError) as error:
                self._failures[self._shard.entries[segment.number].key] = f"unusable audio: {_reason(error)}"
                continue
            loaded.segments.append(segment)
            loaded.features.append(features[segment.first : segment.last])
        return loaded

    def _features(self, number: int) -> Tensor:
        # The windows of one long utterance come one after the other: decode it once.
        if self._cache is None or self._cache[0] != number:
            utterance = read_utterance(self._shard, self._shard.entries[number])
            self._cache = (number, log_mel(utterance.samples))
        return self._cache[1]

    # -- teacher ----------------------------------------------------------------------------

    def _forward_all(self, loaded: _Loaded) -> None:
        if not loaded.segments:
            return
        try:
            self._store(loaded.segments, self._forward(loaded.features))
        except Exception as error:
            if len(loaded.segments) == 1:
                self._fail(loaded.segments[0], f"the teacher raised {type(error).__name__}: {_reason(error)}")
                return
            # One utterance must not take its batch with it: try each alone.
            for segment, features in zip(*loaded, strict=True):
                self._forward_all(_Loaded([segment], [features]))

    def _forward(self, features: list[Tensor]) -> list[Tensor]:
        """Log-probs (T', V) of each segment."""
        started = time.perf_counter()
        lengths_b = torch.tensor([len(item) for item in features])
        features_btf = torch.full((len(features), int(lengths_b.max()), features[0].shape[1]), LOG_MEL_FLOOR)
        for row, item in zip(features_btf, features, strict=True):
            row[: len(item)] = item
        device = self._teacher.device
        with torch.inference_mode(), self._autocast():
            log_probs_btv, frames_b = self._teacher.model.offline(
                features_btf.to(device), lengths_b.to(device)
            )
        log_probs_btv, frames = log_probs_btv.float(), frames_b.tolist()
        self.teacher_s += time.perf_counter() - started
        return [row[:count] for row, count in zip(log_probs_btv, frames, strict=True)]

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self._settings.precision]
        return torch.autocast(self._teacher.device.type, dtype) if dtype is not None else nullcontext()

    def _fail(self, segment: Segment, reason: str) -> None:
        self._failures.setdefault(self._shard.entries[segment.number].key, reason)

    def _store(self, segments: list[Segment], log_probs: list[Tensor]) -> None:
        started = time.perf_counter()
        kept, keys, owners = [], [], []
        for segment, log_probs_tv in zip(segments, log_probs, strict=True):
            offset = segment.first // self._teacher.model.subsampling
            wanted = segment.keep_last - segment.keep_first
            kept_tv = log_probs_tv[segment.keep_first - offset : segment.keep_last - offset]
            if len(kept_tv) != wanted:
                self._fail(segment, f"the teacher gave {len(kept_tv)} frames instead of {wanted}")
                continue
            kept.append(kept_tv)
            owners.append(segment)
            keys.append(self._seed_name(segment))
        for segment, piece in zip(owners, self._settings.codec.encode_many(kept, keys), strict=True):
            if isinstance(piece, SoftLabelError):
                self._fail(segment, piece.what)
            else:
                self._pieces.setdefault(segment.number, {})[segment.first] = piece
        self.encode_s += time.perf_counter() - started

    def _seed_name(self, segment: Segment) -> str:
        key = self._shard.entries[segment.number].key
        return f"{key}@{segment.first}" if segment.first else key


def _reason(error: BaseException) -> str:
    """What an error says without naming places: labels must not depend on where the audio lies."""
    if isinstance(error, KdasrError):
        inner = f": {_reason(error.got)}" if isinstance(error.got, BaseException) else ""
        return f"{error.what}{inner}"
    return str(error)[:300]
