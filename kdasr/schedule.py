"""Interleave streams of batches into training steps: blocks of batches of each stream, in any pattern.

The batch of a step is a pure function of the step number, so that number is the schedule's only state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, BatchSource


def check_pattern(pattern: Sequence[tuple[str, int]], streams: Collection[str]) -> None:
    """Raise ConfigError if there are no blocks, or one has an unknown stream or no batches."""
    if not pattern:
        expected = f"[[stream, batches], …] with the streams {', '.join(sorted(streams))}"
        raise ConfigError("the schedule is empty", where="schedule", expected=expected)
    for name, count in pattern:
        if name not in streams or count < 1:
            raise ConfigError(
                "invalid entry in the schedule",
                where=f"schedule entry [{name}, {count}]",
                expected=f"one of {', '.join(sorted(streams))} and a positive number of batches",
            )


class ScheduledBatches(Dataset[Batch]):
    """Training steps: step n is the next batch of the stream that the pattern names.

    Args:
        streams: batches by name, e.g. "labelled" and "unlabelled".
        pattern: blocks of (name, number of batches), repeated forever: the million-hour system's
            interleaving of soft-target and labelled training (arXiv 1904.01624).
    """

    def __init__(self, streams: Mapping[str, BatchSource], pattern: Sequence[tuple[str, int]]) -> None:
        check_pattern(pattern, streams)
        self.streams = streams
        self._pattern = [(name, count) for name, count in pattern]

    def place(self, step: int) -> tuple[str, int]:
        """The stream that step `step` (from 0) reads, and the position of its batch in that stream."""
        name, before, _ = self._at(step)
        return name, before[name]

    def batches_before(self, step: int) -> dict[str, int]:
        """The number of batches of each stream that are read before step `step`."""
        return self._at(step)[1]

    def position(self, step: int) -> dict[str, Any]:
        """The position of training before step `step`: for each stream, how many batches were read, and
        the epoch, shard and utterance with which its next batch begins."""
        name, before, left_in_block = self._at(step)
        streams = {
            stream: {"batches_read": read, **self.streams[stream].next_utterance(read)}
            for stream, read in before.items()
        }
        return {"step": step, "block": {"stream": name, "batches_left": left_in_block}, "streams": streams}

    def _at(self, step: int) -> tuple[str, dict[str, int], int]:
        """The stream of `step`, the batches of each stream read before, and the batches left in the block."""
        cycles, index = divmod(step, sum(count for _, count in self._pattern))
        before = dict.fromkeys((name for name, _ in self._pattern), 0)
        for name, count in self._pattern:
            before[name] += cycles * count
        for name, count in self._pattern:
            if index < count:
                before[name] += index
                return name, before, count - index
            before[name] += count
            index -= count
        raise AssertionError("a step lies in some block")

    def __getitem__(self, step: int) -> Batch:
        name, position = self.place(step)
        return self.streams[name].batch(position)
