"""Devices: the one that is asked for, and a GPU that torch cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdasr import devices
from kdasr.devices import device_text, gpu_problem, usable_device
from kdasr.doctor import diagnosis
from kdasr.errors import ConfigError


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, device: str) -> None:
        if device == "cuda":
            raise AssertionError("Torch not compiled with CUDA enabled\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices.torch, "empty", refuse)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(devices, "_GPU", tmp_path / "nvidia0")
    return tmp_path / "nvidia0"


@pytest.mark.usefixtures("no_cuda")
def test_a_gpu_that_torch_cannot_use_is_told_of(gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert usable_device(None) == "cpu" and gpu_problem() is None
    assert capsys.readouterr().err == ""
    assert ("accelerator", "none") in diagnosis()
    gpu.touch()
    assert usable_device(None) == "cpu"
    reason = "Torch not compiled with CUDA enabled"
    assert capsys.readouterr().err == (
        f"torch cannot use the GPU of this machine ({reason}), so the CPU is used; "
        "`kdasr doctor` shows what is available\n"
    )
    assert ("accelerator", f"a GPU that torch cannot use: {reason}") in diagnosis()


@pytest.mark.usefixtures("no_cuda")
def test_who_asks_for_a_device_gets_it_or_an_error(gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.touch()
    assert usable_device("cpu") == "cpu"
    with pytest.raises(
        ConfigError, match=r"device: the device cannot be used; got cuda \(Torch not compiled"
    ):
        usable_device("cuda")
    assert capsys.readouterr().err == ""


def test_a_driver_of_others_makes_itself_no_place_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def empty(_: int, device: str) -> None:
        places.append(device)
        if device == "cuda:2":
            raise RuntimeError("invalid device ordinal")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices.torch, "empty", empty)
    assert [usable_device(name, touch=False) for name in ("cuda", "cuda:1")] == ["cuda", "cuda:1"]
    assert places == []
    with pytest.raises(ConfigError, match=r"got cuda:2 \(invalid device ordinal\)"):
        usable_device("cuda:2", touch=False)
    assert usable_device("cuda:1") == "cuda:1" and places == ["cuda:2", "cuda:1"]


def test_a_gpu_that_torch_can_use_is_taken_and_named(
    gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Example {device}")
    assert usable_device(None) == "cuda" and gpu_problem() is None
    assert (device_text("cuda:1"), device_text("cpu")) == ("cuda:1 (Example cuda:1)", "cpu")
    assert capsys.readouterr().err == ""
