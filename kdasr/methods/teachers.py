"""Online teachers: models that run beside the student, for the losses that request them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError, LabelMismatchError
from kdasr.interfaces import Batch, ModelOutput, TrainableModel
from kdasr.models import load_model, read_card
from kdasr.recording import Recorded
from kdasr.teachers.ensemble import EnsembleTeacher


class FrozenTeacher:
    """A trained model, or the average of several, frozen and run without the student's augmentation.

    Args:
        model: a model folder, or several of them.
        weights, average: for several models; see `kdasr.teachers.ensemble.EnsembleTeacher`. An average
            has no layers; to use the layers of each model, make each a separate teacher.
        same_units: refuse a student with other units or another frame rate. False if only the teacher's
            layers are used: its posteriors are then withheld if they differ.
    """

    def __init__(
        self,
        model: str | Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        average: Literal["linear", "log"] = "linear",
        same_units: bool = True,
    ) -> None:
        self.folders = [Path(folder) for folder in ([model] if isinstance(model, str) else model)]
        self.weights, self.average, self.same_units = weights, average, same_units
        self._recorded: Recorded | None = None
        self._comparable = True

    @property
    def config(self) -> dict[str, Any]:
        """The models, as hashes of their weights, read only on access: a recipe is built before the recipes
        that train its teachers have run."""
        config: dict[str, Any] = {"models": [read_card(folder)["weights_sha256"] for folder in self.folders]}
        if len(self.folders) > 1:
            config |= {"weights": list(self.weights or []), "average": self.average}
        return config

    def attach(self, student: TrainableModel, *, units_hash: str, statistics: tuple[Tensor, Tensor]) -> None:
        """Load the model.

        Raises:
            LabelMismatchError: the student has other units or another frame rate.
            ModelError: the model cannot be loaded.
            ConfigError: several models that do not fit each other.
        """
        loaded = [load_model(folder) for folder in self.folders]
        models = [one.model for one in loaded]
        for folder, one in zip(self.folders, loaded, strict=True):
            pairs = {
                "units": (one.units.hash, units_hash),
                "feature frames for each output": (one.model.subsampling, student.subsampling),
            }
            for what, (theirs, ours) in pairs.items():
                if self.same_units:
                    _check_same(folder, what, theirs, ours)
                self._comparable &= theirs == ours
        together = models[0] if len(models) == 1 else EnsembleTeacher(models, self.weights, self.average)
        self._recorded = Recorded(together.eval().requires_grad_(False))

    def __call__(self, batch: Batch, student_features_btf: Tensor) -> ModelOutput:
        """The teacher's output for the clean audio of a batch, without gradients; V = 0 if its units or frame
        rate are not the student's."""
        assert self._recorded is not None
        features_btf = clean_features(batch)
        with torch.no_grad():
            output: ModelOutput = self._recorded.to(features_btf.device)(
                features_btf, batch.feature_lengths_b
            )
        return output if self._comparable else replace(output, log_probs_btv=output.log_probs_btv[..., :0])

    def after_step(self, student: TrainableModel) -> None:
        """Do nothing: the teacher is frozen."""


class EmaTeacher(nn.Module):
    """An exponential moving average of the student's own weights (Tarvainen & Valpola 2017, arXiv
    1703.01780: θ' ← α θ' + (1 - α) θ), run without augmentation.

    Args:
        decay: α; in the first steps at most step / (step + 1), which gives the plain average.
    """

    steps: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ConfigError(
                "the decay of the moving average is out of range",
                where="decay",
                expected="0 <= decay < 1",
                got=decay,
            )
        self.decay = decay
        self.config: dict[str, Any] = {"decay": decay}
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def attach(self, student: TrainableModel, *, units_hash: str, statistics: tuple[Tensor, Tensor]) -> None:
        """Begin as a copy of the student."""
        self.average = Recorded(copy.deepcopy(student)).requires_grad_(False)

    def forward(self, batch: Batch, student_features_btf: Tensor) -> ModelOutput:
        """The averaged model's output for the clean audio of a batch, without gradients."""
        self.average.eval()
        with torch.no_grad():
            output: ModelOutput = self.average(clean_features(batch), batch.feature_lengths_b)
        return output

    @torch.no_grad()
    def after_step(self, student: TrainableModel) -> None:
        """Move the average towards the student."""
        assert isinstance(student, nn.Module)
        self.steps += 1
        # A tensor, since converting it to a number would wait for the GPU.
        share = 1.0 - (self.steps / (self.steps + 1)).clamp_max(self.decay)
        here, there = self.average.model.state_dict(), student.state_dict()
        for name, value in here.items():
            if value.is_floating_point():
                value.lerp_(there[name], share.to(value.dtype))
            else:
                value.copy_(there[name])


def clean_features(batch: Batch) -> Tensor:
    """(B, T, 80) features of the audio without anything added for the student alone."""
    return batch.features_btf if batch.teacher_features_btf is None else batch.teacher_features_btf


def _check_same(where: Path, what: str, teacher: object, student: object) -> None:
    if teacher != student:
        raise LabelMismatchError(
            f"the teacher and the student differ in {what}",
            where=where,
            expected=f"{what} of the student: {student}",
            got=teacher,
            fix="Train the student with `units:` set to the teacher's folder, or set same_units: false "
            "and use losses that compare layers only.",
        )
