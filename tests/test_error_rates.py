"""How far a difference between two models may be chance."""

from __future__ import annotations

import numpy as np
import pytest

from kdasr.error_rates import gain_interval
from kdasr.errors import ConfigError


def test_the_interval_is_that_of_a_share() -> None:
    """Half of 400 errors are gone: the share of them in draws has a standard deviation of 2.5 %."""
    low, high = gain_interval([1] * 400, [0, 1] * 200, draws=4000)
    assert low == pytest.approx(50 - 1.96 * 2.5, abs=0.5) and high == pytest.approx(50 + 1.96 * 2.5, abs=0.5)
    assert gain_interval([1] * 400, [0, 1] * 200, draws=4000) == (low, high)


def test_both_models_hear_the_same_utterances() -> None:
    """How many errors there are differs from draw to draw, and what is left of them does not."""
    before = [0, 0, 0, 20] * 25
    assert gain_interval(before, [3 * errors // 4 for errors in before]) == pytest.approx((25.0, 25.0))
    low, high = gain_interval(before, np.roll([3 * errors // 4 for errors in before], 1).tolist())
    assert low < -10 and high > 45


def test_a_model_that_is_worse_has_lost() -> None:
    low, high = gain_interval([1] * 100, [2] * 50 + [1] * 50)
    assert low < -50 < high < 0


def test_where_nothing_was_wrong_there_is_no_gain() -> None:
    assert gain_interval([0] * 50 + [1], [0] * 51) == (100.0, 100.0)
    with pytest.raises(ConfigError, match="without errors before .*got 3 utterances"):
        gain_interval([0, 0, 0], [0, 1, 0])
