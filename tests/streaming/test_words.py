"""Words carry the times of their units' spikes."""

from __future__ import annotations

import itertools
import math

import pytest

from kdasr.decoding import Token
from kdasr.streaming import words_of
from kdasr.text import CharUnits, TableUnits, train_sentencepiece

UNITS = CharUnits()


def tokens(*spikes: tuple[str, int, float]) -> list[Token]:
    return [Token(UNITS.symbols.index(symbol), frame, log_prob) for symbol, frame, log_prob in spikes]


def test_times_run_from_the_first_spike_to_the_end_of_the_last() -> None:
    spikes = tokens(("o", 10, -0.1), ("n", 12, -0.3), ("▁", 15, -0.1), ("i", 20, 0.0), ("t", 21, 0.0))
    first, second = words_of(spikes, UNITS)
    assert first[:3] == ("on", 0.4, 0.52)
    assert first.confidence == pytest.approx(math.exp(-0.2), abs=1e-4)
    assert second == ("it", 0.8, 0.88, 1.0)


def test_word_marks_alone_are_no_words() -> None:
    assert words_of(tokens(("▁", 1, 0.0), ("▁", 3, 0.0)), UNITS) == []
    assert words_of([], UNITS) == []
    assert [word.text for word in words_of(tokens(("▁", 1, 0.0), ("a", 3, 0.0)), UNITS)] == ["a"]


def test_a_word_is_over_after_a_second_of_silence() -> None:
    """24 frames of 40 ms between two units are less than that, 25 are as much."""
    spikes = tokens(
        ("o", 10, 0.0), ("n", 35, 0.0), ("i", 61, 0.0), ("t", 62, 0.0), ("▁", 90, 0.0), ("a", 91, 0.0)
    )
    assert [word.text for word in words_of(spikes, UNITS)] == ["on", "it", "a"]
    assert [word.text for word in words_of(spikes, UNITS, frame_s=0.02)] == ["onit", "a"]
    assert UNITS.decode([token.id for token in spikes]) == "onit a"


def test_word_pieces_are_joined_where_they_begin_no_word() -> None:
    units = train_sentencepiece(["seven eleven", "eleven seven seven", "even seven"] * 3, vocab_size=10)
    ids = units.encode("seven eleven even")
    spikes = [Token(unit, 3 * n, -0.1) for n, unit in enumerate(ids)]
    words = words_of(spikes, units)
    assert [word.text for word in words] == ["seven", "eleven", "even"]
    assert " ".join(word.text for word in words) == units.decode(ids)
    assert all(one.end_s <= two.start_s for one, two in itertools.pairwise(words))


def test_frame_length_is_a_setting() -> None:
    assert words_of(tokens(("a", 5, 0.0)), UNITS, frame_s=0.02)[0][1:3] == (0.1, 0.12)
    assert words_of(tokens(("a", 5, 0.0)), UNITS, frame_s=0.025)[0][1:3] == (0.125, 0.15), "to milliseconds"


def test_classes_that_stand_for_no_text_are_no_words() -> None:
    units = TableUnits(["<blk>", "▁", "a", "b", "<unk>"], None, False)
    heard = [Token(unit, frame, 0.0) for frame, unit in enumerate([2, 1, 4, 1, 3])]
    assert [word.text for word in words_of(heard, units)] == ["a", "b"]
    assert units.decode([token.id for token in heard]) == "a b"
