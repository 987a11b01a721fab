"""Whether models emit the first unit of an utterance before hearing it, and what that costs.

    python -m benchmarks.first_words --models runs/fsdd/teacher runs/fsdd/student_distilled \\
        --test runs/fsdd/shards/test

For each model: in how many utterances the first unit is emitted in output frame 0 or 1, the median frame of
the first unit, how many first words are wrong, and the errors per 100 other words (including insertions). If
a model emits first units when it hears them, its first words are about as good as the others;
docs/distillation.md, "The first unit", has figures.

With several models, also how much later than the first model the others emit the first, fifth and last
unit: medians over the utterances of five units or more that all models recognise correctly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jiwer

from export.transcribe import open_recogniser
from kdasr.evaluation import Heard, evaluate
from kdasr.features import FRAME_SHIFT_MS
from kdasr.shards import list_shards

_AT_ONCE = 2
# Units whose delay is reported, by their index in the utterance.
_PLACES = {"first": 0, "fifth": 4, "last": -1}


class Row(NamedTuple):
    """One model's results.

    Attributes:
        model: its folder.
        utterances: number with words.
        at_once: how many of these have their first unit in output frame 0 or 1.
        median_frame: of the first unit, in output frames; None if no unit was recognised.
        first_wrong: number of wrong first words.
        other_errors, other_words: numbers for all words but the first.
        wer: of all words, in %.
    """

    model: str
    utterances: int
    at_once: int
    median_frame: float | None
    first_wrong: int
    other_errors: int
    other_words: int
    wer: float


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print a table; returns its rows."""
    parser = argparse.ArgumentParser(
        description="how often the first unit is emitted before it is spoken, and the errors this costs"
    )
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="model folders")
    parser.add_argument("--test", type=Path, required=True, help="labelled shards")
    options = parser.parse_args(arguments)
    print(
        "| model | first unit in frame 0 or 1 | median frame | first words wrong | errors in 100 others "
        "| WER % |"
    )
    print("|---|---|---|---|---|---|")
    rows: list[Row] = []
    spoken_ms: list[list[list[float]]] = []
    for folder in options.models:
        recogniser = open_recogniser(folder)
        if recogniser.offline_model is None:
            parser.error(f"{folder} is an exported model: give the folder that it was exported from")
        result = evaluate(recogniser.offline_model, recogniser.units, list_shards(options.test))
        rows.append(row := _row(str(folder), result.heard, result.wer))
        spoken_ms.append(_spoken_ms(result.heard, FRAME_SHIFT_MS * recogniser.offline_model.subsampling))
        print(
            f"| {folder} | {row.at_once} of {row.utterances} | {row.median_frame} "
            f"| {100 * row.first_wrong / row.utterances:.1f} % "
            f"| {100 * row.other_errors / max(1, row.other_words):.1f} | {row.wer:.1f} |",
            flush=True,
        )
    if len(rows) > 1:
        _print_lateness([row.model for row in rows], spoken_ms)
    return rows


def _spoken_ms(heard: Sequence[Heard], frame_ms: float) -> list[list[float]]:
    """Time of each unit of each utterance; empty if it is not recognised correctly."""
    return [
        [token.frame * frame_ms for token in one.tokens or []] if one.hypothesis == one.reference else []
        for one in heard
    ]


def _print_lateness(models: Sequence[str], spoken_ms: Sequence[Sequence[list[float]]]) -> None:
    together = [
        times
        for times in zip(*spoken_ms, strict=True)
        if all(len(one) == len(times[0]) >= 5 for one in times)
    ]
    places = " | ".join(_PLACES)
    print(f"\n| {len(together)} utterances that all models get right: later than {models[0]} | {places} |")
    print("|---|---|---|---|")
    for number, model in enumerate(models):
        late = [
            median(times[number][place] - times[0][place] for times in together) if together else float("nan")
            for place in _PLACES.values()
        ]
        print(f"| {model} | {' | '.join(f'{ms:+.0f} ms' for ms in late)} |")


def _row(model: str, heard: Sequence[Heard], wer: float) -> Row:
    heard = [one for one in heard if one.reference.split()]
    aligned = jiwer.process_words([one.reference for one in heard], [one.hypothesis for one in heard])
    # Words inserted before the first one also make it wrong.
    first = [
        any(part.type != "equal" and part.ref_start_idx == 0 for part in parts)
        for parts in aligned.alignments
    ]
    errors = aligned.substitutions + aligned.deletions + aligned.insertions
    frames = [one.tokens[0].frame for one in heard if one.tokens]
    return Row(
        model,
        len(heard),
        sum(frame < _AT_ONCE for frame in frames),
        median(frames) if frames else None,
        sum(first),
        errors - sum(first),
        sum(len(one.reference.split()) - 1 for one in heard),
        wer,
    )


if __name__ == "__main__":
    main()
