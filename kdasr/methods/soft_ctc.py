"""CTC whose labels are distributions: the teacher's uncertainty, without its spike times."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from kdasr.alignment import ctc_occupancy
from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, ModelOutput, SoftLabelBatch
from kdasr.losses import of_transcripts
from kdasr.methods.pairing import taken
from kdasr.targets import at_least_float32, best_units, spikes_of, targets_of

Nearness = Literal["divergence", "mixture"]
# Floor of probabilities, so that their logarithms are finite.
_LEAST = 1e-30


@of_transcripts
def soft_ctc(
    output: ModelOutput, batch: Batch, *, nearness: Nearness = "divergence", teacher: str | None = None
) -> Tensor:
    """CTC with the teacher's spikes as labels, each with the teacher's posteriors.

        L = - log sum over alignments π of exp(sum over t of s(π_t, t))

    as in CTC (Graves et al. 2006, eq. 8), with the score log q_t(blank) for blank, and for a spike with
    posteriors p on the partition kept classes + tail

        divergence:  s = - KL(p ‖ q_t) = sum over k of p_k (log q_t(k) - log p_k)
        mixture:     s = log sum over k of p_k q_t(k)

    Frame-level distillation fixes the time of emission; a pseudo-label has no alternatives. This loss
    conveys units and their probabilities, and leaves the time to the student: the gradient for the
    student's logits is the sum over spikes of γ_t (q_t - p), cross-entropy wherever the alignment has the
    spike. GTC (Moritz, Hori & Le Roux, arXiv 2010.15653) and SoftCTC (Kišš et al., arXiv 2212.02135)
    replace the transcript by a graph that weights hypotheses; here each label is a distribution. With a
    teacher that is always certain it is `kdasr.losses.best_path_ctc`.

    A spike is a run of frames with the same best class, represented by the surest of them. Consecutive
    spikes with the same best class share the posteriors of the first, so that CTC's rule applies, which
    requires a blank between them.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher`.
        nearness: "divergence" makes the student as uncertain as its teacher; "mixture" lets it be certain
            of any class that the teacher thought possible.

    Returns:
        L over the batch, in nats per output frame. An utterance that is too short for its spikes counts
        as 0.

    Raises:
        ConfigError: an unknown nearness.
    """
    if nearness not in get_args(Nearness):
        raise ConfigError(
            "unknown nearness", where="soft_ctc", expected=", ".join(get_args(Nearness)), got=nearness
        )
    labels = targets_of(batch, teacher)
    log_probs_btv = at_least_float32(output.log_probs_btv)
    spikes = _spikes_of(labels, log_probs_btv.shape[2])
    # Half precision would round the products, and small probabilities to 0.
    with torch.autocast(log_probs_btv.device.type, enabled=False):
        scores_bts = _scores(log_probs_btv, spikes, nearness)
    scores_btc = torch.cat([log_probs_btv[:, :, :1], scores_bts], 2)
    nll = _ctc_of_scores(scores_btc, _tokens(spikes), output.lengths_b, spikes.counts_b)
    return nll / output.lengths_b.sum()


class _Spikes(NamedTuple):
    """The teacher's spikes in order, padded to the largest number in the batch.

    Attributes:
        probs_bsv: (B, S, V) the teacher's posteriors of each; 0 for classes that were not kept.
        kept_bsv: (B, S, V) 1 for the classes that were.
        tail_bs: (B, S) the mass of the classes that were not.
        units_bs: (B, S) the most probable class.
        counts_b: (B,) the number of spikes.
    """

    probs_bsv: Tensor
    kept_bsv: Tensor
    tail_bs: Tensor
    units_bs: Tensor
    counts_b: Tensor


def _spikes_of(labels: SoftLabelBatch, classes: int) -> _Spikes:
    spikes = spikes_of(labels)
    frame_bs = spikes.surest_bs
    ids_bsk = taken(labels.ids_btk, frame_bs)
    log_probs_bsk = taken(labels.log_probs_btk, frame_bs)
    empty_bsv = log_probs_bsk.new_zeros(*frame_bs.shape, classes)
    return _Spikes(
        empty_bsv.scatter_add(2, ids_bsk, log_probs_bsk.exp()),
        empty_bsv.scatter_reduce(2, ids_bsk, log_probs_bsk.isfinite().to(empty_bsv), "amax"),
        labels.tail_log_probs_bt.gather(1, frame_bs).exp(),
        best_units(labels).gather(1, frame_bs),
        spikes.counts_b,
    )


def _scores(log_probs_btv: Tensor, spikes: _Spikes, nearness: Nearness) -> Tensor:
    """(B, T, S) the score s of each spike at each output frame, in nats, at most 0."""
    probs_btv = log_probs_btv.exp()
    # Summed directly: 1 minus the kept mass would round to 0 once the student is certain.
    rest_bts = (probs_btv @ (1 - spikes.kept_bsv).to(probs_btv).transpose(1, 2)).clamp_min(_LEAST)
    target_bvs = spikes.probs_bsv.to(probs_btv).transpose(1, 2)
    tail_b1s = spikes.tail_bs.to(probs_btv)[:, None]
    if nearness == "mixture":
        return (probs_btv @ target_bvs + tail_b1s * rest_bts).clamp_min(_LEAST).log()
    entropy_bs = -torch.xlogy(spikes.probs_bsv, spikes.probs_bsv).sum(2)
    entropy_bs = entropy_bs - torch.xlogy(spikes.tail_bs, spikes.tail_bs)
    floored_btv = log_probs_btv.clamp_min(-1e4)
    return floored_btv @ target_bvs + tail_b1s * rest_bts.log() + entropy_bs[:, None].to(probs_btv)


def _tokens(spikes: _Spikes) -> Tensor:
    """(B, S) the column of each spike's scores: its own, or for consecutive spikes of the same class that of
    the first, so that CTC requires a blank between them."""
    place_s = torch.arange(1, spikes.units_bs.shape[1] + 1, device=spikes.units_bs.device)
    alike_bs = functional.pad(spikes.units_bs[:, 1:] == spikes.units_bs[:, :-1], (1, 0))
    return torch.where(alike_bs, 0, place_s).cummax(1).values


def _ctc_of_scores(scores_btc: Tensor, tokens_bu: Tensor, lengths_b: Tensor, counts_b: Tensor) -> Tensor:
    """- log of the sum over alignments of exp(sum of scores), summed over the batch."""
    nll_b, occupancy_btc = ctc_occupancy(scores_btc, tokens_bu, lengths_b, counts_b)
    linear = -(occupancy_btc * scores_btc).sum()
    return linear + (nll_b.nan_to_num(posinf=0.0).sum() - linear.detach())
