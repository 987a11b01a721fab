"""Spikes watched while a student learns from a teacher that runs beside it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdasr.losses import ctc
from kdasr.methods.consistency import both_views
from kdasr.methods.responses import soft_targets
from kdasr.methods.teachers import EmaTeacher, FrozenTeacher
from kdasr.models import save_model
from kdasr.students.conformer import ChunkConformer
from kdasr.text import CharUnits
from kdasr.training import Optimisation
from tests.speech import shards
from tests.test_stages import STUDENT, log_of, train

UNITS = CharUnits()
CTC = {"weight": 1.0, "loss": ctc}


class Late(ChunkConformer):
    """A student that says everything two frames (80 ms) later, and begins with blanks."""

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        log_probs_btv, lengths_out_b = super().offline(features_btf, lengths_b)
        blank_v = torch.full_like(log_probs_btv[0, 0], -1e3)
        blank_v[0] = 0.0
        late_btv = torch.cat([blank_v.expand(len(log_probs_btv), 2, -1), log_probs_btv[:, :-2]], 1)
        return late_btv, lengths_out_b


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio, and two students that may teach the next."""
    root = tmp_path_factory.mktemp("delays")
    shards(root / "labelled", 6)
    shards(root / "dev", 2, first_seed=100)
    shards(root / "unlabelled", 6, first_seed=200, with_text=False)
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        save_model(root / name, STUDENT(vocab_size=UNITS.vocab_size), UNITS)
    return root


def asking(name: str) -> dict[str, Any]:
    return {"weight": 1.0, "loss": functools.partial(soft_targets, teacher=name)}


def train_online(data: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    """The log of a training without stored labels."""
    settings: dict[str, Any] = {
        "labels": [],
        "teachers": {name: FrozenTeacher(str(data / name)) for name in ("other", "one")},
        "unlabelled_losses": {"soft": asking("one")},
    }
    train(data, out, **{**settings, **changed})
    return log_of(out)


def looks(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row["spike_offsets"] for row in log if "spike_offsets" in row]


STILL = Optimisation(steps=2, eval_every=1, peak_learning_rate=0.0)
NESTED = {"weight": 1.0, "loss": functools.partial(both_views, loss=asking("one")["loss"])}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"unlabelled_losses": {"soft": NESTED, "other": asking("other")}},
        {"labelled_losses": {"ctc": CTC, "soft": asking("one")}, "schedule": [["labelled", 1]]},
    ],
    ids=["unlabelled", "nested and first", "labelled"],
)
def test_the_offsets_are_those_of_the_first_teacher_that_a_loss_names(
    changed: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """The student is a late copy of it that does not learn."""
    model = functools.partial(Late, *STUDENT.args, **STUDENT.keywords)
    settings: dict[str, Any] = {"model": model, "start": str(data / "one"), "optimisation": STILL}
    found = looks(train_online(data, tmp_path / "model", **settings, **changed))
    # Before the first step and at each look.
    assert len(found) == 3 and found[0] == found[1] == found[2]
    assert found[0]["offsets_ms"] == [80.0] and found[0]["frame_shift_ms"] == 40.0
    assert found[0]["student_spikes"] == sum(found[0]["counts"]) > 0


def test_watching_changes_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        "model": functools.partial(STUDENT, dropout=0.1),
        "speeds": [0.9, 1.0, 1.1],
        "optimisation": Optimisation(steps=4, eval_every=1),
    }
    watched = train_online(data, tmp_path / "watched", **settings)
    monkeypatch.setattr("kdasr.stages.training.offset_watch", lambda *_: None)
    unwatched = train_online(data, tmp_path / "unwatched", **settings)
    assert len(looks(watched)) == 4 and not looks(unwatched)
    assert [{k: v for k, v in row.items() if k != "spike_offsets"} for row in watched] == unwatched


def test_a_teacher_that_is_no_fixed_measure_is_not_watched(data: Path, tmp_path: Path) -> None:
    for number, changed in enumerate(
        (
            {"teachers": {"one": EmaTeacher()}},
            {"teachers": {"one": FrozenTeacher(str(data / "one"), same_units=False)}},
            {"schedule": [["labelled", 1]]},
        )
    ):
        log = train_online(data, tmp_path / str(number), **changed)  # type: ignore[arg-type]
        assert "dev_wer" in log[-1] and not looks(log)
