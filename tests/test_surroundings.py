"""What is heard around an utterance, and what labels say there. How batches get it: tests/test_loader.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdasr.features import LOG_MEL_FLOOR
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels.runs import best_classes, concatenate
from kdasr.surroundings import after_quiet, labels_after, silence

SYMBOLS = ["<blk>", "▁", "a", "b"]


def certain(*ids: int) -> SoftLabels:
    count = len(ids)
    nothing = np.full(count, -np.inf, np.float32)
    return SoftLabels(np.ones(count, np.int64), np.array(ids), np.zeros(count, np.float32), nothing)


@pytest.mark.parametrize(
    ("frames", "own", "expected"),
    [
        (3, (0, 2, 3), [0, 0, 1, 0, 2, 3]),  # no teacher tells how long before: two frames
        (1, (2, 3), [1, 2, 3]),  # no sooner than the utterance before has ended
        (None, (2, 3), [1, 2, 3]),  # without times: a mark alone
        (2, (0, 1, 3), [0, 0, 0, 1, 3]),  # it has a mark of its own
        (2, (0, 0), [0, 0, 0, 0]),  # nothing is said
        (6, (2, 1, 0, 0, 0, 3), [0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 0, 3]),  # as within the utterance
    ],
)
def test_the_mark_between_words_is_where_a_student_can_foresee_it(
    frames: int | None, own: tuple[int, ...], expected: list[int]
) -> None:
    labels = labels_after([certain(2, 0)], frames, certain(*own), SYMBOLS)
    assert best_classes(labels).tolist() == expected
    assert best_classes(labels_after([], frames, certain(*own), SYMBOLS)).tolist() == [0] * (frames or 0) + [
        *own
    ]


def test_labels_of_what_was_heard_before_stay_as_they_are() -> None:
    before, own = certain(2, 0), certain(0, 3)
    row = concatenate([before, labels_after([before], 1, own, SYMBOLS)])
    assert best_classes(row).tolist() == [2, 0, 1, 0, 3]


def test_what_is_heard_before_is_silent_or_about_as_loud_as_the_quietest_tenth_of_a_second() -> None:
    features_tf = torch.full((100, 80), -2.0)
    features_tf[40:50] = -9.0
    kinds = {"silent": 0, "drawn": 0, "moving": 0}
    for seed in range(200):
        heard_tf = after_quiet(features_tf, 30, seed)
        assert torch.equal(heard_tf[30:], features_tf) and len(heard_tf) == 130
        lead_tf = heard_tf[:30]
        if torch.equal(lead_tf, silence(30)):
            kinds["silent"] += 1
        elif torch.equal(lead_tf, torch.full((30, 80), -9.0)):
            kinds["drawn"] += 1
        else:
            kinds["moving"] += 1
            # Louder by up to 2.5 nats, and by what the floor cuts off.
            assert -9.6 < float(lead_tf.mean()) < -5.0 and float(lead_tf.min()) >= LOG_MEL_FLOOR
    shares = [count / 200 for count in kinds.values()]
    assert shares == [
        pytest.approx(0.125, abs=0.07),
        pytest.approx(0.375, abs=0.1),
        pytest.approx(0.5, abs=0.1),
    ]
    assert after_quiet(features_tf, 0, 1) is features_tf
