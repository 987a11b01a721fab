"""Several teachers as one: the weighted average of their posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError
from kdasr.interfaces import AcousticModel


class EnsembleTeacher(nn.Module):
    """Averages the posteriors of teachers with the same units and frame rate.

    Args:
        teachers: what to average.
        weights: one for each teacher, normalised to sum to 1; None for equal ones.
        average: `linear` averages probabilities; `log` averages log-probabilities and normalises
            (a product of experts, Hinton 2002), which is sharper if the teachers agree.
        temperatures: one for each teacher, softening (> 1) or sharpening (< 1) its posteriors before
            averaging; None for 1.

    Raises:
        ConfigError: the teachers do not fit each other, or weights or temperatures are invalid.
    """

    def __init__(
        self,
        teachers: Sequence[AcousticModel],
        weights: Sequence[float] | None = None,
        average: Literal["linear", "log"] = "linear",
        temperatures: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        weights = list(weights) if weights is not None else [1.0] * len(teachers)
        temperatures = list(temperatures) if temperatures is not None else [1.0] * len(teachers)
        _check(teachers, weights, average, temperatures)
        self.teachers = nn.ModuleList(teachers)  # type: ignore[arg-type]  # teachers are modules too
        self.weights = [weight / sum(weights) for weight in weights]
        self.average, self.temperatures = average, temperatures
        self.vocab_size, self.subsampling = teachers[0].vocab_size, teachers[0].subsampling
        self.config: dict[str, Any] = {
            "teachers": [teacher.config for teacher in teachers],
            "weights": self.weights,
            "average": average,
            "temperatures": temperatures,
        }

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 80) raw log-mel and (B,) lengths to (B, T', V) averaged log-probs and (B,) frames."""
        terms, frames_b = [], None
        for teacher, weight, temperature in zip(self.teachers, self.weights, self.temperatures, strict=True):
            log_probs_btv, frames_b = teacher.offline(features_btf, lengths_b)  # type: ignore[operator]
            if temperature != 1.0:
                log_probs_btv = (log_probs_btv.float() / temperature).log_softmax(-1)
            offset = torch.tensor(weight).log() if self.average == "linear" else None
            terms.append(log_probs_btv * weight if offset is None else log_probs_btv + offset)
        assert frames_b is not None
        stacked = torch.stack(terms)
        if self.average == "linear":
            return stacked.logsumexp(0), frames_b
        return stacked.sum(0).log_softmax(-1), frames_b


def _check(
    teachers: Sequence[AcousticModel], weights: list[float], average: str, temperatures: list[float]
) -> None:
    if not teachers or len(weights) != len(teachers) or len(temperatures) != len(teachers):
        raise ConfigError(
            "an ensemble needs teachers, and a weight and a temperature for each of them",
            where="Ensemble",
            got=f"{len(teachers)} teachers, {len(weights)} weights, {len(temperatures)} temperatures",
        )
    if not all(weight > 0 for weight in weights) or not all(value > 0 for value in temperatures):
        raise ConfigError(
            "weights and temperatures must be positive",
            where="Ensemble",
            got=f"weights {weights}, temperatures {temperatures}",
        )
    if average not in ("linear", "log"):
        raise ConfigError("unknown average", where="average", expected="linear or log", got=average)
    for name in ("vocab_size", "subsampling"):
        values = [getattr(teacher, name) for teacher in teachers]
        if len(set(values)) > 1:
            raise ConfigError(
                f"the teachers of an ensemble differ in {name}",
                where="Ensemble",
                expected="one value",
                got=values,
            )
