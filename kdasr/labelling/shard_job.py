"""One audio shard in, its label shard out: the one idempotent function that every engine runs."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import KdasrError, SoftLabelError
from kdasr.features import FRAME_SHIFT_MS, num_frames
from kdasr.interfaces import ModelOutput, SoftLabels
from kdasr.labelling.batches import Segment, cut_segments, make_batches, padding_share
from kdasr.labelling.out_folder import write_labels
from kdasr.labelling.settings import Settings, ShardResult, labelled_seconds, make_header
from kdasr.labelling.teachers import Teacher
from kdasr.shards import Shard, open_shard, read_metas, read_utterance
from kdasr.soft_labels import Failure, concatenate
from kdasr.storage import Place, StorageError
from kdasr.teachers.on_device import with_log_mel_on_its_device

#: Batches that may wait for the codec, which is normally much faster than any teacher.
_MAX_UNENCODED = 2
#: Batches decoded ahead of the teacher.
_BATCHES_AHEAD = 2
_NO_SENTENCE = "no sentence of the lexicon's words was found in it"
_NO_WORDS = "the teacher heard no words, or its transcript did not end"
#: Share of a batch that may be padding.
_MAX_PADDING = 0.05
# Errors of a GPU's libraries, with their own memory and handles, which torch raises as plain RuntimeErrors.
# Errors about unsupported sizes are not listed: they are caused by the utterance.
_NO_MEMORY = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
)
_BROKEN_DEVICE = (
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUFFT_INTERNAL_ERROR",
    "CUFFT_EXEC_FAILED",
)


def label_shard(
    teacher: Teacher,
    audio_path: Path,
    out_dir: Place,
    settings: Settings,
    *,
    exclude: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> ShardResult:
    """Label the audio shard at `audio_path` into `out_dir`.

    The bytes written depend on the shard, the teacher and the settings alone. An utterance that
    cannot be labelled gets a placeholder with its reason; nothing is written before all are done.
    If memory is too small for a batch, in the forward pass or in the codec, it is halved, and so are all
    later batches of this teacher.

    Args:
        exclude: keys to skip, with the reasons.
        overwrite: replace labels of another teacher or with other settings.

    Raises:
        LabelMismatchError: such labels exist (another job may have just written them) and not `overwrite`.
        ShardError: the audio shard is damaged or has no manifest.
        SoftLabelError: the teacher failed on every utterance, so the utterances are not the cause.
        torch.AcceleratorError, torch.OutOfMemoryError, MemoryError: nor are they the cause of these.
        StorageError: the labels could not be stored.
    """
    started = time.perf_counter()
    shard = open_shard(audio_path, verify=True)
    run = _ShardRun(teacher, shard, settings, dict(exclude or {}))
    items = run.label()
    header = make_header(teacher, settings, audio_path.name, shard.sha256)
    try:
        manifest = write_labels(out_dir, shard, header, items, overwrite=overwrite)
    except OSError as error:
        # A full disk or a lost mount affects every other shard too.
        raise StorageError("the labels could not be stored", where=str(out_dir), got=error) from error
    wall_s = time.perf_counter() - started
    return ShardResult(
        audio_path.name,
        manifest,
        shard.seconds,
        labelled_seconds(shard, manifest),
        run.heard_seconds,
        wall_s,
        run.teacher_s,
        run.encode_s,
        run.padding,
        run.halved,
        (teacher.room.frames or settings.batch_frames) * FRAME_SHIFT_MS / 1000,
    )


def probe(teacher: Teacher, audio_path: Path, key: str, settings: Settings) -> None:
    """Label one utterance and discard the result, to find out which one of a shard kills the process."""
    shard = open_shard(audio_path)
    others = {entry.key: "not asked for" for entry in shard.entries if entry.key != key}
    _ShardRun(teacher, shard, settings, others).label()


class _Loaded(NamedTuple):
    """A padded batch ready for the teacher; `segments` lacks those whose audio could not be read.

    `inputs` holds features (B, T, F) or samples (B, N), `lengths` their numbers of frames or samples.
    """

    segments: list[Segment]
    inputs: Tensor
    lengths: list[int]

    def parts(self, size: int) -> list[_Loaded]:
        """Split the batch into batches of up to `size` segments."""
        starts = range(0, len(self.segments), size)
        return [self._part(slice(start, start + size)) for start in starts]

    def _part(self, rows: slice) -> _Loaded:
        lengths = self.lengths[rows]
        return _Loaded(self.segments[rows], self.inputs[rows, : max(lengths)], lengths)


class _Heard(NamedTuple):
    """A teacher's output for a batch: (B, T', V) log-probs and (B,) frame counts, which an accelerator may
    still be computing; when the forward pass began and when its call returned; on a GPU, an event that is
    recorded after it."""

    log_probs_btv: Tensor
    frames_b: Tensor
    started: float
    launched: float
    computed: torch.cuda.Event | None


class _ShardRun:
    """The labelling of one shard: one or several threads decode audio and compute features (log-mel for a GPU
    is computed there), another thread runs the codec, and this one only runs the teacher."""

    def __init__(self, teacher: Teacher, shard: Shard, settings: Settings, failures: dict[str, str]) -> None:
        on_cpu = teacher.device.type == "cpu"
        self._teacher = teacher if on_cpu else with_log_mel_on_its_device(teacher)
        self._shard, self._settings = shard, settings
        self._failures = failures
        self._broken: dict[int, dict[int, str]] = {}
        self._unreadable: set[int] = set()
        self._wordless: set[int] = set()
        self._pieces: dict[int, dict[int, SoftLabels]] = {}
        self._num_segments: dict[int, int] = {}
        self._decoded = _Decoded()
        self._encoding: deque[tuple[_Loaded, Future[None]]] = deque()
        self._codec_stream = _codec_stream(teacher.device)
        self._least_frames = int((teacher.max_seconds or 0) * 1000 / FRAME_SHIFT_MS)
        self.teacher_s = self.encode_s = self.padding = self._teacher_done = 0.0
        self.halved = 0

    def label(self) -> list[tuple[str, SoftLabels | Failure]]:
        # A teacher whose output padding would change gets batches of inputs of equal length.
        padding = _MAX_PADDING if self._teacher.pads else 0.0
        batches = make_batches(self._segments(), self._settings.batch_frames, padding, self._least_frames)
        self.padding = padding_share(batches, self._least_frames)
        threads = self._settings.decoders_for(self._teacher.device)
        begin = (_use_device, (self._teacher.device,))
        with (
            ThreadPoolExecutor(threads, "decode", *begin) as decoder,
            ThreadPoolExecutor(1, "encode", *begin) as encoder,
        ):
            for loaded in self._loaded(batches, decoder):
                self._forward_all(loaded, encoder)
            self._wait_for_encoder(0, encoder)
        self._check_teacher()
        return [
            (entry.key, self._outcome(number, entry.key)) for number, entry in enumerate(self._shard.entries)
        ]

    @property
    def heard_seconds(self) -> float:
        """Audio of the utterances that the teacher was given."""
        numbers = self._num_segments.keys() - self._unreadable
        return sum(self._shard.entries[number].num_samples for number in numbers) / SAMPLE_RATE_HZ

    def _check_teacher(self) -> None:
        """Raise if the teacher failed on all utterances: a shard of placeholders would count as done."""
        heard = self._num_segments.keys() - self._unreadable - self._wordless
        if len(heard) > 1 and heard <= self._broken.keys():
            raise SoftLabelError(
                f"the teacher failed on all {len(heard)} utterances",
                where=str(self._shard.path),
                got=min(self._broken[min(heard)].items())[1],
                fix="The utterances are hardly the cause: check the teacher, its precision and the machine.",
            )

    def _outcome(self, number: int, key: str) -> SoftLabels | Failure:
        if key in self._failures:
            return Failure(self._failures[key])
        if number in self._broken:
            # The reason for the first failed segment in the audio, which does not depend on thread timing.
            return Failure(min(self._broken[number].items())[1])
        pieces = self._pieces[number]
        assert len(pieces) == self._num_segments[number], key
        labels = concatenate([pieces[first] for first in sorted(pieces)])
        seconds = self._shard.entries[number].num_samples / SAMPLE_RATE_HZ
        reason = next((why for item in self._settings.filters if (why := item.after(labels, seconds))), None)
        return labels if reason is None else Failure(reason)

    def _segments(self) -> Iterator[Segment]:
        subsampling = self._teacher.model.subsampling
        window = self._settings.window_frames(subsampling)
        overlap = self._settings.overlap_frames(subsampling)
        asked = any(item.reads_language for item in self._settings.filters)
        metas = read_metas(self._shard) if asked else [{}] * self._shard.count
        for number, (entry, meta) in enumerate(zip(self._shard.entries, metas, strict=True)):
            frames = num_frames(entry.num_samples)
            if entry.key in self._failures:
                continue
            if reason := self._unwanted(frames, entry.num_samples / SAMPLE_RATE_HZ, meta.get("language")):
                self._failures[entry.key] = reason
                continue
            if self._teacher.level == "sequence":
                segments = [Segment(number, 0, frames, 0, frames)]
            else:
                segments = cut_segments(number, frames, window, overlap, subsampling)
            self._num_segments[number] = len(segments)
            yield from segments

    def _unwanted(self, frames: int, seconds: float, language: str | None) -> str | None:
        if frames == 0:
            return f"too short: {seconds:.4f} s is less than one frame"
        longest = self._teacher.max_seconds
        if longest is not None and seconds > longest:
            return f"too long: {seconds:.1f} s, but this teacher takes at most {longest:g} s"
        return next((why for item in self._settings.filters if (why := item.before(seconds, language))), None)

    # -- audio ------------------------------------------------------------------------------

    def _loaded(self, batches: Iterable[list[Segment]], decoder: Executor) -> Iterator[_Loaded]:
        """The batches in order, some of them decoded ahead. All threads work on the same batch, so that an
        accelerator gets the first one soon."""
        waiting: deque[Future[_Loaded]] = deque()
        for batch in batches:
            # One part per utterance, as the windows of a long one are cut from audio that is decoded once.
            # Highest number first, as in the batches: the next may begin with this one's last utterance.
            parts = [
                decoder.submit(self._inputs, list(windows))
                for _, windows in groupby(sorted(batch, reverse=True), key=lambda segment: segment.number)
            ]
            # Threads take work in order of submission: by then, these parts are finished or running.
            waiting.append(decoder.submit(self._joined, batch, parts))
            if len(waiting) > _BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _inputs(self, windows: list[Segment]) -> dict[Segment, Tensor]:
        """The teacher's input for each window of one utterance; empty if its audio is unusable."""
        rows, beyond = self._teacher.front_end.rows_per_frame, self._teacher.front_end.rows_beyond
        try:
            whole = self._whole_input(windows[0].number)
        except (KdasrError, RuntimeError, ValueError) as error:
            if isinstance(error.__cause__, OSError) or _is_out_of_memory(error) or _is_of_the_machine(error):
                raise  # the shard's hash was right, so the cause is the disk or the machine
            for segment in windows:
                self._fail(segment, f"unusable audio: {_reason(error)}")
            self._unreadable.add(windows[0].number)
            return {}
        ends = [None if self._ends(segment) else segment.last * rows + beyond for segment in windows]
        return {
            segment: whole[segment.first * rows : end] for segment, end in zip(windows, ends, strict=True)
        }

    def _joined(self, batch: list[Segment], parts: list[Future[dict[Segment, Tensor]]]) -> _Loaded:
        inputs = {segment: heard for part in parts for segment, heard in part.result().items()}
        segments = [segment for segment in batch if segment in inputs]
        if not segments:
            return _Loaded([], torch.empty(0), [])
        in_order = [inputs[segment] for segment in segments]
        padded = pad_sequence(in_order, batch_first=True, padding_value=self._teacher.front_end.padding)
        if self._teacher.device.type == "cuda":
            padded = padded.pin_memory()  # or the copy would wait for earlier forward passes
        return _Loaded(segments, padded, [len(item) for item in in_order])

    def _ends(self, segment: Segment) -> bool:
        """Whether a segment is the last one of its utterance."""
        return segment.last == num_frames(self._shard.entries[segment.number].num_samples)

    def _whole_input(self, number: int) -> Tensor:
        # The windows of a long utterance follow one another: decode it once.
        if self._decoded.number != number:
            utterance = read_utterance(self._shard, self._shard.entries[number])
            self._decoded.input = self._teacher.front_end.compute(utterance.samples)
            self._decoded.number = number
        return self._decoded.input

    # -- teacher ----------------------------------------------------------------------------

    def _forward_all(self, loaded: _Loaded, encoder: Executor) -> None:
        if not loaded.segments:
            return
        size = count = len(loaded.segments)
        room = self._teacher.room.frames
        if count > 1 and room is not None and self._frames(loaded) > room:
            self._forward_parts(loaded, -(-count // 2), encoder)
            return
        try:
            heard = self._forward(loaded)
        except Exception as error:
            if _is_of_the_machine(error):
                raise
            out_of_memory = _is_out_of_memory(error)
            if count == 1 and out_of_memory:
                raise  # due to the machine, and what else uses its memory, rather than the utterance
            if count == 1:
                self._fail(loaded.segments[0], f"the teacher raised {type(error).__name__}: {_reason(error)}")
                return
            # After other errors one by one: a bad utterance must not make its whole batch fail.
            size = self._halve(loaded) if out_of_memory else 1
        if size < count:
            # Not in the `except` block: the error keeps the memory of the failed pass alive.
            self._forward_parts(loaded, size, encoder)
            return
        self._encoding.append((loaded, encoder.submit(self._store, loaded.segments, heard)))
        del heard  # its memory may be needed when a batch is retried in halves below
        self._wait_for_encoder(_MAX_UNENCODED, encoder)

    def _forward_parts(self, loaded: _Loaded, size: int, encoder: Executor) -> None:
        for part in loaded.parts(size):
            self._forward_all(part, encoder)

    def _halve(self, loaded: _Loaded) -> int:
        """Half the number of segments in a batch that does not fit into memory; also limits later batches."""
        count, room = len(loaded.segments), self._teacher.room
        half = -(-count // 2)
        frames = half * self._frames(loaded) // count
        room.frames = frames if room.frames is None else min(room.frames, frames)
        self.halved += 1
        return half

    def _frames(self, loaded: _Loaded) -> int:
        """Feature frames of a batch, padding included."""
        longest = max(self._least_frames, *(segment.frames for segment in loaded.segments))
        return len(loaded.segments) * longest

    def _wait_for_encoder(self, most: int, encoder: Executor) -> None:
        """Wait until at most `most` batches are with the codec. If it ran out of memory, the batch is run
        again in halves; its other errors are raised here."""
        while len(self._encoding) > most:
            loaded, stored = self._encoding.popleft()
            error = stored.exception()
            if error is None:
                continue
            if len(loaded.segments) == 1 or not _is_out_of_memory(error):
                raise error
            del error, stored  # they hold on to the memory of the batch
            self._forward_parts(loaded, self._halve(loaded), encoder)

    def _forward(self, loaded: _Loaded) -> list[_Heard]:
        """Start the teacher's forward pass; an accelerator may still be computing when this returns."""
        if not self._teacher.pads and len(set(loaded.lengths)) > 1:
            return [heard for one in loaded.parts(1) for heard in self._forward(one)]
        started = time.perf_counter()
        device = self._teacher.device
        lengths_b = torch.tensor(loaded.lengths)
        with torch.inference_mode(), self._settings.autocast(device):
            log_probs_btv, frames_b = self._teacher.model.offline(
                loaded.inputs.to(device, non_blocking=True), lengths_b.to(device, non_blocking=True)
            )
        log_probs_btv = log_probs_btv.float()
        computed = None if self._codec_stream is None else torch.cuda.current_stream(device).record_event()
        return [_Heard(log_probs_btv, frames_b, started, time.perf_counter(), computed)]

    def _rows(self, heard: _Heard) -> list[Tensor]:
        """Log-probs (T', V) of each segment, waiting until they are computed."""
        if heard.computed is not None:
            assert self._codec_stream is not None
            self._codec_stream.wait_event(heard.computed)
            # Their memory belongs to the teacher's stream, which could reuse it as soon as they are freed.
            for result in (heard.log_probs_btv, heard.frames_b):
                if result.is_cuda:
                    result.record_stream(self._codec_stream)
        frames = heard.frames_b.tolist()
        # Checks them: a teacher that counts more frames than its output has counts wrongly.
        ModelOutput(heard.log_probs_btv, torch.tensor(frames))
        done = time.perf_counter() if heard.log_probs_btv.device.type != "cpu" else heard.launched
        self.teacher_s += max(0.0, done - max(heard.started, self._teacher_done))
        self._teacher_done = done
        return [row[:count] for row, count in zip(heard.log_probs_btv, frames, strict=True)]

    def _fail(self, segment: Segment, reason: str) -> None:
        self._broken.setdefault(segment.number, {})[segment.first] = reason

    def _store(self, segments: list[Segment], heard: list[_Heard]) -> None:
        with nullcontext() if self._codec_stream is None else torch.cuda.stream(self._codec_stream):
            self._encode(segments, heard)

    def _encode(self, segments: list[Segment], heard: list[_Heard]) -> None:
        log_probs = [row for one in heard for row in self._rows(one)]
        started = time.perf_counter()
        kept, keys, owners = [], [], []
        for segment, log_probs_tv in zip(segments, log_probs, strict=True):
            if self._teacher.level == "sequence" and not len(log_probs_tv):
                # Not the teacher's failure: a shard may be all silence.
                self._failures[self._shard.entries[segment.number].key] = _NO_WORDS
                self._wordless.add(segment.number)
                continue
            if self._settings.words is not None:
                of_words_tv = self._settings.words(log_probs_tv)
                if of_words_tv is None:
                    self._failures[self._shard.entries[segment.number].key] = _NO_SENTENCE
                    self._wordless.add(segment.number)
                    continue
                log_probs_tv = of_words_tv
            if self._teacher.level == "frame" and (problem := self._miscounted(segment, len(log_probs_tv))):
                self._fail(segment, problem)
                continue
            slack = self._teacher.slack_frames if self._ends(segment) else 0
            kept.append(self._kept(segment, log_probs_tv, slack))
            owners.append(segment)
            keys.append(self._seed_name(segment))
        for segment, piece in zip(owners, self._settings.codec.encode_many(kept, keys), strict=True):
            if isinstance(piece, SoftLabelError):
                self._fail(segment, piece.what)
            else:
                self._pieces.setdefault(segment.number, {})[segment.first] = piece
        self.encode_s += time.perf_counter() - started

    def _miscounted(self, segment: Segment, frames: int) -> str | None:
        """What is wrong with the number of frames that the teacher gave for a segment, or None."""
        wanted = -(-segment.frames // self._teacher.model.subsampling)
        if abs(frames - wanted) <= self._teacher.slack_frames:
            return None
        return f"the teacher gave {frames} frames instead of {wanted}"

    def _kept(self, segment: Segment, log_probs_tv: Tensor, slack: int) -> Tensor:
        """The frames of a segment that are kept for its utterance, and up to `slack` more."""
        if self._teacher.level == "sequence":
            return log_probs_tv
        offset = segment.first // self._teacher.model.subsampling
        return log_probs_tv[segment.keep_first - offset : segment.keep_last - offset + slack]

    def _seed_name(self, segment: Segment) -> str:
        key = self._shard.entries[segment.number].key
        return f"{key}@{segment.first}" if segment.first else key


@functools.cache
def _codec_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A high-priority GPU stream for the codec, which reads results back a dozen times for each batch: in the
    teacher's stream it would wait each time for the forward passes started meanwhile. Shared by all shards,
    since torch caches memory for each stream."""
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None


def _use_device(device: torch.device) -> None:
    """Make the teacher's GPU a new thread's current one, which would be the first GPU: pinning memory or
    leaving a stream would create a context there, which wastes memory."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


class _Decoded(threading.local):
    """The input that a thread has decoded last, that of utterance `number`."""

    number = -1
    input: Tensor


def _is_out_of_memory(error: BaseException) -> bool:
    # On CPUs, and for a GPU's libraries, torch says so only in the message.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        said in str(error) for said in _NO_MEMORY
    )


def _is_of_the_machine(error: BaseException) -> bool:
    """Whether an error would affect other utterances too, so that none must be blamed for it."""
    said = any(said in str(error) for said in _BROKEN_DEVICE)
    return isinstance(error, torch.AcceleratorError) or (said and not _is_out_of_memory(error))


def _reason(error: BaseException) -> str:
    """An error's message without paths, since labels must not depend on where the audio is."""
    if isinstance(error, KdasrError):
        inner = f": {_reason(error.got)}" if isinstance(error.got, BaseException) else ""
        return f"{error.what}{inner}"
    return str(error)[:300]
