"""Decode CTC log-probabilities to class ids: greedy and prefix beam search, whole or chunk by chunk.

Blank is id 0. A *spike* is the first frame of a run of one non-blank class.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.errors import ConfigError
from kdasr.interfaces import BLANK_ID, ModelOutput, frames_inside

DEFAULT_BEAM = 16
# Once prefixes exceed 128 units, text that all share, if at least 64 units, leaves the beam; otherwise the
# cost of a frame would grow with the text. Beyond 1,024 units (a minute of speech in letters), 512 units of
# the best prefix are settled.
_LONG_PREFIX, _LONGEST_PREFIX = 128, 1024


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
        log_prob: natural log of the summed probability of its surviving alignments.
    """

    ids: tuple[int, ...]
    log_prob: float


class Grammar(Protocol):
    """The transcripts that a search may find; `kdasr.lexicon.Lexicon` is one."""

    def next_costs(self, prefix: tuple[int, ...], after_pause: bool = False) -> NDArray[np.float64]:
        """(V,) cost in nats of each unit as the next one, infinite if it may not follow; `after_pause`: words
        came before the prefix."""
        ...

    def end_cost(self, prefix: tuple[int, ...]) -> float:
        """Cost in nats of ending the transcript here, infinite if it may not end."""
        ...

    def last_word_start(self, prefix: tuple[int, ...]) -> int:
        """The index in `prefix` from which on it determines what may follow."""
        ...


def collapse(ids: Sequence[int]) -> list[int]:
    """Merge runs of equal ids, then drop blanks: the map B of Graves et al. 2006, section 3.1."""
    return [unit for unit, _ in itertools.groupby(ids) if unit != BLANK_ID]


def frames_of_one(log_probs_tv: NDArray[np.floating[Any]] | Tensor) -> NDArray[Any]:
    """The (T, V) frames of one utterance as an array, from any device and precision.

    Raises:
        ConfigError: other axes.
    """
    if isinstance(log_probs_tv, Tensor):
        half = log_probs_tv.dtype == torch.bfloat16  # which numpy lacks
        log_probs_tv = log_probs_tv.detach().to("cpu", torch.float32 if half else log_probs_tv.dtype)
    frames = np.asarray(log_probs_tv)
    if frames.ndim != 2:
        raise ConfigError("these are not the frames of one utterance", expected="(T, V)", got=frames.shape)
    return frames


def greedy(
    log_probs_btv: Tensor | NDArray[np.float32], lengths_b: Tensor | Sequence[int]
) -> list[list[Token]]:
    """The most probable class of each frame, collapsed.

    Args:
        log_probs_btv: (B, T, V), on any device.
        lengths_b: (B,) valid frames; frames beyond are ignored.

    Returns:
        One list of tokens for each utterance.

    Raises:
        ConfigError: other axes, or lengths that are no integers (see `ModelOutput`).
    """
    log_probs = torch.as_tensor(log_probs_btv)
    lengths = torch.as_tensor(lengths_b, device=log_probs.device)
    ModelOutput(log_probs, lengths)  # checks them
    best_bt, ids_bt = log_probs.max(dim=-1)
    previous_bt = torch.nn.functional.pad(ids_bt, (1, 0), value=BLANK_ID)[:, :-1]
    valid_bt = frames_inside(lengths, ids_bt.shape[1])
    spikes_bt = (ids_bt != BLANK_ID) & (ids_bt != previous_bt) & valid_bt
    rows, frames = spikes_bt.nonzero(as_tuple=True)
    columns = (rows, frames, ids_bt[rows, frames], best_bt[rows, frames])
    tokens: list[list[Token]] = [[] for _ in range(len(lengths))]
    for row, frame, unit, log_prob in zip(*(column.tolist() for column in columns), strict=True):
        tokens[row].append(Token(unit, frame, log_prob))
    return tokens


class StreamDecoder(Protocol):
    """Takes frames piece by piece and gives the tokens so far.

    Attributes:
        num_fixed: how many of the first tokens can no longer change.
    """

    @property
    def num_fixed(self) -> int: ...

    @property
    def tokens(self) -> list[Token]:
        """The tokens so far that have not been taken."""
        ...

    def feed(self, log_probs_tv: NDArray[np.float32] | Tensor) -> bool:
        """Process the next (T, V) frames; returns whether the tokens changed."""
        ...

    def cut(self, count: int) -> int:
        """The last place at or before `count` where the tokens may be split."""
        ...

    def settle(self) -> None:
        """End the transcript at a pause: what is heard next begins another."""
        ...

    def finish(self) -> None:
        """End the transcript."""
        ...

    def take(self, count: int) -> None:
        """Remove the first `count` tokens, which are final from now on."""
        ...


def decode_whole(decoder: StreamDecoder, log_probs_tv: NDArray[np.float32] | Tensor) -> list[Token]:
    """The tokens that a fresh decoder finds in the (T, V) frames of a whole utterance."""
    decoder.feed(log_probs_tv)
    decoder.finish()
    return decoder.tokens


class GreedyStream:
    """`greedy` for one utterance, chunk by chunk: any division into chunks gives the same tokens.

    Attributes:
        tokens: the tokens so far that have not been taken; they only grow.
        last_id: class of the last frame; it determines whether the next frame begins a new unit.
        frames_seen: frames fed so far.
    """

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.last_id = BLANK_ID
        self.frames_seen = 0

    @property
    def num_fixed(self) -> int:
        """All tokens."""
        return len(self.tokens)

    def feed(self, log_probs_tv: NDArray[np.float32] | Tensor) -> bool:
        """Process the next (T, V) frames; returns whether they add tokens."""
        if len(log_probs_tv) == 0:
            return False
        log_probs = frames_of_one(log_probs_tv)
        ids_t = log_probs.argmax(axis=1)
        previous_t = np.concatenate(([self.last_id], ids_t[:-1]))
        spikes = np.flatnonzero((ids_t != BLANK_ID) & (ids_t != previous_t))
        self.tokens += [
            Token(int(ids_t[frame]), self.frames_seen + int(frame), float(log_probs[frame, ids_t[frame]]))
            for frame in spikes
        ]
        self.last_id = int(ids_t[-1])
        self.frames_seen += len(ids_t)
        return len(spikes) > 0

    def cut(self, count: int) -> int:
        """`count`: a cut may lie anywhere."""
        return count

    def settle(self) -> None:
        """Do nothing: greedy tokens are final."""

    def finish(self) -> None:
        """Do nothing: greedy tokens are final."""

    def take(self, count: int) -> None:
        """Remove the first `count` tokens."""
        self.tokens = self.tokens[count:]


class _Prefix(NamedTuple):
    """A prefix of the beam.

    Attributes:
        ids: its units; the first ones may have been taken already.
        tokens: each with the frame of its likeliest spike.
    """

    ids: tuple[int, ...]
    tokens: tuple[Token, ...]


def _not_before(frame: int, token: Token) -> Token:
    return token if token.frame >= frame else token._replace(frame=frame)


class _Layout(NamedTuple):
    """What depends only on the prefixes of a beam, not on the frames.

    Attributes:
        last: (prefixes,) the last unit of each; blank for the empty prefix.
        children, parents: (pairs,) rows of prefixes that extend another one by a unit, and of the other one.
        costs: (prefixes, V) cost in nats of each next unit, infinite if it may not follow.
    """

    last: NDArray[np.intp]
    children: NDArray[np.intp]
    parents: NDArray[np.intp]
    costs: NDArray[np.float64]


class BeamStream:
    """`prefix_beam` for one utterance, chunk by chunk: any division into chunks gives the same text.

    The best text may change as more is heard; tokens become final when they are taken.

    Args:
        beam: prefixes kept after each frame.
        grammar: only its transcripts are found.

    Attributes:
        frames_seen: frames fed so far.
    """

    _prefixes: list[_Prefix]
    _taken: int  # units at the start of each prefix that have been taken or moved to the head
    _ends_blank: NDArray[np.float64]
    _ends_unit: NDArray[np.float64]
    _layout: _Layout | None

    def __init__(self, beam: int = DEFAULT_BEAM, grammar: Grammar | None = None) -> None:
        if beam < 1:
            raise ConfigError("a search needs a beam", where="beam", expected="1 or more", got=beam)
        self.frames_seen = 0
        self._beam, self._grammar = beam, grammar
        self._settled = self._after_pause = False
        self._head: list[Token] = []  # tokens that all prefixes share, without those taken
        self._begin(_Prefix((), ()), taken=0)

    @property
    def tokens(self) -> list[Token]:
        """Tokens of the best prefix that have not been taken; the last word may be incomplete."""
        return self._head + self._tail

    @property
    def num_fixed(self) -> int:
        """The number of tokens moved to the head."""
        return len(self._head)

    @property
    def _tail(self) -> list[Token]:
        return list(self._best.tokens[self._taken :]) if self._prefixes else []

    @property
    def _best(self) -> _Prefix:
        return self._prefixes[int(np.argmax(np.logaddexp(self._ends_blank, self._ends_unit)))]

    def feed(self, log_probs_tv: NDArray[np.float32] | Tensor) -> bool:
        """Process the next (T, V) frames; returns whether the best text changed."""
        before, fixed_before = self._tail, len(self._head)
        self._settled = self._settled and len(log_probs_tv) == 0
        for frame_v in frames_of_one(log_probs_tv).astype(np.float64):
            self._advance(frame_v)
            self.frames_seen += 1
        # Only new tokens of the head are compared: it only grows, and an hour has many.
        return self._head[fixed_before:] + self._tail != before

    def cut(self, count: int) -> int:
        """`count`, or the start of the word that a cut there would split."""
        taken = () if self._head else self._best.ids[: self._taken]
        known, end = (*taken, *(token.id for token in self.tokens)), len(taken) + count
        if self._grammar is None or end >= len(known):
            return count
        start = self._grammar.last_word_start(known[: end + 1])
        return max(0, start - len(taken))

    def hypotheses(self, nbest: int) -> list[Hypothesis]:
        """The `nbest` best transcripts that may end here, best first."""
        totals = np.logaddexp(self._ends_blank, self._ends_unit) - self._end_costs()
        order = np.argsort(-totals, kind="stable")
        head = [token.id for token in self._head]
        ranked = [(self._prefixes[index].ids, float(totals[index])) for index in order]
        return [Hypothesis((*head, *ids[self._taken :]), total) for ids, total in ranked if total > -np.inf][
            :nbest
        ]

    def settle(self) -> None:
        """As `finish`; once the tokens are taken, the next word begins a new transcript."""
        if self._grammar is not None:  # without a grammar, any text may go on
            self.finish()
            self._settled = True

    def finish(self) -> None:
        """Keep the transcripts that may end here; if there are none, the complete words of the best."""
        costs = self._end_costs()
        if np.isfinite(costs).any():
            self._ends_blank, self._ends_unit = self._ends_blank - costs, self._ends_unit - costs
            self._keep(np.isfinite(costs).tolist())
        elif self._grammar is not None and self._prefixes:
            end = self._grammar.last_word_start(self._best.ids)
            best = _Prefix(self._best.ids[:end], self._best.tokens[:end])
            if end > self._taken and self._grammar.end_cost(best.ids) < np.inf:
                self._begin(best, self._taken)
            else:
                self._begin(_Prefix((), ()), taken=0)

    def take(self, count: int) -> None:
        """Remove the first `count` tokens, and the prefixes that differ in them."""
        if count == 0:
            return
        if self._settled and count == len(self.tokens):
            self._begin(_Prefix((), ()), taken=0)
            self._head, self._after_pause = [], True
            return
        of_head = min(count, len(self._head))
        self._head = self._head[of_head:]
        if count > of_head:
            end = self._taken + count - of_head
            known = self._best.ids[:end]
            self._keep([prefix.ids[:end] == known for prefix in self._prefixes])
            self._forget(end)

    def _forget(self, end: int) -> None:
        """Drop the first `end` units, which all prefixes share, except those that still matter. Their frames,
        which may differ between prefixes, are now those in the best: no later unit may come before."""
        # The last unit determines whether the next one is new, the last word what may follow.
        first = end - 1
        if self._grammar is not None:
            first = min(first, self._grammar.last_word_start(self._prefixes[0].ids[:end]))
        known = self._best.tokens[first:end]
        self._prefixes = [
            _Prefix(ids[first:], (*known, *(_not_before(known[-1].frame, token) for token in tokens[end:])))
            for ids, tokens in self._prefixes
        ]
        self._taken, self._layout = end - first, None

    def _settle_head(self) -> None:
        """Move what all prefixes share to the head: otherwise the cost of a frame grows with the text."""
        best, ids = self._best, [prefix.ids for prefix in self._prefixes]
        lowest, highest = min(ids), max(ids)  # what these two share, all share
        pairs = enumerate(zip(lowest, highest, strict=False))
        end = next((place for place, (one, other) in pairs if one != other), min(map(len, ids)))
        if len(best.ids) > _LONGEST_PREFIX:
            end = max(end, _LONGEST_PREFIX // 2)
            self._keep([one[:end] == best.ids[:end] for one in ids])
        if self._grammar is not None:  # what has begun may still turn out to be no word
            end = self._grammar.last_word_start(best.ids[: end + 1]) or end
        if end - self._taken >= _LONG_PREFIX // 2:
            self._head += best.tokens[self._taken : end]
            self._forget(end)

    def _begin(self, prefix: _Prefix, taken: int) -> None:
        """Restart from a single prefix, whose first `taken` units have been taken."""
        self._prefixes, self._taken = [prefix], taken
        self._next_costs: dict[tuple[int, ...], NDArray[np.float64]] = {}
        self._layout = None
        # Log-probability of each prefix, summed over its alignments that end in blank or in its last unit.
        self._ends_blank, self._ends_unit = np.zeros(1), np.full(1, -np.inf)

    def _end_costs(self) -> NDArray[np.float64]:
        """(prefixes,) cost in nats of ending at each."""
        if self._grammar is None:
            return np.zeros(len(self._prefixes))
        return np.array([self._grammar.end_cost(prefix.ids) for prefix in self._prefixes])

    def _keep(self, kept: list[bool]) -> None:
        self._prefixes = [prefix for prefix, keep in zip(self._prefixes, kept, strict=True) if keep]
        self._ends_blank, self._ends_unit = self._ends_blank[kept], self._ends_unit[kept]
        self._layout = None

    def _advance(self, frame_v: NDArray[np.float64]) -> None:
        """Search one frame: every prefix stays or grows by one unit, and the best are kept."""
        prefixes, totals = self._prefixes, np.logaddexp(self._ends_blank, self._ends_unit)
        if self._layout is None:
            self._layout = self._laid_out(len(frame_v))
        last, children, parents, costs = self._layout
        stay_blank = totals + frame_v[BLANK_ID]
        stay_unit = self._ends_unit + frame_v[last]  # the empty prefix has ends_unit = -inf and stays there
        grow = totals[:, None] + frame_v[None, :]
        # The same unit again needs a blank in between.
        grow[np.arange(len(prefixes)), last] = self._ends_blank + frame_v[last]
        grow -= costs
        # A prefix that grows into another one of the beam adds to its probability; none appears twice.
        grown = grow[parents, last[children]]
        likeliest = grown > np.maximum(stay_blank, stay_unit)[children]
        stay_unit[children] = np.logaddexp(stay_unit[children], grown)
        grow[parents, last[children]] = -np.inf
        stays = list(prefixes)
        for row, parent in zip(children[likeliest].tolist(), parents[likeliest].tolist(), strict=True):
            stays[row] = self._grown(prefixes[parent], int(last[row]), frame_v)
        scores = np.logaddexp(stay_blank, stay_unit)
        if len(stays) == self._beam and grow.max() < scores.min():
            # In most frames, no new prefix is good enough.
            self._prefixes, self._ends_blank, self._ends_unit = stays, stay_blank, stay_unit
            return
        scores, beam = np.concatenate([scores, grow.ravel()]), self._beam
        best = np.argpartition(-scores, beam - 1)[:beam] if beam < len(scores) else np.arange(len(scores))
        best = best[scores[best] > -np.inf]
        self._ends_blank = np.concatenate([stay_blank, np.full(grow.size, -np.inf)])[best]
        self._ends_unit = np.concatenate([stay_unit, grow.ravel()])[best]
        # `scores` holds the prefixes that stay, then those that grow, row by row.
        places = (divmod(int(index) - len(stays), len(frame_v)) for index in best)
        self._prefixes = [
            stays[index] if index < len(stays) else self._grown(prefixes[row], unit, frame_v)
            for index, (row, unit) in zip(best.tolist(), places, strict=True)
        ]
        self._layout = None
        if self._prefixes and len(self._prefixes[0].ids) > _LONG_PREFIX:
            self._settle_head()

    def _laid_out(self, vocab_size: int) -> _Layout:
        ids = [prefix.ids for prefix in self._prefixes]
        rows = {one: row for row, one in enumerate(ids)}
        pairs = [(row, rows[one[:-1]]) for row, one in enumerate(ids) if one and one[:-1] in rows]
        children, parents = np.array(pairs, dtype=int).reshape(-1, 2).T
        costs = np.zeros((len(ids), vocab_size))
        if self._grammar is not None:
            known = self._next_costs
            # Costs of prefixes that stay are reused.
            self._next_costs = {
                one: known[one] if one in known else self._grammar.next_costs(one, self._after_pause)
                for one in ids
            }
            for row, one in enumerate(ids):
                if len(self._next_costs[one]) != vocab_size:
                    raise ConfigError(
                        "the lexicon and the model have different units",
                        expected=f"{vocab_size} classes, as in the model's output",
                        got=len(self._next_costs[one]),
                        fix="Make the lexicon with the model's units.",
                    )
                costs[row] = self._next_costs[one]
        costs[:, BLANK_ID] = np.inf
        last = np.array([one[-1] if one else BLANK_ID for one in ids], dtype=int)
        return _Layout(last, children, parents, costs)

    def _grown(self, prefix: _Prefix, unit: int, frame_v: NDArray[np.float64]) -> _Prefix:
        token = Token(unit, self.frames_seen, float(frame_v[unit]))
        return _Prefix((*prefix.ids, unit), (*prefix.tokens, token))


def check_nbest(nbest: int, beam: int, scale: float, where: str) -> None:
    """Raise ConfigError if a beam cannot give an n-best list, or `scale` is not a valid weight for one."""
    if not 1 <= nbest <= beam or scale < 0:
        raise ConfigError(
            "invalid n-best settings",
            where=where,
            expected="1 <= nbest <= beam, scale >= 0",
            got=f"nbest {nbest}, beam {beam}, scale {scale}",
        )


def prefix_beam(
    log_probs_tv: NDArray[np.float32] | Tensor,
    beam: int,
    nbest: int = 1,
    grammar: Grammar | None = None,
) -> list[Hypothesis]:
    """CTC prefix beam search (Hannun et al. 2014, "First-Pass Large Vocabulary Continuous Speech
    Recognition using Bi-Directional Recurrent DNNs", algorithm 1, without a language model).

    Unlike `greedy`, it sums over the alignments of a text; if the beam keeps the greedy text, the result
    scores no lower.

    Args:
        log_probs_tv: (T, V) of one utterance, valid frames only.
        beam: prefixes kept after each frame.
        nbest: how many to return; fewer if the beam holds fewer.
        grammar: only its transcripts are found.

    Returns:
        The hypotheses, best first. An utterance without frames has one: the empty one, at log 1. With a
        grammar there may be none.
    """
    if nbest < 1:
        raise ConfigError("nothing is asked for", where="nbest", expected="1 or more", got=nbest)
    stream = BeamStream(beam, grammar)
    stream.feed(log_probs_tv)
    return stream.hypotheses(nbest)
