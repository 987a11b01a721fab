"""Which batches each process reads in each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Dataset, Sampler

from kdasr.errors import KdasrError
from kdasr.interfaces import Batch
from kdasr.loader import Stream
from kdasr.ranks import Ranks
from kdasr.schedule import ScheduledBatches


class StepSampler(Sampler[int]):
    """The numbers of the remaining steps, updated in each epoch.

    Args:
        steps: returns them.
    """

    def __init__(self, steps: Callable[[], range]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps())

    def __len__(self) -> int:
        return len(self._steps())


class RankSteps(Dataset[list[Batch] | KdasrError]):
    """A rank's part of each step. Step n consists of the batches [n * accumulate, (n + 1) * accumulate),
    whatever the number of ranks; rank r of R has every R-th of them, from the r-th.

    Errors in the data are returned instead of batches: if they were raised in a DataLoader worker, torch
    would prepend its traceback."""

    def __init__(self, batches: ScheduledBatches, accumulate: int, of: Ranks) -> None:
        self.batches, self.accumulate, self.of = batches, accumulate, of

    def positions(self, step: int) -> Sequence[int]:
        """This rank's batches in a step, counted from the start of training."""
        return self.of.share(range(step * self.accumulate, (step + 1) * self.accumulate))

    def __getitem__(self, step: int) -> list[Batch] | KdasrError:
        try:
            return [self.batches[position] for position in self.positions(step)]
        except KdasrError as error:
            return error


class OneEpoch(Dataset[Batch | KdasrError]):
    """The batches of a stream's first epoch, as a map-style dataset; returns errors as `RankSteps` does."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream.epoch_batches(0))

    def __getitem__(self, index: int) -> Batch | KdasrError:
        try:
            return self.stream.batch(index)
        except KdasrError as error:
            return error
