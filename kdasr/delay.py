"""A teacher's posteriors and a streaming model in, by how many frames the teacher is ahead of it out.

A CTC model that hears the whole utterance may spike anywhere around a sound: trained twice, the same
teacher was once level with a streaming student's natural spikes and once 280 ms ahead of them. A
fixed delay that fits one teacher starves the student of the next, so the delay is measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from kdasr.decoding import Token, greedy
from kdasr.errors import ConfigError
from kdasr.features import FRAME_SHIFT_MS
from kdasr.interfaces import AcousticModel, OnlineTeacher, SoftLabelBatch
from kdasr.loader import Stream
from kdasr.spikes import SpikeHistogram, spike_histogram
from kdasr.targets import best_units

_MIN_MATCHED = 100


def measure_offsets(
    stream: Stream,
    reference: AcousticModel,
    *,
    teacher: OnlineTeacher | None = None,
    max_batches: int = 12,
    device: torch.device | str = "cpu",
) -> SpikeHistogram:
    """Where the spikes of `reference` fall against those of the labels in `stream`, or of an online teacher.

    Args:
        stream: audio, with soft labels where there is no `teacher`.
        reference: a streaming model of the student's kind that was trained on transcripts alone; it
            spikes where such a student does of its own accord.
        teacher: one that hears clean audio and has the reference's units and output frames.
        max_batches: batches to look at, the first ones.
        device: where the reference is.
    """
    pairs: list[tuple[list[Token], list[Token]]] = []
    for position in range(min(max_batches, len(stream.epoch_batches(0)))):
        batch = stream.batch(position).to(device)
        with torch.inference_mode():
            log_probs_btv, lengths_b = reference.offline(batch.features_btf, batch.feature_lengths_b)
        if teacher is not None:
            heard = teacher(batch, batch.features_btf)
            theirs = greedy(heard.log_probs_btv, heard.lengths_b)
        else:
            assert batch.soft_labels is not None
            theirs = teacher_tokens(batch.soft_labels)
        pairs += zip(theirs, greedy(log_probs_btv, lengths_b), strict=True)
    return spike_histogram(pairs, float(FRAME_SHIFT_MS * reference.subsampling))


@dataclass(frozen=True, slots=True)
class OffsetWatch:
    """Where a student's spikes fall against its teacher's while it learns: a fact for the training log.

    Attributes:
        stream: audio, with soft labels where there is no `teacher`.
        teacher: an online teacher that draws no random numbers; see `measure_offsets`.
        max_batches: batches to look at, always the same.
    """

    stream: Stream
    teacher: OnlineTeacher | None = None
    max_batches: int = 2

    def __call__(self, model: AcousticModel, device: torch.device | str) -> dict[str, Any]:
        """`{"spike_offsets": …}` with the fields of a `SpikeHistogram`."""
        histogram = measure_offsets(
            self.stream, model, teacher=self.teacher, max_batches=self.max_batches, device=device
        )
        return {"spike_offsets": asdict(histogram)}


def teacher_tokens(labels: SoftLabelBatch) -> list[list[Token]]:
    """The greedy decoding of stored posteriors, with the frame of each spike."""
    units_bt = best_units(labels)
    log_probs_btv = torch.nn.functional.one_hot(units_bt).float()
    return greedy(log_probs_btv, labels.lengths_b)


def delay_from(histogram: SpikeHistogram, margin_frames: int) -> int:
    """The delay in output frames: the median offset, and `margin_frames` more, at least 0.

    The margin gives the frames at the end of a chunk, which hear no future, time to hear the sound.

    Raises:
        ConfigError: too few spikes of the reference match any of the teacher's.
    """
    if histogram.median_ms is None or histogram.matched < _MIN_MATCHED:
        raise ConfigError(
            "the delay cannot be measured",
            where="delay_reference",
            expected=f"at least {_MIN_MATCHED} spikes that the reference and the teacher share",
            got=histogram.matched,
            fix="Give a reference that recognises this audio, or a number as delay_frames.",
        )
    return max(0, round(histogram.median_ms / histogram.frame_shift_ms) + margin_frames)
