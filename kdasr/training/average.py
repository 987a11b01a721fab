"""The weights of a training run in, their moving average beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """An exponential moving average of a model's parameters (Polyak & Juditsky 1992): a model of many
    steps, without their noise, in place of that of the last step.

    Args:
        model: on its device, with its first weights.
        decay: of the average; in the first steps it is at most (1 + step) / (10 + step), so that the
            first weights do not linger.
    """

    steps: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._weights: list[Tensor] = [
            parameter for parameter in model.parameters() if parameter.requires_grad
        ]
        for number, weight in enumerate(self._weights):
            self.register_buffer(f"average_{number}", weight.detach().clone())

    @property
    def _averages(self) -> list[Tensor]:
        return [self.get_buffer(f"average_{number}") for number in range(len(self._weights))]

    @torch.no_grad()
    def update(self) -> None:
        """Called after each step of the optimiser."""
        self.steps += 1
        step = int(self.steps)
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and their average; twice is never."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            before = weight.detach().clone()
            weight.copy_(average)
            average.copy_(before)
