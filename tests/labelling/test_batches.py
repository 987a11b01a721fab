"""Windows and batches: every frame once, little padding, the same for the same lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdasr.labelling.batches import cut_segments, make_batches, padding_share

WINDOW, OVERLAP, SUBSAMPLING = 80, 16, 4


@given(frames=st.integers(1, 2000))
def test_windows_cover_every_output_frame_once_and_hear_its_surroundings(frames: int) -> None:
    segments = cut_segments(3, frames, WINDOW, OVERLAP, SUBSAMPLING)
    kept = [t for segment in segments for t in range(segment.keep_first, segment.keep_last)]
    assert kept == list(range(-(-frames // SUBSAMPLING)))
    for segment in segments:
        assert segment.number == 3 and 0 < segment.frames <= WINDOW
        assert segment.first % SUBSAMPLING == 0
        # Inside the utterance, half an overlap of context on either side of what is kept.
        if segment.first > 0:
            assert segment.keep_first * SUBSAMPLING - segment.first == OVERLAP // 2
        if segment.last < frames:
            assert segment.last - segment.keep_last * SUBSAMPLING == OVERLAP // 2


def test_a_short_utterance_is_one_window() -> None:
    assert cut_segments(0, 80, WINDOW, OVERLAP, SUBSAMPLING) == [(0, 0, 80, 0, 20)]
    assert len(cut_segments(0, 81, WINDOW, OVERLAP, SUBSAMPLING)) == 2


def test_batches_hold_every_segment_once_with_at_most_five_percent_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(6.5, 0.6, 500).astype(int).clip(1, 4000)
    segments = [s for i, n in enumerate(lengths) for s in cut_segments(i, int(n), 4000, 480, 4)]
    batches = make_batches(segments, 12_000)
    assert sorted(s for batch in batches for s in batch) == sorted(segments)
    assert padding_share(batches) <= 0.05
    assert max(len(b) * max(s.frames for s in b) for b in batches) <= 12_000
    assert len(batches) < 80  # they are batches, not single utterances
    assert make_batches(list(reversed(segments)), 12_000) == batches


def test_a_segment_larger_than_a_batch_is_a_batch_of_its_own() -> None:
    segments = [
        s for i, n in enumerate((30, 30, 75)) for s in cut_segments(i, n, WINDOW, OVERLAP, SUBSAMPLING)
    ]
    assert [[s.number for s in batch] for batch in make_batches(segments, 60)] == [[2], [0, 1]]


def test_short_segments_count_as_long_as_the_teacher_hears_them() -> None:
    segments = [s for i, n in enumerate((10, 20, 75)) for s in cut_segments(i, n, 80, OVERLAP, SUBSAMPLING)]
    assert [len(batch) for batch in make_batches(segments, 120)] == [1, 1, 1]  # else half would be padding
    assert [len(batch) for batch in make_batches(segments, 120, least_frames=40)] == [1, 2]
    assert [len(batch) for batch in make_batches(segments, 240, least_frames=80)] == [3]


def test_a_batch_is_full_where_as_much_is_padding_as_may_be() -> None:
    segments = [s for i, n in enumerate((10, 20)) for s in cut_segments(i, n, 80, OVERLAP, SUBSAMPLING)]
    assert [len(batch) for batch in make_batches(segments, 40, max_padding=0.25)] == [2]
    assert [len(batch) for batch in make_batches(segments, 39, max_padding=0.25)] == [1, 1]
    assert [len(batch) for batch in make_batches(segments, 40, max_padding=0.24)] == [1, 1]


def test_padding_share_is_hand_computable() -> None:
    segments = [s for i, n in enumerate((10, 20)) for s in cut_segments(i, n, WINDOW, OVERLAP, SUBSAMPLING)]
    assert padding_share([segments]) == 0.25
    assert padding_share([segments], least_frames=60) == 0.75
    assert padding_share([]) == 0.0
