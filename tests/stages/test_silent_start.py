"""Which students begin in silence, for how long, and how much of it there is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr.interfaces import ModelOutput
from kdasr.loader import Stream
from kdasr.losses import best_path_ctc, ctc, silent_start, soft_cross_entropy
from kdasr.methods.consistency import both_views, consistency
from kdasr.methods.intermediate import IntermediateHead
from kdasr.methods.responses import soft_targets
from kdasr.methods.sequences import nbest_ctc
from kdasr.methods.teacher_free import label_smoothing
from kdasr.methods.teachers import FrozenTeacher
from kdasr.models import load_model
from kdasr.stages.checks import begins_in_silence
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits
from kdasr.training import Optimisation
from tests.test_stages import STUDENT, log_of, train

UNITS = CharUnits()
CTC = {"weight": 1.0, "loss": ctc}
STILL = {"eval_every": 4, "peak_learning_rate": 0.0, "warmup_steps": 1}


def begun(data: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    """The log of a training on transcribed audio alone."""
    settings: dict[str, Any] = {
        "model": functools.partial(STUDENT, dropout=0.0),
        "labelled_losses": {"ctc": CTC},
        "schedule": [["labelled", 1]],
        "optimisation": Optimisation(steps=4, **STILL),
        "tail_share": 0.0,
        "lead_share": 0.0,
        "joined_share": 0.0,
    }
    train(data, out, **{**settings, **changed})
    return log_of(out)


def test_it_falls_in_a_line_over_half_of_the_training_and_is_no_part_of_the_dev_loss(
    data: Path, tmp_path: Path
) -> None:
    log = begun(data, tmp_path / "model", silent_start=3.0)
    model = load_model(tmp_path / "model").model
    stream = Stream([data / "labelled"], 8.0, 4, units=UNITS)
    for step, weight in enumerate([3.0, 1.5]):
        batch = stream.batch(step)
        with torch.no_grad():
            output = ModelOutput(*model.offline(batch.features_btf, batch.feature_lengths_b))
        expected = weight * silent_start(output, batch).item()
        assert log[step]["labelled/silent_start"] == pytest.approx(expected, rel=1e-4)
    assert not any("labelled/silent_start" in row for row in log[2:])
    plain = begun(data, tmp_path / "plain", silent_start=0.0)
    assert not any("labelled/silent_start" in row for row in plain)
    (dev, without) = ([row["dev_loss"] for row in rows if "dev_loss" in row] for rows in (log, plain))
    assert dev == without


def test_teachers_begin_so_too_and_who_goes_on_from_another_does_not(data: Path, tmp_path: Path) -> None:
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "kernel_frames": 3}
    teacher = functools.partial(ConformerTeacher, **sizes)
    assert "labelled/silent_start" in begun(data, tmp_path / "teacher", model=teacher)[0]
    assert "labelled/silent_start" in begun(data, tmp_path / "student")[0]
    further = begun(data, tmp_path / "further", start=str(tmp_path / "student"))
    assert not any("labelled/silent_start" in row for row in further)


def test_where_a_teacher_says_when_it_is_left_out(data: Path, tmp_path: Path) -> None:
    begun(data, tmp_path / "peer")
    taught = {
        "labelled_losses": {"ctc": {"weight": 1.0, "loss": functools.partial(soft_targets, teacher="peer")}},
        "teachers": {"peer": FrozenTeacher(model=str(tmp_path / "peer"))},
    }
    assert "labelled/silent_start" not in begun(data, tmp_path / "model", **taught)[0]


def test_a_recipe_may_have_its_own_which_is_no_part_of_the_dev_loss_either(
    data: Path, tmp_path: Path
) -> None:
    own = {"weight": 0.7, "until": 0.25, "loss": functools.partial(silent_start, frames=2)}
    plain = begun(data, tmp_path / "plain", silent_start=0.0)
    for name in ("silent_start", "quiet"):
        log = begun(data, tmp_path / name, labelled_losses={"ctc": CTC, name: own})
        rows = [{key for key in row if "/" in key} for row in log if "dev_loss" not in row]
        assert rows == [{"labelled/ctc", f"labelled/{name}"}, *[{"labelled/ctc"}] * 3]
        assert log[-1]["dev_loss"] == plain[-1]["dev_loss"]


def test_which_losses_leave_it_to_the_model() -> None:
    def begins(*losses: Any) -> bool:
        return begins_in_silence({str(n): {"weight": 1.0, "loss": loss} for n, loss in enumerate(losses)})

    for loss in (ctc, best_path_ctc, nbest_ctc):
        assert begins(loss) and begins(soft_cross_entropy, functools.partial(both_views, loss=loss))
    for loss in (soft_cross_entropy, soft_targets, consistency, label_smoothing, silent_start):
        assert not begins(loss) and not begins(functools.partial(both_views, loss=loss))
    assert not begins() and not begins(ctc, functools.partial(silent_start, frames=3))
    assert not begins(soft_cross_entropy, IntermediateHead(layer=0, loss=ctc))
