"""A moving average of a model's weights during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """An exponential moving average of a model's parameters (Polyak & Juditsky 1992), which averages out
    the noise of single steps.

    Args:
        model: on its device, with its initial weights.
        decay: in the first steps at most (1 + step) / (10 + step), so that the initial weights are soon
            forgotten.
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
        """Update the average, after each optimiser step."""
        self.steps += 1
        step = int(self.steps)
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the model's weights and their average; a second call undoes the first."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            before = weight.detach().clone()
            weight.copy_(average)
            average.copy_(before)
