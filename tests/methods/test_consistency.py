"""Two views by hand: what CR-CTC adds up, and through which of them gradients flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdasr.losses import ctc
from kdasr.methods.consistency import both_views, consistency
from tests.methods.posteriors import batch_of, logs, output_of

ONE, TWO = logs([0.5, 0.5], [0.8, 0.2]), logs([0.9, 0.1], [0.8, 0.2])


def test_by_hand() -> None:
    batch = batch_of()
    batch.views = {0: output_of(TWO)}
    there = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    back = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert float(consistency(output_of(ONE), batch)) == pytest.approx(0.5 * (there + back) / 2, rel=1e-6)
    batch.views = {0: output_of(ONE)}
    assert float(consistency(output_of(ONE), batch)) == 0.0


def test_padding_counts_for_nothing() -> None:
    batch = batch_of(size=2)
    batch.views = {0: output_of(TWO.repeat(2, 1, 1), 2, 1)}
    one = ONE.repeat(2, 1, 1)
    one[1, 1] = torch.tensor([0.01, 0.99]).log()
    # The views differ in the first frames only, by ln 3 · 0.8 / 2 each; three frames count.
    assert float(consistency(output_of(one, 2, 1), batch)) == pytest.approx(0.8 * math.log(3) / 3, rel=1e-6)


def test_each_view_learns_from_the_other_as_it_stands() -> None:
    """The gradient is that of the cross-entropy to the other view: z's is (y - target) / 2 a frame."""
    first, second = (torch.randn(1, 3, 4, requires_grad=True) for _ in range(2))
    batch = batch_of()
    batch.views = {0: output_of(second.log_softmax(-1))}
    consistency(output_of(first.log_softmax(-1)), batch).backward()
    difference = (first.softmax(-1) - second.softmax(-1)).detach() / 2 / 3
    torch.testing.assert_close(first.grad, difference)
    torch.testing.assert_close(second.grad, -difference)


def test_any_loss_on_both_views() -> None:
    batch = batch_of()
    batch.tokens_bu, batch.token_lengths_b = torch.tensor([[1]]), torch.tensor([1])
    batch.views = {0: output_of(TWO)}
    expected = (ctc(output_of(ONE), batch) + ctc(output_of(TWO), batch)) / 2
    torch.testing.assert_close(both_views(output_of(ONE), batch, loss=ctc), expected)


def test_gradient_by_finite_differences() -> None:
    """Against the cross-entropy to a fixed view, whose gradient the stop-gradient form has."""
    batch = batch_of()
    other = torch.randn(1, 3, 4, dtype=torch.float64).log_softmax(-1)
    batch.views = {0: output_of(other)}
    logits = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def fixed(x: Tensor) -> Tensor:
        return -0.5 * (other.exp() * x.log_softmax(-1)).sum() / 3

    assert torch.autograd.gradcheck(fixed, (logits,))
    (wanted,) = torch.autograd.grad(fixed(logits), logits)
    (found,) = torch.autograd.grad(consistency(output_of(logits.log_softmax(-1)), batch), logits)
    torch.testing.assert_close(found, wanted)
