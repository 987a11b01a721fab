"""The settings of the optimisation, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from kdasr.errors import ConfigError
from kdasr.training.muon import OptimiserKind
from kdasr.training.phases import Phase, rate_in_phases, read_phases

_PRECISIONS = ("fp32", "bf16", "fp16")
# The least value of each numeric setting; a setting whose least value is an int must be a whole number.
_LEAST: dict[str, float] = {
    "steps": 1,
    "eval_every": 1,
    "checkpoint_every": 0,
    "warmup_steps": 0,
    "accumulate": 1,
    "peak_learning_rate": 0.0,
    "weight_decay": 0.0,
    "max_gradient_norm": 0.0,
    "nonfinite_patience": 0,
    "ema_decay": 0.0,
    "phase_decay": 0.0,
}
# Further conditions: error text, and check.
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "betas": (
        "two numbers from 0 to less than 1",
        lambda betas: len(betas) == 2 and all(0.0 <= beta < 1.0 for beta in betas),
    ),
    "precision": (" or ".join(_PRECISIONS), lambda precision: precision in _PRECISIONS),
    "optimiser": (" or ".join(get_args(OptimiserKind)), lambda kind: kind in get_args(OptimiserKind)),
    "ema_decay": ("0 for none, or less than 1", lambda decay: decay < 1.0),
    "phase_decay": ("more than 0, at most 1", lambda decay: 0.0 < decay <= 1.0),
    "max_gradient_norm": ("more than 0", lambda norm: norm > 0.0),
}


@dataclass(slots=True, kw_only=True)
class Optimisation:
    """How the weights are optimised.

    Attributes:
        steps: training steps in all, of `accumulate` batches each.
        eval_every: steps between two dev set evaluations, each with a checkpoint.
        checkpoint_every: steps between two further checkpoints for resuming; 0 for none.
        peak_learning_rate: reached linearly after `warmup_steps`, then a cosine down to zero …
        phases: … unless the learning rate goes through phases, `[{steps: 300, start: 0.003, end: 0.001,
            shape: cosine}, …]` (see `kdasr.training.phases`), repeated until all steps are done …
        phase_decay: … with rates multiplied by this factor in each further round.
        optimiser: "adamw", or "muon" for the matrices of hidden layers and AdamW for the rest.
        weight_decay: of all parameters, decoupled.
        betas: of AdamW.
        max_gradient_norm: gradients are scaled down to at most this norm.
        nonfinite_patience: consecutive steps that may have a NaN or infinite gradient. Such a step is
            skipped, and the log names its utterances. One more ends the training.
        precision: "fp32", "bf16" or "fp16" (autocast).
        accumulate: batches whose mean gradient makes a step. The processes that `torchrun` starts
            share them, so the same recipe gives the same model on any number of GPUs up to this.
        ema_decay: decay of a moving average of the weights, which is then evaluated and becomes the
            model; 0 for none.
        compile: run the model's layers through torch.compile: a minute or more at the beginning,
            then faster steps, on GPUs.
    """

    steps: int
    eval_every: int = 200
    checkpoint_every: int = 0
    peak_learning_rate: float = 2e-3
    warmup_steps: int = 150
    optimiser: OptimiserKind = "adamw"
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.98)
    max_gradient_norm: float = 5.0
    nonfinite_patience: int = 3
    precision: str = "fp32"
    accumulate: int = 1
    ema_decay: float = 0.0
    compile: bool = False
    phases: Sequence[Phase | Mapping[str, Any]] = ()
    phase_decay: float = 1.0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            whole = isinstance(least, int)
            good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not good or not least <= value < math.inf:
                raise ConfigError(
                    "the value is out of range",
                    where=f"optimisation.{name}",
                    expected=f"a {'whole ' if whole else ''}number, {least} or more",
                    got=repr(value),
                )
        for name, (expected, is_allowed) in _ALLOWED.items():
            if not is_allowed(value := getattr(self, name)):
                raise ConfigError(
                    "the value is not allowed",
                    where=f"optimisation.{name}",
                    expected=expected,
                    got=value,
                )
        self.phases = read_phases(self.phases)

    def check_shared_by(self, count: int, name: str) -> None:
        """Check that each of `count` processes has a batch in every step of the training `name`.

        Raises:
            ConfigError: a step has fewer than `count` batches.
        """
        if self.accumulate < count:
            raise ConfigError(
                f"{count} processes cannot share a step of {self.accumulate} batches",
                where=f"{name}: optimisation.accumulate",
                expected=f"at least {count}, ideally a multiple of it",
                got=self.accumulate,
                fix=f"Add --optimisation.accumulate {count} (a step is then {count} batches), "
                "or start fewer processes.",
            )

    def idle_share(self, count: int) -> float:
        """The share of the time that `count` processes spend waiting for those with one batch more."""
        rounds = math.ceil(self.accumulate / count)
        return 1 - self.accumulate / (rounds * count)

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        if phases := read_phases(self.phases):
            return rate_in_phases(phases, self.phase_decay, step)
        if step < self.warmup_steps:
            return self.peak_learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
