"""Measure how many frames a teacher's spikes are ahead of a streaming model's.

A CTC model that hears the whole utterance may spike anywhere around a sound: in two training runs, the same
teacher was once level with a streaming student's natural spikes and once 280 ms ahead of them. A delay
fixed for one teacher may be too short for the next, so it is measured.
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
    """The offsets of the spikes of `reference` from those of the labels in `stream` or an online teacher.

    Args:
        stream: audio, with soft labels if there is no `teacher`.
        reference: a streaming model of the student's kind, trained on transcripts alone, which spikes
            where such a student naturally does.
        teacher: an online teacher with the reference's units and output frames; it hears clean audio.
        max_batches: number of batches used, from the first.
        device: the device of the reference.
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
    """Measures the offsets of a student's spikes from its teacher's during training, for the log.

    Attributes:
        stream: audio, with soft labels if there is no `teacher`.
        teacher: an online teacher that draws no random numbers; see `measure_offsets`.
        max_batches: number of batches used, always the same ones.
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
    """The delay in output frames: the median offset plus `margin_frames`, at least 0.

    The margin gives frames at the end of a chunk, which see no future, time to hear the sound.

    Raises:
        ConfigError: too few spikes of the reference match the teacher's.
    """
    if histogram.median_ms is None or histogram.matched < _MIN_MATCHED:
        raise ConfigError(
            "the delay cannot be measured",
            where="delay_reference",
            expected=f"at least {_MIN_MATCHED} matching spikes of the reference and the teacher",
            got=histogram.matched,
            fix="Set delay_reference to a model that recognises this audio, or delay_frames to a number.",
        )
    return max(0, round(histogram.median_ms / histogram.frame_shift_ms) + margin_frames)
