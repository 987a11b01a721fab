"""What is not the same is found, wherever it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export.parity import Agreement, Reference, compare, probe_sounds, require_parity
from kdasr.errors import ExportError
from kdasr.streaming import TorchChunkModel
from tests.export.small_models import conformer


class Wrong(TorchChunkModel):
    """Does `change` to its log-probs in batches of one size."""

    def __init__(self, batch_size: int, change: Any) -> None:
        super().__init__(conformer())
        self.batch_size, self.change = batch_size, change

    def step(self, features_btf: NDArray[np.float32], state: Any) -> Any:
        log_probs_btv, state = super().step(features_btf, state)
        return self.change(log_probs_btv) if len(log_probs_btv) == self.batch_size else log_probs_btv, state


@pytest.mark.parametrize(("batch_size", "same"), [(1, 0.75), (3, 0.25), (2, 1.0)])
def test_a_difference_at_one_batch_size_is_a_difference(batch_size: int, same: float) -> None:
    wrong = Wrong(batch_size, lambda log_probs: np.roll(log_probs, 1, axis=-1))
    agreement = compare(TorchChunkModel(conformer()), wrong, num_chunks=3)
    assert agreement.same_argmax == same
    assert agreement.tokens_identical == (same == 1)
    assert (agreement.max_abs_difference > 0.1) == (same < 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda log_probs: log_probs[..., :-1],
            r"output has a different shape; expected \(1, 12, 29\); got \(1, 12, 28\)",
        ),
        (lambda log_probs: log_probs * np.float32("nan"), "exported model: a log-probability is not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        compare(TorchChunkModel(conformer()), Wrong(1, change), num_chunks=3)


def test_the_original_runs_once_for_all_its_files() -> None:
    original = TorchChunkModel(conformer())
    reference = Reference(original, num_chunks=3)
    original.student = None  # type: ignore[assignment]
    right, wrong = TorchChunkModel(conformer()), Wrong(1, lambda log_probs: np.roll(log_probs, 1, axis=-1))
    agreements = [reference.compare(candidate) for candidate in (right, wrong, right)]
    assert agreements[0] == agreements[2] == Agreement(0.0, 1.0, True, 3, (1, 3))
    assert agreements[1] == compare(TorchChunkModel(conformer()), wrong, num_chunks=3) != agreements[0]


def test_streams_of_a_comparison_are_different_sounds() -> None:
    first, second, third = probe_sounds(8_000, 3, seed=5)
    assert not np.array_equal(first, second) and not np.array_equal(second, third)
    assert np.array_equal(second, probe_sounds(8_000, 1, seed=6)[0])


@pytest.mark.parametrize(
    ("difference", "tokens_identical"), [(1e-3, True), (math.nan, True), (math.inf, True), (1e-6, False)]
)
def test_parity_is_a_difference_below_the_tolerance_and_the_same_tokens(
    difference: float, tokens_identical: bool
) -> None:
    with pytest.raises(ExportError, match=r"^model\.onnx: .*within 0\.001 and the same tokens"):
        require_parity(Agreement(difference, 1.0, tokens_identical, 24, (1, 3)), "model.onnx")
    require_parity(Agreement(9e-4, 1.0, True, 24, (1, 3)), "model.onnx")
    require_parity(Agreement(2e-3, 1.0, True, 24, (1, 3)), "model.wave.onnx", tolerance=5e-3)
