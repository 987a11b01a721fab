"""A discriminator that tells the student's features from the teacher's; the student learns to deceive it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, ModelOutput
from kdasr.methods.features import Hint


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def reverse_gradient(x: Tensor, factor: float = 1.0) -> Tensor:
    """`x` unchanged, its gradient multiplied by `-factor` (Ganin & Lempitsky 2015, arXiv 1409.7495)."""
    reversed_: Tensor = _Reversal.apply(x, factor)
    return reversed_


class Discriminator(Hint):
    """-log D(teacher) - log(1 - D(student)), averaged over frames: the game of Goodfellow et al. 2014
    (arXiv 1406.2661, eq. 1) between a discriminator D and the student's features, as in distillation
    with adversarial networks (Xu et al. 2018, arXiv 1709.00513).

    One loss trains both: it is D's loss, and its gradient is reversed before it reaches the student (and
    the adapter that maps the student's features to the teacher's width). At equilibrium it is 2 log 2.

    Args:
        width: hidden units of D, which sees `context_frames` frames at a time.
        context_frames: an odd number.
        reversal: factor of the reversed gradient that the student receives.
        further: as for `Hint`.

    Raises:
        ConfigError: an even number of context frames, or no hidden units.
    """

    def __init__(
        self, *, width: int = 64, context_frames: int = 5, reversal: float = 1.0, **further: Any
    ) -> None:
        super().__init__(**further)
        if width < 1 or context_frames < 1 or context_frames % 2 == 0:
            raise ConfigError(
                "invalid size of the discriminator",
                where="Discriminator",
                expected="an odd number of context_frames, and width >= 1",
                got=f"context_frames {context_frames}, width {width}",
            )
        self.config |= {"width": width, "context_frames": context_frames, "reversal": reversal}
        self.reversal = reversal
        self.discriminator = nn.Sequential(
            nn.LazyConv1d(width, context_frames, padding=context_frames // 2),
            nn.SiLU(),
            nn.Conv1d(width, 1, kernel_size=1),
        )

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        """The loss in nats, averaged over the frames."""
        pairs = self.pairs(output, batch)
        valid_bt1 = pairs.valid_bt[..., None]
        student_bt = self._logits(reverse_gradient(pairs.student_btd, self.reversal) * valid_bt1)
        teacher_bt = self._logits(pairs.teacher_btd * valid_bt1)
        return pairs.mean(functional.softplus(-teacher_bt) + functional.softplus(student_bt))

    def _logits(self, x_btd: Tensor) -> Tensor:
        logits_bt: Tensor = self.discriminator(x_btd.transpose(1, 2)).squeeze(1)
        return logits_bt
