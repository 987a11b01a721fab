"""Learning rates in phases, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from kdasr.errors import ConfigError
from kdasr.training import Optimisation
from kdasr.training.phases import Phase


def rates(steps: int, **settings: Any) -> list[float]:
    plan = Optimisation(steps=steps, **settings)
    return [plan.learning_rate(step) for step in range(steps)]


def test_each_phase_goes_from_its_start_towards_its_end() -> None:
    phases = [
        {"steps": 2, "start": 0.0, "end": 1.0},
        {"steps": 3, "start": 1.0},
        {"steps": 2, "start": 1.0, "end": 0.25, "shape": "exponential"},
        {"steps": 3, "start": 1.0, "end": 0.0, "shape": "cosine"},
        {"steps": 2, "start": 0.4, "end": 0.1, "shape": "exponential"},
    ]
    expected = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.75, 0.25, 0.4, 0.2]
    assert rates(12, phases=phases) == pytest.approx(expected)


def test_phases_come_again_lower_each_time() -> None:
    """Blocks as of a schedule [[unlabelled, 2], [labelled, 1]], the labelled ones lower."""
    phases = [Phase(2, 0.8), Phase(1, 0.2)]
    assert rates(7, phases=phases, phase_decay=0.5) == pytest.approx([0.8, 0.8, 0.2, 0.4, 0.4, 0.1, 0.2])


def test_without_phases_nothing_changes() -> None:
    assert rates(3, warmup_steps=2, peak_learning_rate=1.0) == pytest.approx([0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    "phase",
    [
        {"steps": 0, "start": 1.0},
        {"steps": 1.5, "start": 1.0},
        {"steps": 1, "start": -1.0},
        {"steps": 1, "start": float("inf")},
        {"steps": 1, "start": 1.0, "end": float("inf")},
        {"steps": 1, "start": 1.0, "end": -1.0},
        {"steps": 1, "start": 0.0, "end": 1.0, "shape": "exponential"},
        {"steps": 1, "start": 1.0, "end": 0.0, "shape": "exponential"},
        {"steps": 1, "start": 1.0, "shape": "square"},
        {"steps": 1, "start": 1.0, "stop": 2.0},
        {"start": 1.0},
    ],
)
def test_a_phase_that_cannot_be_followed_is_refused(phase: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optimisation\.phases"):
        Optimisation(steps=4, phases=[phase])


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="phase_decay"):
        Optimisation(steps=4, phases=[Phase(1, 1.0)], phase_decay=decay)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"steps": "many"},
        {"eval_every": 0},
        {"warmup_steps": 1.5},
        {"accumulate": True},
        {"accumulate": 0},
        {"nonfinite_patience": -1},
        {"weight_decay": -0.1},
        {"peak_learning_rate": float("nan")},
        {"peak_learning_rate": float("inf")},
        {"max_gradient_norm": -1.0},
        {"max_gradient_norm": 0.0},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"betas": (0.9,)},
        {"precision": "fp8"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"optimisation\.{next(iter(settings))}: "):
        Optimisation(**{"steps": 4, **settings})
