"""Label smoothing, the virtual teacher and intermediate heads against numbers worked out by hand."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from kdasr.errors import ConfigError
from kdasr.losses import ctc
from kdasr.methods.consistency import both_views
from kdasr.methods.intermediate import IntermediateHead
from kdasr.methods.responses import soft_targets
from kdasr.methods.teacher_free import aligned_units, label_smoothing, virtual_teacher
from tests.methods.outputs import batch_with, output_of


def test_label_smoothing_by_hand() -> None:
    """-log 2 - ½ (log ¼ + log ¾) in the frame that counts; the padded one does not."""
    output = output_of(torch.tensor([[[0.25, 0.75], [0.999, 0.001]]]).log(), lengths=[1])
    expected = -math.log(2) - 0.5 * (math.log(0.25) + math.log(0.75))
    assert label_smoothing(output, batch_with(1)).item() == pytest.approx(expected, rel=1e-5)
    assert label_smoothing(output_of(torch.zeros(2, 3, 5)), batch_with(2)).item() == pytest.approx(
        0, abs=1e-6
    )


def test_alignment_is_where_the_units_are() -> None:
    """Unit 1 where the student hears it, and where the transcript wants it though the student does not."""
    logits = torch.full((1, 6, 3), -4.0)
    for frame, unit in enumerate([0, 1, 0, 0, 0, 0]):
        logits[0, frame, unit] = 4.0
    logits[0, 4, 2] = 3.0
    batch = batch_with(1, transcripts=[[1, 2]])
    units_bt, fits_b = aligned_units(output_of(logits), batch)
    assert units_bt.tolist() == [[0, 1, 0, 0, 2, 0]] and fits_b.tolist() == [True]


def test_virtual_teacher_by_hand() -> None:
    """One frame, correct class 1 of 3 with 0.8: KL((0.1, 0.8, 0.1) || (0.2, 0.5, 0.3))."""
    output = output_of(torch.tensor([[[0.2, 0.5, 0.3]]]).log())
    batch = batch_with(1, transcripts=[[1]])
    target, q = torch.tensor([0.1, 0.8, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    expected = (target * (target / q).log()).sum().item()
    found = virtual_teacher(output, batch, correct_probability=0.8, temperature=1.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    soft, student = target.sqrt() / target.sqrt().sum(), q.sqrt() / q.sqrt().sum()
    expected = 4 * (soft * (soft / student).log()).sum().item()
    found = virtual_teacher(output, batch, correct_probability=0.8, temperature=2.0)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_label_smoothing_is_the_virtual_teacher_that_knows_nothing() -> None:
    torch.manual_seed(1)
    output, batch = output_of(torch.randn(2, 7, 4), lengths=[7, 5]), batch_with(2, transcripts=[[1, 2], [3]])
    virtual = virtual_teacher(output, batch, correct_probability=0.25, temperature=1.0)
    torch.testing.assert_close(virtual, label_smoothing(output, batch))


@pytest.mark.parametrize("loss", [label_smoothing, functools.partial(virtual_teacher, temperature=2.0)])
def test_gradcheck(loss: object) -> None:
    torch.manual_seed(2)
    batch = batch_with(2, transcripts=[[1, 2], [3]])

    def value(logits: Tensor) -> Tensor:
        return loss(output_of(logits, lengths=[5, 4]), batch)  # type: ignore[operator,no-any-return]

    logits = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (logits,))


def test_a_virtual_teacher_needs_transcripts_and_sense() -> None:
    output = output_of(torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match="transcripts"):
        virtual_teacher(output, batch_with(1))
    with pytest.raises(ConfigError, match="correct_probability"):
        virtual_teacher(output, batch_with(1, transcripts=[[1]]), correct_probability=1.0)


def test_an_intermediate_head_is_the_loss_on_its_own_log_probs() -> None:
    torch.manual_seed(3)
    layers = [torch.randn(1, 6, 3), torch.randn(1, 6, 3)]
    output, batch = output_of(torch.randn(1, 6, 4), layers), batch_with(1, transcripts=[[1, 3]])
    head = IntermediateHead(layer=0, loss=ctc)
    found = head(output, batch)
    expected = ctc(output_of(head.head(layers[0], 4)), batch)
    torch.testing.assert_close(found, expected)
    assert head.config == {"layer": 0, "loss": "ctc"}


def test_the_last_layer_teaches_a_shallower_one_and_is_not_moved() -> None:
    torch.manual_seed(4)
    logits, layer = torch.randn(1, 6, 4, requires_grad=True), torch.randn(1, 6, 3, requires_grad=True)
    output = output_of(logits, [layer])
    loss = functools.partial(soft_targets, teacher="last_layer", temperature=2.0)
    head = IntermediateHead(layer=0, loss=loss)
    value = head(output, batch_with(1))
    expected = soft_targets(
        output_of(head.head(layer, 4)), batch_with(1, deep=output), teacher="deep", temperature=2.0
    )
    torch.testing.assert_close(value, expected)
    value.backward()
    assert logits.grad is None and layer.grad is not None
    assert head.config["loss"] == ["soft_targets", {"teacher": "last_layer", "temperature": 2.0}]


def test_a_transcript_that_does_not_fit_teaches_nothing() -> None:
    """As under CTC itself; without it the student would be told its own guesses."""
    torch.manual_seed(5)
    logits = torch.randn(2, 3, 5)
    both = virtual_teacher(output_of(logits), batch_with(2, transcripts=[[1, 2], [1, 1, 2]]))
    alone = virtual_teacher(output_of(logits[:1]), batch_with(1, transcripts=[[1, 2]]))
    torch.testing.assert_close(both, alone / 2)


def test_a_head_reads_both_views_and_is_described_alike_in_every_process() -> None:
    torch.manual_seed(6)
    views = [output_of(torch.randn(1, 6, 4), [torch.randn(1, 6, 3)]) for _ in range(2)]
    batch = batch_with(1, transcripts=[[1, 3]])
    batch.views = {0: views[1]}
    head = IntermediateHead(layer=0, loss=functools.partial(both_views, loss=ctc))
    found = head(views[0], batch)
    of_layers = [output_of(head.head(view.layers_btd[0], 4)) for view in views]
    torch.testing.assert_close(found, (ctc(of_layers[0], batch) + ctc(of_layers[1], batch)) / 2)
    assert head.config == {"layer": 0, "loss": ["both_views", {"loss": "ctc"}]}
