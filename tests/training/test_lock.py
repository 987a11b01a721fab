"""One training at a time uses a folder of checkpoints, and one that was killed keeps nobody out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdasr.errors import RankLostError, TrainingError
from kdasr.interfaces import Batch, ModelOutput
from kdasr.losses import ctc
from kdasr.training import Training
from kdasr.training.lock import LOCK_FILE, used_alone
from kdasr.training.run import FINGERPRINT_FILE
from tests.test_ranks import on_ranks
from tests.test_training import training


class Meanwhile:
    """CTC, which notes whether another training could use a folder during the steps."""

    __qualname__ = ctc.__qualname__

    def __init__(self, folder: Path) -> None:
        self.folder, self.refused = folder, [False]

    def __call__(self, output: ModelOutput, batch: Batch) -> Tensor:
        if torch.is_grad_enabled():
            try:
                with used_alone(self.folder):
                    self.refused.append(False)
            except TrainingError:
                self.refused.append(True)
        return ctc(output, batch)


def test_a_second_training_is_refused_and_harms_nothing(data: Path, tmp_path: Path) -> None:
    half = tmp_path / "c" / "unfinished+CKPT"
    half.mkdir(parents=True)
    computed = []

    def loss(*_: object) -> Tensor:
        computed.append(True)
        return torch.zeros(())

    with used_alone(tmp_path / "c"), pytest.raises(TrainingError) as refused:
        training(data, tmp_path / "c", loss=loss).run(tmp_path / "model")
    assert not computed  # on a GPU it would take memory from the other one
    for part in (str(tmp_path / "c"), f"process {os.getpid()} on {socket.gethostname()}", "--checkpoints"):
        assert part in str(refused.value)
    assert half.exists()
    training(data, tmp_path / "c", steps=1).run(tmp_path / "model")
    assert not half.exists() and (tmp_path / "c" / LOCK_FILE).read_bytes() == b""


def test_others_are_kept_out_as_long_as_it_lasts(data: Path, tmp_path: Path) -> None:
    # A new folder, one of the same settings, one that is set aside, one that is taken back.
    for steps, rate in ((2, 1e-2), (2, 1e-3), (2, 1e-2)):
        loss = Meanwhile(tmp_path / "c")
        training(data, tmp_path / "c", steps=steps, loss=loss, peak_learning_rate=rate).run(tmp_path / "m")
        assert loss.refused in ([False, True, True], [False])  # the last one is done already
    with used_alone(tmp_path / "c"):
        pass


def _while_it_begins(monkeypatch: pytest.MonkeyPatch, run: Training, meanwhile: Callable[[], object]) -> None:
    """Let something happen after a training looked for checkpoints and before it takes their folder."""
    first_step = Training._first_step

    def slowly(self: Training) -> Any:
        if self is run:
            meanwhile()
        return first_step(self)

    monkeypatch.setattr(Training, "_first_step", slowly)


def test_of_two_that_begin_at_the_same_time_in_a_new_folder_one_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, held = training(data, tmp_path / "c", steps=1), contextlib.ExitStack()
    half = tmp_path / "c" / "unfinished+CKPT"

    def begins() -> None:
        half.mkdir(parents=True)
        held.enter_context(used_alone(tmp_path / "c"))

    _while_it_begins(monkeypatch, second, begins)
    with held, pytest.raises(TrainingError, match="another training run is using this folder"):
        second.run(tmp_path / "model")
    assert half.exists() and not (tmp_path / "c" / FINGERPRINT_FILE).exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_what_another_trained_in_the_same_new_folder_meanwhile_is_not_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = training(data, tmp_path / "alone", steps=2).run(tmp_path / "model")
    first = training(data, tmp_path / "c", steps=2, peak_learning_rate=1e-3)
    second = training(data, tmp_path / "c", steps=2)
    _while_it_begins(monkeypatch, second, lambda: first.run(tmp_path / "first"))
    assert second.run(tmp_path / "model")["weights_sha256"] == alone["weights_sha256"]
    assert list((tmp_path / f"c.{first.fingerprint()}").glob("CKPT*"))


def _lock_and_copy(folder: Path, copies: Any) -> None:
    with used_alone(folder):
        if os.fork() == 0:  # as a worker that loads batches
            copies.send(os.getpid())
        time.sleep(30)
        os._exit(0)


def test_a_killed_process_keeps_nobody_out_though_its_copies_live(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    receiver, copies = context.Pipe(duplex=False)
    process = context.Process(target=_lock_and_copy, args=(tmp_path, copies))
    process.start()
    assert receiver.poll(20) and process.pid is not None
    copy = receiver.recv()
    with pytest.raises(TrainingError, match=f"process {process.pid} on"), used_alone(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with used_alone(tmp_path):
        os.kill(copy, signal.SIGKILL)  # it was there until now


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fails)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"), used_alone(tmp_path):
            pass
    else:
        with used_alone(tmp_path), used_alone(tmp_path):
            pass
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{tmp_path}: the file system has no locks ({os.strerror(number)}): ")


def test_where_the_first_process_is_refused_the_others_end(data: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with used_alone(tmp_path / "c"):
        answers = on_ranks(2, lambda job: training(data, tmp_path / "c", accumulate=2).run(tmp_path / "m"))
    assert [kind for kind, _ in answers] == [TrainingError, RankLostError]
