"""Which parts of which utterances go through the teacher together: a pure function of their lengths.

Utterances longer than a window are cut into overlapping windows, so an hour of audio needs no more
memory than a minute. Windows are sorted by length before they are batched, which keeps padding low.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """A stretch of one utterance, in feature frames.

    Attributes:
        number: index of the utterance in the shard.
        first, last: the teacher's input is frames [first, last).
        keep_first, keep_last: output frames [keep_first, keep_last), counted from the start of the
            utterance, are taken from this segment.
    """

    number: int
    first: int
    last: int
    keep_first: int
    keep_last: int

    @property
    def frames(self) -> int:
        return self.last - self.first


def cut_segments(
    number: int, frames: int, window_frames: int, overlap_frames: int, subsampling: int
) -> list[Segment]:
    """The windows of an utterance of `frames` feature frames.

    Neighbours share `overlap_frames`; each provides the output frames up to the middle of the overlap.
    Both sizes must be multiples of twice the subsampling, so that cuts fall between output frames.
    """
    assert window_frames > overlap_frames >= 0
    assert window_frames % (2 * subsampling) == overlap_frames % (2 * subsampling) == 0
    frames_out = -(-frames // subsampling)
    if frames <= window_frames:
        return [Segment(number, 0, frames, 0, frames_out)]
    step = window_frames - overlap_frames
    firsts = list(range(0, frames - overlap_frames, step))
    middles = [(first + overlap_frames // 2) // subsampling for first in firsts[1:]]
    edges = [0, *middles, frames_out]
    return [
        Segment(number, first, min(first + window_frames, frames), *kept)
        for first, kept in zip(firsts, itertools.pairwise(edges), strict=True)
    ]


def make_batches(
    segments: Iterable[Segment], batch_frames: int, max_padding: float = 0.05, least_frames: int = 0
) -> list[list[Segment]]:
    """Sort segments by length and cut them into batches of at most `batch_frames`, padding included.

    At most the share `max_padding` of a batch is padding. A segment longer than `batch_frames` is a batch of
    its own. One shorter than `least_frames` counts as that long: some teachers pad every input to a fixed
    length. The longest come first: their batches are full, so the next is decoded during a forward pass.
    """
    batches: list[list[Segment]] = []
    heard = 0
    for segment in sorted(segments, key=lambda s: (s.frames, s.number, s.first)):
        frames = max(segment.frames, least_frames)
        padded = (len(batches[-1]) + 1) * frames if batches else 0
        fits = 0 < padded <= batch_frames and heard + frames >= (1 - max_padding) * padded
        if not fits:
            batches.append([])
            heard = 0
        batches[-1].append(segment)
        heard += frames
    return batches[::-1]


def padding_share(batches: Sequence[Sequence[Segment]], least_frames: int = 0) -> float:
    """The share of all frames in `batches` that is padding; `least_frames` as in `make_batches`."""
    heard = sum(segment.frames for batch in batches for segment in batch)
    padded = sum(len(batch) * max(least_frames, *(segment.frames for segment in batch)) for batch in batches)
    return 1 - heard / padded if padded else 0.0
