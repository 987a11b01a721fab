"""The basic losses: from the student's output for a batch to a scalar (nats per output frame).

A loss is called as `loss(output, batch)`; a recipe names it and its weight under `labelled_losses:` or
`unlabelled_losses:`. These have no state and no parameters; `kdasr.methods` holds all other losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from kdasr.errors import ConfigError, LabelMismatchError
from kdasr.interfaces import Batch, ModelOutput, SoftLabelBatch, frames_inside
from kdasr.targets import at_least_float32, best_units, targets_of

BlankPolicy = Literal["all", "eliminate", "symmetric", "downweight"]
BLANK_POLICIES: tuple[BlankPolicy, ...] = ("all", "eliminate", "symmetric", "downweight")
_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])
# Replaces log 0 where -inf would make NaN gradients.
_LOG_ZERO = -1e30
# Largest log of the mass of a frame that counts as 1, also in half precision.
_MASS_TOLERANCE_NATS = 0.05
# From this number of classes on, CTC on CPUs uses only those of a transcript (`_few_classes`). For 8
# utterances of 15 s with 5 units a second, forward and backward with log_softmax, in ms (one thread of an AMD
# EPYC, beside other work, torch 2.13, medians of 80 rounds that alternate):
#     classes     50  100  150  200  300  400  500  1000
#     all         28   29   30   31   35   40   42    71
#     these       37   37   35   36   37   38   39    53
# Other runs: 0.98 to 1.07 times as long for 300, 0.90 to 0.97 for 400, 0.88 to 0.93 for 500; with four
# transcripts of each utterance 0.98 to 1.06, 0.87 to 0.94, 0.80 to 0.83. With 8 units a second it pays only
# beyond 500. Again, without alternating:
#     OMP_NUM_THREADS=1 python -m timeit -n 10 -r 9 -s "import torch
#     from benchmarks.step import synthetic_batch
#     from kdasr import losses; from kdasr.interfaces import ModelOutput
#     classes, losses._MANY_CLASSES = 500, 0  # or 10**9: all classes
#     batch = synthetic_batch(8, 15.0, classes, 'cpu')
#     x = torch.randn(8, 375, classes, requires_grad=True)
#     output = lambda: ModelOutput(x.log_softmax(-1), batch.feature_lengths_b // 4)" \
#     "losses.ctc(output(), batch).backward()"
_MANY_CLASSES = 400


def without_times(loss: _Loss) -> _Loss:
    """Mark a loss that does not depend on the times of labels: it also works with mere transcripts, whose
    frames are meaningless."""
    loss.needs_times = False  # type: ignore[attr-defined]
    return loss


def of_transcripts(loss: _Loss) -> _Loss:
    """Mark a loss that scores the order of units and leaves their times to the student: the times of labels
    do not matter (`without_times`), and training adds `silent_start` to it."""
    loss.leaves_times = True  # type: ignore[attr-defined]
    return without_times(loss)


@of_transcripts
def ctc(output: ModelOutput, batch: Batch) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006, eq. 8) against the transcripts.

    An utterance that is too short for its transcript has an infinite loss and counts as 0.

    Args:
        output: of the student.
        batch: with `tokens_bu` and `token_lengths_b`.

    Returns:
        -log p(transcripts) over the batch, in nats per output frame.

    Raises:
        ConfigError: the batch has no transcripts.
    """
    if batch.tokens_bu is None or batch.token_lengths_b is None:
        raise ConfigError(
            "a loss needs transcripts, but this audio has none",
            where=batch.keys[0] if batch.keys else None,
            fix="Move it to labelled_losses, or use kdasr.losses.best_path_ctc: CTC on teacher transcripts.",
        )
    loss_b = transcript_nats(output, batch.tokens_bu, batch.token_lengths_b)
    return loss_b.sum() / output.lengths_b.sum()


def transcript_nats(
    output: ModelOutput, tokens_nu: Tensor, counts_n: Tensor, row_n: Tensor | None = None
) -> Tensor:
    """(N,) -log p of N transcripts, summed over alignments, in nats; 0 for one that does not fit.

    Args:
        tokens_nu, counts_n: (N, U) units, none of them blank, and (N,) how many each transcript has.
        row_n: (N,) the utterance of the output to which each transcript belongs; None: one for each.
    """
    log_probs_btv, lengths_n = output.log_probs_btv, output.lengths_b
    check_log_probs(output)
    if tokens_nu.device.type == "cpu":
        units = tokens_nu[frames_inside(counts_n, tokens_nu.shape[1])]
        highest = int(units.max()) if len(units) else 0
        if highest >= log_probs_btv.shape[2]:  # torch would read beyond the output
            raise ConfigError(
                "the model has no class for a unit of a transcript",
                expected=f"units below {log_probs_btv.shape[2]}, its number of classes",
                got=highest,
                fix="Use the units that the model was made for.",
            )
    if row_n is not None:
        lengths_n = lengths_n[row_n]
    # On CPUs, torch's gradient computes an exponential for each class and transcript.
    if log_probs_btv.device.type == "cpu" and log_probs_btv.shape[2] >= _MANY_CLASSES:
        tokens_nu = tokens_nu[:, : max(1, int(counts_n.max()))]
        row_n = torch.arange(len(tokens_nu)) if row_n is None else row_n
        log_probs_ntc, tokens_nu = _few_classes(log_probs_btv, tokens_nu, row_n)
    else:
        log_probs_ntc = log_probs_btv if row_n is None else log_probs_btv[row_n]
    return functional.ctc_loss(
        at_least_float32(log_probs_ntc).transpose(0, 1),
        tokens_nu,
        lengths_n,
        counts_n,
        reduction="none",
        zero_infinity=True,
    )


def _few_classes(log_probs_btv: Tensor, tokens_nu: Tensor, row_n: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs (N, T, U + 2) of blank, each unit of a transcript, and all other classes together; and the
    transcripts (N, U) in these classes."""
    frame_t, place_u = torch.arange(log_probs_btv.shape[1]), torch.arange(tokens_nu.shape[1])
    # A repeated unit is one class, at its first place; padding may be 0, as blank is.
    first_nu = (tokens_nu[:, :, None] == tokens_nu[:, None, :]).int().argmax(2)
    is_spare_nu = (first_nu != place_u) | (tokens_nu == 0)
    units_ntu = at_least_float32(log_probs_btv[row_n[:, None, None], frame_t[:, None], tokens_nu[:, None]])
    blank_nt1 = at_least_float32(log_probs_btv[:, :, :1][row_n])
    known_ntc = torch.cat((blank_nt1, units_ntu.masked_fill(is_spare_nu[:, None], _LOG_ZERO)), 2)
    others_nt1 = (1 - known_ntc.exp().sum(2, keepdim=True)).clamp_min(1e-12).log()
    return torch.cat((known_ntc, others_nt1), 2), first_nu + 1


@of_transcripts
def best_path_ctc(output: ModelOutput, batch: Batch, *, teacher: str | None = None) -> Tensor:
    """CTC against the teacher's transcript, its collapsed best path (pseudo-labels; sequence-level
    distillation with one hypothesis, Kim & Rush 2016, section 3.2).

    Unlike frame-level cross-entropy, it leaves the alignment to the student, but passes on nothing of the
    teacher's uncertainty: the two complement each other.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher`.

    Returns:
        -log p(best paths) over the batch, in nats per output frame. If the teacher recognised nothing in
        an utterance, the target is all blanks.

    Raises:
        ConfigError: there is nothing to learn from.
    """
    labels = targets_of(batch, teacher)
    tokens_bu, counts_b = collapsed(best_units(labels))
    return ctc(output, replace(batch, tokens_bu=tokens_bu, token_lengths_b=counts_b))


@without_times
def silent_start(output: ModelOutput, batch: Batch, *, frames: int = 8) -> Tensor:
    """Cross-entropy of the first output frames to blank, with a weight that falls from 1 frame by frame.

    With CTC, a model may emit the first unit of every utterance in its first frame, which is easy to tell
    apart and in which it sees what follows: the rest of a streaming student's chunk, or everything in a
    teacher. Some models learn this before they can recognise anything, and never unlearn it: a student then
    guesses what follows its chunk, and the labels of such a teacher make any student guess
    (docs/distillation.md). Once units are emitted where they are heard, they stay there, so this loss may
    fade out.

    Args:
        output: of the student.
        batch: only its audio matters.
        frames: how many frames have a weight, w_t = 1 - t / frames.

    Returns:
        Σ_t -w_t log q_t(blank) over the batch, in nats per output frame.

    Raises:
        ConfigError: `frames` is less than 1.
    """
    if frames < 1:
        raise ConfigError(
            "the silence needs at least one frame", where="frames", expected="1 or more", got=frames
        )
    check_log_probs(output)
    nats_bt = -at_least_float32(output.log_probs_btv[:, :frames, 0])
    weight_t = 1.0 - torch.arange(nats_bt.shape[1], device=nats_bt.device) / frames
    inside_bt = frames_inside(output.lengths_b, nats_bt.shape[1])
    return torch.where(inside_bt, nats_bt * weight_t, 0.0).sum() / output.lengths_b.sum()


# It guides training and measures nothing, so it is not part of the loss on a dev set.
silent_start.in_training_only = True  # type: ignore[attr-defined]


def collapsed(units_bt: Tensor) -> tuple[Tensor, Tensor]:
    """From (B, T) the unit of each frame, 0 for blank, to (B, T) the units without blanks and repetitions,
    padded with 0, and (B,) how many there are."""
    previous_bt = functional.pad(units_bt, (1, 0))[:, :-1]
    spikes_bt = (units_bt != 0) & (units_bt != previous_bt)
    # As wide as the frames, plus a column for non-spikes: to count spikes means waiting for a GPU.
    frames = units_bt.shape[1]
    place_bt = torch.where(spikes_bt, spikes_bt.cumsum(1) - 1, frames)
    tokens_bu = units_bt.new_zeros(len(units_bt), frames + 1).scatter_(1, place_bt, units_bt)
    return tokens_bu[:, :frames], spikes_bt.sum(1)


def soft_cross_entropy(
    output: ModelOutput,
    batch: Batch,
    *,
    delay_frames: int = 0,
    blank_policy: BlankPolicy = "all",
    blank_weight: float = 0.1,
    spike_margin_frames: int = 1,
    teacher: str | None = None,
) -> Tensor:
    """Cross-entropy to the teacher's stored posteriors on the partition kept classes + tail.

    -(sum over kept of p log q + p_tail log q_tail), with q_tail from a logsumexp over the classes
    that were not kept. On this partition the truncated target is unbiased, which renormalised or
    evenly spread top-k is not (arXiv 2503.16870).

    A student that sees less future than its teacher has to spike later: student frame
    t + delay_frames learns from teacher frame t (arXiv 1904.01624 trains LSTM students on delayed
    targets). The student's first and the teacher's last `delay_frames` frames have no counterpart.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher`, which keeps all classes.
        delay_frames: student frames that the student may lag behind the teacher.
        blank_policy: which teacher frames count: "all"; "eliminate" drops those whose best class is
            blank; "symmetric" keeps non-blank frames and `spike_margin_frames` around each
            (arXiv 2506.01503); "downweight" gives blank frames `blank_weight`.

    Returns:
        Cross-entropy in nats per frame that counts; 0 if none does.

    Raises:
        ConfigError: an unknown blank policy, a negative delay or weight, or nothing to learn from.
        LabelMismatchError: the labels of an utterance differ in length from the output.
    """
    labels = targets_of(batch, teacher)
    weights_bt = frame_weights(labels, blank_policy, blank_weight, spike_margin_frames)
    return framewise(output, batch, labels, partition_cross_entropy, weights_bt, delay_frames)


def framewise(
    output: ModelOutput,
    batch: Batch,
    labels: SoftLabelBatch,
    cross_entropy: Callable[[Tensor, SoftLabelBatch], Tensor],
    weights_bt: Tensor,
    delay_frames: int,
) -> Tensor:
    """The weighted mean of a frame-level loss, student frame t + delay_frames against teacher frame t.

    Args:
        cross_entropy: from (B, T - delay_frames, V) log-probs, and labels of at least as many frames, to
            (B, T - delay_frames) losses.
        weights_bt: weights of the teacher's frames.

    Raises:
        ConfigError: a negative delay.
        LabelMismatchError: the labels of an utterance differ in length from the output.
    """
    check_delay(delay_frames)
    log_probs_btv, lengths_b = output.log_probs_btv, output.lengths_b
    check_frames(lengths_b, labels.lengths_b, batch.keys)
    check_pair(output, labels, delay_frames)
    frames = log_probs_btv.shape[1] - delay_frames
    if frames <= 0:
        return log_probs_btv.sum() * 0.0
    cross_entropy_bt = cross_entropy(at_least_float32(log_probs_btv[:, delay_frames:]), labels)
    paired_bt = frames_inside(lengths_b - delay_frames, frames)
    return weighted_mean(cross_entropy_bt, weights_bt[:, :frames] * paired_bt)


def check_log_probs(output: ModelOutput) -> None:
    """Raise ConfigError if the output is no log-probabilities: on the CPU, by its first frame; elsewhere this
    would wait for the device."""
    log_probs_btv, lengths_b = output.log_probs_btv, output.lengths_b
    if log_probs_btv.device.type != "cpu" or not log_probs_btv.numel() or int(lengths_b[0]) < 1:
        return
    log_mass = float(log_probs_btv[0, 0].detach().float().logsumexp(0))
    # NaN and infinity are reported with the loss.
    if _MASS_TOLERANCE_NATS < abs(log_mass) < math.inf:
        raise ConfigError(
            "the model's output is no log-probabilities",
            expected="frames that sum to 1",
            got=f"a log-sum of {log_mass:.4g} in the first one",
            fix="End the model in log_softmax.",
        )


def check_pair(output: ModelOutput, labels: SoftLabelBatch, delay_frames: int = 0) -> None:
    """Raise an error if output and labels of the same utterances, these `delay_frames` before it, cannot be
    compared frame by frame.

    Raises:
        ConfigError: as `check_log_probs`.
        LabelMismatchError: the output has more frames than the labels are padded to or, on the CPU, too few
            classes.
    """
    check_log_probs(output)
    frames, classes = output.log_probs_btv.shape[1] - delay_frames, output.log_probs_btv.shape[2]
    if frames > (padded := labels.ids_btk.shape[1]):
        raise LabelMismatchError(
            "the student's output is padded to more frames than the soft labels",
            expected=f"{padded} frames",
            got=f"{frames}",
            fix="Cut it to those of the longest utterance.",
        )
    # An online teacher has all classes, and a look at them would cost as much as the loss.
    stored = labels.ids_btk.device.type == "cpu" and labels.ids_btk.shape[2] != classes
    if stored and labels.ids_btk.numel() and (highest := int(labels.ids_btk.max())) >= classes:
        raise LabelMismatchError(
            "the soft labels have more classes than the student",
            expected=f"classes below {classes}",
            got=highest,
            fix="Map them to the student's, or train a student with the units of the labels.",
        )


def check_delay(frames: int) -> None:
    """Raise ConfigError if a delay is negative."""
    if frames < 0:
        raise ConfigError("the delay is negative", where="delay_frames", expected="0 or more", got=frames)


def weighted_mean(value_bt: Tensor, weights_bt: Tensor) -> Tensor:
    """The mean of (B, T) values with (B, T) weights; 0 if no frame has a weight."""
    total = weights_bt.sum()
    return (value_bt * weights_bt).sum() / torch.where(total > 0, total, 1.0)


def partition_cross_entropy(log_probs_btv: Tensor, labels: SoftLabelBatch) -> Tensor:
    """(B, T) cross-entropies of (B, T, V) student log-probs to the first T label frames.

    Memory per frame grows with V + k, never with V * k.
    """
    frames = log_probs_btv.shape[1]
    ids_btk = labels.ids_btk[:, :frames]
    kept_p = labels.log_probs_btk[:, :frames].exp()
    tail_p = labels.tail_log_probs_bt[:, :frames].exp()
    kept = (kept_p * log_probs_btv.gather(2, ids_btk)).sum(-1)
    # Padded entries point to blank, which is always kept, so they mask nothing else.
    others_btv = log_probs_btv.scatter(2, ids_btk, _LOG_ZERO)
    tail = torch.where(tail_p > 0, tail_p * others_btv.logsumexp(-1), torch.zeros_like(tail_p))
    return -(kept + tail)


def frame_weights(
    labels: SoftLabelBatch, policy: BlankPolicy, blank_weight: float, spike_margin_frames: int
) -> Tensor:
    """(B, T) float weights of the teacher's frames under a blank policy.

    Raises:
        ConfigError: an unknown policy, or a negative weight.
    """
    if policy not in BLANK_POLICIES:
        raise ConfigError(
            "unknown blank policy", where="blank_policy", expected=", ".join(BLANK_POLICIES), got=policy
        )
    if blank_weight < 0:
        raise ConfigError(
            "the weight is negative", where="blank_weight", expected="0 or more", got=blank_weight
        )
    spikes_bt = best_units(labels) != 0
    if policy == "all":
        return torch.ones_like(labels.tail_log_probs_bt)
    if policy == "downweight":
        return torch.where(spikes_bt, 1.0, blank_weight)
    weights_bt = spikes_bt.float()
    if policy == "symmetric" and spike_margin_frames > 0:
        width = 2 * spike_margin_frames + 1
        weights_bt = functional.max_pool1d(weights_bt[:, None], width, 1, spike_margin_frames).squeeze(1)
    return weights_bt


def check_frames(student_b: Tensor, teacher_b: Tensor, keys: list[str]) -> None:
    """Raise LabelMismatchError, with the key, if the student's and teacher's frame counts (B,) differ.

    Checked on the CPU only: on a GPU it would force a synchronisation, and `kdasr.contract` has already
    checked lengths when labels were joined to audio.
    """
    if not len(student_b) == len(teacher_b) == len(keys):
        raise LabelMismatchError(
            "the student's output, the soft labels and the keys are not of the same utterances",
            expected=f"{len(student_b)} utterances, as in the output",
            got=f"{len(teacher_b)} soft labels and {len(keys)} keys",
        )
    if student_b.device.type != "cpu":
        return
    for key, student, teacher in zip(keys, student_b.tolist(), teacher_b.tolist(), strict=True):
        if student != teacher:
            raise LabelMismatchError(
                "the soft labels and the student's output differ in length",
                where=key,
                expected=f"{student} frames",
                got=f"{teacher} frames",
                fix="Teacher and student need the same subsampling and the same audio: label again.",
            )
