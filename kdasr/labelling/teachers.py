"""Teachers by description: small picklable objects that any process can turn into a loaded model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from kdasr.errors import UnitsError
from kdasr.models import load_model
from kdasr.teachers.base import Teacher, TeacherSource
from kdasr.teachers.ensemble import EnsembleTeacher

__all__ = ["Ensemble", "FolderTeacher", "Teacher", "TeacherSource"]


@dataclass(frozen=True)
class FolderTeacher:
    """The teacher in a model folder.

    Attributes:
        folder: as `kdasr.models.save_model` wrote it.
    """

    folder: Path

    def load(self, device: str) -> Teacher:
        """The teacher on `device`.

        Raises:
            ModelError: the folder holds no model, or a damaged one.
        """
        loaded = load_model(self.folder, device=device)
        card = loaded.card
        return Teacher(
            loaded.model,
            str(card["class"]).rsplit(".", 1)[-1],
            str(card["weights_sha256"]),
            loaded.units,
            torch.device(device),
        )


@dataclass(frozen=True)
class Ensemble:
    """Several model folders as one teacher; see `kdasr.teachers.ensemble.EnsembleTeacher`.

    Attributes:
        folders: of models with the same units.
        weights, average, temperatures: of the ensemble.
    """

    folders: Sequence[str | Path]
    weights: Sequence[float] | None = None
    average: Literal["linear", "log"] = "linear"
    temperatures: Sequence[float] | None = None

    def load(self, device: str) -> Teacher:
        """The ensemble on `device`.

        Raises:
            ModelError: a folder holds no model, or a damaged one.
            ConfigError, UnitsError: the models do not fit each other.
        """
        members = [FolderTeacher(Path(folder)).load(device) for folder in self.folders]
        model = EnsembleTeacher(
            [member.model for member in members], self.weights, self.average, self.temperatures
        )
        units = {str(folder): m.units.hash for folder, m in zip(self.folders, members, strict=True)}
        if len(set(units.values())) > 1:
            raise UnitsError(
                "the teachers of an ensemble have different units",
                got=units,
                fix="Train them with the units of one of them.",
            )
        recipe = (model.weights, model.average, model.temperatures, [m.weights_hash for m in members])
        return Teacher(
            model,
            "ensemble of " + ", ".join(member.name for member in members),
            hashlib.sha256(repr(recipe).encode()).hexdigest(),
            members[0].units,
            torch.device(device),
        )
