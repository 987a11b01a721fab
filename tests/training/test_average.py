"""The moving average of weights: its numbers, and that exchanging it loses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdasr.errors import ConfigError
from kdasr.training import Optimisation
from kdasr.training.average import WeightAverage


def one_weight(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_it_moves_towards_the_weights_quickly_at_first_and_slowly_later() -> None:
    model = one_weight(0.0)
    average = WeightAverage(model, decay=0.5)
    expected = 0.0
    for step in range(1, 30):
        nn.init.constant_(model.weight, float(step))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    average.swap()
    assert float(model.weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(28.0, abs=0.01), "a decay of a half lags one step behind"


def test_its_first_step_goes_nearly_all_the_way() -> None:
    model = one_weight(0.0)
    average = WeightAverage(model, decay=0.999)
    nn.init.constant_(model.weight, 1.0)
    average.update()
    average.swap()
    assert float(model.weight.detach()) == pytest.approx(1 - 2 / 11)


def test_weights_that_are_not_trained_have_no_average() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [name for name, _ in WeightAverage(model, 0.9).named_buffers()] == ["steps", "average_0"]


def test_to_exchange_it_twice_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Linear(7, 5)
    average = WeightAverage(model, decay=0.99)
    nn.init.normal_(model.weight)
    average.update()
    before = [value.clone() for value in (*model.state_dict().values(), *average.state_dict().values())]
    average.swap()
    assert not torch.equal(model.weight, before[0])
    average.swap()
    after = [*model.state_dict().values(), *average.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_what_is_no_average_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="ema_decay: "):
        Optimisation(steps=1, ema_decay=decay)
