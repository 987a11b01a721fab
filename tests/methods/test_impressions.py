"""Impressions: the teacher takes them for what they were made to be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdasr.errors import ConfigError
from kdasr.methods.impressions import Impressions, class_similarity
from kdasr.models import load_model, save_model
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained teacher over classes that its head tells apart."""
    folder = tmp_path_factory.mktemp("impressions") / "teacher"
    torch.manual_seed(0)
    units = CharUnits()
    model = ConformerTeacher(
        vocab_size=units.vocab_size, width=16, num_layers=1, num_heads=2, kernel_frames=3
    )
    model.set_statistics(torch.full((80,), -6.0), torch.full((80,), 2.0))
    with torch.no_grad():
        model.head.weight.mul_(6.0)
    save_model(folder, model, units)
    return str(folder)


def impressions(teacher: str, cache: Path, **settings: float) -> Impressions:
    small = {"utterances": 5, "frames": 12, "batch_size": 2, "steps": 40, "learning_rate": 0.2}
    return Impressions(teacher=teacher, cache=str(cache), **{**small, **settings})  # type: ignore[arg-type]


def test_the_teacher_answers_as_it_was_asked(teacher: str, tmp_path: Path) -> None:
    source = impressions(teacher, tmp_path / "i.safetensors", certainty=0.99)
    model = load_model(Path(teacher)).model
    answers: list[torch.Tensor] = []
    imagine = source._imagine

    def watched(model: object, answer_btv: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        answers.append(answer_btv)
        return imagine(model, answer_btv, generator)

    source._imagine = watched  # type: ignore[method-assign]
    features = source.features()
    assert features.shape == (5, 48, 80) and bool(features.isfinite().all())
    asked = torch.cat(answers)
    torch.testing.assert_close(asked.sum(-1), torch.ones(5, 12))
    heard, _ = model.offline(features, torch.full((5,), 48))
    noise, _ = model.offline(-6 + 2 * torch.randn(5, 48, 80), torch.full((5,), 48))
    agreement = [
        float((log_probs.argmax(-1) == asked.argmax(-1)).float().mean()) for log_probs in (heard, noise)
    ]
    assert agreement[0] > 0.7 > 0.4 > agreement[1]


def test_each_is_seen_once_an_epoch_and_they_are_made_once(teacher: str, tmp_path: Path) -> None:
    source = impressions(teacher, tmp_path / "i.safetensors", steps=2)
    keys = [[key for n in range(3) for key in source.batch(3 * epoch + n).keys] for epoch in range(2)]
    assert [sorted(epoch) for epoch in keys] == [[f"impression-{n:05d}" for n in range(5)]] * 2
    assert keys[0] != keys[1]
    batch = source.batch(1)
    assert batch.soft_labels is None and batch.tokens_bu is None and source.left_out == {}
    assert source.next_utterance(4)["next_key"] == source.batch(4).keys[0]
    again = impressions(teacher, tmp_path / "i.safetensors", steps=2)
    again._make = pytest.fail  # type: ignore[assignment]
    assert torch.equal(again.batch(1).features_btf, batch.features_btf)
    other = impressions(teacher, tmp_path / "i.safetensors", steps=3)
    assert not torch.equal(other.features(), source.features())
    assert other.fingerprint() != source.fingerprint()


def test_each_seed_makes_its_own_in_an_order_of_their_own(teacher: str, tmp_path: Path) -> None:
    one, two = (impressions(teacher, tmp_path / f"{seed}", steps=1, seed=seed) for seed in (1, 2))
    assert one.epoch_batches(0) != two.epoch_batches(0)
    assert not torch.allclose(one.features(), two.features())


def test_answers_have_spikes_apart_and_are_shared_among_what_is_alike(teacher: str, tmp_path: Path) -> None:
    similarity_vv = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.2, 0.6, 1.0]])
    settings = {"unit_frames": 10, "frames": 100, "certainty": 0.6, "scale": 1e6}
    source = impressions(teacher, tmp_path / "i", **settings)
    answer_btv = source._answers(100, similarity_vv, torch.Generator().manual_seed(0))
    units_bt = answer_btv.argmax(-1)
    spikes_bt = units_bt > 0
    assert not (spikes_bt[:, 1:] & spikes_bt[:, :-1]).any()
    # One of ten, less those that follow another.
    assert spikes_bt.float().mean().item() == pytest.approx(0.1 * 0.9, abs=0.01)
    # With so large a scale a draw is its mean; no class has nothing.
    rest_vv = similarity_vv.clamp_min(0.01) / similarity_vv.clamp_min(0.01).sum(-1, keepdim=True)
    expected_btv = 0.6 * torch.eye(3)[units_bt] + 0.4 * rest_vv[units_bt]
    torch.testing.assert_close(answer_btv, expected_btv, atol=5e-3, rtol=0)


def test_similarity_fills_the_range_from_0_to_1_in_each_row() -> None:
    """By hand: the cosines of the first row are 1, 0 and -1, of the second 0, 1 and 0."""
    found = class_similarity(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]))
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    torch.testing.assert_close(found, expected)


class Deaf:
    """A teacher that answers the same whatever it hears."""

    subsampling = 4

    def __init__(self) -> None:
        self.normalise = SimpleNamespace(mean_f=torch.tensor(3.0), inverse_std_f=torch.tensor(0.25))

    def offline(self, features_btf: torch.Tensor, lengths_b: torch.Tensor) -> tuple[torch.Tensor, None]:
        return 0.0 * features_btf.mean() + torch.full((len(lengths_b), 12, 3), 1 / 3).log(), None


@pytest.mark.parametrize("smoothness", [0.0, 0.1])
def test_noise_of_the_teachers_own_spread_gets_smoother_only_where_that_is_asked_for(
    smoothness: float, teacher: str, tmp_path: Path
) -> None:
    source = impressions(teacher, tmp_path / "i", smoothness=smoothness)
    answer_btv = torch.full((2, 12, 3), 1 / 3)
    found = source._imagine(Deaf(), answer_btv, torch.Generator().manual_seed(4))
    noise = 3.0 + 4.0 * torch.randn(2, 48, 80, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(found, noise) == (smoothness == 0.0)
    assert found.std() < 0.1 * noise.std() or smoothness == 0.0


def test_similar_classes_have_similar_weights() -> None:
    similarity = class_similarity(torch.tensor([[1.0, 0.0], [2.0, 0.1], [-1.0, 0.0]]))
    assert similarity[0, 0].item() == pytest.approx(1.0) and similarity[0, 2].item() == pytest.approx(0.0)
    assert similarity[0, 1] > 0.99


def test_numbers_that_make_no_sense_are_refused(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="certainty"):
        impressions(teacher, tmp_path / "i", certainty=0.0)
