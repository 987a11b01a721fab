"""One step by itself: what learns in it, what it is begun with, and what it measures of a dev set."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError, MissingLabelsError
from kdasr.interfaces import Batch, ModelOutput, OnlineTeacher
from kdasr.losses import ctc, silent_start, soft_cross_entropy
from kdasr.methods.consistency import both_views
from kdasr.training.step import DEV, Step, WeightedLosses, step_seed


class Uniform(nn.Module):
    """A student that has heard nothing yet."""

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(features_btf), 4, 3).log_softmax(-1), lengths_b // 4


class Learns(nn.Module):
    """A loss that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.project = nn.LazyLinear(2)

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        found: Tensor = self.project(output.log_probs_btv).square().mean()
        return found


class Peer(nn.Module):
    """An online teacher that comes with its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)
        nn.init.constant_(self.line.weight, 5.0)

    def forward(self, batch: Batch, student_features_btf: Tensor) -> ModelOutput:
        raise AssertionError("no loss asks for it")


def batch(key: str = "a") -> Batch:
    return Batch([key], torch.zeros(1, 16, 80), torch.tensor([16]), torch.tensor([[1]]), torch.tensor([1]))


def step_of(teachers: dict[str, OnlineTeacher] | None = None, **losses: WeightedLosses) -> Step:
    return Step(Uniform(), losses, teachers or {}, None)


def test_what_learns_is_drawn_by_the_seed_alone_and_teachers_keep_their_weights() -> None:
    weights = []
    for before, seed in ((1, 7), (2, 7), (1, 8)):
        peer: Any = Peer()
        step = step_of({"peer": peer}, labelled={"learns": (1.0, Learns())})
        torch.manual_seed(before)
        step.train().initialise(seed, [("labelled", batch())], batch())
        weights.append(step.learned["labelled/learns"].project.weight.detach())
        assert step.training, "it goes on as it was"
        assert peer.line.weight.eq(5.0).all()
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_loss_that_learns_of_a_stream_that_is_not_used_is_refused_by_name() -> None:
    losses: dict[str, WeightedLosses] = {
        "labelled": {"ctc": (1.0, ctc)},
        "unlabelled": {"learns": (1.0, Learns())},
    }
    with pytest.raises(ConfigError, match=r"unlabelled/learns: this loss is in no stream"):
        step_of(**losses).initialise(7, [("labelled", batch())], batch())


def test_a_dev_set_that_a_loss_cannot_measure_is_found_at_once() -> None:
    def refuses(output: ModelOutput, given: Batch) -> Tensor:
        if given.keys == ["dev"]:
            raise ConfigError("not of this")
        return ctc(output, given)

    step = step_of(labelled={"one": (1.0, refuses)})
    step.initialise(7, [("labelled", batch())], batch("other"))
    with pytest.raises(ConfigError, match="not of this"):
        step.initialise(7, [("labelled", batch())], batch("dev"))


def test_what_asks_for_stored_labels_measures_no_dev_set_and_is_named_where_there_are_none() -> None:
    step = step_of(labelled={"ctc": (2.0, ctc), "soft": (1.0, soft_cross_entropy)})
    output, terms = step(batch(), DEV)
    assert set(terms) == {"ctc"} and float(terms["ctc"]) == pytest.approx(2 * float(ctc(output, batch())))
    with pytest.raises(MissingLabelsError, match=r"labelled_losses\.soft: "):
        step(batch(), "labelled")


def test_a_loss_that_only_helps_a_training_is_found_within_another() -> None:
    views = functools.partial(both_views, loss=functools.partial(silent_start, frames=2))
    step = step_of(labelled={"ctc": (1.0, ctc), "start": (1.0, views)})
    assert set(step(batch(), "labelled")[1]) == {"ctc", "start"}
    assert set(step(batch(), DEV)[1]) == {"ctc"}


def test_seeds_differ_by_run_and_by_step() -> None:
    seeds = [step_seed(seed, step) for seed in (1, 2) for step in (1, 2, 11, "dev/1", "losses")]
    assert len(set(seeds)) == len(seeds) and step_seed(1, 2) == step_seed(1, "2")
