"""Muon for hidden matrices, AdamW for the rest, as one optimiser."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError
from kdasr.training import Optimisation
from kdasr.training.muon import Muon, MuonAdamW, OptimiserKind, make_optimiser
from tests.speech import shards
from tests.test_training import training

SETTINGS: dict[str, Any] = {"weight_decay": 0.0, "betas": (0.9, 0.98)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.hidden = nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.hidden(x)))
        return out


def loss_of(net: Net, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 12, generator=generator)
    return nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long())


def take_steps(net: Net, optimiser: torch.optim.Optimizer, first: int, last: int, rate: float) -> None:
    for step in range(first, last):
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss_of(net, step).backward()
        optimiser.step()


def test_only_hidden_matrices_go_to_muon() -> None:
    net = Net()
    optimiser = make_optimiser(net, "muon", **SETTINGS)
    assert isinstance(optimiser, MuonAdamW)
    muon = [p for group in optimiser.muon.param_groups for p in group["params"]]
    adamw = [p for group in optimiser.adamw.param_groups for p in group["params"]]
    assert [p is net.hidden.weight for p in muon] == [True]
    assert {id(p) for p in adamw} == {id(net.hidden.bias), id(net.head.weight), id(net.head.bias)}
    assert optimiser.muon.param_groups[0]["momentum"] == 0.95


def test_the_head_of_a_model_within_another_module_is_an_output_layer_too() -> None:
    net = Net()
    optimiser = make_optimiser(nn.ModuleDict({"student": net}), "muon", **SETTINGS)
    assert isinstance(optimiser, MuonAdamW)
    muon = [p for group in optimiser.muon.param_groups for p in group["params"]]
    assert [p is net.hidden.weight for p in muon] == [True]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_what_does_not_learn_is_not_optimised(kind: OptimiserKind) -> None:
    net = Net()
    net.hidden.bias.requires_grad_(False)
    optimiser = make_optimiser(net, kind, **SETTINGS)
    given = [p for group in optimiser.param_groups for p in group["params"]]
    assert {id(p) for p in given} == {id(net.hidden.weight), id(net.head.weight), id(net.head.bias)}


def test_muon_without_a_matrix_to_move_is_refused() -> None:
    net = Net()
    net.hidden.requires_grad_(False)
    with pytest.raises(
        ConfigError, match=r"optimisation\.optimiser: Muon optimises .* expected adamw; got muon"
    ):
        make_optimiser(net, "muon", **SETTINGS)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_all_weights_decay_alike(kind: OptimiserKind) -> None:
    """With gradients of zero they move by nothing else."""
    net = Net()
    before = copy.deepcopy(net.state_dict())
    optimiser = make_optimiser(net, kind, weight_decay=0.5, betas=(0.9, 0.98))
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name] * (1 - 0.1 * 0.5))


def test_a_step_computes_the_loss_that_it_is_asked_to() -> None:
    net = Net()
    for optimiser in (make_optimiser(net, "muon", **SETTINGS), Muon([net.hidden.weight], lr=0.0)):

        def closure(optimiser: torch.optim.Optimizer = optimiser) -> Tensor:
            optimiser.zero_grad()
            loss = loss_of(net, 0)
            loss.backward()
            return loss

        assert optimiser.step(closure) == loss_of(net, 0)


def test_a_matrix_moves_alike_in_every_direction() -> None:
    net = Net()
    before = net.hidden.weight.detach().clone()
    take_steps(net, make_optimiser(net, "muon", **SETTINGS), 0, 1, rate=0.01)
    moved = torch.linalg.svdvals(net.hidden.weight.detach() - before) / (0.01 * 0.2 * 12**0.5)
    # Newton-Schulz brings singular values near 1, not to it.
    assert moved.min() > 0.5 and moved.max() < 1.5


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (6, 6)])
def test_it_moves_as_torch_s_own_does_but_for_rounding(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(shape))
    theirs.data.copy_(ours.data)
    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimisers = Muon([ours], **settings), torch.optim.Muon([theirs], **settings)
    before = ours.detach().clone()
    for _ in range(4):
        gradient = torch.randn(shape)
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = gradient.clone()
            optimiser.step()
    difference = (ours - theirs).norm() / (ours - before).norm()
    assert 0 < difference < 0.05


def test_the_rest_moves_as_adamw_moves_it() -> None:
    net, twin = Net(), Net()
    take_steps(net, make_optimiser(net, "muon", **SETTINGS), 0, 1, rate=0.01)
    take_steps(twin, make_optimiser(twin, "adamw", **SETTINGS), 0, 1, rate=0.01)
    assert torch.equal(net.head.weight, twin.head.weight)
    assert torch.equal(net.hidden.bias, twin.hidden.bias)
    assert not torch.equal(net.hidden.weight, twin.hidden.weight)


def test_the_learning_rate_reaches_both() -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    take_steps(net, make_optimiser(net, "muon", **SETTINGS), 0, 3, rate=0.0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_resumed_equals_uninterrupted_to_the_bit(kind: str) -> None:
    whole, half = Net(), Net()
    take_steps(whole, make_optimiser(whole, kind, **SETTINGS), 0, 6, rate=0.01)
    first = make_optimiser(half, kind, **SETTINGS)
    take_steps(half, first, 0, 3, rate=0.01)
    resumed = Net()
    resumed.load_state_dict(half.state_dict())
    second = make_optimiser(resumed, kind, **SETTINGS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(resumed, second, 3, 6, rate=0.01)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_muon_learns_a_separable_task() -> None:
    net = Net()
    first = loss_of(net, 100).item()
    take_steps(net, make_optimiser(net, "muon", **SETTINGS), 0, 60, rate=0.01)
    assert loss_of(net, 100).item() < 0.5 * first


def test_gradients_of_both_are_clipped_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "labelled", 4)
    shards(tmp_path / "dev", 2, first_seed=1_000)
    norms: list[float] = []
    step = MuonAdamW.step

    def measured(self: MuonAdamW) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(nn.utils.get_total_norm(gradients)))
        return step(self)

    monkeypatch.setattr(MuonAdamW, "step", measured)
    run = training(tmp_path, tmp_path / "c", steps=2, optimiser="muon", max_gradient_norm=0.01)
    run.run(tmp_path / "m")
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match="muon or adamw"):
        Optimisation(steps=1, optimiser="sgd")  # type: ignore[arg-type]
