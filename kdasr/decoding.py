"""CTC log-probabilities in, class ids out: greedy (whole or chunk by chunk) and prefix beam search.

Blank is id 0. A *spike* is the first frame of a run of one non-blank class.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLANK_ID = 0


class Token(NamedTuple):
    """One emitted unit.

    Attributes:
        id: class id, never blank.
        frame: output frame of its spike, counted from the start of the utterance.
        log_prob: natural log-probability of the class in that frame.
    """

    id: int
    frame: int
    log_prob: float


class Hypothesis(NamedTuple):
    """One result of the beam search.

    Attributes:
        ids: class ids without blanks.
        log_prob: natural log of the summed probability of all its alignments that survived.
    """

    ids: tuple[int, ...]
    log_prob: float


class Grammar(Protocol):
    """What transcripts a search may find; `kdasr.lexicon.Lexicon` is one."""

    def next_units(self, prefix: tuple[int, ...]) -> NDArray[np.bool_]:
        """(V,) True for the units that may follow."""
        ...

    def is_complete(self, prefix: tuple[int, ...]) -> bool:
        """Whether a transcript may end here."""
        ...


def collapse(ids: Sequence[int], blank: int = BLANK_ID) -> list[int]:
    """Merge runs of equal ids, then drop blanks: the map B of Graves et al. 2006, section 3.1."""
    return [unit for unit, _ in itertools.groupby(ids) if unit != blank]


def greedy(
    log_probs_btv: Tensor | NDArray[np.float32], lengths_b: Tensor | Sequence[int]
) -> list[list[Token]]:
    """The most probable class of each frame, collapsed.

    Args:
        log_probs_btv: (B, T, V), on any device.
        lengths_b: (B,) valid frames; what lies beyond is not looked at.

    Returns:
        One list of tokens for each utterance.
    """
    log_probs = torch.as_tensor(log_probs_btv)
    lengths = torch.as_tensor(lengths_b, device=log_probs.device)
    assert log_probs.dim() == 3 and lengths.shape == log_probs.shape[:1], (log_probs.shape, lengths.shape)
    best_bt, ids_bt = log_probs.max(dim=-1)
    previous_bt = torch.nn.functional.pad(ids_bt, (1, 0), value=BLANK_ID)[:, :-1]
    valid_bt = torch.arange(ids_bt.shape[1], device=ids_bt.device) < lengths[:, None]
    spikes_bt = (ids_bt != BLANK_ID) & (ids_bt != previous_bt) & valid_bt
    rows, frames = spikes_bt.nonzero(as_tuple=True)
    columns = (rows, frames, ids_bt[rows, frames], best_bt[rows, frames])
    tokens: list[list[Token]] = [[] for _ in range(len(lengths))]
    for row, frame, unit, log_prob in zip(*(column.tolist() for column in columns), strict=True):
        tokens[row].append(Token(unit, frame, log_prob))
    return tokens


class GreedyStream:
    """`greedy` of one utterance, chunk by chunk: any cut gives the tokens of the whole.

    Attributes:
        last_id: class of the last frame seen; it decides whether the next frame begins a new unit.
        frames_seen: frames fed so far.
    """

    def __init__(self) -> None:
        self.last_id = BLANK_ID
        self.frames_seen = 0

    def feed(self, log_probs_tv: NDArray[np.float32] | Tensor) -> list[Token]:
        """Take the next (T, V) frames and return the tokens that begin in them."""
        log_probs = np.asarray(log_probs_tv)
        if len(log_probs) == 0:
            return []
        ids_t = log_probs.argmax(axis=1)
        previous_t = np.concatenate(([self.last_id], ids_t[:-1]))
        spikes = np.flatnonzero((ids_t != BLANK_ID) & (ids_t != previous_t))
        tokens = [
            Token(int(ids_t[frame]), self.frames_seen + int(frame), float(log_probs[frame, ids_t[frame]]))
            for frame in spikes
        ]
        self.last_id = int(ids_t[-1])
        self.frames_seen += len(ids_t)
        return tokens


def prefix_beam(
    log_probs_tv: NDArray[np.float32] | Tensor,
    beam: int = 8,
    nbest: int = 1,
    grammar: Grammar | None = None,
) -> list[Hypothesis]:
    """CTC prefix beam search (Hannun et al. 2014, "First-Pass Large Vocabulary Continuous Speech
    Recognition using Bi-Directional Recurrent DNNs", algorithm 1, without a language model).

    Unlike `greedy` it sums over the alignments of a text, and never scores below it for a beam
    that keeps the greedy text.

    Args:
        log_probs_tv: (T, V) of one utterance, valid frames only.
        beam: prefixes kept after each frame.
        nbest: how many to return; fewer come back where the beam holds fewer.
        grammar: only its transcripts are found.

    Returns:
        The best first. An utterance of no frames has one hypothesis: the empty one, at log 1. With a
        grammar there may be none.
    """
    assert beam >= 1 and nbest >= 1, (beam, nbest)
    log_probs = np.asarray(log_probs_tv, dtype=np.float64)
    prefixes: list[tuple[int, ...]] = [()]
    # Log-probability of each prefix over the alignments that end in blank, and in its last unit.
    ends_blank, ends_unit = np.zeros(1), np.full(1, -np.inf)
    for frame_v in log_probs:
        prefixes, ends_blank, ends_unit = _advance(frame_v, prefixes, ends_blank, ends_unit, beam, grammar)
    totals = np.logaddexp(ends_blank, ends_unit)
    ranked = [
        Hypothesis(prefixes[index], float(totals[index])) for index in np.argsort(-totals, kind="stable")
    ]
    return [one for one in ranked if grammar is None or grammar.is_complete(one.ids)][:nbest]


def _advance(
    frame_v: NDArray[np.float64],
    prefixes: list[tuple[int, ...]],
    ends_blank: NDArray[np.float64],
    ends_unit: NDArray[np.float64],
    beam: int,
    grammar: Grammar | None,
) -> tuple[list[tuple[int, ...]], NDArray[np.float64], NDArray[np.float64]]:
    """One frame of the search: every prefix stays or grows by one unit; the best `beam` remain."""
    totals = np.logaddexp(ends_blank, ends_unit)
    rows = np.arange(len(prefixes))
    last = np.array([prefix[-1] if prefix else BLANK_ID for prefix in prefixes])
    stay_blank = totals + frame_v[BLANK_ID]
    stay_unit = ends_unit + frame_v[last]  # the empty prefix has ends_unit = -inf and stays there
    grow = totals[:, None] + frame_v[None, :]
    grow[rows, last] = ends_blank + frame_v[last]  # the same unit again needs a blank in between
    grow[:, BLANK_ID] = -np.inf
    if grammar is not None:
        grow[~np.stack([grammar.next_units(prefix) for prefix in prefixes])] = -np.inf
    # A prefix that grows into another one of the beam adds to it instead of standing twice.
    row_by_prefix = {prefix: row for row, prefix in enumerate(prefixes)}
    for row, prefix in enumerate(prefixes):
        parent = row_by_prefix.get(prefix[:-1]) if prefix else None
        if parent is not None:
            stay_unit[row] = np.logaddexp(stay_unit[row], grow[parent, prefix[-1]])
            grow[parent, prefix[-1]] = -np.inf
    scores = np.concatenate([np.logaddexp(stay_blank, stay_unit), grow.ravel()])
    best = np.argpartition(-scores, beam - 1)[:beam] if beam < len(scores) else np.arange(len(scores))
    best = best[scores[best] > -np.inf]
    new_blank = np.concatenate([stay_blank, np.full(grow.size, -np.inf)])[best]
    new_unit = np.concatenate([stay_unit, grow.ravel()])[best]
    new_prefixes = [_candidate(int(index), prefixes, len(frame_v)) for index in best]
    return new_prefixes, new_blank, new_unit


def _candidate(index: int, prefixes: list[tuple[int, ...]], vocab_size: int) -> tuple[int, ...]:
    """The prefix behind a place in `scores`: first those that stay, then row by row those that grow."""
    if index < len(prefixes):
        return prefixes[index]
    row, unit = divmod(index - len(prefixes), vocab_size)
    return (*prefixes[row], unit)
