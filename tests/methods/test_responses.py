"""Soft targets and logit regression against Hinton's formulas and numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdasr.errors import ConfigError, LabelMismatchError
from kdasr.interfaces import Batch, ModelOutput
from kdasr.losses import soft_cross_entropy
from kdasr.methods.responses import logit_regression, soft_targets
from kdasr.soft_labels import Full, TopK, TopP, pad_soft_labels
from tests.methods.outputs import batch_with, output_of


def stored(log_probs_tv: Tensor, codec: Full | TopK | TopP) -> Batch:
    return replace(batch_with(1), soft_labels=pad_soft_labels([codec.encode(log_probs_tv)]))


def gradient(loss_scale: float, temperature: float, z: Tensor, v: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    batch = batch_with(1, big=output_of(v[None, None]))
    loss = soft_targets(output_of(z[None, None]), batch, teacher="big", temperature=temperature)
    (loss * loss_scale).backward()
    assert z.grad is not None
    return z.grad


def test_two_classes_by_hand() -> None:
    """ŷ = (4/5, 1/5) and y = (1/2, 1/2); at T = 2 the odds are the roots: ŷ(2) = (2/3, 1/3)."""
    batch = batch_with(1, big=output_of(torch.tensor([[[4.0, 1.0]]]).log()))
    even = output_of(torch.zeros(1, 1, 2))
    assert soft_targets(even, batch, teacher="big").item() == pytest.approx(math.log(2), rel=1e-6)
    odds = output_of(torch.tensor([[[9.0, 1.0]]]).log())
    loss = soft_targets(odds, batch, teacher="big", temperature=2.0).item()
    assert loss == pytest.approx(-4 * (2 / 3 * math.log(3 / 4) + 1 / 3 * math.log(1 / 4)), rel=1e-5)


def test_hintons_gradient() -> None:
    """Without the factor T², dE/dz_i = (y_i - ŷ_i) / T."""
    torch.manual_seed(1)
    z, v, temperature = 3 * torch.randn(7, dtype=torch.float64), 3 * torch.randn(7, dtype=torch.float64), 2.5
    expected = ((z / temperature).softmax(0) - (v / temperature).softmax(0)) / temperature
    torch.testing.assert_close(gradient(temperature**-2, temperature, z, v), expected, atol=1e-6, rtol=1e-5)


def test_the_high_temperature_limit_is_logit_matching() -> None:
    """For zero-mean logits and large T, dE/dz_i = (z_i - v_i) / (N T²); with T² it does not depend on T,
    and it is 1 / N of the gradient of logit regression."""
    torch.manual_seed(2)
    z, v = (x - x.mean() for x in torch.randn(2, 7, dtype=torch.float64))
    limit = gradient(1.0, 300.0, z, v)
    torch.testing.assert_close(limit, (z - v) / 7, atol=2e-3, rtol=0)
    assert (gradient(1.0, 3.0, z, v) - (z - v) / 7).abs().max() > 0.01
    moved = z.clone().requires_grad_()
    batch = batch_with(1, big=output_of(v[None, None]))
    logit_regression(output_of(moved[None, None]), batch, teacher="big").backward()
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad / 7, limit, atol=2e-3, rtol=0)


def test_logit_regression_by_hand_whatever_the_offset() -> None:
    """z = (1, -1), v = (3, -3): ½ (4 + 4)."""
    batch = batch_with(1, big=output_of(torch.tensor([[[13.0, 7.0]]])))
    loss = logit_regression(output_of(torch.tensor([[[1.0, -1.0]]])), batch, teacher="big")
    assert loss.item() == pytest.approx(4.0, rel=1e-5)


def test_logit_regression_waits_for_a_student_that_lags() -> None:
    """The student's second frame has the teacher's first, (1, -1); its own first has nobody's."""
    batch = batch_with(1, big=output_of(torch.tensor([[[1.0, -1.0], [9.0, 0.0]]])))
    student = output_of(torch.tensor([[[5.0, 0.0], [2.0, -2.0]]]))
    assert logit_regression(student, batch, teacher="big", delay_frames=1).item() == pytest.approx(1.0)


def test_logits_of_labels_that_differ_in_length() -> None:
    torch.manual_seed(6)
    teacher, student = torch.randn(2, 4, 6).log_softmax(-1), torch.randn(2, 4, 6)
    rows = [teacher[0], teacher[1, :2]]
    batch = replace(batch_with(2), soft_labels=pad_soft_labels([Full().encode(row) for row in rows]))
    each = [
        logit_regression(output_of(student[row : row + 1, :length]), stored(teacher[row, :length], Full()))
        * length
        for row, length in ((0, 4), (1, 2))
    ]
    found = logit_regression(output_of(student, lengths=[4, 2]), batch)
    torch.testing.assert_close(found, torch.stack(each).sum() / 6)


@pytest.mark.parametrize("loss", ["soft", "logits"])
def test_gradcheck(loss: str) -> None:
    torch.manual_seed(3)
    teacher = output_of(torch.randn(2, 3, 4, dtype=torch.float64), lengths=[3, 2])
    batch = batch_with(2, big=teacher)

    def value(logits: Tensor) -> Tensor:
        output = output_of(logits, lengths=[3, 2])
        if loss == "soft":
            return soft_targets(output, batch, teacher="big", temperature=2.0, delay_frames=1)
        return logit_regression(output, batch, teacher="big", delay_frames=1)

    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (logits,))


def test_full_labels_and_the_teacher_itself_teach_the_same() -> None:
    torch.manual_seed(4)
    teacher, student = output_of(torch.randn(1, 9, 6)), output_of(torch.randn(1, 9, 6))
    batch = stored(teacher.log_probs_btv[0], Full())
    batch.teachers = {"big": teacher}
    for temperature in (1.0, 4.0):
        losses = [soft_targets(student, batch, teacher=t, temperature=temperature) for t in (None, "big")]
        torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        logit_regression(student, batch),
        logit_regression(student, batch, teacher="big"),
        atol=1e-3,
        rtol=1e-3,
    )


def test_at_temperature_one_it_is_the_cross_entropy_on_stored_labels() -> None:
    torch.manual_seed(5)
    batch = stored((3 * torch.randn(12, 20)).log_softmax(-1), TopP(0.8, 6, 0.01))
    student = output_of(torch.randn(1, 12, 20))
    symmetric: dict[str, Any] = {"blank_policy": "symmetric"}
    policies = [
        symmetric,
        {**symmetric, "spike_margin_frames": 0},
        {"blank_policy": "downweight", "blank_weight": 0.7},
    ]
    for policy in policies:
        for delay_frames in (0, 3, 12):
            expected = soft_cross_entropy(student, batch, delay_frames=delay_frames, **policy)
            found = soft_targets(student, batch, delay_frames=delay_frames, **policy)
            torch.testing.assert_close(found, expected)


def test_temperature_on_the_partition_by_hand() -> None:
    """Kept 0.64 and 0.32 of 4 classes, tail 0.04: roots 0.8, 0.5657, 0.2. The student is uniform, so its
    cells have 1/4, 1/4, 1/2."""
    log_probs = torch.tensor([[0.64, 0.32, 0.02, 0.02]]).log()
    batch = stored(log_probs, TopK(2, 0))
    student = output_of(torch.zeros(1, 1, 4))
    teacher = torch.tensor([0.64, 0.32, 0.04]).sqrt()
    cells = torch.tensor([0.25, 0.25, 0.5]).sqrt()
    expected = -4 * ((teacher / teacher.sum()) * (cells / cells.sum()).log()).sum()
    found = soft_targets(student, batch, temperature=2.0)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_memory_does_not_grow_with_vocabulary_times_kept() -> None:
    frames, vocab, kept, largest = 20, 2_000, 300, 0
    batch = stored(torch.randn(frames, vocab).log_softmax(-1), TopK(kept, 0.1))
    logits = torch.randn(1, frames, vocab, requires_grad=True)

    def watch(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(watch, lambda tensor: tensor):
        soft_targets(output_of(logits), batch, temperature=2.0).backward()
    assert 0 < largest <= frames * max(vocab, kept + 1)


def test_truncated_labels_have_no_logits() -> None:
    batch = stored((3 * torch.randn(5, 20)).log_softmax(-1), TopK(4, 0.1))
    with pytest.raises(LabelMismatchError, match=r"every class.*20 classes.*codec `Full`"):
        logit_regression(output_of(torch.randn(1, 5, 20)), batch)


def test_what_makes_no_sense_is_refused() -> None:
    student = output_of(torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match="temperature: .*more than 0; got 0.0"):
        soft_targets(student, batch_with(1, big=student), teacher="big", temperature=0.0)
    with pytest.raises(ConfigError, match="soft labels"):
        soft_targets(student, batch_with(1))
    longer = batch_with(1, big=ModelOutput(torch.zeros(1, 3, 3), torch.tensor([3])))
    for loss in (soft_targets, logit_regression):
        with pytest.raises(LabelMismatchError, match="expected 2 frames; got 3 frames"):
            loss(student, longer, teacher="big")
