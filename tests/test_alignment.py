"""The alignment is the best of all alignments."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kdasr.alignment import align, best_alignment, ctc_occupancy
from kdasr.decoding import collapse, greedy
from kdasr.errors import UnitsError


def probabilities(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def best_by_trying_all(log_probs: torch.Tensor, ids: list[int]) -> float:
    frames, vocab = log_probs.shape
    paths = (p for p in itertools.product(range(vocab), repeat=frames) if collapse(p) == ids)
    return max(sum(float(log_probs[t, unit]) for t, unit in enumerate(path)) for path in paths)


def test_units_lie_where_they_are_probable() -> None:
    log_probs = probabilities(
        [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]
    )
    one, two = align(log_probs, [1, 2])
    assert one[:2] == (1, 1) and two[:2] == (2, 4)
    assert one.log_prob == pytest.approx(float(torch.tensor([0.8, 0.7]).log().mean()))
    assert two.log_prob == pytest.approx(math.log(0.8))


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2, 2], [2, 2, 2]])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_path_is_better(ids: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    log_probs = torch.randn(6, 3).mul(2).log_softmax(-1)
    frames = best_alignment(log_probs, ids).tolist()
    assert collapse(frames) == ids
    starts = [
        frame
        for frame, (one, last) in enumerate(zip(frames, [0, *frames], strict=False))
        if one and one != last
    ]
    assert [unit.frame for unit in align(log_probs, ids)] == starts
    score = sum(float(log_probs[t, unit]) for t, unit in enumerate(frames))
    assert score == pytest.approx(best_by_trying_all(log_probs, ids), abs=1e-5)


def test_a_greedy_transcript_aligns_to_its_own_spikes() -> None:
    torch.manual_seed(1)
    log_probs = torch.randn(1, 60, 5).mul(4).log_softmax(-1)
    tokens = greedy(log_probs, [60])[0]
    aligned = align(log_probs[0], [token.id for token in tokens])
    assert [unit[:2] for unit in aligned] == [token[:2] for token in tokens]


def test_equal_neighbours_need_a_blank_between_them() -> None:
    sure_of_one = probabilities(*[[0.1, 0.9]] * 3)
    first, second = align(sure_of_one, [1, 1])
    assert (first.frame, second.frame) == (0, 2)


def test_an_empty_transcript_has_no_units() -> None:
    assert align(torch.zeros(4, 3), []) == []


@pytest.mark.parametrize(
    ("frames", "ids", "message"),
    [
        (2, [1, 2, 1], "u7: the transcript is longer than the audio; expected at most 2 frames; got 3 units"),
        (2, [1, 1], "2 units, which need 3 frames"),
        (0, [1], "at most 0 frames"),
        (4, [0], "an id is out of range"),
        (4, [3], "expected 1 to 2"),
    ],
)
def test_what_cannot_be_aligned_is_refused(frames: int, ids: list[int], message: str) -> None:
    with pytest.raises(UnitsError, match=message):
        align(torch.zeros(frames, 3), ids, where="u7")


def test_occupancy_is_the_same_where_no_gradients_are_wanted() -> None:
    log_probs = torch.randn(1, 3, 4).log_softmax(-1)
    transcript = torch.tensor([[1, 2]]), torch.tensor([3]), torch.tensor([2])
    expected = ctc_occupancy(log_probs, *transcript)
    with torch.no_grad():
        torch.testing.assert_close(ctc_occupancy(log_probs, *transcript), expected)


def test_occupancy_is_the_share_of_all_paths() -> None:
    """Of all alignments of each transcript, also of scores that are not normalised; the last does not fit."""
    scores = torch.randn(3, 5, 3, dtype=torch.float64)
    transcripts, lengths = [[1, 2], [2, 2], [1, 1, 1]], [5, 4, 4]
    tokens = torch.tensor([[1, 2, 0], [2, 2, 0], [1, 1, 1]])
    nll, occupancy = ctc_occupancy(scores, tokens, torch.tensor(lengths), torch.tensor([2, 2, 3]))
    expected = torch.zeros_like(scores)
    for row, (ids, length) in enumerate(zip(transcripts, lengths, strict=True)):
        mass = 0.0
        for path in itertools.product(range(3), repeat=length):
            if collapse(path) == ids:
                weight = math.exp(sum(float(scores[row, t, unit]) for t, unit in enumerate(path)))
                mass += weight
                expected[row, range(length), path] += weight
        expected[row] /= mass or 1.0
        assert float(nll[row]) == pytest.approx(-math.log(mass) if mass else math.inf)
    torch.testing.assert_close(occupancy, expected)
