"""Greedy and prefix-beam decoding against direct definitions and brute force."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdasr.decoding import GreedyStream, Hypothesis, Token, collapse, greedy, prefix_beam


def random_log_probs(seed: int, frames: int, classes: int, peak: float = 1.0) -> NDArray[np.float32]:
    logits = np.random.default_rng(seed).normal(size=(frames, classes)) * peak
    shifted = logits - logits.max(axis=1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).astype(np.float32)


def path_log_probs(path: list[int], classes: int = 4) -> NDArray[np.float32]:
    """Log-probs whose best path is `path`, with probability 0.7 in every frame."""
    probs = np.full((len(path), classes), 0.3 / (classes - 1), dtype=np.float32)
    probs[np.arange(len(path)), path] = 0.7
    return np.log(probs)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], []), ([0, 0], []), ([1, 1, 2], [1, 2]), ([1, 0, 1], [1, 1]), ([0, 3, 3, 0, 0, 3, 2, 2], [3, 3, 2])],
)
def test_collapse_merges_runs_then_drops_blanks(ids: list[int], expected: list[int]) -> None:
    assert collapse(ids) == expected


def test_collapse_takes_another_blank() -> None:
    assert collapse([3, 0, 0, 3, 0], blank=3) == [0, 0]


def test_greedy_gives_spikes_with_frame_and_log_prob() -> None:
    log_probs = path_log_probs([0, 2, 2, 0, 2, 1])
    (tokens,) = greedy(log_probs[None], [6])
    assert [(token.id, token.frame) for token in tokens] == [(2, 1), (2, 4), (1, 5)]
    assert [token.log_prob for token in tokens] == pytest.approx([np.log(0.7)] * 3, abs=1e-6)


def test_greedy_stops_at_each_length() -> None:
    log_probs = torch.from_numpy(np.stack([path_log_probs([1, 2, 3]), path_log_probs([1, 2, 3])]))
    tokens = greedy(log_probs, torch.tensor([2, 0]))
    assert [[token.id for token in row] for row in tokens] == [[1, 2], []]


@given(st.integers(0, 10_000), st.integers(0, 3))
def test_greedy_is_argmax_then_collapse(seed: int, short_by: int) -> None:
    log_probs = np.stack([random_log_probs(seed + row, 12, 4) for row in range(3)])
    lengths = [12, 12 - short_by, 5]
    for row, tokens in enumerate(greedy(log_probs, lengths)):
        best = log_probs[row, : lengths[row]].argmax(axis=1)
        assert [token.id for token in tokens] == collapse(best.tolist())
        for token in tokens:
            assert best[token.frame] == token.id
            assert token.frame == 0 or best[token.frame - 1] != token.id
            assert token.log_prob == log_probs[row, token.frame, token.id]


@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), max_size=12))
def test_a_stream_in_any_cut_equals_the_whole(seed: int, chunk_sizes: list[int]) -> None:
    log_probs = random_log_probs(seed, 24, 3)
    stream, tokens, start = GreedyStream(), list[Token](), 0
    for size in [*chunk_sizes, 24]:
        tokens += stream.feed(log_probs[start : start + size])
        start = min(24, start + size)
    assert tokens == greedy(log_probs[None], [24])[0]
    assert stream.frames_seen == 24


def test_a_unit_that_runs_over_a_cut_is_emitted_once() -> None:
    stream = GreedyStream()
    first = stream.feed(path_log_probs([0, 1]))
    second = stream.feed(torch.from_numpy(path_log_probs([1, 1, 0, 1])))
    assert [(token.id, token.frame) for token in first + second] == [(1, 1), (1, 5)]


def brute_force(log_probs: NDArray[np.float32]) -> list[Hypothesis]:
    """Every alignment enumerated, summed by the text it collapses to."""
    frames, classes = log_probs.shape
    totals: dict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
    for path in itertools.product(range(classes), repeat=frames):
        score = float(sum(log_probs[frame, unit] for frame, unit in enumerate(path)))
        text = tuple(collapse(path))
        totals[text] = float(np.logaddexp(totals[text], score))
    return sorted((Hypothesis(*item) for item in totals.items()), key=lambda found: -found.log_prob)


@pytest.mark.parametrize(("frames", "classes"), [(1, 2), (4, 3), (6, 3), (5, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_every_text_with_its_exact_probability(
    frames: int, classes: int, seed: int
) -> None:
    log_probs = random_log_probs(seed, frames, classes)
    expected = brute_force(log_probs)
    found = prefix_beam(log_probs, beam=10_000, nbest=10_000)
    assert {item.ids for item in found} == {item.ids for item in expected}
    by_ids = {item.ids: item.log_prob for item in found}
    for item in expected:
        assert by_ids[item.ids] == pytest.approx(item.log_prob, abs=1e-5)
    assert np.logaddexp.reduce([item.log_prob for item in found]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_a_narrow_beam_never_claims_more_than_the_truth(seed: int) -> None:
    log_probs = random_log_probs(seed, 6, 3, peak=2.0)
    truth = {item.ids: item.log_prob for item in brute_force(log_probs)}
    found = prefix_beam(log_probs, beam=4, nbest=4)
    assert len(found) == 4
    assert [item.log_prob for item in found] == sorted((item.log_prob for item in found), reverse=True)
    assert all(item.log_prob <= truth[item.ids] + 1e-6 for item in found)


def test_summing_alignments_can_beat_the_best_path() -> None:
    # Hannun's textbook case: the best path is all blank (0.36), but "a" sums to 0.64.
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], dtype=np.float32))
    assert greedy(log_probs[None], [2]) == [[]]
    (best,) = prefix_beam(log_probs, beam=3)
    assert best.ids == (1,)
    assert best.log_prob == pytest.approx(np.log(0.64), abs=1e-6)


def test_certain_frames_and_no_frames() -> None:
    certain = np.full((3, 3), -np.inf, dtype=np.float32)
    certain[[0, 1, 2], [1, 0, 1]] = 0.0
    assert prefix_beam(torch.from_numpy(certain), nbest=5) == [Hypothesis((1, 1), 0.0)]
    assert prefix_beam(np.zeros((0, 3), dtype=np.float32)) == [Hypothesis((), 0.0)]
    assert GreedyStream().feed(np.zeros((0, 3), dtype=np.float32)) == []
