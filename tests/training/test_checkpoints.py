"""Checkpoints are whole or not there, wherever their writer stops."""

from __future__ import annotations

import errno
import hashlib
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdasr.errors import TrainingError
from kdasr.training import checkpoints
from kdasr.training.checkpoints import WholeCheckpoints


def made(folder: Path, *, weight: float = 1.0) -> tuple[WholeCheckpoints, nn.Linear]:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, weight)
    return WholeCheckpoints(folder, {"model": model}), model


def save(kept: WholeCheckpoints, wer: float) -> None:
    kept.save_and_keep_only(meta={"wer": wer}, num_to_keep=1, min_keys=["wer"])


def test_the_best_and_the_latest_are_kept_and_loaded(tmp_path: Path) -> None:
    kept, model = made(tmp_path)
    for wer in (3.0, 1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, wer)
        save(kept, wer)
    assert sorted(checkpoint.meta["wer"] for checkpoint in kept.list_checkpoints()) == [1.0, 4.0]
    kept.load_checkpoint(kept.find_checkpoint(min_key="wer"))
    assert model.weight.tolist() == [[1.0, 1.0]]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_clock_that_goes_back_makes_no_checkpoint_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, model = made(tmp_path)
    for weight, clock in ((1.0, 1000.0), (2.0, 900.0), (3.0, 910.0)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        nn.init.constant_(model.weight, weight)
        kept.save_and_keep_only(num_to_keep=1)
    again, found = made(tmp_path)
    again.recover_if_possible()
    assert found.weight.tolist() == [[3.0, 3.0]]
    assert len(kept.list_checkpoints()) == 1


def test_a_clock_that_goes_back_makes_none_older_than_the_best_and_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, model = made(tmp_path)
    for wer, clock in ((1.0, 1000.0), (3.0, 1001.0), (2.0, 900.0)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        nn.init.constant_(model.weight, wer)
        save(kept, wer)
    again, found = made(tmp_path)
    again.recover_if_possible()
    assert found.weight.tolist() == [[2.0, 2.0]]
    assert sorted(checkpoint.meta["wer"] for checkpoint in kept.list_checkpoints()) == [1.0, 2.0]


@pytest.mark.parametrize("stops_at", ["meta", "weights", "sync", "delete"])
def test_a_writer_that_stops_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: str
) -> None:
    kept, model = made(tmp_path)
    save(kept, 5.0)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    nn.init.constant_(model.weight, 7.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        place, name = {
            "meta": (kept, "_save_checkpoint_metafile"),
            "weights": (torch, "save"),
            "sync": (checkpoints, "sync_path"),
            "delete": (shutil, "rmtree"),
        }[stops_at]
        patch.setattr(place, name, stop)
        save(kept, 1.0)
    again, found = made(tmp_path)
    again.recover_if_possible()
    assert found.weight.tolist() == ([[7.0, 7.0]] if stops_at == "delete" else [[1.0, 1.0]])
    assert WholeCheckpoints(tmp_path).find_checkpoint() is not None
    again.remove_unfinished()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["model.ckpt", "CKPT.yaml", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "zeros", "nothing", "missing"])
def test_a_damaged_checkpoint_is_named_and_not_loaded(tmp_path: Path, name: str, damage: str) -> None:
    kept, _ = made(tmp_path)
    save(kept, 1.0)
    file = next(tmp_path.glob(f"CKPT*/{name}"))
    data = bytearray(file.read_bytes())
    if name == "model.ckpt":
        data[data.index(b"\0\0\x80\x3f") + 2] ^= 0x40  # in a weight, where torch itself sees nothing
    else:
        data[20] ^= 0x01
    file.unlink()
    if damage != "missing":
        file.write_bytes({"flip": data, "zeros": bytes(len(data)), "nothing": b""}[damage])
    again, found = made(tmp_path, weight=3.0)
    if (name, damage) == ("SHA256SUMS", "missing"):  # as in checkpoints of older releases
        again.recover_if_possible()
        assert found.weight.tolist() == [[1.0, 1.0]]
        return
    with pytest.raises(TrainingError, match=r"CKPT.*: the checkpoint is damaged; .*Delete .*CKPT"):
        again.recover_if_possible()
    assert found.weight.tolist() == [[3.0, 3.0]]


def test_the_hashes_of_a_checkpoint_are_those_of_sha256sum(tmp_path: Path) -> None:
    kept, _ = made(tmp_path)
    save(kept, 1.0)
    folder = next(tmp_path.glob("CKPT*"))
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}"
        for name in ("CKPT.yaml", "model.ckpt")
    ]


def refused_by_the_system(kept: WholeCheckpoints) -> TrainingError:
    """Save while no file may have more than 600 bytes, which torch tells as little of as of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(TrainingError) as refused:
            save(kept, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return refused.value


def test_a_disk_that_takes_no_more_is_told_of_and_nothing_half_is_left(tmp_path: Path) -> None:
    kept, _ = made(tmp_path, weight=5.0)
    save(kept, 5.0)
    before = sorted(tmp_path.rglob("*"))
    error = refused_by_the_system(kept)
    for part in (
        f"{tmp_path}: a checkpoint could not be written, with ",
        "B free",
        "Free some space",
        "iostream",
    ):
        assert part in str(error)
    assert isinstance(error.__cause__, RuntimeError)
    assert sorted(tmp_path.rglob("*")) == before
    again, found = made(tmp_path)
    again.recover_if_possible()
    assert found.weight.tolist() == [[5.0, 5.0]]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 7 vs 6"),
            TrainingError,
        ),
        (OSError(errno.ENOSPC, "No space left on device"), TrainingError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError),
    ],
)
def test_only_what_the_disk_refuses_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, told: type[Exception]
) -> None:
    kept, _ = made(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(told) as caught:
        save(kept, 1.0)
    assert (caught.value is raised) == (told is RuntimeError)
    assert told is RuntimeError or not list(tmp_path.iterdir())
