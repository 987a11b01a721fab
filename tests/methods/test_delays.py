"""The windowed delay: the best one for each utterance, by hand, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdasr.errors import ConfigError, LabelMismatchError
from kdasr.interfaces import ModelOutput, SoftLabelBatch
from kdasr.losses import partition_cross_entropy, soft_cross_entropy
from kdasr.methods.delays import windowed_cross_entropy
from kdasr.soft_labels import TopP, pad_soft_labels
from tests.methods.posteriors import batch_of, labels_from, logs, output_of

BLANK, SPIKE = {0: 0.9, 1: 0.1}, {0: 0.2, 1: 0.8}


def spiky(frames: int, *spikes: int) -> list[dict[int, float]]:
    return [SPIKE if t in spikes else BLANK for t in range(frames)]


def student(frames: int, *spikes: int) -> Tensor:
    return logs(*([0.1, 0.9] if t in spikes else [0.95, 0.05] for t in range(frames)))


def test_each_utterance_takes_the_delay_at_which_it_agrees() -> None:
    labels = labels_from([spiky(12, 2, 5), spiky(12, 3, 6), spiky(12, 1, 4)])
    heard = torch.cat([student(12, 5, 8), student(12, 3, 6), student(12, 3, 6)])
    found = windowed_cross_entropy(output_of(heard), batch_of(labels), max_delay_frames=4)
    total, frames = 0.0, 0
    for row, delay in enumerate((3, 0, 2)):
        one = batch_of(
            labels_from([spiky(12, *spikes) for spikes in ((2, 5), (3, 6), (1, 4))][row : row + 1])
        )
        loss = soft_cross_entropy(output_of(heard[row : row + 1]), one, delay_frames=delay)
        total, frames = total + float(loss) * (12 - delay), frames + 12 - delay
    assert float(found) == pytest.approx(total / frames, rel=1e-6)


def test_by_hand() -> None:
    """Delay 1 wins over the frames that both delays have; the loss is over all its pairs."""
    labels = labels_from([[{1: 1.0}, {0: 1.0}, {0: 1.0}]])
    heard = logs([0.9, 0.1], [0.2, 0.8], [0.7, 0.3])
    loss = windowed_cross_entropy(output_of(heard), batch_of(labels), max_delay_frames=1)
    # Delay 0: -ln 0.1 - ln 0.2; delay 1: -ln 0.8 - ln 0.7.
    assert float(loss) == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2, rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"blank_policy": "symmetric"}, {"blank_policy": "downweight"}])
def test_a_window_of_one_delay_is_that_delay(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    heard = output_of(torch.randn(2, 9, 3).log_softmax(-1), 9, 7)
    labels = labels_from([spiky(9, 2, 6), spiky(7, 3)])
    found = windowed_cross_entropy(
        heard, batch_of(labels), min_delay_frames=2, max_delay_frames=2, **settings
    )
    expected = soft_cross_entropy(heard, batch_of(labels), delay_frames=2, **settings)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=1e-6)


def test_padding_and_short_utterances() -> None:
    labels = labels_from([spiky(9, 2), spiky(2, 1)])
    heard = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    found = windowed_cross_entropy(output_of(heard, 9, 2), batch_of(labels), max_delay_frames=4)
    changed = heard.clone()
    changed[1, 2:] = changed[1, 2:].flip(-1)
    assert float(
        windowed_cross_entropy(output_of(changed, 9, 2), batch_of(labels), max_delay_frames=4)
    ) == float(found)
    # Two frames hold no delay of up to four: the smallest is taken.
    alone = batch_of(labels_from([spiky(2, 1)]))
    short = output_of(heard[1:, :2], 2)
    expected = soft_cross_entropy(short, alone)
    torch.testing.assert_close(
        windowed_cross_entropy(short, alone, max_delay_frames=4).double(), expected.double()
    )


def test_an_utterance_too_short_for_the_least_delay_counts_for_nothing() -> None:
    """Whatever it is batched with: 3 frames, delays from 4 on."""
    logits = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(2))
    for rows, frames in (([0], 3), ([0, 1], 9)):
        heard = logits[rows, :frames].clone().requires_grad_()
        labels = labels_from([spiky(3, 1), spiky(9, 2)][: len(rows)])
        output = output_of(heard.log_softmax(-1), *[3, 9][: len(rows)])
        windowed_cross_entropy(
            output, batch_of(labels), min_delay_frames=4, max_delay_frames=6, blank_policy="all"
        ).backward()
        assert heard.grad is not None and float(heard.grad[0].abs().max()) == 0.0
        assert len(rows) == 1 or float(heard.grad[1].abs().max()) > 0.0


@pytest.mark.parametrize("frames", [3, 4])
def test_a_batch_no_longer_than_the_least_delay_is_worth_nothing(frames: int) -> None:
    labels = batch_of(labels_from([spiky(frames, 1)]))
    output = output_of(student(frames, 1))
    assert float(windowed_cross_entropy(output, labels, min_delay_frames=4, max_delay_frames=6)) == 0.0


def test_an_online_teacher_stands_for_stored_labels() -> None:
    frames = spiky(8, 2, 5)
    heard = output_of(student(8, 4, 7))
    stored = windowed_cross_entropy(heard, batch_of(labels_from([frames])), max_delay_frames=3)
    batch = batch_of()
    dense = torch.tensor([[[frame[0], frame[1]] for frame in frames]]).log()
    batch.teachers = {"big": ModelOutput(dense.requires_grad_(), torch.tensor([8]))}
    online = windowed_cross_entropy(heard, batch, max_delay_frames=3, teacher="big")
    torch.testing.assert_close(online.double(), stored.double())
    assert not online.requires_grad
    with pytest.raises(ConfigError, match=r"utt0.*needs soft labels"):
        windowed_cross_entropy(heard, batch)


def test_gradient_by_finite_differences() -> None:
    labels = labels_from([spiky(6, 2), spiky(5, 1)])
    logits = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor) -> Tensor:
        return windowed_cross_entropy(
            output_of(x.log_softmax(-1), 6, 5), batch_of(labels), max_delay_frames=2
        )

    assert torch.autograd.gradcheck(value, (logits,))


def test_what_cannot_be_is_refused() -> None:
    labels = labels_from([spiky(4, 1)])
    with pytest.raises(ConfigError, match="min_delay_frames <= max_delay_frames"):
        windowed_cross_entropy(
            output_of(student(4)), batch_of(labels), min_delay_frames=3, max_delay_frames=2
        )
    with pytest.raises(LabelMismatchError, match="utt0"):
        windowed_cross_entropy(output_of(student(5)), batch_of(labels))


def test_a_misspelt_blank_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="blank policy"):
        windowed_cross_entropy(
            output_of(student(4, 1)), batch_of(labels_from([spiky(4, 1)])), blank_policy="symetric"
        )


@pytest.mark.parametrize("sharpness", [6.0, 1.0])
def test_the_delay_is_that_of_the_exact_loss(sharpness: float) -> None:
    """However few classes were kept, and however much is in the tail: the rough comparison finds the least of
    all delays."""
    torch.manual_seed(7)
    teacher = (sharpness * torch.randn(2, 12, 20)).log_softmax(-1)
    labels = pad_soft_labels(
        [TopP(mass=0.9, cap=3).encode(row[:length]) for row, length in zip(teacher, (12, 9), strict=True)]
    )
    output = output_of((3 * torch.randn(2, 12, 20)).log_softmax(-1), 12, 9)
    found = float(windowed_cross_entropy(output, batch_of(labels), max_delay_frames=3, blank_policy="all"))
    each = [[soft_cross_entropy_of(output, labels, b, delay) for delay in range(4)] for b in range(2)]
    sums = [min(row, key=lambda one: float(one[: len(row[3])].sum())) for row in each]
    expected = sum(float(one.sum()) for one in sums) / sum(len(one) for one in sums)
    assert found == pytest.approx(expected, rel=1e-5)


def soft_cross_entropy_of(output: ModelOutput, labels: SoftLabelBatch, row: int, delay: int) -> Tensor:
    """The cross-entropy of each label frame of one utterance that has a partner at a delay."""
    length = int(labels.lengths_b[row])
    later_btv = output.log_probs_btv[row : row + 1, delay:length]
    one = SoftLabelBatch(
        *(field[row : row + 1, : length - delay] for field in labels[:3]), labels.lengths_b[row : row + 1]
    )
    return partition_cross_entropy(later_btv, one)[0]
