"""Training on an accelerator: as on the CPU, in bf16, and with compiled layers. Needs what training needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr.models import load_model
from tests.speech import shards
from tests.test_training import losses, training

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device(accelerator: torch.device) -> str:
    return accelerator.type


@pytest.fixture(scope="module")
def data(device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gpu-training")
    shards(root / "labelled", 40)
    shards(root / "dev", 6, first_seed=1_000)
    return root


def train(data: Path, folder: Path, device: str, *, steps: int = 6, **settings: Any) -> list[float]:
    """The loss of each step of a training without anything random."""
    run = training(data, folder / "c", steps=steps, eval_every=3, checkpoint_every=2, **settings)
    run.augment, run.device = None, device
    for module in run.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    run.run(folder / "m")
    load_model(folder / "m")
    rows = losses(folder / "c")
    assert [row["step"] for row in rows if "dev_wer" not in row] == list(range(1, steps + 1))
    return [row["labelled/ctc"] for row in rows if "dev_wer" not in row]


def test_the_losses_are_those_of_the_cpu(data: Path, device: str, tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = False
    expected = train(data, tmp_path / "cpu", "cpu", accumulate=2)
    assert train(data, tmp_path / "gpu", device, accumulate=2) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_bf16_learns_as_fp32_does(data: Path, device: str, tmp_path: Path, compile: bool) -> None:
    if compile and device != "cuda":
        pytest.skip("layers are compiled for CUDA")
    expected = train(data, tmp_path / "fp32", device, steps=60)
    found = train(data, tmp_path / "bf16", device, steps=60, precision="bf16", compile=compile)
    assert found[0] == pytest.approx(expected[0], rel=0.05)
    assert sum(found[-10:]) < 1.3 * sum(expected[-10:]) and found[-1] < 0.7 * found[0]


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint(data: Path, device: str, tmp_path: Path) -> None:
    """Losses arrive a step late on a GPU; nothing may be saved in between."""
    from kdasr.errors import NonFiniteLossError
    from kdasr.losses import ctc

    calls: list[int] = []

    def breaks(output: Any, batch: Any) -> Any:
        calls.extend([1] * torch.is_grad_enabled())
        return ctc(output, batch) * (float("nan") if len(calls) >= 4 else 1.0)

    with pytest.raises(NonFiniteLossError, match="step 7"):
        train(data, tmp_path, device, steps=8, loss=breaks)
    for path in (tmp_path / "c").glob("CKPT*/model.ckpt"):
        assert all(torch.isfinite(t).all() for t in torch.load(path, weights_only=True).values())
