"""Which words are misheard, and how far a difference between two models may be chance."""

from __future__ import annotations

import numpy as np
import pytest

from kdasr.error_rates import count_errors, counts_by_kind, gain_interval, misheard_words
from kdasr.errors import ConfigError


def test_word_errors_are_told_by_what_was_said_and_heard() -> None:
    said = ["one two three four", "five", "", "six"]
    heard = ["one too three", "five six seven", "oh", "six"]
    misheard = misheard_words(said, heard)
    assert misheard == [[("two", "too"), ("four", "")], [("", "six"), ("", "seven")], [("", "oh")], []]
    assert [counts_by_kind(wrong) for wrong in misheard[:2]] == [
        {"substitutions": 1, "deletions": 1, "insertions": 0},
        {"substitutions": 0, "deletions": 0, "insertions": 2},
    ]


def test_the_interval_is_that_of_a_share() -> None:
    """Half of 400 words are heard now: their share in draws has a standard deviation of 2.5 points."""
    errors = ([1] * 400, [0, 1] * 200, [1] * 400)
    low, high = gain_interval(*errors, draws=4000)
    assert low == pytest.approx(50 - 1.96 * 2.5, abs=0.5) and high == pytest.approx(50 + 1.96 * 2.5, abs=0.5)
    assert gain_interval(*errors, draws=4000) == (low, high)
    # Twice the words, half the rates.
    assert gain_interval(*errors[:2], [2] * 400, draws=4000) == pytest.approx((low / 2, high / 2))


def test_both_models_hear_the_same_utterances() -> None:
    """How many errors there are differs from draw to draw, and what of them is gone does not."""
    before = np.array([0, 0, 0, 20] * 25)
    assert gain_interval(before, np.maximum(before - 1, 0), [1, 1, 1, 20] * 25)[0] > 0
    assert gain_interval(before, before - 1, [1] * 100) == pytest.approx((100.0, 100.0))
    low, high = gain_interval(before, np.roll(before, 1), [1] * 100)
    assert low < -200 and high > 200


def test_a_model_that_is_worse_has_lost() -> None:
    low, high = gain_interval([1] * 100, [2] * 50 + [1] * 50, [5] * 100)
    assert low < -10 < high < 0


def test_one_error_fewer_proves_nothing() -> None:
    assert gain_interval([1] + [0] * 99, [0] * 100, [1] * 100)[0] == 0.0
    assert gain_interval([0] * 100, [0] * 100, [1] * 100) == (0.0, 0.0)


def test_utterances_in_which_nothing_is_said_count_by_what_is_heard() -> None:
    low, high = gain_interval([1, 0], [0, 0], [0, 10])
    assert (low, high) == (0.0, 200.0)


def test_texts_are_counted_in_pairs_of_lists() -> None:
    """A text is a sequence, too: of its letters."""
    with pytest.raises(ConfigError, match="two lists of as many texts; got a text, not a list"):
        count_errors("one two", "one too")
    with pytest.raises(ConfigError, match="two lists of as many texts; got 2 and 1"):
        count_errors(["one", "two"], ["one"])
