"""Training with compiled layers is the same training."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from kdasr.models import load_model
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.training.compiled import compiled
from tests.speech import shards
from tests.test_training import losses, training


@pytest.mark.slow
def test_commands_wait_neither_for_the_compiler_nor_for_speechbrain() -> None:
    script = "import sys, kdasr.cli, kdasr.pipeline; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert {"torch", "kdasr.stages"} <= {*done.stdout.split()}
    assert not {"torch._inductor", "speechbrain", "scipy"} & {*done.stdout.split()}


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


@pytest.mark.slow
def test_batches_of_all_shapes_share_a_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of two shapes, for one utterance and for several; none more for looks at the dev set."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.manual_seed(0)
    model = ConformerTeacher(vocab_size=5, width=16, num_layers=2, num_heads=2, kernel_frames=3, dropout=0.0)
    # No length that happens to be the width: torch would take the two for one.
    batches = [torch.randn(count, frames, 80) for count, frames in [(3, 100), (1, 80), (2, 91), (5, 120)]]
    torch._dynamo.reset()
    counters.clear()
    with compiled(model, True):
        for features_btf in batches:
            lengths_b = torch.full((len(features_btf),), features_btf.shape[1])
            for share in (0.0, 1.0):
                model.train().chunked_share = share
                fast, _ = model.offline(features_btf, lengths_b)
                model.eval()
                with torch.no_grad():
                    model.offline(features_btf, lengths_b)
    graphs, unimplemented = counters["stats"]["unique_graphs"], counters["unimplemented"]
    assert 1 <= graphs <= 4 and not unimplemented
    plain, _ = model.train().offline(features_btf, lengths_b)
    torch.testing.assert_close(fast, plain)


@pytest.mark.slow
def test_layers_are_compiled_inside_only_and_models_without_layers_whole() -> None:
    class Whole(torch.nn.Module):
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
