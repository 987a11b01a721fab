"""CTC whose labels are distributions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from kdasr.errors import ConfigError
from kdasr.interfaces import SoftLabelBatch
from kdasr.losses import best_path_ctc
from kdasr.methods.soft_ctc import Nearness, soft_ctc
from tests.methods.posteriors import batch_of, labels_from, logs, output_of

BLANK = {0: 1.0}


def random_output(rows: int, frames: int, classes: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, frames, classes, dtype=torch.float64).log_softmax(-1).requires_grad_()


def test_labels_without_doubt_make_it_ctc() -> None:
    sure = labels_from(
        [
            [BLANK, {2: 1.0}, {2: 1.0}, BLANK, {2: 1.0}, {3: 1.0}, BLANK, {3: 1.0}],
            [{1: 1.0}, BLANK, {4: 1.0}, BLANK, BLANK],
            [BLANK],
        ]
    )
    log_probs_btv = random_output(3, 8, 5)
    output = output_of(log_probs_btv, 8, 5, 1)
    expected = best_path_ctc(output, batch_of(sure))
    # torch's CTC gives the gradient that it would have behind a log_softmax: only there can both be compared.
    logits = log_probs_btv.detach().clone().requires_grad_()
    there = output_of(logits.log_softmax(-1), 8, 5, 1)
    (expected_gradient,) = torch.autograd.grad(best_path_ctc(there, batch_of(sure)), logits)
    for nearness in ("divergence", "mixture"):
        found = soft_ctc(output, batch_of(sure), nearness=nearness)
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)
        there = output_of(logits.log_softmax(-1), 8, 5, 1)
        (gradient,) = torch.autograd.grad(soft_ctc(there, batch_of(sure), nearness=nearness), logits)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=0)


# Blank, a spike of 1 or 2 with something left over, blank, a spike of 3; and how near a frame is to each.
DOUBTFUL = [{0: 0.9, 1: 0.1}, {1: 0.6, 2: 0.3}, {0: 1.0}, {3: 0.8, 0: 0.2}]


def divergence(target: list[float], found: list[float]) -> float:
    return sum(p * math.log(q / p) for p, q in zip(target, found, strict=True) if p > 0)


def mixture(target: list[float], found: list[float]) -> float:
    return math.log(sum(p * q for p, q in zip(target, found, strict=True)))


@pytest.mark.parametrize(("nearness", "score"), [("divergence", divergence), ("mixture", mixture)])
def test_it_sums_over_the_alignments_of_the_doubtful_spikes(nearness: Nearness, score: object) -> None:
    assert callable(score)
    student = [[0.5, 0.2, 0.1, 0.2], [0.1, 0.4, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25]]
    # Both on the partition of the classes that the teacher kept and the rest of them.
    first = [score([0.6, 0.3, 0.1], [q[1], q[2], q[0] + q[3]]) for q in student]
    second = [score([0.8, 0.2], [q[3], q[0]]) for q in student]
    blank = [math.log(q[0]) for q in student]
    rows = {"-": blank, "1": first, "2": second}
    total = 0.0
    for path in itertools.product("-12", repeat=3):
        if "".join(unit for unit, _ in itertools.groupby(path)).replace("-", "") == "12":
            total += math.exp(sum(rows[state][t] for t, state in enumerate(path)))
    found = soft_ctc(output_of(logs(*student)), batch_of(labels_from([DOUBTFUL])), nearness=nearness)
    assert found.item() == pytest.approx(-math.log(total) / 3, abs=1e-6)


@pytest.mark.parametrize("nearness", ["divergence", "mixture"])
def test_its_gradient_is_that_of_its_value(nearness: Nearness) -> None:
    torch.manual_seed(1)
    teacher = (3 * torch.randn(2, 7, 5, dtype=torch.float64)).log_softmax(-1)
    kept, ids = teacher.topk(3)
    labels = SoftLabelBatch(ids, kept, torch.log1p(-kept.exp().sum(-1)), torch.tensor([7, 5]))

    def loss(logits: Tensor) -> Tensor:
        return soft_ctc(output_of(logits.log_softmax(-1), 7, 5), batch_of(labels), nearness=nearness)

    assert torch.autograd.gradcheck(loss, (torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True),))


def test_a_student_as_doubtful_as_its_teacher_is_told_nothing() -> None:
    """The least divergence is at the teacher's own posteriors, where sure labels would ask for more."""
    frame = {1: 0.6, 2: 0.25, 0: 0.15}
    labels = batch_of(labels_from([[frame]]))
    logits = torch.tensor([[[0.15, 0.6, 0.25]]], dtype=torch.float64).log().requires_grad_()
    loss = soft_ctc(output_of(logits.log_softmax(-1)), labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


def test_the_surest_frame_speaks_for_a_spike_of_several() -> None:
    log_probs_btv = random_output(1, 4, 3).detach()
    long = labels_from([[{1: 0.6, 0: 0.4}, {1: 0.9, 2: 0.1}, {1: 0.7, 0: 0.3}, BLANK]])
    short = labels_from([[BLANK, {1: 0.9, 2: 0.1}, BLANK, BLANK]])
    assert soft_ctc(output_of(log_probs_btv), batch_of(long)).item() == pytest.approx(
        soft_ctc(output_of(log_probs_btv), batch_of(short)).item()
    )


def test_too_little_room_for_the_spikes_counts_as_nothing() -> None:
    log_probs_btv = random_output(1, 2, 4)
    crowded = labels_from([[{1: 1.0}, {2: 1.0}, {3: 1.0}]])
    loss = soft_ctc(output_of(log_probs_btv), batch_of(crowded))
    (gradient,) = torch.autograd.grad(loss, log_probs_btv)
    assert loss.item() == 0.0
    assert bool((gradient == 0).all())


def test_padding_changes_nothing() -> None:
    alone = random_output(1, 4, 4).detach()
    padded = torch.cat([alone, random_output(1, 3, 4).detach()], 1)
    labels = labels_from([DOUBTFUL])
    wide = labels_from([DOUBTFUL, [{2: 1.0}] * 7])
    both = torch.cat([padded, padded])
    other = soft_ctc(output_of(both[1:], 7), batch_of(labels_from([[{2: 1.0}] * 7]))) * 7
    found = soft_ctc(output_of(both, 4, 7), batch_of(wide)) * 11
    expected = soft_ctc(output_of(alone), batch_of(labels)) * 4 + other
    assert found.item() == pytest.approx(expected.item())


def test_an_unknown_nearness_is_refused() -> None:
    with pytest.raises(ConfigError, match="nearness"):
        soft_ctc(
            output_of(random_output(1, 4, 4)),
            batch_of(labels_from([DOUBTFUL])),
            nearness="near",  # type: ignore[arg-type]
        )


def test_a_student_that_is_sure_still_learns_of_what_was_not_kept() -> None:
    """The gradient for the logits is q - p on the partition, however little is left of q."""
    labels = labels_from([[{1: 0.6, 0: 0.1}]])
    logits = torch.tensor([[[0.0, 20.0, 0.0, 0.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_ctc(output_of(logits.log_softmax(-1)), batch_of(labels)), logits)
    torch.testing.assert_close(gradient[0, 0], torch.tensor([-0.1, 0.4, -0.15, -0.15]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("nearness", ["divergence", "mixture"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_round_it(nearness: Nearness, dtype: torch.dtype) -> None:
    """In half precision 1e-30 is 0, and 0 · log 0 is not a number."""
    labels = labels_from([[BLANK, {2: 0.9, 1: 0.1}, BLANK, {3: 1.0}]])
    logits = 30 * torch.eye(4)[None, [0, 2, 0, 3]]
    found = []
    for enabled in (False, True):
        x = logits.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = soft_ctc(output_of(x.log_softmax(-1)), batch_of(labels), nearness=nearness)
        found += [loss.detach(), *torch.autograd.grad(loss, x)]
    assert math.isfinite(float(found[0]))
    torch.testing.assert_close(found[2:], found[:2])
