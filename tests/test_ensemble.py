"""Ensembles: averages by hand, and teachers that do not fit each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError
from kdasr.interfaces import AcousticModel
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.teachers.ensemble import EnsembleTeacher


class Fixed(nn.Module):
    """Says the same of every frame."""

    def __init__(self, probs: list[float], subsampling: int = 4) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"probs": probs}
        self.vocab_size, self.subsampling, self.probs = len(probs), subsampling, torch.tensor(probs)

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        frames_b = (lengths_b + 3) // 4
        return self.probs.log().expand(len(lengths_b), int(frames_b.max()), -1), frames_b


def probs_of(ensemble: EnsembleTeacher) -> list[float]:
    log_probs, frames = ensemble.offline(torch.zeros(1, 8, 80), torch.tensor([8]))
    assert log_probs.shape == (1, 2, 2) and frames.tolist() == [2]
    return log_probs[0, 1].exp().tolist()  # type: ignore[no-any-return]


def test_linear_average_is_the_weighted_mean_of_probabilities() -> None:
    ensemble = EnsembleTeacher([Fixed([0.9, 0.1]), Fixed([0.5, 0.5])], weights=[3, 1])
    assert probs_of(ensemble) == pytest.approx([0.8, 0.2])


def test_log_average_is_the_normalised_geometric_mean() -> None:
    ensemble = EnsembleTeacher([Fixed([0.9, 0.1]), Fixed([0.5, 0.5])], average="log")
    odds = (0.9 * 0.5) ** 0.5 / (0.1 * 0.5) ** 0.5
    assert probs_of(ensemble) == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])


def test_each_teacher_has_a_temperature_of_its_own() -> None:
    ensemble = EnsembleTeacher([Fixed([0.8, 0.2]), Fixed([0.5, 0.5])], temperatures=[2, 1])
    softened = 2 / (2 + 1)  # sqrt(0.8 / 0.2) = 2 to 1
    assert probs_of(ensemble) == pytest.approx([(softened + 0.5) / 2, 1 - (softened + 0.5) / 2])


def test_one_teacher_alone_is_itself() -> None:
    for average in ("linear", "log"):
        assert probs_of(EnsembleTeacher([Fixed([0.7, 0.3])], average=average)) == pytest.approx([0.7, 0.3])


@torch.no_grad()
def test_an_ensemble_of_trained_kinds_is_an_acoustic_model() -> None:
    teachers = [ConformerTeacher(vocab_size=6, width=16, num_layers=1, num_heads=2).eval() for _ in range(2)]
    ensemble = EnsembleTeacher(teachers)
    assert isinstance(ensemble, AcousticModel)
    log_probs, frames = ensemble.offline(torch.randn(2, 40, 80), torch.tensor([40, 13]))
    assert frames.tolist() == [10, 4]
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 10))


@pytest.mark.parametrize(
    ("teachers", "kwargs", "message"),
    [
        ([], {}, "needs teachers"),
        ([Fixed([0.5, 0.5])], {"weights": [1, 1]}, "2 weights"),
        ([Fixed([0.5, 0.5])], {"weights": [0]}, "positive"),
        ([Fixed([0.5, 0.5])], {"temperatures": [-1]}, "positive"),
        ([Fixed([0.5, 0.5])], {"average": "median"}, "median"),
        ([Fixed([0.5, 0.5]), Fixed([0.2, 0.3, 0.5])], {}, "vocab_size"),
        ([Fixed([0.5, 0.5]), Fixed([0.5, 0.5], subsampling=2)], {}, "subsampling"),
    ],
)
def test_what_does_not_fit_is_refused(teachers: list[Any], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EnsembleTeacher(teachers, **kwargs)
