"""Augmentation: masks keep to their size, and time stays where it was."""

from __future__ import annotations

import pytest
import torch

from kdasr.augment import SpecAugment, warp_frequency
from kdasr.errors import ConfigError


def test_a_time_mask_never_takes_more_than_its_share_of_a_short_utterance() -> None:
    features_btf = 5.0 + torch.randn(16, 200, 80)
    augment = SpecAugment(num_frequency_masks=0, num_time_masks=1, max_time_frames=100, max_time_share=0.05)
    masked_bt = ((augment(features_btf) - features_btf).abs() > 1e-6).any(dim=2)
    assert masked_bt.any() and int(masked_bt.sum(1).max()) <= 10
    long_btf = features_btf.repeat(1, 20, 1)
    masked_bt = ((augment(long_btf) - long_btf).abs() > 1e-6).any(dim=2)
    assert 10 < int(masked_bt.sum(1).max()) <= 100


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    features_btf = torch.randn(2, 50, 80)
    augment = SpecAugment(num_frequency_masks=0, num_time_masks=0)
    torch.testing.assert_close(augment(features_btf), features_btf)


def test_what_is_masked_is_the_average_sound() -> None:
    features_btf = 5.0 + torch.randn(4, 100, 80)
    heard = SpecAugment(max_frequency_bins=30, max_time_frames=30)(features_btf)
    masked = (heard - features_btf).abs() > 1e-4
    assert 0.1 < float(masked.float().mean()) < 0.9
    assert heard[masked].sub(features_btf.mean()).abs().max() < 1e-4


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_every_utterance_has_as_many_masks_as_are_asked_for_and_in_places_of_its_own(axis: str) -> None:
    # Features that are nowhere their mean, so that all that is masked is seen.
    features_btf = 1.0 - 2.0 * (torch.arange(32) % 2)[:, None, None].expand(32, 80, 80)
    masks = {"num_frequency_masks": 0, "num_time_masks": 0, f"num_{axis}_masks": 3}
    changed = SpecAugment(**masks)(features_btf).abs() < 0.5
    masked_bn = changed.any(dim=1 if axis == "frequency" else 2)
    assert len({tuple(row) for row in masked_bn.tolist()}) == 32
    begins = masked_bn & ~masked_bn.roll(1, dims=1)
    # Masks may overlap or be empty, but not in all of 32 utterances.
    assert int(begins.sum(1).max()) == 3


def test_masks_of_all_widths_up_to_the_most_are_alike_often() -> None:
    """Uniform from 0 to F, both included (arXiv 1904.08779, section 2)."""
    features_btf = 1.0 - 2.0 * (torch.arange(4000) % 2)[:, None, None].expand(4000, 80, 80)
    augment = SpecAugment(num_frequency_masks=0, num_time_masks=1, max_time_frames=3)
    widths_b = (augment(features_btf).abs() < 0.5).any(dim=2).sum(1)
    assert torch.bincount(widths_b).tolist() == pytest.approx([1000] * 4, abs=130)


def test_a_gain_is_one_for_each_utterance_and_up_or_down_by_so_much_at_most() -> None:
    features_btf = torch.randn(64, 10, 80)
    augment = SpecAugment(num_frequency_masks=0, num_time_masks=0, max_gain_nats=0.5)
    gain_btf = augment(features_btf) - features_btf
    gain_b = gain_btf.mean(dim=(1, 2))
    torch.testing.assert_close(gain_btf, gain_b[:, None, None].expand_as(gain_btf), atol=1e-5, rtol=0)
    assert -0.5 <= float(gain_b.min()) < -0.4 and 0.4 < float(gain_b.max()) <= 0.5


def test_a_warp_reads_each_bin_at_a_factor_of_its_place_that_every_utterance_has_of_its_own() -> None:
    ramp_btf = torch.arange(80.0).expand(64, 3, 80)  # says of each bin from where it was read
    warped_btf = warp_frequency(ramp_btf, 0.2)
    factor_b = warped_btf[:, 0, 40] / 40
    # Beyond the last bin there is the last bin.
    expected_btf = (ramp_btf * factor_b[:, None, None]).clamp_max(79)
    torch.testing.assert_close(warped_btf, expected_btf, atol=1e-3, rtol=0)
    assert 0.8 <= float(factor_b.min()) < 0.85 and 1.15 < float(factor_b.max()) <= 1.2001


def test_a_warp_keeps_its_digits_under_bf16() -> None:
    features_btf = torch.randn(2, 50, 80) * 3 - 8
    augment = SpecAugment(num_frequency_masks=0, num_time_masks=0, max_warp=0.1)
    torch.manual_seed(1)
    wanted = augment(features_btf)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = augment(features_btf)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)
    assert float((wanted - features_btf).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_warp", 5), ("max_warp", 0.95), ("max_frequency_bins", -5), ("max_time_share", 1.5)],
)
def test_a_mask_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} of SpecAugment: .*from 0 to .*got {value}"):
        SpecAugment(**{name: value})
