"""Training with compiled layers is the same training."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from kdasr.models import load_model
from kdasr.training.compiled import compiled
from tests.speech import shards
from tests.test_training import losses, training


@pytest.mark.slow
def test_compiled_layers_train_as_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Everything but the C++ compiler, which takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    shards(tmp_path / "labelled", 10)
    shards(tmp_path / "dev", 3, first_seed=1_000)
    for name, wanted in (("plain", False), ("fast", True)):
        run = training(tmp_path, tmp_path / f"{name}.c", steps=2, eval_every=2, compile=wanted)
        run.run(tmp_path / name)
        assert "forward" not in vars(run.model.layers[0])
    for plain, fast in zip(losses(tmp_path / "plain.c"), losses(tmp_path / "fast.c"), strict=True):
        assert fast == pytest.approx(plain, abs=1e-4)
    weights, others = (load_model(tmp_path / name).model.state_dict() for name in ("plain", "fast"))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, atol=1e-3, rtol=0)


def test_layers_are_compiled_inside_only_and_models_without_layers_whole() -> None:
    class Whole:
        def offline(self) -> int:
            return 1

    layered, whole = torch.nn.Module(), Whole()
    layered.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    for model, place, name in [(layered, layered.layers[0], "forward"), (whole, whole, "offline")]:
        with compiled(model, False):
            assert name not in vars(place)
        with pytest.raises(KeyError), compiled(model, True):
            assert name in vars(place)
            raise KeyError
        assert name not in vars(place)
