"""Streams of batches in, the steps of a training out: blocks of one stream and another, in any pattern.

Which batch a step reads is a pure function of its number, so the state of a schedule is that number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, BatchSource


def check_pattern(pattern: Sequence[tuple[str, int]], streams: Collection[str]) -> None:
    """Raise ConfigError for no blocks, and for one of another stream than these or of no batches."""
    if not pattern:
        expected = f"[[stream, batches], …] of {', '.join(sorted(streams))}"
        raise ConfigError("the schedule is empty", where="schedule", expected=expected)
    for name, count in pattern:
        if name not in streams or count < 1:
            raise ConfigError(
                "the schedule cannot be followed",
                where=f"schedule entry [{name}, {count}]",
                expected=f"one of {', '.join(sorted(streams))} and a positive number of batches",
            )


class ScheduledBatches(Dataset[Batch]):
    """Steps of training: step n is the next batch of the stream that the pattern names.

    Args:
        streams: batches by name, e.g. "labelled" and "unlabelled".
        pattern: blocks of (name, number of batches), repeated for ever: the million-hour system's
            interleaving of soft-target and labelled training (arXiv 1904.01624).
    """

    def __init__(self, streams: Mapping[str, BatchSource], pattern: Sequence[tuple[str, int]]) -> None:
        check_pattern(pattern, streams)
        self.streams = streams
        self._pattern = [(name, count) for name, count in pattern]

    def place(self, step: int) -> tuple[str, int]:
        """Which stream step `step` (from 0) reads, and which of its batches."""
        name, before, _ = self._at(step)
        return name, before[name]

    def batches_before(self, step: int) -> dict[str, int]:
        """How many batches of each stream are read before step `step`."""
        return self._at(step)[1]

    def position(self, step: int) -> dict[str, Any]:
        """Where training stands before step `step`: for each stream how many batches were read, and
        the epoch, shard and utterance that its next batch begins with."""
        name, before, left_in_block = self._at(step)
        streams = {
            stream: {"batches_read": read, **self.streams[stream].next_utterance(read)}
            for stream, read in before.items()
        }
        return {"step": step, "block": {"stream": name, "batches_left": left_in_block}, "streams": streams}

    def _at(self, step: int) -> tuple[str, dict[str, int], int]:
        """The stream that `step` reads, the batches read of each before, and what is left of the block."""
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
