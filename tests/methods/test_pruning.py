"""Pruning: the least salient weights go, and fine-tuning does not bring them back."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch
from kdasr.loader import Stream
from kdasr.methods.pruning import Pruning, brain_damage, prunable
from kdasr.models import load_model
from kdasr.text import CharUnits
from tests.speech import shards
from tests.test_stages import STUDENT, train


class OneMatrix(nn.Module):
    """Features to log-probs by a single matrix, frame by frame."""

    def __init__(self, vocab_size: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(80, vocab_size)

    def offline(
        self, features_btf: torch.Tensor, lengths_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.head(features_btf).log_softmax(-1), lengths_b


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = shards(tmp_path_factory.mktemp("pruning") / "labelled", 4)
    return Stream([folder], 8.0, 1, units=CharUnits())


def test_magnitude_prunes_the_smallest_over_all_layers(labelled: Stream) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -5.0], [0.2, 4.0]]))  # type: ignore[operator]
        model[1].weight.copy_(torch.tensor([[-0.05, 3.0]]))  # type: ignore[operator]
    bias = model[0].bias.clone()  # type: ignore[operator]
    facts = Pruning(share=0.5).apply(model, labelled)
    assert model[0].weight.tolist() == [[0.0, -5.0], [0.0, 4.0]]
    assert model[1].weight.tolist() == [[0.0, 3.0]]
    assert facts["pruned"]["zeros"] == 3 and torch.equal(model[0].bias, bias)  # type: ignore[arg-type]
    assert "weight" in dict(model[0].named_parameters())


def test_zeros_stay_zero_while_the_rest_learns(labelled: Stream) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    Pruning(share=0.5).apply(model, labelled)
    before = model.weight.detach().clone()
    optimiser = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        (model(torch.randn(8, 6)) - 1).square().mean().backward()
        optimiser.step()
    assert int((model.weight == 0).sum()) == 12
    kept = before != 0
    assert bool((model.weight[kept] != before[kept]).all()) and bool((model.weight[~kept] == 0).all())


def test_brain_damage_by_hand() -> None:
    """One frame, one unit: the loss is -log softmax, its gradient in W is (q - e) xᵀ; ½ (that)² w²."""
    torch.manual_seed(1)
    model, x = OneMatrix(), torch.randn(2, 1, 80)
    ones = torch.tensor([1, 1])
    batch = Batch(["a", "b"], x, ones, torch.tensor([[1], [2]]), ones)
    q = model.head(x).softmax(-1)[:, 0]
    gradient = (q - torch.eye(3)[[1, 2]])[:, :, None] * x
    expected = 0.5 * gradient.square().mean(0) * model.head.weight.square()
    found = brain_damage(model, iter([batch]))[(model.head, "weight")]
    torch.testing.assert_close(found, expected)


class Forgetful(OneMatrix):
    """With dropout."""

    def offline(
        self, features_btf: torch.Tensor, lengths_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().offline(nn.functional.dropout(features_btf, training=self.training), lengths_b)


def test_brain_damage_is_that_of_the_model_as_it_is_used() -> None:
    torch.manual_seed(1)
    model, x, ones = Forgetful(), torch.randn(2, 1, 80), torch.tensor([1, 1])
    batch = Batch(["a", "b"], x, ones, torch.tensor([[1], [2]]), ones)
    expected = brain_damage(model.eval(), iter([batch]))[(model.head, "weight")]
    found = brain_damage(model.train(), iter([batch]))[(model.head, "weight")]
    torch.testing.assert_close(found, expected)
    assert model.training, "it goes on learning as it did"


def test_as_many_batches_as_are_asked_for_are_heard() -> None:
    heard: list[int] = []

    class Some:
        def batch(self, position: int) -> Batch:
            heard.append(position)
            one = torch.tensor([1])
            return Batch(["a"], torch.randn(1, 1, 80), one, torch.tensor([[1]]), one)

    stream: Any = Some()
    Pruning(share=0.5, saliency="optimal_brain_damage", batches=3).apply(OneMatrix(), stream)
    assert heard == [0, 1, 2]


def test_brain_damage_of_longer_audio_is_for_each_frame() -> None:
    """Two frames, one unit: the square of the whole gradient, by two; not of a mean over frames."""
    torch.manual_seed(1)
    model, x = OneMatrix(), torch.randn(1, 2, 80)
    batch = Batch(["a"], x, torch.tensor([2]), torch.tensor([[1]]), torch.tensor([1]))
    q = model.head(x).softmax(-1)[0]
    # Graves's paths: blank unit, unit blank, unit unit.
    likelihood = q[0, 0] * q[1, 1] + q[0, 1] * q[1, 0] + q[0, 1] * q[1, 1]
    (gradient,) = torch.autograd.grad(-likelihood.log(), model.head.weight)
    expected = 0.5 * gradient.square() / 2 * model.head.weight.square()
    found = brain_damage(model, iter([batch]))[(model.head, "weight")]
    torch.testing.assert_close(found, expected)


def test_brain_damage_spares_what_the_loss_needs(labelled: Stream) -> None:
    """Large weights on a bin that never changes the answer go first, which magnitude would keep."""
    torch.manual_seed(2)
    batch = labelled.batch(0)
    batch.features_btf[..., 0] = 0.0
    models = [OneMatrix(CharUnits().vocab_size) for _ in range(2)]
    for model in models:
        with torch.no_grad():
            model.head.weight.fill_(0.01)
            model.head.weight[:, 0] = 5.0
    scores = brain_damage(models[0], iter([batch]))[(models[0].head, "weight")]
    assert float(scores[:, 0].max()) == 0.0 and float(scores[:, 1:].max()) > 0
    magnitude = Pruning(share=0.9)
    magnitude.apply(models[1], labelled)
    assert bool((models[1].head.weight[:, 0] == 5.0).all())


def test_only_matrices_and_convolutions_are_pruned() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    assert [name for _, name in prunable(model)] == ["weight", "weight"]


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"share": 1.0}, {"share": 0.5, "saliency": "luck"}])
def test_what_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="prune"):
        Pruning(**settings)  # type: ignore[arg-type]


def test_a_pruned_model_goes_on_from_a_trained_one(tmp_path: Path) -> None:
    """`start` and `prune` in the verb `train`."""
    shards(tmp_path / "labelled", 8)
    shards(tmp_path / "dev", 2, first_seed=100)
    only = {"schedule": [["labelled", 1]], "unlabelled": [], "labels": [], "teacher": None}
    train(tmp_path, tmp_path / "first", **only)
    prune = Pruning(share=0.7, saliency="optimal_brain_damage", batches=1)
    train(tmp_path, tmp_path / "second", start=str(tmp_path / "first"), prune=prune, **only)
    loaded = load_model(tmp_path / "second")
    zeros = sum(int((getattr(*key) == 0).sum()) for key in prunable(loaded.model))
    total = sum(getattr(*key).numel() for key in prunable(loaded.model))
    assert zeros == loaded.card["pruned"]["zeros"] and zeros / total == pytest.approx(0.7, abs=0.01)
    with pytest.raises(ConfigError, match="Set `start` to its folder"):
        train(tmp_path, tmp_path / "third", prune=prune, **only)
    with pytest.raises(ConfigError, match="does not match the recipe"):
        other = {"model": functools.partial(STUDENT, chunk_frames=4)}
        train(tmp_path, tmp_path / "third", start=str(tmp_path / "first"), **other, **only)
