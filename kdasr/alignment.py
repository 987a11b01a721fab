"""CTC forced alignment: find the frames of each unit of a transcript in a model's log-probabilities.

The Viterbi path through the states of one transcript (Graves et al. 2006, section 4, with max instead
of sum): blank, unit, blank, unit, …, blank. torchaudio's version needs its compiled extension.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from kdasr.decoding import Token
from kdasr.errors import UnitsError
from kdasr.interfaces import BLANK_ID, frames_inside


def align(log_probs_tv: Tensor, ids: Sequence[int], where: str = "utterance") -> list[Token]:
    """The most probable alignment of a transcript: each unit in the first of its frames, as a decoder would
    emit it, with its mean log-probability over its frames.

    Args:
        log_probs_tv: (T, V) natural log-probabilities of one utterance, valid frames only.
        ids: the transcript's units, none of them blank.
        where: names the utterance in errors.

    Raises:
        UnitsError: more units than frames can hold (equal neighbours need a blank between them),
            or an id that is blank or beyond the vocabulary.
    """
    num_frames, vocab_size = log_probs_tv.shape
    if not ids:
        return []
    if not all(BLANK_ID < unit < vocab_size for unit in ids):
        raise UnitsError(
            "an id is out of range", where=where, expected=f"1 to {vocab_size - 1}", got=list(ids)
        )
    needed = len(ids) + sum(one == two for one, two in itertools.pairwise(ids))
    if needed > num_frames:
        raise UnitsError(
            "the transcript is longer than the audio",
            where=where,
            expected=f"at most {num_frames} frames",
            got=f"{len(ids)} units, which need {needed} frames",
            fix="Either the transcript belongs to other audio, or the audio is cut short.",
        )
    states_t = _best_states(log_probs_tv.double(), ids).tolist()
    return [_unit(index, states_t, log_probs_tv, unit) for index, unit in enumerate(ids)]


def best_alignment(log_probs_tv: Tensor, ids: Sequence[int]) -> Tensor:
    """(T,) classes, including blanks, of the most probable path for a transcript that fits into (T, V)
    log-probs."""
    return _labels(ids)[_best_states(log_probs_tv.double(), ids)]


def ctc_occupancy(
    scores_btv: Tensor, tokens_bu: Tensor, lengths_b: Tensor, counts_b: Tensor
) -> tuple[Tensor, Tensor]:
    """The probability of transcripts, and the posterior of each class in each frame given its transcript.

    torch's CTC assumes normalised input and includes the softmax in the gradient; without that, the
    gradient is the negated state occupancy probability (Graves et al. 2006, eq. 16).

    Args:
        scores_btv: (B, T, V) log-probs, or any scores in nats; no gradient flows back to them.
        tokens_bu: (B, U) transcripts without blanks.
        lengths_b, counts_b: (B,) numbers of frames and units.

    Returns:
        (B,) negative log of the sum over alignments, infinite if a transcript does not fit, and (B, T, V)
        the share of the alignments with each class in each frame; 0 beyond the lengths and for transcripts
        that do not fit.
    """
    with torch.enable_grad():
        leaf_btv = scores_btv.detach().requires_grad_()
        nll_b = torch.nn.functional.ctc_loss(
            leaf_btv.transpose(0, 1), tokens_bu, lengths_b, counts_b, reduction="none"
        )
        (grad_btv,) = torch.autograd.grad(nll_b.sum(), leaf_btv)
    nll_b = nll_b.detach()
    inside_bt = frames_inside(lengths_b, scores_btv.shape[1])
    counts_bt = inside_bt & nll_b.isfinite()[:, None]
    return nll_b, (leaf_btv.detach().exp() - grad_btv).masked_fill(~counts_bt[:, :, None], 0.0)


def _labels(ids: Sequence[int]) -> Tensor:
    """(S,) classes of the states of a transcript: state 2 u + 1 is unit u, even states are blank."""
    labels_s = torch.full((2 * len(ids) + 1,), BLANK_ID)
    labels_s[1::2] = torch.tensor(ids, dtype=torch.long)
    return labels_s


def _best_states(log_probs_tv: Tensor, ids: Sequence[int]) -> Tensor:
    """(T,) states of the best path."""
    labels_s = _labels(ids)
    emissions_ts = log_probs_tv[:, labels_s]
    # The blank between two different units may be skipped.
    may_skip_s = torch.zeros(len(labels_s), dtype=torch.bool)
    may_skip_s[3::2] = labels_s[3::2] != labels_s[1:-2:2]
    nothing = log_probs_tv.new_tensor(-torch.inf)
    score_s = torch.full_like(emissions_ts[0], -torch.inf)
    score_s[:2] = emissions_ts[0, :2]
    steps_ts = torch.zeros(emissions_ts.shape, dtype=torch.long)
    for frame in range(1, len(emissions_ts)):
        previous = torch.nn.functional.pad(score_s, (2, 0), value=-torch.inf)
        arrivals = torch.stack([score_s, previous[1:-1], torch.where(may_skip_s, previous[:-2], nothing)])
        best_s, steps_ts[frame] = arrivals.max(dim=0)
        score_s = best_s + emissions_ts[frame]
    state = len(labels_s) - 2 if ids and score_s[-2] > score_s[-1] else len(labels_s) - 1
    path = [state]
    for frame in range(len(emissions_ts) - 1, 0, -1):
        state -= int(steps_ts[frame, state])
        path.append(state)
    return torch.tensor(path[::-1])


def _unit(index: int, states_t: list[int], log_probs_tv: Tensor, unit: int) -> Token:
    state = 2 * index + 1
    first = states_t.index(state)
    end = first + states_t.count(state)
    return Token(unit, first, float(log_probs_tv[first:end, unit].mean()))
