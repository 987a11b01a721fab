"""Teachers by description: small picklable objects that any process can turn into a loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from kdasr.features import feature_hash
from kdasr.interfaces import AcousticModel
from kdasr.models import load_model


@dataclass(frozen=True)
class Teacher:
    """A teacher that is ready to label.

    Attributes:
        model: in eval mode, on `device`.
        name: for people.
        weights_hash: sha256 of its weights.
        units_hash: of the units whose ids its posteriors are over.
        feature_hash: of the features it hears.
        device: where it runs.
    """

    model: AcousticModel
    name: str
    weights_hash: str
    units_hash: str
    feature_hash: str
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable


class TeacherSource(Protocol):
    """Describes a teacher; cheap to send to another process."""

    def load(self, device: str) -> Teacher: ...


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
            ModelError: there is none, or it is damaged.
        """
        loaded = load_model(self.folder, device=device)
        card = loaded.card
        return Teacher(
            loaded.model,
            str(card["class"]).rsplit(".", 1)[-1],
            str(card["weights_sha256"]),
            str(card["units_hash"]),
            feature_hash(),
            torch.device(device),
        )
