"""The benchmark's figures for what stored labels lose agree with autograd through the real loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.label_losses import dense_losses, losses, renormalised
from benchmarks.posterior_bank import Bank
from kdasr.interfaces import SoftLabels
from kdasr.losses import partition_cross_entropy
from kdasr.soft_labels import Codec, Full, Sampled, TopK, TopP, pad_soft_labels
from tests.soft_labels.posteriors import posteriors


def make_bank() -> Bank:
    teacher = [posteriors(n, 12, n, 0.4) for n in (20, 33)]
    student = [posteriors(n, 12, n + 100, 0.2) for n in (20, 33)]
    return Bank(["a", "b"], teacher, teacher, student, 2.12, 1.0, 1.0)


def gradient(labels: SoftLabels, student: Tensor) -> Tensor:
    logits = student.double().clone().requires_grad_()
    batch = pad_soft_labels([labels])
    partition_cross_entropy(logits.log_softmax(-1)[None], batch).sum().backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize(
    "codec",
    [TopP(0.9, 4, 0.5), TopP(0.99, 16, 0.1), TopK(3), Sampled(6), Full()],
    ids=lambda codec: codec.name,
)
def test_gradient_errors_are_those_of_the_training_loss(codec: Codec) -> None:
    bank = make_bank()
    stored = [codec.encode(item, key) for item, key in zip(bank.teacher, bank.keys, strict=True)]
    assert bank.student is not None
    full = torch.cat([gradient(Full().encode(t), s) for t, s in zip(bank.teacher, bank.student, strict=True)])
    found = torch.cat([gradient(labels, s) for labels, s in zip(stored, bank.student, strict=True)])
    wanted_error = float((found - full).norm() / full.norm())
    wanted_bias = float((found - full).sum(0).norm() / full.sum(0).norm())
    _, (error, bias) = losses(stored, bank)
    assert error == pytest.approx(wanted_error, rel=1e-3, abs=1e-6)
    assert bias == pytest.approx(wanted_bias, rel=1e-3, abs=1e-6)


def test_full_labels_lose_nothing_and_coarser_ones_lose_more() -> None:
    bank = make_bank()

    def kl(codec: Codec) -> float:
        return losses([codec.encode(t, k) for t, k in zip(bank.teacher, bank.keys, strict=True)], bank)[0]

    assert kl(Full()) == pytest.approx(0, abs=1e-6)
    assert 0 < kl(TopP(0.99, 12, 0.1)) < kl(TopP(0.99, 12, 0.5)) < kl(TopP(0.99, 12, 1.0))


def test_renormalised_top_k_loses_the_mass_it_leaves_out() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    kept = renormalised(log_probs, 2)
    assert kept.exp()[0].tolist() == pytest.approx([0.625, 0.375, 0], abs=1e-3)
    bank = Bank(["a"], [log_probs], [log_probs], None, 0.04, 1.0, 1.0)
    kl, _ = dense_losses([kept], bank, reverse=True)
    assert kl == pytest.approx(-torch.tensor(0.8).log().item(), abs=1e-3)
