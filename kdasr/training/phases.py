"""Learning rates in consecutive phases, for schedules in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from kdasr.errors import ConfigError

Shape = Literal["linear", "exponential", "cosine"]


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps during which the learning rate goes from one value to another.

    Attributes:
        steps: how many.
        start: learning rate of the first step.
        end: that of the step after the last; None for `start` throughout.
        shape: of the curve: linear, exponential (a constant factor per step), or half a cosine.
    """

    steps: int
    start: float
    end: float | None = None
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        rates = [self.start] if self.end is None else [self.start, self.end]
        good = isinstance(self.steps, int) and self.steps >= 1 and all(0 <= rate < math.inf for rate in rates)
        if self.shape == "exponential":
            good &= min(rates) > 0
        if not good or self.shape not in get_args(Shape):
            raise ConfigError(
                "invalid learning rate phase",
                where="optimisation.phases",
                expected="whole steps >= 1, finite rates >= 0 (exponential: > 0), shape "
                + ", ".join(get_args(Shape)),
                got=self,
            )

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step` of this phase, counted from 0."""
        end = self.start if self.end is None else self.end
        share = step / self.steps
        if self.shape == "exponential":
            return self.start * (end / self.start) ** share
        if self.shape == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        return self.start + (end - self.start) * share


def read_phases(entries: Sequence[Phase | Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Phases as a recipe writes them: `[{steps: 300, start: 0.003, end: 0.001}, …]`.

    Raises:
        ConfigError: an unknown or missing key, or a phase that cannot be followed.
    """
    try:
        return tuple(entry if isinstance(entry, Phase) else Phase(**entry) for entry in entries)
    except TypeError as error:
        raise ConfigError(
            "a learning rate phase cannot be read",
            where="optimisation.phases",
            expected=", ".join(field.name for field in fields(Phase)),
            got=error,
        ) from error


def rate_in_phases(phases: Sequence[Phase], decay: float, step: int) -> float:
    """The learning rate of step `step`: the phases repeat in order, and each round multiplies the rates by
    `decay` (arXiv 1904.01624 lowers them from block to block)."""
    rounds, step = divmod(step, sum(phase.steps for phase in phases))
    for phase in phases:
        if step < phase.steps:
            return decay**rounds * phase.learning_rate(step)
        step -= phase.steps
    raise AssertionError("a step lies in some phase")
