"""How a student's loss changes if the teacher's posteriors are not stored in full."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.posterior_bank import Bank
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels import pad_soft_labels


def _student(bank: Bank, number: int) -> Tensor:
    if bank.student is not None:
        return bank.student[number].double()
    return (bank.teacher[number].double() / 2).log_softmax(-1)


class _GradientError:
    """Compares the loss's gradients with respect to the student's logits for full and stored posteriors."""

    def __init__(self, vocab_size: int) -> None:
        self._square_error = self._square = 0.0
        self._mean_error, self._mean = torch.zeros(vocab_size).double(), torch.zeros(vocab_size).double()

    def add(self, full_tv: Tensor, stored_tv: Tensor) -> None:
        error = stored_tv - full_tv
        self._square_error += float(error.square().sum())
        self._square += float(full_tv.square().sum())
        self._mean_error += error.sum(0)
        self._mean += full_tv.sum(0)

    def result(self) -> tuple[float, float]:
        return (
            math.sqrt(self._square_error / self._square),
            float(self._mean_error.norm() / self._mean.norm()),
        )


def losses(stored: list[SoftLabels], bank: Bank) -> tuple[float, tuple[float, float]]:
    """KL over kept classes and tail, and gradient errors of the cross-entropy over them."""
    errors, kl = _GradientError(bank.vocab_size), 0.0
    for number, labels in enumerate(stored):
        p_tv, q_tv = bank.teacher[number].double().exp(), _student(bank, number).exp()
        kept_tv, target_tv, tail_t = _scattered(labels, bank.vocab_size)
        kl += _partition_kl(p_tv, kept_tv, target_tv, tail_t)
        # d/dlogits of -(sum target log q + tail log q_tail) for targets that sum to `mass`.
        q_rest_tv = torch.where(kept_tv, 0.0, q_tv)
        spread_tv = q_rest_tv / q_rest_tv.sum(1, keepdim=True).clamp_min(1e-300) * tail_t[:, None]
        mass_t1 = target_tv.sum(1, keepdim=True) + tail_t[:, None]
        errors.add(q_tv - p_tv, q_tv * mass_t1 - target_tv - spread_tv)
    return kl / bank.num_frames, errors.result()


def _scattered(labels: SoftLabels, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whether classes are kept (T, V), their probabilities (T, V), and those of the tail (T,)."""
    batch = pad_soft_labels([labels])
    ids_tk, log_probs_tk = batch.ids_btk[0], batch.log_probs_btk[0].double()
    target_tv = torch.zeros(len(ids_tk), vocab_size).double().scatter_add_(1, ids_tk, log_probs_tk.exp())
    kept_tv = torch.zeros(len(ids_tk), vocab_size, dtype=torch.bool).scatter_(1, ids_tk, True)
    return kept_tv, target_tv, batch.tail_log_probs_bt[0].double().exp()


def _partition_kl(p_tv: Tensor, kept_tv: Tensor, target_tv: Tensor, tail_t: Tensor) -> float:
    p_tail_t = torch.where(kept_tv, 0.0, p_tv).sum(1)
    tiny = 1e-300
    kept = torch.where(
        kept_tv & (target_tv > 0), p_tv * (p_tv.clamp_min(tiny) / target_tv.clamp_min(tiny)).log(), 0.0
    )
    tail = torch.where(tail_t > 0, p_tail_t * (p_tail_t.clamp_min(tiny) / tail_t.clamp_min(tiny)).log(), 0.0)
    return float(kept.sum() + tail.sum())


def renormalised(log_probs_tv: Tensor, count: int) -> Tensor:
    """The likeliest `count` classes, normalised to sum to 1 and rounded to fp16; -inf for the others."""
    values, indices = log_probs_tv.topk(count, dim=1)
    rest = torch.full_like(log_probs_tv, -torch.inf)
    return rest.scatter(1, indices, values.log_softmax(-1).half().float())


def dense_losses(
    stored: list[Tensor], bank: Bank, reverse: bool = False
) -> tuple[float, tuple[float, float]]:
    """KL and gradient errors of dense targets; `reverse` swaps the KL's arguments, for targets with zeros."""
    errors, kl = _GradientError(bank.vocab_size), 0.0
    for number, item in enumerate(stored):
        p_log, t_log = bank.teacher[number].double(), item.double()
        first, second = (t_log, p_log) if reverse else (p_log, t_log)
        kl += float(torch.where(first.exp() > 0, first.exp() * (first - second), 0.0).sum())
        q_tv = _student(bank, number).exp()
        errors.add(q_tv - p_log.exp(), q_tv * t_log.exp().sum(1, keepdim=True) - t_log.exp())
    return kl / bank.num_frames, errors.result()
