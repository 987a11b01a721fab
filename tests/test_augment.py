"""Augmentation: masks keep to their size, and time stays where it was."""

from __future__ import annotations

import pytest
import torch

from kdasr.augment import SpecAugment
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
    ("name", "value"), [("max_warp", 5), ("max_frequency_bins", -5), ("max_time_share", 1.5)]
)
def test_a_mask_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} of SpecAugment: .*from 0 to .*got {value}"):
        SpecAugment(**{name: value})
