"""The benchmark of what losses cost: it measures what it says."""

from __future__ import annotations

import torch

from benchmarks.losses import LOSSES, RECIPES, highest, peak_bytes, random_batch, random_labels, time_losses
from kdasr.targets import best_units


def test_peak_memory_is_that_of_the_allocator() -> None:
    with torch.profiler.profile(profile_memory=True) as profile:
        first = torch.zeros(1_000_000)
        del first
        second = torch.zeros(250_000)
    assert 4_000_000 <= highest(profile) < 4_100_000 and len(second) == 250_000


def test_memory_of_kept_and_tail_grows_with_the_vocabulary_and_not_with_what_is_kept() -> None:
    small, more_kept = peak_bytes(2_000, 4, frames=20), peak_bytes(2_000, 256, frames=20)
    assert peak_bytes(8_000, 4, frames=20) < 4.2 * small
    # Four numbers for each kept class and frame at most, where V x k would be 41 MB.
    assert more_kept - small <= 20 * 256 * 4 * 4 < 20 * 2_000 * 256 * 4 / 50


def test_stored_labels_of_the_benchmark_spike_now_and_then() -> None:
    torch.manual_seed(0)
    units = best_units(random_labels(2, 50, 29, 8))
    assert bool((units[:, ::5] != 0).float().mean() > 0.9) and bool(
        (units[:, 1::5] == 0).float().mean() > 0.9
    )
    assert random_batch(8.0).features_btf.shape == (2, 400, 80)


def test_losses_cost_little_beside_a_step() -> None:
    """Loosely, so that a busy machine does not matter; `python -m benchmarks.losses` measures the 10 %."""
    step_seconds, losses = time_losses(8.0, 5)
    assert set(LOSSES) < set(losses)
    for recipe in RECIPES:
        of_recipe = [seconds for name, seconds in losses.items() if name.startswith(recipe)]
        assert 0 < sum(of_recipe) < 0.5 * step_seconds
