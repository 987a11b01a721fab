"""Dense posteriors of a teacher (and a student) for some minutes of audio shards, as data for benchmarks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdasr.errors import ConfigError
from kdasr.features import LOG_MEL_FLOOR, log_mel
from kdasr.interfaces import AcousticModel
from kdasr.labelling.batches import cut_segments, make_batches
from kdasr.models import load_model
from kdasr.shards import list_shards, open_shard, read_utterance

_BATCH_FRAMES = 12_000


@dataclass
class Bank:
    """Utterances with the models' posteriors.

    Attributes:
        keys: of the utterances.
        teacher: (T, V) log-probs of each.
        teacher_bf16: the same from forward passes in bfloat16.
        student: the same from a student, or None.
        audio_s: total length of the audio.
        feature_s: CPU time of decoding and log-mel.
        teacher_s: CPU time of the teacher's bare forward passes.
    """

    keys: list[str]
    teacher: list[Tensor]
    teacher_bf16: list[Tensor]
    student: list[Tensor] | None
    audio_s: float
    feature_s: float
    teacher_s: float

    @property
    def num_frames(self) -> int:
        return sum(map(len, self.teacher))

    @property
    def vocab_size(self) -> int:
        return self.teacher[0].shape[1]


def fill(teacher_dir: Path, audio: Path, student_dir: Path | None, minutes: float) -> Bank:
    """Run teacher and student on the first `minutes` of the shards in `audio`."""
    teacher = load_model(teacher_dir)
    started = time.process_time()
    keys, features, audio_s = _features(audio, minutes * 60)
    feature_s = time.process_time() - started
    posteriors, teacher_s = _posteriors(teacher.model, features)
    rounded, _ = _posteriors(teacher.model, features, bf16=True)
    student = None
    if student_dir is not None:
        loaded = load_model(student_dir)
        if loaded.card["units_hash"] != teacher.card["units_hash"]:
            raise ConfigError("student and teacher have different units", where=str(student_dir))
        student = _posteriors(loaded.model, features)[0]
    return Bank(keys, posteriors, rounded, student, audio_s, feature_s, teacher_s)


def _features(audio: Path, seconds: float) -> tuple[list[str], list[Tensor], float]:
    keys, features, total = [], [], 0.0
    for key, samples_s, item in _utterances(audio):
        if total >= seconds:
            break
        keys.append(key)
        features.append(item)
        total += samples_s
    return keys, features, total


def _utterances(audio: Path) -> Iterator[tuple[str, float, Tensor]]:
    for path in list_shards(audio):
        shard = open_shard(path)
        for entry in shard.entries:
            yield entry.key, entry.num_samples / 16_000, log_mel(read_utterance(shard, entry).samples)


def _posteriors(
    model: AcousticModel, features: list[Tensor], *, bf16: bool = False
) -> tuple[list[Tensor], float]:
    """Log-probs (T, V) of each utterance, and the CPU time of the forward passes."""
    found: list[Tensor] = [torch.empty(0)] * len(features)
    spent_s = 0.0
    whole = [
        segment
        for number, item in enumerate(features)
        for segment in cut_segments(number, len(item), 1 << 30, 0, model.subsampling)
    ]
    for batch in make_batches(whole, _BATCH_FRAMES):
        lengths_b = torch.tensor([segment.frames for segment in batch])
        heard = [features[segment.number] for segment in batch]
        batch_btf = pad_sequence(heard, batch_first=True, padding_value=LOG_MEL_FLOOR)
        started = time.process_time()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            log_probs_btv, frames_b = model.offline(batch_btf, lengths_b)
        spent_s += time.process_time() - started
        for segment, row, count in zip(batch, log_probs_btv, frames_b.tolist(), strict=True):
            found[segment.number] = row[:count].float()
    return found, spent_s
