"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdasr.errors import ConfigError, LabelMismatchError, MissingLabelsError
from kdasr.interfaces import Batch, ModelOutput, SoftLabelBatch
from kdasr.losses import (
    best_path_ctc,
    ctc,
    frame_weights,
    partition_cross_entropy,
    silent_start,
    soft_cross_entropy,
    transcript_nats,
)
from kdasr.methods.delays import windowed_cross_entropy
from kdasr.soft_labels import Full, TopP, pad_soft_labels
from tests.methods.posteriors import batch_of, labels_from, logs, output_of


def test_partition_cross_entropy_by_hand() -> None:
    labels = labels_from([[{0: 0.7, 2: 0.2}]])
    student = logs([0.5, 0.1, 0.25, 0.15])
    expected = -(0.7 * math.log(0.5) + 0.2 * math.log(0.25) + 0.1 * math.log(0.1 + 0.15))
    assert float(partition_cross_entropy(student, labels)) == pytest.approx(expected, rel=1e-6)


def test_full_labels_give_the_full_cross_entropy() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(7, 12).log_softmax(-1)
    student = torch.randn(1, 7, 12).log_softmax(-1)
    labels = pad_soft_labels([Full().encode(teacher)])
    expected = -(teacher.exp() * student[0]).sum(-1).mean()
    loss = soft_cross_entropy(output_of(student), batch_of(labels))
    torch.testing.assert_close(loss, expected, atol=2e-3, rtol=1e-3)


def test_truncated_labels_are_least_where_student_equals_teacher() -> None:
    """The tail bucket makes the target unbiased: the gradient vanishes at the teacher."""
    torch.manual_seed(1)
    logits = (3 * torch.randn(1, 20, 30)).requires_grad_()
    labels = pad_soft_labels(
        [TopP(mass=0.8, cap=6, step_nats=1e-3).encode(logits[0].log_softmax(-1).detach())]
    )
    soft_cross_entropy(output_of(logits.log_softmax(-1)), batch_of(labels)).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-4


@pytest.mark.parametrize(("tail", "gradient"), [(0.0, 0.25), (0.1, 0.25 - 0.1 / 2)])
def test_a_class_that_the_teacher_lacks_has_target_0_or_its_share_of_the_tail(
    tail: float, gradient: float
) -> None:
    """Of four classes that are alike to the student, the teacher's labels never name the last."""
    kept = {0: 0.6, 1: 0.3} if tail else {0: 0.6, 1: 0.3, 2: 0.1}
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    partition_cross_entropy(logits.log_softmax(-1), labels_from([[kept]])).backward()
    assert logits.grad is not None and float(logits.grad[0, 0, 3]) == pytest.approx(gradient, rel=1e-5)


def test_gradient_by_finite_differences() -> None:
    labels = labels_from([[{0: 0.7, 2: 0.2}, {0: 0.1, 3: 0.9}], [{0: 1.0}]])
    logits = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return partition_cross_entropy(x.log_softmax(-1), labels).sum()

    assert torch.autograd.gradcheck(loss, (logits,))


def test_delay_pairs_a_later_student_frame_with_the_teacher() -> None:
    labels = labels_from([[{0: 1.0}, {1: 1.0}, {0: 1.0}]])
    student = logs([0.9, 0.1], [0.8, 0.2], [0.3, 0.7])
    loss = soft_cross_entropy(output_of(student), batch_of(labels), delay_frames=1)
    # Teacher frames 0 and 1 against student frames 1 and 2.
    assert float(loss) == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2, rel=1e-6)


def test_with_a_delay_each_utterance_is_paired_up_to_its_own_end() -> None:
    labels = labels_from([[{0: 1.0}, {1: 1.0}, {0: 1.0}], [{1: 1.0}, {0: 1.0}]])
    student = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.75, 0.25], [0.5, 0.5]]])
    loss = soft_cross_entropy(output_of(student.log(), 3, 2), batch_of(labels), delay_frames=1)
    assert float(loss) == pytest.approx(-math.log(0.8 * 0.7 * 0.25) / 3, rel=1e-6)


def test_with_a_delay_the_weight_is_that_of_the_teachers_frame() -> None:
    labels = labels_from([[{1: 1.0}, {0: 1.0}, {0: 1.0}]])
    output = output_of(logs([0.9, 0.1], [0.8, 0.2], [0.3, 0.7]))
    loss = soft_cross_entropy(output, batch_of(labels), delay_frames=1, blank_policy="eliminate")
    assert float(loss) == pytest.approx(-math.log(0.2), rel=1e-6)


def test_padding_counts_for_nothing() -> None:
    labels = labels_from([[{0: 1.0}, {1: 1.0}, {1: 1.0}], [{1: 1.0}]])
    student = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]).log().expand(2, 3, 2).clone()
    lengths = torch.tensor([3, 1])
    loss = soft_cross_entropy(ModelOutput(student, lengths), batch_of(labels))
    changed = student.clone()
    changed[1, 1:] = torch.tensor([0.01, 0.99]).log()
    assert float(loss) == pytest.approx(-math.log(0.9 * 0.8 * 0.5 * 0.1) / 4, rel=1e-6)
    assert float(soft_cross_entropy(ModelOutput(changed, lengths), batch_of(labels))) == float(loss)


def test_a_delay_longer_than_the_audio_gives_zero_not_nan() -> None:
    labels = labels_from([[{0: 1.0}]])
    student = logs([0.9, 0.1]).requires_grad_()
    loss = soft_cross_entropy(output_of(student), batch_of(labels), delay_frames=3)
    loss.backward()
    assert loss.item() == 0.0 and student.grad is not None and bool((student.grad == 0).all())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("all", [1, 1, 1, 1, 1, 1]),
        ("eliminate", [0, 0, 1, 0, 0, 0]),
        ("symmetric", [0, 1, 1, 1, 0, 0]),
        ("downweight", [0.25, 0.25, 1, 0.25, 0.25, 0.25]),
    ],
)
def test_blank_policies(policy: str, expected: list[float]) -> None:
    blank, spike = {0: 0.9, 1: 0.1}, {0: 0.3, 2: 0.7}
    labels = labels_from([[blank, blank, spike, blank, blank, blank]])
    weights = frame_weights(labels, policy, 0.25, 1)  # type: ignore[arg-type]
    assert weights.tolist() == [expected]


def test_the_neighbours_of_a_spike_are_as_many_as_the_margin_says() -> None:
    labels = labels_from([[{0: 1.0}] * 3 + [{2: 1.0}] + [{0: 1.0}] * 3])
    assert frame_weights(labels, "symmetric", 0.1, 2).tolist() == [[0, 1, 1, 1, 1, 1, 0]]


def test_blanks_weigh_a_tenth_of_spikes_unless_told() -> None:
    labels = labels_from([[{0: 1.0}, {1: 1.0}]])
    output = output_of(logs([0.5, 0.5], [0.75, 0.25]))
    loss = soft_cross_entropy(output, batch_of(labels), blank_policy="downweight")
    assert float(loss) == pytest.approx(-(0.1 * math.log(0.5) + math.log(0.25)) / 1.1, rel=1e-6)


def test_only_blank_under_eliminate_is_zero() -> None:
    labels = labels_from([[{0: 1.0}, {0: 1.0}]])
    output = output_of(logs([0.5, 0.5], [0.5, 0.5]))
    loss = soft_cross_entropy(output, batch_of(labels), blank_policy="eliminate")
    assert float(loss) == 0.0


@pytest.mark.parametrize("frames", [2, 4])
def test_labels_of_other_audio_are_refused_by_key(frames: int) -> None:
    labels = labels_from([[{0: 1.0}] * frames])
    with pytest.raises(LabelMismatchError, match=rf"utt0.*expected 3 frames; got {frames} frames"):
        soft_cross_entropy(output_of(torch.zeros(1, 3, 2)), batch_of(labels))


LOG_PROBS = torch.full((2, 3, 4), 0.25).log()
LENGTHS = torch.tensor([3, 2])


@pytest.mark.parametrize(
    ("log_probs_btv", "lengths_b", "message"),
    [
        (LOG_PROBS.transpose(0, 1), LENGTHS, r"wrong axes; .* got \(3, 2, 4\) and \(2,\)"),
        (LOG_PROBS[:1].transpose(0, 1), LENGTHS[:1], r"wrong axes; .* got \(3, 1, 4\) and \(1,\)"),
        (LOG_PROBS[0], LENGTHS, "wrong axes"),
        (LOG_PROBS, LENGTHS / 3, "whole numbers of frames; .* torch.float32"),
        (LOG_PROBS, LENGTHS * 4, "fewer frames than its lengths say; expected 12 frames; got 3"),
    ],
)
def test_an_output_with_other_axes_or_lengths_is_refused(
    log_probs_btv: Tensor, lengths_b: Tensor, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelOutput(log_probs_btv, lengths_b)


LOSSES: list[Any] = [soft_cross_entropy, windowed_cross_entropy, best_path_ctc, silent_start]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("change", [lambda x: x + 3, torch.exp])
def test_logits_and_probabilities_are_no_log_probabilities(
    loss: Callable[[ModelOutput, Batch], Tensor], change: Callable[[Tensor], Tensor]
) -> None:
    batch = batch_of(labels_from([[{0: 1.0}, {1: 1.0}, {0: 1.0}], [{0: 1.0}, {1: 1.0}]]))
    assert float(loss(ModelOutput(LOG_PROBS.half(), LENGTHS), batch)) > 0
    with pytest.raises(ConfigError, match=r"no log-probabilities; .* End the model in log_softmax"):
        loss(ModelOutput(change(LOG_PROBS), LENGTHS), batch)


def test_log_probabilities_are_told_by_a_first_frame_alone() -> None:
    """Of an output of one frame, too; padding may sum to something else."""
    batch = batch_of(labels_from([[{0: 1.0}], [{0: 1.0}]]))
    one, ones = LOG_PROBS[:, :1], torch.tensor([1, 1])
    with pytest.raises(ConfigError, match="no log-probabilities; .* got a log-sum of 3 in the first one"):
        silent_start(ModelOutput(one + 3, ones), batch)
    padded = functional.pad(one, (0, 0, 0, 2))
    padded[1] = 3.0  # of nothing
    lengths = torch.tensor([1, 0])
    assert silent_start(ModelOutput(padded, lengths), batch) == silent_start(ModelOutput(one, lengths), batch)


@pytest.mark.parametrize("loss", LOSSES[:2])
def test_what_cannot_be_compared_frame_by_frame_is_refused(loss: Any) -> None:
    labels = labels_from([[{0: 1.0}, {3: 1.0}, {0: 1.0}], [{0: 1.0}, {1: 1.0}]])
    batch, output = batch_of(labels), ModelOutput(LOG_PROBS, LENGTHS)
    longer = ModelOutput(functional.pad(LOG_PROBS, (0, 0, 0, 2)), LENGTHS)
    fewer = ModelOutput(LOG_PROBS[..., :3].log_softmax(-1), LENGTHS)
    with pytest.raises(LabelMismatchError, match="padded to more frames .* expected 3 frames; got 5"):
        loss(longer, batch)
    with pytest.raises(
        LabelMismatchError, match="more classes than the student; expected classes below 3; got 3"
    ):
        loss(fewer, batch)
    with pytest.raises(LabelMismatchError, match="expected 2 utterances, .* got 2 soft labels and 1 keys"):
        loss(output, replace(batch, keys=["a"]))
    with pytest.raises(LabelMismatchError, match="expected 1 utterances, .* got 2 soft labels and 2 keys"):
        loss(ModelOutput(LOG_PROBS[:1], LENGTHS[:1]), batch)


def test_ctc_refuses_units_beyond_the_model() -> None:
    """torch reads beyond the output there."""
    batch = Batch(["a"], torch.zeros(1, 8, 80), torch.tensor([8]), torch.tensor([[4]]), torch.tensor([1]))
    with pytest.raises(ConfigError, match="no class for a unit .* expected units below 4, .* got 4"):
        ctc(ModelOutput(LOG_PROBS[:1], LENGTHS[:1]), batch)
    batch.tokens_bu = torch.tensor([[3, 4]])  # padded with anything
    assert float(ctc(ModelOutput(LOG_PROBS[:1], LENGTHS[:1]), batch)) > 0


def test_unknown_policy_is_refused() -> None:
    output, batch = output_of(torch.zeros(1, 1, 2)), batch_of(labels_from([[{0: 1.0}]]))
    with pytest.raises(ConfigError, match="symmetric"):
        soft_cross_entropy(output, batch, blank_policy="none")  # type: ignore[arg-type]


def test_ctc_by_hand_and_per_frame() -> None:
    """Two frames, one unit: p = a1 b2 + b1 a2 + a1 a2."""
    student = logs([0.4, 0.6], [0.7, 0.3])
    batch = Batch(["a"], torch.zeros(1, 8, 80), torch.tensor([8]), torch.tensor([[1]]), torch.tensor([1]))
    probability = 0.6 * 0.7 + 0.4 * 0.3 + 0.6 * 0.3
    assert float(ctc(output_of(student), batch)) == pytest.approx(-math.log(probability) / 2, rel=1e-6)


def test_ctc_of_too_short_audio_is_zero_not_infinite() -> None:
    batch = Batch(["a"], torch.zeros(1, 4, 80), torch.tensor([4]), torch.tensor([[1, 1]]), torch.tensor([2]))
    assert float(ctc(output_of(logs([0.4, 0.6])), batch)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_ctc_over_many_classes_is_torchs(dtype: torch.dtype) -> None:
    """Units that repeat, a transcript that does not fit, one of nothing, and two of one utterance."""
    torch.manual_seed(0)
    logits = torch.randn(3, 9, 450).to(dtype).requires_grad_()
    tokens = torch.tensor([[5, 5, 449, 5], [7, 7, 7, 7], [0, 0, 0, 0], [449, 2, 0, 0]])
    counts, rows = torch.tensor([4, 4, 0, 2]), torch.tensor([0, 1, 2, 2])
    lengths = torch.tensor([9, 5, 7])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    log_probs = logits.log_softmax(-1)
    found = transcript_nats(ModelOutput(log_probs, lengths), tokens, counts, rows)
    expected = functional.ctc_loss(
        log_probs.to(torch.promote_types(dtype, torch.float32))[rows].transpose(0, 1),
        tokens,
        lengths[rows],
        counts,
        reduction="none",
        zero_infinity=True,
    )
    assert expected[1] == 0.0 and bool((expected[[0, 2, 3]] > 1).all())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    ours, theirs = (
        torch.autograd.grad((weights * loss).sum(), logits, retain_graph=True)[0]
        for loss in (found, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5 if dtype == torch.float64 else 1e-2, atol=1e-9)


def test_ctc_of_units_with_most_of_a_frame_has_torchs_gradient() -> None:
    """Blank, and a unit that comes twice; transcripts differ in length."""
    logits = torch.randn(2, 7, 450, dtype=torch.float64)
    logits[:, :, 0] += 9
    logits[0, [1, 3], 5] += 18
    logits.requires_grad_()
    tokens, counts, lengths = torch.tensor([[5, 5, 9], [7, 0, 0]]), torch.tensor([3, 1]), torch.tensor([7, 6])
    log_probs = logits.log_softmax(-1)
    found = transcript_nats(ModelOutput(log_probs, lengths), tokens, counts)
    expected = functional.ctc_loss(log_probs.transpose(0, 1), tokens, lengths, counts, reduction="none")
    ours, theirs = (
        torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (found, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_losses_of_half_precision_are_computed_in_single_precision() -> None:
    log_probs = torch.randn(1, 4, 5).log_softmax(-1).half()
    half, single = output_of(log_probs), output_of(log_probs.float())
    tokens, counts = torch.tensor([[1, 2]]), torch.tensor([2])
    torch.testing.assert_close(transcript_nats(half, tokens, counts), transcript_nats(single, tokens, counts))
    batch = batch_of(pad_soft_labels([TopP(mass=0.8, cap=3).encode(torch.randn(4, 5).log_softmax(-1))]))
    torch.testing.assert_close(soft_cross_entropy(half, batch), soft_cross_entropy(single, batch))


def test_ctc_of_a_student_that_is_sure_has_a_finite_gradient() -> None:
    """Nothing is left for all other classes together."""
    logits = torch.full((1, 3, 450), -200.0)
    logits[0, [0, 1, 2], [0, 9, 0]] = 200.0
    logits.requires_grad_()
    output = output_of(logits.log_softmax(-1))
    loss = transcript_nats(output, torch.tensor([[9]]), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


def test_memory_does_not_grow_with_vocabulary_times_kept() -> None:
    """40 frames x 5,000 classes x 500 kept would be 400 MB if they were ever crossed."""
    frames, vocab, kept = 40, 5_000, 500
    ids = torch.from_numpy(
        np.stack([np.random.default_rng(t).permutation(vocab)[:kept] for t in range(frames)])
    )
    labels = SoftLabelBatch(
        ids[None],
        torch.full((1, frames, kept), math.log(1 / kept)),
        torch.full((1, frames), -math.inf),
        torch.tensor([frames]),
    )
    largest = 0

    def watch(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    student = torch.randn(1, frames, vocab, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(watch, lambda tensor: tensor):
        partition_cross_entropy(student.log_softmax(-1), labels).sum().backward()
    assert largest <= frames * max(vocab, kept)


def test_best_path_ctc_is_ctc_to_what_the_teacher_heard() -> None:
    blank, one, two = {0: 0.9, 1: 0.1}, {1: 0.6, 0: 0.4}, {2: 0.7, 0: 0.3}
    labels = labels_from([[one, one, blank, one, two], [blank, blank, two]])
    student = torch.randn(2, 5, 4).log_softmax(-1)
    lengths = torch.tensor([5, 3])
    batch = batch_of(labels)
    expected = Batch(
        batch.keys, batch.features_btf, lengths, torch.tensor([[1, 1, 2], [2, 0, 0]]), torch.tensor([3, 1])
    )
    torch.testing.assert_close(
        best_path_ctc(ModelOutput(student, lengths), batch), ctc(ModelOutput(student, lengths), expected)
    )


def test_best_path_ctc_of_silence_asks_for_blanks() -> None:
    labels = labels_from([[{0: 1.0}, {0: 1.0}]])
    loss = best_path_ctc(output_of(logs([0.5, 0.5], [0.25, 0.75])), batch_of(labels))
    assert float(loss) == pytest.approx(-math.log(0.5 * 0.25) / 2, rel=1e-6)


def test_what_lies_beyond_an_utterance_is_no_neighbour_of_its_spikes() -> None:
    """An online teacher may take padding for anything."""
    spiky, silent = [{1: 1.0}], [{0: 1.0}]
    for beyond in (spiky, silent):
        labels = labels_from([silent * 3 + beyond, silent * 2 + spiky + silent])
        labels = labels._replace(lengths_b=torch.tensor([3, 4]))
        weights = frame_weights(labels, "symmetric", 0.1, 1)
        assert weights[0, :3].tolist() == [0.0, 0.0, 0.0] and weights[1].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_ctc_asks_for_transcripts() -> None:
    output = output_of(torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match=r"utt0: a loss needs transcripts.*labelled_losses.*best_path"):
        ctc(output, batch_of())


def test_what_is_to_be_done_without_labels_depends_on_the_audio() -> None:
    output = output_of(torch.zeros(1, 2, 3))
    unlabelled = batch_of()
    labelled = replace(unlabelled, tokens_bu=torch.ones(1, 1), token_lengths_b=torch.ones(1))
    with pytest.raises(
        MissingLabelsError, match=r"online `teacher` in the loss, or set `labels` in the recipe\.$"
    ):
        soft_cross_entropy(output, unlabelled)
    with pytest.raises(MissingLabelsError, match=r"or set `labelled_soft_labels` in the recipe\.$"):
        soft_cross_entropy(output, labelled)


def test_few_frames_of_little_weight_still_make_a_mean() -> None:
    labels = labels_from([[{0: 1.0}] * 3])
    output = output_of(logs(*[[0.5, 0.5]] * 3))
    loss = soft_cross_entropy(output, batch_of(labels), blank_policy="downweight", blank_weight=0.1)
    assert float(loss) == pytest.approx(math.log(2))
    with pytest.raises(ConfigError, match="the weight is negative"):
        soft_cross_entropy(output, batch_of(labels), blank_policy="downweight", blank_weight=-1.0)


def test_an_online_teacher_stands_for_stored_labels() -> None:
    torch.manual_seed(0)
    output = output_of(torch.randn(1, 6, 5).log_softmax(-1))
    teacher = output_of((4 * torch.randn(1, 6, 5)).log_softmax(-1))
    stored = batch_of(pad_soft_labels([Full().encode(teacher.log_probs_btv[0])]))
    heard = Batch(["utt0"], torch.zeros(1, 1, 80), torch.ones(1), teachers={"big": teacher})
    for loss in (soft_cross_entropy, best_path_ctc):
        expected, found = loss(output, stored), loss(output, heard, teacher="big")
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
        with pytest.raises(ConfigError, match="needs soft labels"):
            loss(output, heard)
        with pytest.raises(ConfigError, match="no online teacher 'small'"):
            loss(output, heard, teacher="small")


@pytest.mark.parametrize("loss", [ctc, best_path_ctc])
def test_ctc_gradients_by_finite_differences(loss: Callable[[ModelOutput, Batch], Tensor]) -> None:
    row = [{0: 0.9, 2: 0.1}, {1: 0.9}, {0: 0.9}, {1: 0.8, 3: 0.2}]
    batch = batch_of(labels_from([row, row[:3]]))
    batch.tokens_bu, batch.token_lengths_b = torch.tensor([[1, 1], [1, 0]]), torch.tensor([2, 1])
    lengths = torch.tensor([4, 3])

    def value(logits: Tensor) -> Tensor:
        return loss(ModelOutput(logits.log_softmax(-1), lengths), batch)

    assert torch.autograd.gradcheck(value, (torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("settings", [{"delay_frames": 2}, {"blank_policy": "symmetric"}])
def test_gradients_with_delay_and_policy_by_finite_differences(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    row = [{0: 0.9, 2: 0.05}, {1: 0.7, 0: 0.2}, {0: 0.99}, {0: 0.6, 3: 0.4}]
    labels = labels_from([row, row[:3]])
    lengths = torch.tensor([4, 3])

    def loss(logits: Tensor) -> Tensor:
        return soft_cross_entropy(ModelOutput(logits.log_softmax(-1), lengths), batch_of(labels), **settings)

    assert torch.autograd.gradcheck(loss, (torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True),))


def test_silent_start_by_hand() -> None:
    blank_bt = torch.tensor([[0.5, 0.8, 0.1, 0.2, 0.3], [0.25, 0.4, 0.9, 0.9, 0.9]])
    log_probs_btv = torch.stack([blank_bt, 1 - blank_bt], dim=2).log().requires_grad_()
    value = silent_start(output_of(log_probs_btv, 5, 2), batch_of(size=2), frames=3)
    first = math.log(0.5) + math.log(0.8) * 2 / 3 + math.log(0.1) / 3
    second = math.log(0.25) + math.log(0.4) * 2 / 3
    assert value.item() == pytest.approx(-(first + second) / 7, rel=1e-6)
    value.backward()
    # Blank is asked for within the frames and the audio, and nothing of the other units.
    asked = log_probs_btv.grad[..., 0] < 0
    assert asked.tolist() == [[True, True, True, False, False], [True, True, False, False, False]]
    assert not log_probs_btv.grad[..., 1].any()


def test_silent_start_of_audio_that_is_shorter_than_its_frames() -> None:
    output = output_of(logs([0.5, 0.5], [0.5, 0.5]))
    assert silent_start(output, batch_of()).item() == pytest.approx(math.log(2) * (1 + 7 / 8) / 2, rel=1e-6)


def test_losses_say_whether_they_ask_for_times_and_leave_them_open() -> None:
    losses = (ctc, best_path_ctc, silent_start, soft_cross_entropy)
    assert [getattr(loss, "needs_times", True) for loss in losses] == [False, False, False, True]
    assert [getattr(loss, "leaves_times", False) for loss in losses] == [True, True, False, False]
