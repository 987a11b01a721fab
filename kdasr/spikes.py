"""A histogram of the offsets of a student's CTC spikes from its teacher's.

A streaming student sees no future, so it tends to emit later than its teacher; frame-level distillation
works only if the teacher is delayed to match (Kurata and Audhkhasi 2019).
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jiwer

from kdasr.decoding import Token
from kdasr.errors import ConfigError
from kdasr.storage import commit_json

SPIKES_FILE = "spike_offsets.json"


@dataclass(frozen=True, slots=True)
class SpikeHistogram:
    """Spike times of the student minus those of the teacher, for all spikes that both have.

    Attributes:
        frame_shift_ms: duration of an output frame in milliseconds.
        offsets_ms: every offset that occurs, ascending; positive if the student is later.
        counts: number of spikes with each offset.
        teacher_spikes, student_spikes: total number of spikes; those without a counterpart have no offset.
        whose: a description of the models, seed and test set.
    """

    frame_shift_ms: float
    offsets_ms: list[float]
    counts: list[int]
    teacher_spikes: int
    student_spikes: int
    whose: str = "the student against the teacher's"

    @property
    def matched(self) -> int:
        return sum(self.counts)

    @property
    def median_ms(self) -> float | None:
        """Median offset, or None if no spikes match."""
        spread = [ms for ms, count in zip(self.offsets_ms, self.counts, strict=True) for _ in range(count)]
        return statistics.median(spread) if spread else None


def spike_offsets(teacher: Sequence[Token], student: Sequence[Token], frame_shift_ms: float) -> list[float]:
    """Student minus teacher spike time in milliseconds, for each unit that both emitted.

    Units are matched by the minimum edit distance alignment of the two sequences of ids; only equal ids
    count.
    """
    if not teacher or not student:
        return []
    # jiwer aligns words, so each id is written as one.
    teacher_ids, student_ids = (" ".join(str(token.id) for token in tokens) for tokens in (teacher, student))
    (chunks,) = jiwer.process_words(teacher_ids, student_ids).alignments
    offsets = []
    for chunk in chunks:
        if chunk.type == "equal":
            pairs = zip(
                teacher[chunk.ref_start_idx : chunk.ref_end_idx],
                student[chunk.hyp_start_idx : chunk.hyp_end_idx],
                strict=True,
            )
            offsets += [(theirs.frame - ours.frame) * frame_shift_ms for ours, theirs in pairs]
    return offsets


def spike_histogram(
    pairs: Iterable[tuple[Sequence[Token], Sequence[Token]]], frame_shift_ms: float
) -> SpikeHistogram:
    """Offsets over many utterances, each a pair of (teacher's tokens, student's tokens)."""
    counts: Counter[float] = Counter()
    teacher_spikes = student_spikes = 0
    for teacher, student in pairs:
        counts.update(spike_offsets(teacher, student, frame_shift_ms))
        teacher_spikes += len(teacher)
        student_spikes += len(student)
    offsets = sorted(counts)
    return SpikeHistogram(
        frame_shift_ms, offsets, [counts[ms] for ms in offsets], teacher_spikes, student_spikes
    )


def draw(histogram: SpikeHistogram, *, width: int = 40, reach_frames: int = 10) -> list[str]:
    """The histogram as lines of text; offsets beyond `reach_frames` are added to the bins at the ends."""
    shift, reach_ms = histogram.frame_shift_ms, reach_frames * histogram.frame_shift_ms
    bins: Counter[float] = Counter()
    for ms, count in zip(histogram.offsets_ms, histogram.counts, strict=True):
        bins[max(-reach_ms, min(reach_ms, ms))] += count
    if not bins:
        return ["none of the student's spikes matches one of the teacher's"]
    highest = max(bins.values())
    first, last = round(min(bins) / shift), round(max(bins) / shift)
    lines = []
    for frame in range(min(first, 0), max(last, 0) + 1):
        count = bins[frame * shift]
        beyond = {-reach_frames: "≤", reach_frames: "≥"}.get(frame, " ")
        bar = "█" * max(round(width * count / highest), 1 if count else 0)
        lines.append(
            f"{beyond}{frame * shift:+6.0f} ms {count:6d} {100 * count / histogram.matched:5.1f} % {bar}"
        )
    return lines


def write_histogram(path: Path, histogram: SpikeHistogram) -> None:
    """Write a histogram as JSON, including its median for human readers."""
    content = {**asdict(histogram), "median_ms": histogram.median_ms, "matched": histogram.matched}
    commit_json(path, content)


def read_histogram(path: Path) -> SpikeHistogram:
    """Read what `write_histogram` wrote.

    Raises:
        ConfigError: the file cannot be read or is something else.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        fields = [name for name in SpikeHistogram.__dataclass_fields__ if name in content]
        return SpikeHistogram(**{name: content[name] for name in fields})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError("not a histogram of spike offsets", where=path, got=repr(error)) from error
