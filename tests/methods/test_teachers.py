"""Online teachers: who may teach whom, what they hear, and peers that learn from each other."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdasr.errors import ConfigError, LabelMismatchError
from kdasr.interfaces import Batch
from kdasr.methods.mutual import Peer, mutual_learning
from kdasr.methods.responses import soft_targets
from kdasr.methods.teachers import EmaTeacher, FrozenTeacher
from kdasr.models import save_model
from kdasr.students.conformer import ChunkConformer
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits
from tests.methods.outputs import batch_with, output_of

UNITS = CharUnits()
TINY = {"width": 16, "num_layers": 2, "num_heads": 2, "expansion": 1, "kernel_frames": 3}


def teacher_folder(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    save_model(folder, ConformerTeacher(vocab_size=UNITS.vocab_size, **TINY), UNITS)  # type: ignore[arg-type]
    return str(folder)


def student() -> ChunkConformer:
    return ChunkConformer(vocab_size=UNITS.vocab_size, **TINY)  # type: ignore[arg-type]


def noise_batch(clean: bool = False) -> Batch:
    torch.manual_seed(5)
    features = torch.randn(2, 40, 80)
    batch = Batch(["a", "b"], features, torch.tensor([40, 30]))
    batch.teacher_features_btf = features + 1 if clean else None
    return batch


def test_a_frozen_teacher_hears_the_clean_audio_and_shows_its_layers(tmp_path: Path) -> None:
    teacher = FrozenTeacher(teacher_folder(tmp_path / "t"))
    teacher.attach(student(), units_hash=UNITS.hash, statistics=None)
    batch, paired = noise_batch(), noise_batch(clean=True)
    plain = teacher(batch, torch.zeros_like(batch.features_btf))
    assert torch.equal(plain.log_probs_btv, teacher(batch, batch.features_btf).log_probs_btv)
    assert not torch.allclose(plain.log_probs_btv, teacher(paired, batch.features_btf).log_probs_btv)
    assert [layer.shape for layer in plain.layers_btd] == [(2, 10, 16)] * 2
    assert not plain.log_probs_btv.requires_grad and plain.lengths_b.tolist() == [10, 8]


def test_several_teachers_are_averaged_with_their_weights(tmp_path: Path) -> None:
    folders = [teacher_folder(tmp_path / f"t{seed}", seed) for seed in (1, 2)]
    heard = []
    for teacher in (*map(FrozenTeacher, folders), FrozenTeacher(folders, weights=[3.0, 1.0])):
        teacher.attach(student(), units_hash=UNITS.hash, statistics=None)
        heard.append(teacher(noise_batch(), torch.empty(0)).log_probs_btv.exp())
    torch.testing.assert_close(heard[2], 0.75 * heard[0] + 0.25 * heard[1], atol=1e-5, rtol=1e-4)
    log_average = FrozenTeacher(folders, average="log")
    log_average.attach(student(), units_hash=UNITS.hash, statistics=None)
    product = (heard[0] * heard[1]).sqrt()
    found = log_average(noise_batch(), torch.empty(0)).log_probs_btv.exp()
    torch.testing.assert_close(found, product / product.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
    kinds = FrozenTeacher(folders), log_average, FrozenTeacher(folders, weights=[3.0, 1.0])
    assert len({str(kind.config) for kind in kinds}) == 3


def test_a_teacher_of_other_units_is_refused_unless_only_its_layers_matter(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "t")
    with pytest.raises(LabelMismatchError, match=r"differ in units.*same_units"):
        FrozenTeacher(folder).attach(student(), units_hash="another", statistics=None)
    layers = FrozenTeacher(folder, same_units=False)
    layers.attach(student(), units_hash="another", statistics=None)
    batch = noise_batch()
    heard = layers(batch, batch.features_btf)
    assert (
        heard.log_probs_btv.shape == (2, 10, 0) and [x.shape for x in heard.layers_btd] == [(2, 10, 16)] * 2
    )
    batch.teachers = {"big": heard}
    with pytest.raises(ConfigError, match=r"teachers\.big: .*other units.*only losses that compare layers"):
        soft_targets(output_of(torch.randn(2, 10, 29)), batch, teacher="big")


def test_a_teacher_of_another_rate_is_refused_however_many_there_are(tmp_path: Path) -> None:
    folders = [teacher_folder(tmp_path / f"t{seed}", seed) for seed in (1, 2)]
    slow: Any = SimpleNamespace(subsampling=2)
    with pytest.raises(LabelMismatchError, match=r"feature frames for each output.*student: 2; got 4"):
        FrozenTeacher(folders).attach(slow, units_hash=UNITS.hash, statistics=None)
    layers = FrozenTeacher(folders, same_units=False)
    layers.attach(slow, units_hash=UNITS.hash, statistics=None)
    assert layers(noise_batch(), torch.empty(0)).log_probs_btv.shape == (2, 10, 0)


class Counts(nn.Module):
    """A model with dropout that counts."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(3))

    def offline(
        self, features_btf: torch.Tensor, lengths_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return nn.functional.dropout(features_btf, training=self.training), lengths_b


def test_the_average_counts_as_the_student_does_and_forgets_nothing_by_chance() -> None:
    model: Any = Counts()
    teacher, batch = EmaTeacher(0.9), noise_batch()
    teacher.attach(model, units_hash=UNITS.hash, statistics=None)
    model.count += 4
    teacher.after_step(model)
    assert teacher.average.model.count == 7
    teacher.train()
    assert torch.equal(teacher(batch, batch.features_btf).log_probs_btv, batch.features_btf)


def test_the_average_follows_the_student() -> None:
    """After the first step half of each, as long as the decay allows it; then the decay decides."""
    model, teacher = student(), EmaTeacher(0.6)
    teacher.attach(model, units_hash=UNITS.hash, statistics=None)
    bias = model.head.bias
    with torch.no_grad():
        bias.fill_(1.0)
        teacher.average.model.head.bias.fill_(0.0)
    teacher.after_step(model)
    assert teacher.average.model.head.bias[0].item() == pytest.approx(0.5)
    teacher.after_step(model)
    assert teacher.average.model.head.bias[0].item() == pytest.approx(0.6 * 0.5 + 0.4)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.raises(ConfigError, match="decay"):
        EmaTeacher(1.0)


def test_mutual_learning_needs_a_peer_of_the_same_units() -> None:
    even = torch.full((1, 2, 3), 1 / 3).log()
    batch = batch_with(1, peer=output_of(even[..., :0]))
    with pytest.raises(ConfigError, match="this training has no online teacher 'pear'"):
        mutual_learning(output_of(even), batch, teacher="pear")
    with pytest.raises(ConfigError, match=r"with a teacher that has other units"):
        mutual_learning(output_of(even), batch, teacher="peer")


def test_mutual_learning_by_hand() -> None:
    """One frame, two classes: (1/2, 1/2) and (1/4, 3/4)."""
    even, odd = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    batch = batch_with(1, transcripts=[[1]], peer=output_of(odd))
    forward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    loss = mutual_learning(output_of(even), batch, teacher="peer", supervised_weight=2.0)
    assert loss.item() == pytest.approx(forward + backward - 2 * math.log(0.75), rel=1e-5)


def test_mutual_learning_is_the_mean_over_frames_and_these_are_the_same_of_both() -> None:
    even, odd = torch.full((2, 2, 2), 0.5).log(), torch.tensor([0.25, 0.75]).log().repeat(2, 2, 1)
    one = mutual_learning(output_of(even), batch_with(2, peer=output_of(odd)), teacher="peer")
    odd[1, 1] = torch.tensor([0.01, 0.99]).log()
    ragged = batch_with(2, peer=output_of(odd, lengths=[2, 1]))
    found = mutual_learning(output_of(even, lengths=[2, 1]), ragged, teacher="peer")
    torch.testing.assert_close(found, one)
    with pytest.raises(LabelMismatchError, match="utt1: .*expected 2 frames; got 1 frames"):
        mutual_learning(output_of(even), ragged, teacher="peer")


def test_each_peer_moves_towards_the_other() -> None:
    ours, theirs = (
        torch.tensor([[[0.0, 2.0]]]).requires_grad_(),
        torch.tensor([[[2.0, 0.0]]]).requires_grad_(),
    )
    mutual_learning(output_of(ours), batch_with(1, peer=output_of(theirs)), teacher="peer").backward()
    assert ours.grad is not None and theirs.grad is not None
    # The gradient of D(p || softmax(z)) in z is softmax(z) - p, for each with the other fixed.
    gap = torch.tensor(2.0).sigmoid() - torch.tensor(-2.0).sigmoid()
    torch.testing.assert_close(ours.grad.flatten(), torch.stack([-gap, gap]))
    torch.testing.assert_close(theirs.grad.flatten(), torch.stack([gap, -gap]))


def test_a_peer_hears_what_the_student_hears_and_learns() -> None:
    peer = Peer(functools.partial(ChunkConformer, **TINY))
    peer.attach(student(), units_hash=UNITS.hash, statistics=(torch.full((80,), 3.0), torch.ones(80)))
    batch = noise_batch()
    heard = peer(batch, batch.features_btf)
    assert heard.log_probs_btv.requires_grad and len(heard.layers_btd) == 2
    assert not torch.allclose(heard.log_probs_btv, peer(batch, batch.features_btf + 1).log_probs_btv)
    assert peer.recorded.model.normalise.mean_f[0].item() == 3.0
    assert peer.config["settings"]["width"] == 16
    slow: Any = SimpleNamespace(subsampling=2, vocab_size=UNITS.vocab_size)
    with pytest.raises(
        ConfigError, match="the same number of feature frames per output frame; expected 2; got 4"
    ):
        peer.attach(slow, units_hash=UNITS.hash, statistics=(torch.zeros(80), torch.ones(80)))
