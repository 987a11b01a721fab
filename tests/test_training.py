"""The training loop: it learns, resumes to the bit, stops at NaN, and refuses what does not fit."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import math
import multiprocessing
import os
import shutil
import signal
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdasr.augment import SpecAugment
from kdasr.decoding import Token
from kdasr.errors import ConfigError, DamagedShardError, MissingLabelsError, NonFiniteLossError, TrainingError
from kdasr.interfaces import Batch, ModelOutput, OnlineTeacher
from kdasr.loader import Stream
from kdasr.losses import ctc, silent_start, soft_cross_entropy
from kdasr.methods.consistency import both_views
from kdasr.methods.teachers import EmaTeacher
from kdasr.models import load_model
from kdasr.ranks import Ranks
from kdasr.students.conformer import ChunkConformer
from kdasr.text import CharUnits
from kdasr.training import Optimisation, Training, brain
from kdasr.training.brain import CtcBrain
from kdasr.training.order import OneEpoch
from kdasr.training.run import FINGERPRINT_FILE
from kdasr.training.step import DEV, Fading, Step, WeightedLosses, step_seed
from kdasr.training_log import LOG_FILE, TrainingLog

UNITS = CharUnits()


def training(
    data: Path,
    checkpoints: Path,
    *,
    steps: int = 12,
    loss: Any = ctc,
    workers: int = 0,
    further: WeightedLosses | None = None,
    teachers: dict[str, OnlineTeacher] | None = None,
    **optimisation: Any,
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
        losses={"labelled": {"ctc": (1.0, loss), **(further or {})}},
        teachers=teachers or {},
        dev=Stream([data / "dev"], 20.0, 3, units=UNITS),
        dev_loss=ctc,
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

    def __init__(self, call: int, error: type[BaseException] | BaseException = KeyboardInterrupt) -> None:
        self.calls_left, self.error = call, error

    def __call__(self, output: ModelOutput, batch: Batch) -> Tensor:
        self.calls_left -= torch.is_grad_enabled()
        if self.calls_left == 0:
            raise self.error
        return ctc(output, batch)


class LayerHint(nn.Module):
    """A loss that learns: the student's first layer, projected, against a teacher's and another view's."""

    def __init__(self, frames: int = 1) -> None:
        super().__init__()
        self.config = {"frames": frames}
        self.project = nn.LazyLinear(32)

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        projected = self.project(output.layers_btd[0])
        targets = (batch.teachers["past"].layers_btd[0], batch.views[0].layers_btd[0])
        return torch.stack([(projected - target).square().mean() for target in targets]).sum()


def learning(data: Path, checkpoints: Path, **settings: Any) -> Training:
    """With everything that has state: a loss that learns and the average of the student's past."""
    teachers: dict[str, OnlineTeacher] = {"past": EmaTeacher(0.9)}
    return training(data, checkpoints, further={"hint": (0.3, LayerHint())}, teachers=teachers, **settings)


def averaging(data: Path, checkpoints: Path, **settings: Any) -> Training:
    return training(data, checkpoints, ema_decay=0.9, **settings)


@pytest.mark.slow
def test_it_learns(data: Path, tmp_path: Path) -> None:
    facts = training(data, tmp_path / "c", steps=500, eval_every=100).run(tmp_path / "model")
    assert facts["dev_wer"] < 10.0
    loaded = load_model(tmp_path / "model")
    assert loaded.card["training"]["dev_wer"] == facts["dev_wer"]
    assert loaded.units.hash == UNITS.hash
    assert float(loaded.model.normalise.mean_f.abs().sum()) > 0


@pytest.mark.parametrize(
    ("make", "killed_at", "workers"),
    [
        pytest.param(training, 3, 0, marks=pytest.mark.slow),
        (training, 9, 0),
        pytest.param(training, 9, 2, marks=pytest.mark.slow),
        pytest.param(learning, 9, 0, marks=pytest.mark.slow),
        pytest.param(averaging, 9, 0, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[..., Training],
    killed_at: int,
    workers: int,
) -> None:
    make(data, tmp_path / "whole", checkpoint_every=2).run(tmp_path / "whole-model")
    # The first step of what learns shows its widths, which calls its losses once more.
    killed_at += make is learning
    with pytest.raises(KeyboardInterrupt):
        killed = make(data, tmp_path / "cut", loss=StopAt(killed_at), checkpoint_every=2, workers=workers)
        killed.run(tmp_path / "cut-model")
    assert not (tmp_path / "cut-model").exists()
    make(data, tmp_path / "cut", checkpoint_every=2, workers=workers).run(tmp_path / "cut-model")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    # What people read of both is the same, too: the mean is of all steps since the last look.
    told = [line for line in capsys.readouterr().err.splitlines() if "dev loss" in line]
    looks = len([row for row in losses(tmp_path / "whole") if "dev_loss" in row])
    assert told[-1] == told[looks - 1] and "train loss –" not in told[-1]
    one, two = (load_model(tmp_path / f"{name}-model").model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_losses_that_are_read_a_step_late_are_all_in_the_log(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: none is still unread when a checkpoint is written, or in a look."""
    training(data, tmp_path / "whole", checkpoint_every=2).run(tmp_path / "whole-model")
    set_up = CtcBrain.__init__

    def late(brain: CtcBrain, *args: Any, **kwargs: Any) -> None:
        set_up(brain, *args, **kwargs)
        brain.steps_unread = 1

    monkeypatch.setattr(CtcBrain, "__init__", late)
    with pytest.raises(KeyboardInterrupt):  # in the step after a checkpoint
        training(data, tmp_path / "cut", loss=StopAt(8), checkpoint_every=2).run(tmp_path / "model")
    assert losses(tmp_path / "cut")[-1]["step"] == 7
    training(data, tmp_path / "cut", checkpoint_every=2).run(tmp_path / "model")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_the_average_of_the_weights_is_measured_and_becomes_the_model(data: Path, tmp_path: Path) -> None:
    training(data, tmp_path / "plain", steps=10).run(tmp_path / "plain-model")
    averaging(data, tmp_path / "average", steps=10).run(tmp_path / "average-model")
    plain, average = (losses(tmp_path / name) for name in ("plain", "average"))
    assert [row.get("labelled/ctc") for row in plain] == [row.get("labelled/ctc") for row in average]
    dev = [[row["dev_loss"] for row in log if "dev_loss" in row] for log in (plain, average)]
    assert all(one != other for one, other in zip(*dev, strict=True))
    made = load_model(tmp_path / "average-model").model
    stream = Stream([data / "dev"], 20.0, 3, units=UNITS)
    batches = [stream.batch(i) for i in range(len(stream.epoch_batches(0)))]
    outputs = [ModelOutput(*made.offline(batch.features_btf, batch.feature_lengths_b)) for batch in batches]
    found = [ctc(output, batch).item() for output, batch in zip(outputs, batches, strict=True)]
    best = min((row for row in average if "dev_wer" in row), key=lambda row: (row["dev_wer"], -row["step"]))
    assert sum(found) / len(found) == pytest.approx(best["dev_loss"], rel=1e-4)


def test_the_average_of_the_weights_is_watched(data: Path, tmp_path: Path) -> None:
    made = averaging(data, tmp_path / "c", steps=2, eval_every=2)
    made.watch = lambda model, _: {"bias": model.head.bias.tolist()}  # type: ignore[attr-defined]
    made.run(tmp_path / "model")
    (look,) = [row for row in losses(tmp_path / "c") if "dev_wer" in row]
    assert look["bias"] == load_model(tmp_path / "model").model.head.bias.tolist()
    latest = torch.load(next((tmp_path / "c").glob("CKPT*/model.ckpt")), weights_only=True)
    assert look["bias"] != latest["head.bias"].tolist()


def test_a_finished_run_trains_no_further(data: Path, tmp_path: Path) -> None:
    training(data, tmp_path / "c").run(tmp_path / "model")
    before = losses(tmp_path / "c")
    training(data, tmp_path / "c", loss=StopAt(1, AssertionError)).run(tmp_path / "model")
    assert losses(tmp_path / "c") == before


class Breaks:
    """CTC, not finite in the training steps from `first` to `last`: by its value, or its gradient alone."""

    def __init__(self, first: int, last: int, *, gradient_alone: bool = False) -> None:
        self.first, self.last, self.gradient_alone, self.calls = first, last, gradient_alone, 0
        self.__qualname__ = "Breaks"

    def __call__(self, output: ModelOutput, batch: Batch) -> Tensor:
        self.calls += torch.is_grad_enabled()
        loss = ctc(output, batch)
        if not (torch.is_grad_enabled() and self.first <= self.calls <= self.last):
            return loss
        if self.gradient_alone:
            return loss + (output.log_probs_btv.sum() * 0.0).sqrt()  # 0, with a slope of infinity times 0
        return loss * float("nan")


def test_nan_losses_stop_and_keep_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    run = training(data, tmp_path / "c", loss=Breaks(8, 10**9))
    with pytest.raises(
        NonFiniteLossError, match=rf"step 11.*last good checkpoint.* is in {tmp_path}/c"
    ) as caught:
        run.run(tmp_path / "model")
    assert "labelled/ctc" in str(caught.value) and "labelled-00" in str(caught.value)
    kept = list((tmp_path / "c").glob("CKPT*/model.ckpt"))
    assert kept
    for path in kept:
        assert all(torch.isfinite(t).all() for t in torch.load(path, weights_only=True).values())


@pytest.mark.parametrize("gradient_alone", [False, True])
def test_a_step_that_is_not_finite_is_left_out_and_named(
    data: Path, tmp_path: Path, gradient_alone: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = Breaks(4, 5, gradient_alone=gradient_alone)
    training(data, tmp_path / "c", loss=broken, steps=8).run(tmp_path / "model")
    rows = [row for row in losses(tmp_path / "c") if "dev_wer" not in row]
    assert [row["step"] for row in rows] == list(range(1, 9))
    left_out = [row for row in rows if "left_out" in row]
    assert [row["step"] for row in left_out] == [4, 5]
    assert all(key.startswith("labelled-00") for row in left_out for key in row["left_out"])
    assert left_out[0]["not_finite"] == ({} if gradient_alone else {"labelled/ctc": "nan"})
    assert "step 4 was skipped" in capfd.readouterr().err
    weights = load_model(tmp_path / "model").model.state_dict().values()
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert all(math.isfinite(row["labelled/ctc"]) for row in rows[5:])


def test_a_step_that_is_left_out_counts_where_a_run_is_resumed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, stop = Breaks(4, 5), StopAt(7)

    def loss(output: ModelOutput, batch: Batch) -> Tensor:
        stop(output, batch)
        return broken(output, batch)

    loss.__qualname__ = broken.__qualname__
    with pytest.raises(KeyboardInterrupt):
        training(data, tmp_path / "c", loss=loss, steps=8).run(tmp_path / "model")
    training(data, tmp_path / "c", loss=Breaks(99, 99), steps=8).run(tmp_path / "model")
    assert "tiny: resuming after step 5/8\n" in capsys.readouterr().err
    rows = [row for row in losses(tmp_path / "c") if "dev_wer" not in row]
    assert [(row["step"], "left_out" in row) for row in rows] == [(n, n in (4, 5)) for n in range(1, 9)]


def scale_losses(monkeypatch: pytest.MonkeyPatch, init_scale: float) -> None:
    """As precision fp16 does on a GPU."""
    set_up = CtcBrain.__init__

    def with_scaler(brain: CtcBrain, *args: Any, **kwargs: Any) -> None:
        set_up(brain, *args, **kwargs)
        brain.scaler = torch.GradScaler("cpu", init_scale=init_scale)

    monkeypatch.setattr(CtcBrain, "__init__", with_scaler)


def test_patience_is_the_same_where_losses_are_scaled(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_losses(monkeypatch, 1024.0)
    training(data, tmp_path / "c", loss=Breaks(4, 5), steps=8).run(tmp_path / "model")
    assert [row["step"] for row in losses(tmp_path / "c") if "left_out" in row] == [4, 5]
    with pytest.raises(NonFiniteLossError, match="step 4"):
        training(data, tmp_path / "d", loss=Breaks(3, 9), steps=8, nonfinite_patience=1).run(tmp_path / "n")


def test_a_scale_that_overflows_is_halved_and_blames_no_audio(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_losses(monkeypatch, 2.0**127)
    training(data, tmp_path / "c", steps=8, nonfinite_patience=0).run(tmp_path / "model")
    assert not [row for row in losses(tmp_path / "c") if "left_out" in row]


def test_a_gradient_that_no_scale_makes_finite_ends_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before halving has made the scale 0, and zero gradients of it pass for good ones."""
    scale_losses(monkeypatch, 65_536.0)

    def rooted(output: ModelOutput, batch: Batch) -> Tensor:
        return ctc(output, batch) + (output.log_probs_btv * 0.0).sum().sqrt()

    with pytest.raises(NonFiniteLossError, match="step 25"):
        training(data, tmp_path / "c", loss=rooted, steps=40).run(tmp_path / "model")


def test_a_loss_that_is_not_finite_in_a_step_that_was_taken_ends_the_training(
    data: Path, tmp_path: Path
) -> None:
    calls: list[int] = []

    def infinite(output: ModelOutput, batch: Batch) -> Tensor:
        calls.extend([1] * output.log_probs_btv.requires_grad)
        return ctc(output, batch) + (math.inf if len(calls) == 3 else 0.0)  # the gradient is as before

    with pytest.raises(NonFiniteLossError, match=r"the loss \(inf\) or its gradient .* in step 3"):
        training(data, tmp_path / "c", loss=infinite).run(tmp_path / "model")


def test_no_patience_stops_at_the_first_step_that_is_not_finite(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="step 3"):
        training(data, tmp_path / "c", loss=Breaks(3, 3), nonfinite_patience=0).run(tmp_path / "model")


def test_a_batch_that_the_memory_does_not_hold_is_told_of(data: Path, tmp_path: Path) -> None:
    run = training(data, tmp_path / "c", loss=StopAt(3, torch.OutOfMemoryError("CUDA out of memory. Tried")))
    with pytest.raises(
        TrainingError, match=r"tiny: step 3 does not fit into the memory of cpu.*Tried"
    ) as told:
        run.run(tmp_path / "model")
    assert "halve batch_seconds and double optimisation.accumulate (now 1)" in str(told.value)
    assert isinstance(told.value.__cause__, torch.OutOfMemoryError)


def test_a_folder_of_other_things_is_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(ConfigError, match=r"mine: the model would replace this folder.*notes\.txt"):
        training(data, tmp_path / "c").run(tmp_path / "mine")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("checkpoints", "model"), [("a/c", "a"), ("a", "a/model"), ("a", "a")])
def test_a_model_and_its_checkpoints_one_in_the_other_are_refused(
    data: Path, tmp_path: Path, checkpoints: str, model: str
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"checkpoints: the folders of a model and of its checkpoints must not contain each other",
    ):
        training(data, tmp_path / checkpoints).run(tmp_path / model)
    assert not (tmp_path / "a").exists()


def test_checkpoints_move_nothing_of_others_out_of_their_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "c/shards").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"checkpoints: checkpoints need a folder of their own.*got shards"):
        training(data, tmp_path / "c").run(tmp_path / "model")
    assert [path.name for path in (tmp_path / "c").iterdir() if path.suffix != ".lock"] == ["shards"]
    (tmp_path / "c/shards").rmdir()
    assert training(data, tmp_path / "c", steps=1).run(tmp_path / "model")["train_steps"] == 1


def test_how_often_checkpoints_are_written_does_not_begin_a_training_anew(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        training(data, tmp_path / "c", loss=StopAt(8)).run(tmp_path / "model")
    run = training(data, tmp_path / "c", loss=StopAt(10**6), checkpoint_every=2)
    run.run(tmp_path / "model")
    # Unless told otherwise, they are written at looks at the dev set alone.
    assert "tiny: resuming after step 5/12\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("c*")] == ["c"]
    whole = training(data, tmp_path / "d", loss=StopAt(10**6)).run(tmp_path / "other")
    assert whole["weights_sha256"] == load_model(tmp_path / "model").card["weights_sha256"]
    # The log keeps the look after which the run went on, and has none twice.
    assert losses(tmp_path / "c") == losses(tmp_path / "d")


def test_fp16_is_refused_where_there_is_no_gpu(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"precision: fp16 needs a GPU.*fp32 or bf16"):
        training(data, tmp_path / "c", precision="fp16").run(tmp_path / "model")
    assert not (tmp_path / "c").exists()


def test_a_damaged_shard_is_told_in_one_line_by_workers_too(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "labelled", tmp_path / "labelled")
    run = training(data, tmp_path / "c", workers=2, steps=40)
    run.streams = {"labelled": Stream([tmp_path / "labelled"], 8.0, 3, units=UNITS)}
    for shard in (tmp_path / "labelled").glob("*.tar"):
        whole = shard.read_bytes()
        shard.write_bytes(whole[:1_000] + bytes(byte ^ 255 for byte in whole[1_000:9_000]) + whole[9_000:])
    with pytest.raises(DamagedShardError) as told:
        run.run(tmp_path / "model")
    assert "Traceback" not in str(told.value) and "copy or prepare it again" in str(told.value)


class KillsAWorker:
    """CTC, which kills a process that loads batches in the first step; it passes for `ctc`."""

    __qualname__ = ctc.__qualname__

    def __call__(self, output: ModelOutput, batch: Batch) -> Tensor:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
        return ctc(output, batch)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_a_training_in_one_line(data: Path, tmp_path: Path) -> None:
    run = training(data, tmp_path / "c", steps=40, loss=KillsAWorker(), workers=1)
    with pytest.raises(
        TrainingError, match=r"tiny: a process that loads.*got DataLoader.* num_workers \(now 1\)"
    ):
        run.run(tmp_path / "model")


def test_patience_is_not_renewed_by_beginning_again(data: Path, tmp_path: Path) -> None:
    def broken() -> Breaks:
        return Breaks(4, 10**9)

    with pytest.raises(NonFiniteLossError, match="step 7"):
        training(data, tmp_path / "c", loss=broken(), steps=20).run(tmp_path / "model")
    with pytest.raises(NonFiniteLossError, match="step 7"):  # from the look after step 5, with two left out
        training(data, tmp_path / "c", loss=Breaks(1, 10**9), steps=20).run(tmp_path / "model")


def test_means_are_of_the_losses_that_are_finite(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    training(data, tmp_path / "c", loss=Breaks(1, 4), steps=5, nonfinite_patience=9).run(tmp_path / "model")
    (last,) = [row["labelled/ctc"] for row in losses(tmp_path / "c") if row.get("labelled/ctc")]
    assert f"step 5/5  train loss {last:.3f}  dev loss" in capfd.readouterr().err
    training(data, tmp_path / "d", loss=Breaks(1, 5), steps=5, nonfinite_patience=9).run(tmp_path / "n")
    assert "step 5/5  train loss –  dev loss" in capfd.readouterr().err


def test_a_loss_that_learns_within_another_is_optimised(data: Path, tmp_path: Path) -> None:
    hint = LayerHint()
    run = training(
        data,
        tmp_path / "c",
        steps=3,
        further={"views": (0.3, functools.partial(both_views, loss=hint))},
        teachers={"past": EmaTeacher(0.9)},
    )
    weights: list[Tensor] = []
    hint.project.register_forward_hook(lambda *_: weights.append(hint.project.weight.detach().clone()))
    run.run(tmp_path / "model")
    assert not torch.equal(weights[0], weights[-1])
    state = torch.load(next((tmp_path / "c").glob("CKPT*/learned.ckpt")), weights_only=True)
    assert "labelled/views/loss.project.weight" in state


def test_checkpoints_of_other_settings_are_set_aside_not_resumed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training(data, tmp_path / "c", steps=6).run(tmp_path / "model")
    first = training(data, tmp_path / "c", steps=6).fingerprint()
    training(data, tmp_path / "c", steps=6, peak_learning_rate=1e-3).run(tmp_path / "model")
    assert len([row for row in losses(tmp_path / "c") if "labelled/ctc" in row]) == 6
    assert list((tmp_path / f"c.{first}").glob("CKPT*"))
    assert len((tmp_path / f"c.{first}" / f"{LOG_FILE}.old").read_text().splitlines()) > 6
    kept = {path.name for path in (tmp_path / f"c.{first}").glob("CKPT*")}
    assert (
        "tiny: starting from the beginning: checkpoints of other settings or data are now in "
        f"{tmp_path}/c.{first} "
    ) in (capsys.readouterr().err)
    again = training(data, tmp_path / "c", steps=6).run(tmp_path / "model")  # as it was before, already done
    said = capsys.readouterr().err
    assert "starting from the beginning" not in said and f"will replace the model in {tmp_path}/model" in said
    assert "tiny: all 6 steps are already done" in said
    assert {path.name for path in (tmp_path / "c").glob("CKPT*")} == kept
    assert len((tmp_path / "c" / LOG_FILE).read_text().splitlines()) > 6
    assert again["best_step"] <= 6 and not (tmp_path / f"c.{first}").exists()
    assert len(list(tmp_path.glob("c.*"))) == 1
    other_dev = training(data, tmp_path / "c", steps=6)
    other_dev.dev = other_dev.streams["labelled"]  # type: ignore[assignment]
    assert other_dev.fingerprint() != first  # its WER would be compared with those of the first dev set


def test_what_a_kill_kept_from_being_tidied_up_is_tidied_up(data: Path, tmp_path: Path) -> None:
    """A log that was being set aside or taken back, and a checkpoint that was about to be deleted."""
    training(data, tmp_path / "c", steps=2).run(tmp_path / "model")
    expected = losses(tmp_path / "c")
    kept = sorted((tmp_path / "c").glob("CKPT*"))
    shutil.copytree(kept[0], tmp_path / "c" / "CKPT+another")
    (tmp_path / "c" / LOG_FILE).rename(tmp_path / "c" / f"{LOG_FILE}.old")
    training(data, tmp_path / "c", steps=2).run(tmp_path / "model")
    assert losses(tmp_path / "c") == expected
    assert len(list((tmp_path / "c").glob("CKPT*"))) == len(kept)


def test_a_training_that_is_refused_moves_no_checkpoints(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training(data, tmp_path / "c", steps=1).run(tmp_path / "model")
    with pytest.raises(MissingLabelsError, match="needs soft labels, but this audio has none"):
        training(data, tmp_path / "c", steps=1, loss=soft_cross_entropy).run(tmp_path / "model")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["c", "model"]
    assert "starting from the beginning" not in capsys.readouterr().err


def test_a_disk_that_is_full_between_two_checkpoints_is_told_of(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is written in each step, and the system's error names no file."""
    write = TrainingLog.write

    def full(self: TrainingLog, row: dict[str, Any]) -> None:
        write(TrainingLog(Path("/dev/full")) if row["step"] == 7 else self, row)

    with monkeypatch.context() as patch, pytest.raises(TrainingError) as told:
        patch.setattr(TrainingLog, "write", full)
        training(data, tmp_path / "c", steps=8).run(tmp_path / "model")
    assert str(told.value).startswith("/dev/full: the disk is full; got No space left on device. Free")
    training(data, tmp_path / "c", steps=8).run(tmp_path / "model")
    assert [row["step"] for row in losses(tmp_path / "c") if "dev_wer" not in row] == list(range(1, 9))


def test_checkpoints_of_two_trainings_do_not_lie_one_in_the_other(data: Path, tmp_path: Path) -> None:
    training(data, tmp_path / "c", steps=1).run(tmp_path / "model")
    with pytest.raises(
        ConfigError, match=rf"separate from {tmp_path}/c, which has those.*got {tmp_path}/c/inner\."
    ):
        training(data, tmp_path / "c" / "inner", steps=1).run(tmp_path / "other")
    training(data, tmp_path / "outer" / "one", steps=1).run(tmp_path / "one")
    with pytest.raises(ConfigError, match=rf"separate from {tmp_path}/outer/one, .*got {tmp_path}/outer\."):
        training(data, tmp_path / "outer", steps=1).run(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_where_no_model_can_be_written_nothing_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(
        ConfigError, match=rf"x/model: the model cannot be written.*no permission.*{tmp_path}"
    ):
        training(data, tmp_path / "c", steps=1).run(tmp_path / "x" / "model")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{tmp_path}/file: a model is a folder, but this is a file"):
        training(data, tmp_path / "c", steps=1).run(tmp_path / "file" / "model")
    monkeypatch.undo()
    for place in (tmp_path / "file" / "c", tmp_path / "file"):
        with pytest.raises(ConfigError, match=rf"{place}: the checkpoints cannot .* another --checkpoints\."):
            training(data, place, steps=1).run(tmp_path / "model")
    assert not (tmp_path / "c").exists()


def test_checkpoints_may_lie_where_nothing_else_may_be_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk" / "mine").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "disk")
    training(data, tmp_path / "disk" / "mine", steps=1).run(tmp_path / "model")
    assert list((tmp_path / "disk" / "mine").glob("CKPT*"))


def test_a_training_says_where_it_goes_on_and_that_it_is_done(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        training(data, tmp_path / "c", loss=StopAt(6), checkpoint_every=2, steps=10).run(tmp_path / "model")
    assert "resuming" not in capsys.readouterr().err
    training(data, tmp_path / "c", checkpoint_every=2, steps=10).run(tmp_path / "model")
    assert "tiny: resuming after step 5/10\n" in capsys.readouterr().err
    training(data, tmp_path / "c", checkpoint_every=2, steps=10).run(tmp_path / "model")
    said = capsys.readouterr().err
    assert "tiny: all 10 steps are already done\n" in said and "step 10/10" not in said


def test_a_checkpoint_that_says_more_or_less_than_today_is_gone_on_from(data: Path, tmp_path: Path) -> None:
    training(data, tmp_path / "c", steps=2).run(tmp_path / "model")
    for file in (tmp_path / "c").glob("CKPT*/position.ckpt"):
        position = json.loads(file.read_text())
        del position["so_far"]
        file.write_text(json.dumps({**position, "steps_not_taken": 0}))
        (file.parent / "SHA256SUMS").unlink()  # which older releases did not write
    assert training(data, tmp_path / "c", steps=2).run(tmp_path / "model")["train_steps"] == 2


def test_a_loss_that_learns_is_optimised_and_kept_in_the_checkpoints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wers = iter([10.0, 30.0, 20.0])  # so that the best checkpoint is not the latest one
    monkeypatch.setattr(brain, "count_errors", lambda *_: SimpleNamespace(wer=next(wers), errors=0))
    run = learning(data, tmp_path / "c")
    other = learning(data, tmp_path / "c")
    other.losses = {"labelled": {**run.losses["labelled"], "hint": (0.3, LayerHint(frames=2))}}
    assert run.fingerprint() != other.fingerprint()
    run.run(tmp_path / "model")
    kept = [torch.load(path, weights_only=True) for path in (tmp_path / "c").glob("CKPT*/learned.ckpt")]
    weights = {float(state["labelled/hint.project.weight"].sum()) for state in kept}
    assert len(weights) == len(kept) > 1
    assert {int(state["teachers/past.steps"]) for state in kept} == {5, 12}
    assert not any(layer._forward_hooks for layer in run.model.layers)  # type: ignore[attr-defined]


def test_a_teacher_runs_only_when_it_is_asked_and_once(data: Path, tmp_path: Path) -> None:
    class Counts(EmaTeacher):
        calls = 0

        def forward(self, batch: Batch, student_features_btf: Tensor) -> ModelOutput:
            Counts.calls += 1
            return super().forward(batch, student_features_btf)

    def asks(output: ModelOutput, batch: Batch) -> Tensor:
        return (batch.teachers["past"].log_probs_btv - output.log_probs_btv).mean()

    run = training(data, tmp_path / "c")
    teacher = Counts()
    teacher.attach(run.model, units_hash=UNITS.hash, statistics=None)
    teachers: dict[str, OnlineTeacher] = {"past": teacher}
    batch = run.streams["labelled"].batch(0)
    Step(run.model, {"labelled": {"ctc": (1.0, ctc)}}, teachers, None)(batch, "labelled")
    assert Counts.calls == 0
    losses = {"labelled": {"one": (1.0, asks), "two": (2.0, asks)}}
    step = Step(run.model, losses, teachers, None).eval()
    _, terms = step(batch, "labelled")
    assert Counts.calls == 1
    # The average begins as a copy of the student.
    assert terms["one"].item() == terms["two"].item() == 0.0


def test_a_teacher_that_is_not_there_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    run = training(data, tmp_path / "c", further={"hint": (1.0, LayerHint())})
    with pytest.raises(ConfigError, match="'past'"):
        run.run(tmp_path / "model")


def test_views_are_augmented_anew(data: Path, tmp_path: Path) -> None:
    run = training(data, tmp_path / "c")
    seen: list[ModelOutput] = []

    def looks(output: ModelOutput, batch: Batch) -> Tensor:
        seen.extend([output, batch.views[0], batch.views[0], batch.views[1]])
        return output.log_probs_btv.sum()

    step = Step(run.model, {"labelled": {"look": (1.0, looks)}}, {}, run.augment)
    step(run.streams["labelled"].batch(0), "labelled")
    first, second, again, third = seen
    assert second is again
    for one, other in ((first, second), (first, third), (second, third)):
        assert not torch.allclose(one.log_probs_btv, other.log_probs_btv)
    assert [len(output.layers_btd) for output in seen] == [1, 1, 1, 1]
    assert first.layers_btd[0].shape == (*first.log_probs_btv.shape[:2], 32)


def test_a_batch_is_gone_when_its_step_is_done(data: Path, tmp_path: Path) -> None:
    """By counting references alone: what waits for the garbage collector is memory of the accelerator."""
    run = training(data, tmp_path / "c")

    def looks(output: ModelOutput, batch: Batch) -> Tensor:
        return (batch.views[0].log_probs_btv - batch.teachers["past"].log_probs_btv).sum()

    teacher = EmaTeacher(0.9)
    teacher.attach(run.model, units_hash=UNITS.hash, statistics=None)
    step = Step(run.model, {"labelled": {"look": (1.0, looks)}}, {"past": teacher}, run.augment)
    gc.disable()
    try:
        batch = run.streams["labelled"].batch(0)
        features = weakref.ref(batch.features_btf)
        step(batch, "labelled")
        del batch
        assert features() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_dev_set_beyond_the_cache_is_read_beside_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = tmp_path / "read", OneEpoch.__getitem__

    def noting(self: OneEpoch, index: int) -> Batch:
        with read.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return real(self, index)

    monkeypatch.setattr(OneEpoch, "__getitem__", noting)
    rows = []
    for workers, cache_bytes, by_workers in ((0, 0, False), (2, 0, True), (2, 10**8, False)):
        made = training(data, tmp_path / f"c{len(rows)}", steps=5, eval_every=2, workers=workers)
        made.dev = Stream([data / "dev"], 4.0, 3, units=UNITS, cache_bytes=cache_bytes)
        made.run(tmp_path / f"m{len(rows)}")
        readers = set(read.read_text().split())
        assert (str(os.getpid()) in readers) != by_workers
        assert len(readers) == (6 if by_workers else 1)
        read.unlink()
        rows.append(losses(made.checkpoints))
    assert rows[0] == rows[1] == rows[2]
    assert sum("dev_loss" in row for row in rows[0]) == 3


def test_a_training_says_what_it_is_and_where(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = training(data, tmp_path / "c", steps=1, accumulate=3)
    facts = made.run(tmp_path / "model")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"tiny: on cpu, fp32, {facts['params']:,} parameters, with labelled audio only"
    stream = cast(Stream, made.streams["labelled"])
    assert lines[2].endswith(f"in 60 utterances, {3 / stream.batches_per_epoch:.1f} passes")
    assert not any("idle" in line for line in lines)


def test_without_a_terminal_a_line_tells_now_and_then_how_far_it_is(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training(data, tmp_path / "c", steps=6, eval_every=3)
    made.run(tmp_path / "quick")
    assert "step 2/6" not in capsys.readouterr().err, "a look every few seconds says enough"
    monkeypatch.setattr(brain, "QUIET_S", 0.0)
    made = training(data, tmp_path / "d", steps=6, eval_every=3)
    made.name = "tiny[/]" + 80 * "-"  # neither markup nor broken into two lines
    made.run(tmp_path / "slow")
    lines = [line.replace(made.name, "tiny") for line in capsys.readouterr().err.splitlines()]
    lines = [line for line in lines if line.startswith("tiny: step")]
    mean = sum(row["labelled/ctc"] for row in losses(tmp_path / "d")[:2]) / 2
    assert lines[1].startswith(f"tiny: step 2/6  train loss {mean:.3f}") and lines[1].endswith(" left")
    assert [line.split()[2] for line in lines] == ["1/6", "2/6", "3/6", "3/6", "4/6", "5/6", "6/6", "6/6"]


def test_in_bf16_weights_are_rounded_once_a_step_however_many_batches_it_has(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Casts(TorchDispatchMode):
        weights = 0

        def __torch_dispatch__(self, op: Any, types: Any, given: Any = (), settings: Any = None) -> Any:
            if op is torch.ops.aten._to_copy.default and given[0].shape == (96, 32):
                self.weights += settings["dtype"] == torch.bfloat16
            return op(*given, **(settings or {}))

    casts, take_step = Casts(), CtcBrain.fit_batch

    def counted(trained: CtcBrain, batches: list[Batch]) -> Tensor:
        with casts:
            return take_step(trained, batches)

    monkeypatch.setattr(CtcBrain, "fit_batch", counted)
    made = training(data, tmp_path / "c", steps=2, accumulate=3, precision="bf16")
    made.run(tmp_path / "m")
    # Of queries, keys and values, in the one layer.
    assert casts.weights == 2 and len(losses(tmp_path / "c")) == 3


def test_the_share_that_idles_is_that_of_the_last_round() -> None:
    shares = {(1, 1): 0, (8, 8): 0, (16, 8): 0, (3, 2): 1 / 4, (12, 8): 1 / 4, (9, 8): 7 / 16}
    for (accumulate, count), share in shares.items():
        assert Optimisation(steps=1, accumulate=accumulate).idle_share(count) == share


def test_what_is_left_out_is_counted_and_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = training(data, tmp_path / "c", steps=1)
    limited.streams["labelled"] = Stream([data / "labelled"], 8.0, 3, units=UNITS, exclude_longer_s=1.5)
    facts = limited.run(tmp_path / "model")
    text = (tmp_path / "c" / "left_out.json").read_text()
    record = json.loads(text)
    assert text == json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    count = record["labelled"]["count"]
    assert 0 < count < 60 and count + record["labelled"]["used"] == 60
    assert len(record["labelled"]["left_out"]) == count
    key, reason = next(iter(record["labelled"]["left_out"].items()))
    assert key.startswith(f"{data}/labelled/labelled-0") and reason.endswith("longer than 1.5 s")
    assert record["dev"] == {"used": 12, "count": 0, "left_out": {}}
    assert facts["left_out"] == {"labelled": count, "dev": 0}
    assert load_model(tmp_path / "model").card["training"]["left_out"] == facts["left_out"]
    printed = capsys.readouterr().err
    assert f"tiny: {count} utterances of labelled left out" in printed and "of dev left" not in printed


def test_millions_that_are_left_out_are_written_shard_by_shard(data: Path, tmp_path: Path) -> None:
    made, source = training(data, tmp_path), Stream([data / "labelled"], 8.0, 3, units=UNITS)
    made.streams["unlabelled"] = source
    for shard in range(60):
        numbers = range(500 * shard, 500 * shard + 500)
        source.left_out.add({f"{data}/ä-{number:06d}": f"it takes {number / 7} frames" for number in numbers})
    tracemalloc.start()
    made._tell_what_is_left_out()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())["unlabelled"]
    assert record == {"used": 60, "count": 30_000, "left_out": dict(source.left_out.items())}
    assert record["left_out"][f"{data}/ä-000014"] == "it takes 2.0 frames"
    assert most < file.stat().st_size / 5


@pytest.mark.parametrize("said", ["blank", "a unit"])
def test_units_that_are_said_at_once_are_told(
    said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = training(data, tmp_path / "c", steps=2, eval_every=1)
    with torch.no_grad():
        made.model.head.bias[0 if said == "blank" else 5] = 50.0
    made.run(tmp_path / "model")
    told = [line for line in capsys.readouterr().err.splitlines() if "first output frame" in line]
    assert (told == []) == (said == "blank")
    assert all(line.startswith("tiny: 12 of 12 dev utterances begin with a unit in") for line in told)
    assert len(told) <= 1


@pytest.mark.parametrize("early", [6, 7])
def test_half_of_the_utterances_may_begin_at_once(
    early: int,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = iter([Token(5, 0, 0.0)] * early + [Token(5, 1, 0.0)] * (12 - early))

    def hear(_: Tensor, lengths_b: Tensor) -> list[list[Token]]:
        return [[next(heard)] for _ in lengths_b]

    monkeypatch.setattr(brain, "greedy", hear)
    training(data, tmp_path / "c", steps=1, eval_every=1).run(tmp_path / "model")
    assert next(heard, None) is None
    assert ("7 of 12 dev utterances begin with a unit" in capsys.readouterr().err) == (early == 7)


def test_the_best_checkpoint_becomes_the_model(data: Path, tmp_path: Path) -> None:
    facts = training(data, tmp_path / "c", steps=20).run(tmp_path / "model")
    looks = [row for row in losses(tmp_path / "c") if "dev_wer" in row]
    best = min(looks, key=lambda row: (row["dev_wer"], -row["step"]))
    assert (facts["dev_wer"], facts["best_step"]) == (best["dev_wer"], best["step"])
    assert len(list((tmp_path / "c").glob("CKPT*"))) <= 2


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


def test_a_loss_that_fades_falls_in_a_line_and_then_is_not_asked(data: Path, tmp_path: Path) -> None:
    asked = []

    def fading(output: ModelOutput, batch: Batch) -> Tensor:
        asked.append(output.log_probs_btv.requires_grad)
        return output.log_probs_btv.mean() * 0.0 + 3.0

    run = training(data, tmp_path / "c", steps=10, further={"early": (Fading(2.0, 0.5), fading)})
    run.run(tmp_path / "model")
    log = [json.loads(line) for line in (tmp_path / "c" / LOG_FILE).read_text().splitlines()]
    early = [row.get("labelled/early") for row in log if "labelled/ctc" in row]
    assert early[:5] == pytest.approx([6.0, 4.8, 3.6, 2.4, 1.2])
    assert early[5:] == [None] * 5
    assert sum(asked) == 5  # the other times were for the dev set


class Uniform(nn.Module):
    """A student that has heard nothing yet."""

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(features_btf), 4, 3).log_softmax(-1), lengths_b // 4


def test_a_loss_that_only_helps_a_training_is_no_part_of_that_of_a_dev_set() -> None:
    """With settings of its own too."""
    start = functools.partial(silent_start, frames=2)
    step = Step(Uniform(), {"labelled": {"ctc": (1.0, ctc), "start": (1.0, start)}}, {}, None)
    batch = Batch(["a"], torch.zeros(1, 16, 80), torch.tensor([16]), torch.tensor([[1]]), torch.tensor([1]))
    assert set(step(batch, "labelled")[1]) == {"ctc", "start"}
    assert set(step(batch, DEV)[1]) == {"ctc"}


def test_what_fades_is_part_of_what_a_training_is(data: Path, tmp_path: Path) -> None:
    kinds = [0.5, Fading(0.5, 0.3), Fading(0.5, 0.6)]
    runs = [training(data, tmp_path / "c", further={"more": (weight, ctc)}) for weight in kinds]
    assert len({run.fingerprint() for run in runs}) == 3


def plain(output: ModelOutput, batch: Batch, *, strength: float = 1.0) -> Tensor:
    return strength * output.log_probs_btv.mean()


class Scaled(nn.Module):
    """A loss that says nothing of its settings but in its text."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.line = nn.Linear(2, units)


def test_all_that_decides_a_training_is_part_of_what_it_is(data: Path, tmp_path: Path) -> None:
    made = functools.partial(training, data, tmp_path / "c")
    run, other = made(), made()
    kinds = {run.fingerprint()}
    wide = ChunkConformer(vocab_size=UNITS.vocab_size, width=48, num_layers=1, lookahead_frames=1)
    changes: dict[str, list[Any]] = {
        "seed": [4],
        "augment": [None, SpecAugment(max_frequency_bins=9)],
        "schedule": [[("labelled", 2)]],
        "start": ["of another training"],
        "model": [wide],
        "units": [CharUnits("é")],
        "teachers": [{"past": EmaTeacher(0.9)}, {"past": EmaTeacher(0.8)}, {"then": EmaTeacher(0.8)}],
        "losses": [
            {"labelled": {"ctc": (weight, loss)}}
            for weight, loss in (
                (2.0, ctc), (1.0, functools.partial(plain)), (1.0, functools.partial(plain, strength=2.0)),
                (1.0, functools.partial(plain, strength=3.0)), (1.0, Scaled(1)), (1.0, Scaled(2)),
            )
        ],
    }  # fmt: skip
    for name, values in changes.items():
        for value in values:
            other = made()
            setattr(other, name, value)
            assert other.fingerprint() not in kinds, f"{name}: {value}"
            kinds.add(other.fingerprint())
    # What only says how it is computed and kept.
    same = made(compile=True, nonfinite_patience=9, checkpoint_every=3)
    assert same.fingerprint() == run.fingerprint()
    # Nor the order in which a recipe names its parts.
    one, other = (made(further=dict.fromkeys(names, (1.0, plain))) for names in ("ab", "ba"))
    assert one.fingerprint() == other.fingerprint()


def test_each_setting_of_the_optimisation_is_part_of_what_a_training_is_or_does_not_matter(
    data: Path, tmp_path: Path
) -> None:
    matters: dict[str, Any] = {
        "steps": 13, "eval_every": 6, "peak_learning_rate": 2e-2, "warmup_steps": 6, "optimiser": "muon",
        "weight_decay": 0.2, "betas": (0.8, 0.98), "max_gradient_norm": 4.0, "precision": "bf16",
        "accumulate": 2, "ema_decay": 0.5, "phases": [{"steps": 1, "start": 1.0}], "phase_decay": 0.5,
    }  # fmt: skip
    no_matter = {"compile": True, "nonfinite_patience": 9, "checkpoint_every": 3}
    assert {field.name for field in fields(Optimisation)} == {*matters, *no_matter}
    alike = [training(data, tmp_path / "c", **{name: value}) for name, value in no_matter.items()]
    others = [training(data, tmp_path / "c", **{name: value}) for name, value in matters.items()]
    prints = [made.fingerprint() for made in (*others, *alike, training(data, tmp_path / "c"))]
    assert len(set(prints)) == len(others) + 1


def test_a_model_that_comes_trained_keeps_its_normalisation(data: Path, tmp_path: Path) -> None:
    for start in (None, "a trained model"):
        run = training(data, tmp_path / "c")
        run.start = start
        before = run.model.normalise.mean_f.clone()  # type: ignore[attr-defined]
        run._first_step()
        kept = torch.equal(run.model.normalise.mean_f, before)  # type: ignore[attr-defined]
        assert kept == (start is not None)


def test_what_teachers_draw_is_the_training_s_own(data: Path, tmp_path: Path) -> None:
    class Draws(EmaTeacher):
        drawn = 0.0

        def attach(self, student: Any, **further: Any) -> None:
            super().attach(student, **further)
            self.drawn = float(torch.rand(()))

    found = []
    for before, seed in ((1, 3), (2, 3), (1, 4)):
        teacher = Draws()
        run = training(data, tmp_path / "c", teachers={"past": teacher})
        run.seed = seed
        torch.manual_seed(before)
        run._first_step()
        found.append(teacher.drawn)
    assert found[0] == found[1] != found[2]


def test_both_streams_are_told_of_where_both_are_used(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = training(data, tmp_path / "c")
    run.schedule = [("labelled", 1), ("unlabelled", 3), ("labelled", 1)]
    run._tell_what_begins(Ranks())
    assert ", with labelled and unlabelled audio\n" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [bytes(13), b"", b"\xb10123456789a\n", b"0123456789\n"])
def test_a_damaged_fingerprint_is_named_and_its_checkpoints_stay(
    data: Path, tmp_path: Path, damaged: bytes
) -> None:
    checkpoints = tmp_path / "c"
    (checkpoints / "CKPT+one").mkdir(parents=True)
    (checkpoints / FINGERPRINT_FILE).write_bytes(damaged)
    with pytest.raises(TrainingError, match=r"c/fingerprint\.txt: .* their fingerprint is damaged"):
        training(data, checkpoints, steps=1).run(tmp_path / "model")
    assert (checkpoints / "CKPT+one").is_dir() and list(tmp_path.iterdir()) == [checkpoints]


def test_what_was_set_aside_before_is_not_replaced(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("c.abc", "c.abc.1", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    training(data, tmp_path / "c")._set_aside("abc", "def", tmp_path / "model")
    assert {path.name: (path / "of").read_text() for path in tmp_path.iterdir()} == {
        "c.abc": "c.abc", "c.abc.1": "c.abc.1", "c.abc.2": "c",
    }  # fmt: skip
    assert f"are now in {tmp_path}/c.abc.2 " in capsys.readouterr().err


class Slope(nn.Module):
    """A loss whose gradient is 3 for every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        return 3.0 * self.slope + 0.0 * output.log_probs_btv.sum()


def test_steps_are_taken_as_the_optimisation_says(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, make, take = Slope(), brain.make_optimiser, CtcBrain.optimizers_step
    made: list[tuple[str, dict[str, Any]]] = []
    taken: list[tuple[float, set[float]]] = []

    def noted(step: nn.Module, kind: Any, **settings: Any) -> torch.optim.Optimizer:
        made.append((kind, settings))
        return make(step, kind, **settings)

    def taking(self: CtcBrain) -> None:
        assert loss.slope.grad is not None
        taken.append((float(loss.slope.grad), {group["lr"] for group in self.optimizer.param_groups}))
        take(self)

    monkeypatch.setattr(brain, "make_optimiser", noted)
    monkeypatch.setattr(CtcBrain, "optimizers_step", taking)
    how: dict[str, Any] = {"optimiser": "muon", "weight_decay": 0.03, "betas": (0.8, 0.95)}
    run = training(data, tmp_path / "c", steps=3, loss=loss, accumulate=2, warmup_steps=2, **how)
    run.run(tmp_path / "model")
    assert made == [("muon", {"weight_decay": 0.03, "betas": (0.8, 0.95)})]
    # Of two batches the mean; of two steps of warm-up the first has half of the peak.
    assert taken == [(3.0, {0.005}), (3.0, {0.01}), (3.0, {0.01})]


def test_each_batch_of_a_step_has_its_own_random_numbers(data: Path, tmp_path: Path) -> None:
    seeds: list[int] = []

    def noting(output: ModelOutput, batch: Batch) -> Tensor:
        if output.log_probs_btv.requires_grad:
            seeds.append(torch.initial_seed())
        return ctc(output, batch)

    training(data, tmp_path / "c", steps=2, accumulate=2, loss=noting).run(tmp_path / "model")
    assert seeds == [step_seed(3, position) for position in range(4)]


def test_a_look_has_its_own_weights_and_its_own_random_numbers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the steps done, as a run has that is resumed there."""
    seeds: list[int] = []

    def three(output: ModelOutput, batch: Batch) -> Tensor:
        if not output.log_probs_btv.requires_grad:
            seeds.append(torch.initial_seed())
        value = math.nan if torch.initial_seed() in of_look[3] else 3.0
        return output.log_probs_btv.sum() * 0.0 + value

    run = training(data, tmp_path / "c", steps=3, eval_every=1)
    firsts = [run.dev.batch(number).keys[0] for number in range(len(run.dev.epoch_batches(0)))]
    of_look = {step: {step_seed(3, f"{DEV}/{step}/{key}") for key in firsts} for step in (1, 2, 3)}
    run.losses = {"labelled": {"early": (Fading(2.0, 2.0), three)}}
    run.run(tmp_path / "model")
    looks = [row for row in losses(tmp_path / "c") if "dev_wer" in row]
    # 6 at the beginning, half of it at twice the end.
    assert [(row["step"], row.get("dev_loss")) for row in looks] == [
        (1, pytest.approx(6 * (1 - 1 / 6))), (2, pytest.approx(6 * (1 - 2 / 6))), (3, None),
    ]  # fmt: skip
    assert "  dev loss –  " in capsys.readouterr().err
    assert len(set().union(*of_look.values())) == 3 * len(firsts) > 3
    assert set().union(*of_look.values()) <= set(seeds)


def test_a_training_from_a_model_looks_at_it_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dev WER that its steps have to improve on is told; the steps are the same."""
    training(data, tmp_path / "new", steps=2, eval_every=1).run(tmp_path / "new-model")
    assert "step 0/2" not in capsys.readouterr().err
    begun = {"steps": 2, "eval_every": 1, "peak_learning_rate": 0.0}
    for name, call in (("killed", 1), ("again", 99)):
        run = training(data, tmp_path / "c", loss=StopAt(call), **begun)
        run.start = "weights"
        with pytest.raises(KeyboardInterrupt) if name == "killed" else contextlib.nullcontext():
            facts = run.run(tmp_path / "model")
    looks = [row for row in losses(tmp_path / "c") if "dev_wer" in row]
    assert [row["step"] for row in looks] == [0, 1, 2] and facts["best_step"] == 2
    # Nothing is learned at this rate: with the weights of before, as after the steps.
    assert looks[0]["dev_wer"] == looks[1]["dev_wer"] and looks[0]["dev_loss"] == looks[1]["dev_loss"]
    told = capsys.readouterr().err
    assert told.count("step 0/2  dev loss ") == 2 and "dev WER" in told


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ((20, 40, 30), 0),  # 10 more than 20: a standard error is 7
        ((20, 26, 27), 1),  # within chance, and fewer than at the end
        ((20, 27, 26), 2),
        ((20, 40, 19), 2),
    ],
)
def test_a_training_that_makes_worse_by_more_than_chance_keeps_what_it_began_with(
    errors: tuple[int, ...],
    best: int,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = (SimpleNamespace(wer=count / 2, errors=count) for count in errors)
    monkeypatch.setattr(brain, "count_errors", lambda *_: next(counts))
    run = training(data, tmp_path / "c", steps=2, eval_every=1)
    begun = {name: weights.clone() for name, weights in run.model.state_dict().items()}
    run.start = "weights"
    facts = run.run(tmp_path / "model")
    assert (facts["best_step"], facts["dev_wer"]) == (best, errors[best] / 2)
    told = "clearly more errors than the starting model has (WER 10.0 %)" in capsys.readouterr().err
    kept = load_model(tmp_path / "model").model.state_dict()
    is_start = all(torch.equal(kept[name], weights) for name, weights in begun.items())
    assert told == is_start == (best == 0)
    assert len(list((tmp_path / "c").glob("CKPT*"))) <= 3


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ((20, 40, 45), 0),
        ((20, 10, 15), 5),
    ],
)
def test_the_best_checkpoint_outlives_those_between_looks_and_a_restart(
    errors: tuple[int, ...], best: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = (SimpleNamespace(wer=count / 2, errors=count) for count in errors)
    monkeypatch.setattr(brain, "count_errors", lambda *_: next(counts))
    for call in (9, 99):
        run = training(data, tmp_path / "c", loss=StopAt(call), steps=10, checkpoint_every=2)
        run.start = "weights"
        with pytest.raises(KeyboardInterrupt) if call == 9 else contextlib.nullcontext():
            facts = run.run(tmp_path / "model")
    assert (facts["best_step"], facts["dev_wer"]) == (best, errors[best // 5] / 2)


def test_processes_that_see_other_checkpoints_are_stopped(tmp_path: Path) -> None:
    def check(*steps: int) -> None:
        one: Any = SimpleNamespace(
            ranks=SimpleNamespace(gather=lambda _: list(steps)),
            optimizer_step=steps[0],
            training=SimpleNamespace(checkpoints=tmp_path),
        )
        CtcBrain._check_ranks(one)

    check(5, 5)
    with pytest.raises(ConfigError, match=r"do not see the same checkpoints.*got steps 5, 0, 5"):
        check(5, 0, 5)


def test_a_restart_does_not_write_the_mark_of_its_checkpoints_again(data: Path, tmp_path: Path) -> None:
    """With a full disk that would take it from them."""
    training(data, tmp_path / "c", steps=2).run(tmp_path / "model")
    mark = tmp_path / "c" / FINGERPRINT_FILE
    before = mark.stat()
    training(data, tmp_path / "c", steps=2).run(tmp_path / "model")
    assert (mark.stat().st_mtime_ns, mark.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_warm_up_longer_than_the_training_is_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training(data, tmp_path / "c", steps=2, warmup_steps=3)._tell_what_begins(Ranks())
    assert "never reaches its peak: 3 warm-up steps in a run of 2" in capsys.readouterr().err
    training(data, tmp_path / "c", steps=2, warmup_steps=5).run(tmp_path / "model")
    assert "never reaches its peak: 5 warm-up steps in a run of 2" in capsys.readouterr().err
    phases = [{"steps": 2, "start": 1.0}]  # which have no warm-up
    training(data, tmp_path / "d", steps=2, warmup_steps=3, phases=phases)._tell_what_begins(Ranks())
    assert "never reaches" not in capsys.readouterr().err
    # The last step of a warm-up has the peak.
    assert Optimisation(steps=2, warmup_steps=2, peak_learning_rate=1.0).learning_rate(1) == 1.0
    for warmup_steps in (1, 2):
        training(data, tmp_path / "d", steps=2, warmup_steps=warmup_steps)._tell_what_begins(Ranks())
        assert "never reaches" not in capsys.readouterr().err


def test_a_torn_row_of_the_log_is_forgotten(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "train.jsonl")
    for step in (1, 2):
        log.write({"step": step, "spike_offsets": {"0.0": 3}})
    whole = log.path.read_text()
    log.path.write_text(whole + '{"step": 2, "spike_offsets": {"0.0": 3}')  # its last byte is missing
    log.cut(2, with_look=True)
    assert log.path.read_text() == whole
    log.cut(1, with_look=False)
    assert log.path.read_text() == whole.splitlines(keepends=True)[0]


@pytest.mark.parametrize("damaged", [b'{"step": 1, "a": \xb1}', b'{"stdp": 1}', b"[1]", bytes(50)])
def test_a_damaged_row_of_the_log_is_forgotten(tmp_path: Path, damaged: bytes) -> None:
    log = TrainingLog(tmp_path / "train.jsonl")
    log.path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 2}\n{"step": 3}\n')
    log.cut(2, with_look=True)
    assert log.path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
