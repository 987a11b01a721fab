"""How far a teacher's spikes are ahead of a streaming model's, measured on stored labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdasr.delay import OffsetWatch, delay_from, measure_offsets, teacher_tokens
from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, ModelOutput
from kdasr.soft_labels import Full, pad_soft_labels
from kdasr.spikes import SpikeHistogram

FRAMES = 60


def posteriors(spikes: dict[int, int]) -> Tensor:
    """(FRAMES, 5) log-probs with units at given frames and blank elsewhere."""
    probabilities = torch.full((FRAMES, 5), 0.02)
    probabilities[:, 0] = 0.92
    for frame, unit in spikes.items():
        probabilities[frame] = 0.02
        probabilities[frame, unit] = 0.92
    return probabilities.log()


SPOKEN = [{5: 1, 12: 2, 13: 2, 20: 3}, {8: 4, 30: 1, 41: 1}]


class Late:
    """A reference that spikes so many frames after the teacher, and a stream of labels beside it."""

    subsampling = 4

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def offline(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        later = [{frame + self.frames: unit for frame, unit in spikes.items()} for spikes in SPOKEN]
        return torch.stack([posteriors(spikes) for spikes in later]), lengths // 4

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        return [[0, 1]] * (30 if epoch == 0 else 1)

    def batch(self, position: int) -> Batch:
        labels = pad_soft_labels([Full().encode(posteriors(spikes)) for spikes in SPOKEN])
        lengths = torch.full((2,), 4 * FRAMES)
        return Batch(["a", "b"], torch.zeros(2, 4 * FRAMES, 80), lengths, soft_labels=labels)


def offsets(frames: int) -> SpikeHistogram:
    both: Any = Late(frames)
    return measure_offsets(both, both, max_batches=20)


@pytest.mark.parametrize(("frames", "expected"), [(0, 1), (2, 3), (7, 8), (-3, 0)])
def test_the_delay_is_the_median_offset_and_a_margin(frames: int, expected: int) -> None:
    histogram = offsets(frames)
    assert histogram.median_ms == 40.0 * frames
    assert histogram.matched == 20 * 6
    assert delay_from(histogram, margin_frames=1) == expected


def test_the_delay_is_the_nearest_frame() -> None:
    assert delay_from(SpikeHistogram(40.0, [70.0], [200], 200, 200), margin_frames=1) == 3


def test_an_online_teacher_is_watched_as_stored_labels_are() -> None:
    student: Any = Late(3)

    def early(batch: Batch, student_features_btf: Tensor) -> ModelOutput:
        return ModelOutput(*Late(-1).offline(student_features_btf, batch.feature_lengths_b))

    teacher: Any = early
    stored = OffsetWatch(student)(student, "cpu")["spike_offsets"]
    online = OffsetWatch(student, teacher)(student, "cpu")["spike_offsets"]
    assert (stored["offsets_ms"], online["offsets_ms"]) == ([120.0], [160.0])
    assert stored["counts"] == online["counts"] == [2 * 6]
    assert {**stored, "offsets_ms": []} == {**online, "offsets_ms": []}


def test_teacher_tokens_are_the_spikes_of_the_best_path() -> None:
    labels = Late(0).batch(0).soft_labels
    assert labels is not None
    found = [[(token.id, token.frame) for token in tokens] for tokens in teacher_tokens(labels)]
    assert found == [[(1, 5), (2, 12), (3, 20)], [(4, 8), (1, 30), (1, 41)]]


def test_a_reference_that_hears_nothing_in_common_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"delay_reference.*at least 100 matching spikes.*got 0"):
        delay_from(SpikeHistogram(40.0, [], [], 50, 0), 1)
