"""Spike offsets by hand: which spikes are paired, what the histogram says and draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdasr.decoding import Token
from kdasr.errors import ConfigError
from kdasr.spikes import SpikeHistogram, draw, read_histogram, spike_histogram, spike_offsets, write_histogram


def tokens(*pairs: tuple[int, int]) -> list[Token]:
    return [Token(unit, frame, -0.1) for unit, frame in pairs]


def test_offsets_are_student_minus_teacher() -> None:
    teacher = tokens((1, 10), (2, 20), (3, 30))
    student = tokens((1, 12), (2, 19), (3, 30))
    assert spike_offsets(teacher, student, 40.0) == [80.0, -40.0, 0.0]


def test_only_equal_units_are_paired_along_the_alignment() -> None:
    teacher = tokens((1, 10), (2, 20), (3, 30), (4, 40))
    student = tokens((2, 22), (9, 31), (4, 43), (5, 50))  # 1 is missed, 3 heard as 9, 5 made up
    assert spike_offsets(teacher, student, 10.0) == [20.0, 30.0]


def test_repeated_units_are_paired_in_order() -> None:
    teacher = tokens((7, 1), (7, 5), (7, 9))
    student = tokens((7, 2), (7, 6), (7, 10))
    assert spike_offsets(teacher, student, 40.0) == [40.0, 40.0, 40.0]


@pytest.mark.parametrize(("teacher", "student"), [([], []), (tokens((1, 1)), []), ([], tokens((1, 1)))])
def test_without_spikes_there_is_no_offset(teacher: list[Token], student: list[Token]) -> None:
    assert spike_offsets(teacher, student, 40.0) == []


def sample() -> SpikeHistogram:
    utterances = [
        (tokens((1, 10), (2, 20)), tokens((1, 12), (2, 22))),
        (tokens((1, 5), (3, 9)), tokens((1, 5), (4, 9))),
        (tokens((1, 0)), tokens((1, 50))),
    ]
    return spike_histogram(utterances, 40.0)


def test_the_histogram_counts_all_utterances() -> None:
    histogram = sample()
    assert histogram.offsets_ms == [0.0, 80.0, 2000.0]
    assert histogram.counts == [1, 2, 1]
    assert (histogram.teacher_spikes, histogram.student_spikes, histogram.matched) == (5, 5, 4)
    assert histogram.median_ms == 80.0


def test_spikes_are_counted_for_each_side() -> None:
    histogram = spike_histogram([(tokens((1, 3), (2, 5)), tokens((1, 4)))], 40.0)
    assert (histogram.teacher_spikes, histogram.student_spikes) == (2, 1)


def test_the_drawing_sums_up_what_is_far_off() -> None:
    lines = draw(sample(), width=10, reach_frames=3)
    assert [" ".join(line.split()) for line in lines] == [
        "+0 ms 1 25.0 % █████",
        "+40 ms 0 0.0 %",
        "+80 ms 2 50.0 % ██████████",
        "≥ +120 ms 1 25.0 % █████",
    ]


def test_what_comes_before_the_teacher_is_drawn_from_the_earliest_on() -> None:
    early = spike_histogram([(tokens((1, 10), (2, 20), (3, 30)), tokens((1, 9), (2, 19), (3, 20)))], 40.0)
    assert early.offsets_ms == [-400.0, -40.0]
    assert [" ".join(line.split()) for line in draw(early, width=10, reach_frames=3)] == [
        "≤ -120 ms 1 33.3 % █████",
        "-80 ms 0 0.0 %",
        "-40 ms 2 66.7 % ██████████",
        "+0 ms 0 0.0 %",
    ]


def test_nothing_matched_is_said() -> None:
    empty = spike_histogram([(tokens((1, 1)), tokens((2, 1)))], 40.0)
    assert empty.median_ms is None and empty.matched == 0
    assert draw(empty) == ["none of the student's spikes matches one of the teacher's"]


def test_a_histogram_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "spike_offsets.json"
    write_histogram(path, sample())
    assert read_histogram(path) == sample()
    assert '"median_ms": 80.0' in path.read_text()
    older = json.loads(path.read_text())
    del older["whose"]
    path.write_text(json.dumps(older))
    assert read_histogram(path) == sample()


@pytest.mark.parametrize("content", ["", "[]", '{"counts": []}'])
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "spike_offsets.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"spike_offsets\.json: not a histogram"):
        read_histogram(path)
