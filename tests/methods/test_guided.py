"""Guided spikes by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdasr.errors import ConfigError, LabelMismatchError
from kdasr.interfaces import ModelOutput
from kdasr.methods.guided import guided_spikes
from tests.methods.posteriors import batch_of, labels_from, logs, output_of

BLANK, ONE, TWO = {0: 0.9, 1: 0.1}, {0: 0.3, 1: 0.7}, {2: 0.6, 0: 0.4}
HEARD = logs([0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.2, 0.4, 0.4], [0.1, 0.1, 0.8])


def test_the_mask_takes_the_guides_unit_where_it_spikes() -> None:
    batch = batch_of(labels_from([[BLANK, ONE, TWO, BLANK]]))
    # P(1 in frame 1) = 0.3, P(2 in frame 2) = 0.4, over four frames.
    assert float(guided_spikes(output_of(HEARD), batch)) == pytest.approx(-0.7 / 4)
    # One frame later: P(1 in frame 2) = 0.4, P(2 in frame 3) = 0.8.
    assert float(guided_spikes(output_of(HEARD), batch, delay_frames=1)) == pytest.approx(-1.2 / 4)
    assert float(guided_spikes(output_of(HEARD), batch, delay_frames=9)) == 0.0


def test_blanks_and_padding_count_for_nothing() -> None:
    silent = batch_of(labels_from([[BLANK] * 4]))
    assert float(guided_spikes(output_of(HEARD), silent)) == 0.0
    batch = batch_of(labels_from([[BLANK, ONE, TWO, BLANK], [ONE, BLANK]]))
    both = torch.cat([HEARD, HEARD])
    assert float(guided_spikes(output_of(both, 4, 2), batch)) == pytest.approx(-(0.7 + 0.2) / 6)


def test_a_guide_that_runs_along() -> None:
    batch = batch_of()
    guide = torch.tensor([[[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.1, 0.0, 0.9], [0.8, 0.1, 0.1]]]).log()
    batch.teachers = {"guide": ModelOutput(guide, torch.tensor([4]))}
    assert float(guided_spikes(output_of(HEARD), batch, teacher="guide")) == pytest.approx(-0.6 / 4)


def test_gradient_by_finite_differences() -> None:
    batch = batch_of(labels_from([[BLANK, ONE, TWO], [ONE, BLANK]]))
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return guided_spikes(output_of(x.log_softmax(-1), 3, 2), batch, delay_frames=1)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_what_cannot_be_is_refused() -> None:
    batch = batch_of(labels_from([[BLANK, ONE]]))
    with pytest.raises(ConfigError, match="delay_frames: the delay is negative"):
        guided_spikes(output_of(HEARD[:, :2]), batch, delay_frames=-1)
    with pytest.raises(LabelMismatchError, match="utt0"):
        guided_spikes(output_of(HEARD), batch)
