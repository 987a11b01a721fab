"""The trained teacher: full context, and labels that do not depend on the batch."""

from __future__ import annotations

import torch

from kdasr.interfaces import AcousticModel
from kdasr.teachers.conformer import ConformerTeacher


def make_teacher() -> ConformerTeacher:
    torch.manual_seed(5)
    return ConformerTeacher(vocab_size=9, width=32, num_layers=2, kernel_frames=5).eval()


def test_is_an_acoustic_model_that_rebuilds_from_its_config() -> None:
    teacher = make_teacher()
    assert isinstance(teacher, AcousticModel)
    ConformerTeacher(**teacher.config).load_state_dict(teacher.state_dict())


@torch.no_grad()
def test_posteriors_ignore_batch_neighbours_and_padding() -> None:
    teacher = make_teacher()
    features, lengths = torch.randn(3, 203, 80), torch.tensor([203, 150, 3])
    together, frames = teacher.offline(features, lengths)
    assert frames.tolist() == [51, 38, 1]
    for row, length in enumerate(lengths.tolist()):
        alone, _ = teacher.offline(features[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together[row, : frames[row]], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_first_frame_hears_the_last() -> None:
    teacher = make_teacher()
    features = torch.randn(1, 400, 80)
    changed = features.clone()
    changed[:, -4:] += 10.0
    length = torch.tensor([400])
    before, after = teacher.offline(features, length)[0], teacher.offline(changed, length)[0]
    assert float((before[:, 0] - after[:, 0]).abs().max()) > 1e-6


def test_chunked_batches_of_training_hide_the_future() -> None:
    torch.manual_seed(5)
    always = ConformerTeacher(
        vocab_size=9, width=32, num_layers=2, kernel_frames=5, dropout=0.0, chunked_share=1.0, chunk_frames=4
    ).train()
    features = torch.randn(1, 160, 80)
    changed = features.clone()
    changed[:, 64:] += 5.0
    length = torch.tensor([160])
    before, after = always.offline(features, length)[0], always.offline(changed, length)[0]
    torch.testing.assert_close(before[:, :16], after[:, :16], atol=0, rtol=0)
    always.eval()
    before, after = always.offline(features, length)[0], always.offline(changed, length)[0]
    assert float((before[:, :16] - after[:, :16]).abs().max()) > 1e-4
