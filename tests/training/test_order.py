"""Steps in their order: each looked up anew, an epoch with an end, and errors in the place of batches."""

from __future__ import annotations

from typing import Any

import pytest

from kdasr.errors import ShardError
from kdasr.ranks import Ranks
from kdasr.training.order import OneEpoch, RankSteps, StepSampler


class Numbers:
    """A stream of three batches in its first epoch and fewer later, which are their numbers, or one in which
    the third is damaged."""

    def __init__(self, is_damaged: bool = False) -> None:
        self.is_damaged = is_damaged

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        return [[0], [1], [2]][epoch:]

    def batch(self, position: int) -> int:
        if self.is_damaged and position == 2:
            raise ShardError("damaged")
        return position

    __getitem__ = batch


def test_an_epoch_has_a_length() -> None:
    stream: Any = Numbers()
    assert len(OneEpoch(stream)) == 3 and OneEpoch(stream)[2] == 2


def test_each_rank_has_its_part_of_each_step() -> None:
    batches: Any = Numbers()
    parts = [RankSteps(batches, 3, Ranks(rank, 2)) for rank in range(2)]
    assert [part[4] for part in parts] == [[12, 14], [13]]


def test_what_is_wrong_with_the_data_is_given_in_its_place() -> None:
    """A worker that raised it would put its traceback before it."""
    damaged: Any = Numbers(is_damaged=True)
    for dataset in (OneEpoch(damaged), RankSteps(damaged, 1, Ranks())):
        assert dataset[1] in (1, [1]) and isinstance(dataset[2], ShardError)


@pytest.mark.parametrize("first", [0, 3])
def test_the_steps_that_are_due_are_asked_for_anew(first: int) -> None:
    due = range(first, 4)
    sampler = StepSampler(lambda: due)
    assert (list(sampler), len(sampler)) == (list(due), 4 - first)
    due = range(4, 6)
    assert (list(sampler), len(sampler)) == ([4, 5], 2)
