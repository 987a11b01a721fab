"""The training loop: it learns, resumes to the bit, stops at NaN, and refuses what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdasr.augment import SpecAugment
from kdasr.errors import ConfigError, NonFiniteLossError
from kdasr.interfaces import Batch
from kdasr.loader import Stream
from kdasr.losses import ctc
from kdasr.models import load_model
from kdasr.students.conformer import ChunkConformer
from kdasr.text import CharUnits
from kdasr.training import Optimisation, Training
from tests.speech import shards

UNITS = CharUnits()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    shards(root / "labelled", 60)
    shards(root / "dev", 12, first_seed=1_000)
    return root


def training(
    data: Path, checkpoints: Path, *, steps: int = 12, loss: Any = ctc, workers: int = 0, **optimisation: Any
) -> Training:
    torch.manual_seed(0)
    model = ChunkConformer(
        vocab_size=UNITS.vocab_size, width=32, num_layers=1, expansion=2, kernel_frames=5, dropout=0.1,
        lookahead_frames=1,
    )  # fmt: skip
    settings = {"eval_every": 5, "peak_learning_rate": 1e-2, "warmup_steps": 5, **optimisation}
    return Training(
        name="tiny",
        model=model,
        units=UNITS,
        streams={"labelled": Stream([data / "labelled"], 8.0, 3, units=UNITS, speeds=(0.9, 1.0, 1.1))},
        schedule=[("labelled", 1)],
        losses={"labelled": {"ctc": (1.0, loss)}},
        dev=Stream([data / "dev"], 20.0, 3, units=UNITS),
        optimisation=Optimisation(steps=steps, **settings),
        augment=SpecAugment(max_frequency_bins=8, max_time_frames=5, max_warp=0.05),
        seed=3,
        checkpoints=checkpoints,
        num_workers=workers,
        device="cpu",
    )


def losses(checkpoints: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (checkpoints / "train.jsonl").read_text().splitlines()]


class StopAt:
    """A loss that fails at its n-th training call, as a killed process would stop; it passes for `ctc`."""

    __qualname__ = ctc.__qualname__

    def __init__(self, call: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.calls_left, self.error = call, error

    def __call__(self, log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        self.calls_left -= torch.is_grad_enabled()
        if self.calls_left == 0:
            raise self.error
        return ctc(log_probs, lengths, batch)


@pytest.mark.slow
def test_it_learns(data: Path, tmp_path: Path) -> None:
    facts = training(data, tmp_path / "c", steps=500, eval_every=100).run(tmp_path / "model")
    assert facts["dev_wer"] < 10.0
    loaded = load_model(tmp_path / "model")
    assert loaded.card["training"]["dev_wer"] == facts["dev_wer"]
    assert loaded.units.hash == UNITS.hash
    assert float(loaded.model.normalise.mean_f.abs().sum()) > 0


@pytest.mark.parametrize(("killed_at", "workers"), [(3, 0), (9, 0), (9, 2)])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    data: Path, tmp_path: Path, killed_at: int, workers: int
) -> None:
    training(data, tmp_path / "whole", checkpoint_every=2).run(tmp_path / "whole-model")
    with pytest.raises(KeyboardInterrupt):
        killed = training(data, tmp_path / "cut", loss=StopAt(killed_at), checkpoint_every=2, workers=workers)
        killed.run(tmp_path / "cut-model")
    assert not (tmp_path / "cut-model").exists()
    training(data, tmp_path / "cut", checkpoint_every=2, workers=workers).run(tmp_path / "cut-model")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, two = (load_model(tmp_path / f"{name}-model").model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_run_trains_no_further(data: Path, tmp_path: Path) -> None:
    training(data, tmp_path / "c").run(tmp_path / "model")
    before = losses(tmp_path / "c")
    training(data, tmp_path / "c", loss=StopAt(1, AssertionError)).run(tmp_path / "model")
    assert losses(tmp_path / "c") == before


def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    def breaks(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        calls.extend([1] * torch.is_grad_enabled())
        return ctc(log_probs, lengths, batch) * (float("nan") if len(calls) == 8 else 1.0)

    calls: list[int] = []
    with pytest.raises(NonFiniteLossError, match=r"step 7.*last good checkpoint is kept") as caught:
        training(data, tmp_path / "c", loss=breaks).run(tmp_path / "model")
    assert "labelled/ctc" in str(caught.value) and "labelled-00" in str(caught.value)
    kept = list((tmp_path / "c").glob("CKPT*/model.ckpt"))
    assert kept
    for path in kept:
        assert all(torch.isfinite(t).all() for t in torch.load(path, weights_only=True).values())


def test_checkpoints_of_other_settings_are_set_aside_not_resumed(data: Path, tmp_path: Path) -> None:
    training(data, tmp_path / "c", steps=6).run(tmp_path / "model")
    first = training(data, tmp_path / "c", steps=6).fingerprint()
    training(data, tmp_path / "c", steps=6, peak_learning_rate=1e-3).run(tmp_path / "model")
    assert len([row for row in losses(tmp_path / "c") if "labelled/ctc" in row]) == 6
    assert list((tmp_path / f"c.{first}").glob("CKPT*"))


def test_the_best_checkpoint_becomes_the_model(data: Path, tmp_path: Path) -> None:
    facts = training(data, tmp_path / "c", steps=20, keep_best=2).run(tmp_path / "model")
    looks = [row for row in losses(tmp_path / "c") if "dev_wer" in row]
    best = min(looks, key=lambda row: (row["dev_wer"], -row["step"]))
    assert (facts["dev_wer"], facts["best_step"]) == (best["dev_wer"], best["step"])
    assert len(list((tmp_path / "c").glob("CKPT*"))) <= 3


def test_a_stream_without_loss_is_refused(data: Path, tmp_path: Path) -> None:
    run = training(data, tmp_path / "c")
    run.losses = {"labelled": {}}
    with pytest.raises(ConfigError, match="no loss is given"):
        run.run(tmp_path / "model")


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    plan = Optimisation(steps=110, warmup_steps=10, peak_learning_rate=1.0)
    assert plan.learning_rate(0) == pytest.approx(0.1)
    assert plan.learning_rate(9) == plan.learning_rate(10) == pytest.approx(1.0)
    assert plan.learning_rate(60) == pytest.approx(0.5)
    assert plan.learning_rate(110) == pytest.approx(0.0, abs=1e-9)
