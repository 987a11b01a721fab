"""MUNGE: neighbours exchange what they have, and padding stays padding."""

from __future__ import annotations

import pytest
import torch

from kdasr.errors import ConfigError
from kdasr.features import LOG_MEL_FLOOR
from kdasr.interfaces import Batch
from kdasr.methods.mixing import Munge, nearest


def batch() -> Batch:
    """Constant utterances at 0, 1 and 10; the second is shorter."""
    features = torch.tensor([0.0, 1.0, 10.0])[:, None, None].repeat(1, 40, 80)
    features[1, 25:] = LOG_MEL_FLOOR
    return Batch(["a", "b", "c"], features, torch.tensor([40, 25, 40]))


def test_the_nearest_neighbour_is_another_utterance() -> None:
    given = batch()
    assert nearest(given.features_btf, given.feature_lengths_b).tolist() == [1, 0, 1]


def test_what_is_drawn_comes_from_about_the_neighbour_in_blocks() -> None:
    munge = Munge(probability=0.5, local_variance=1e6, block_frames=5)
    mixed = munge(batch(), torch.Generator().manual_seed(1)).features_btf
    first = mixed[0, :25].reshape(5, 5, 80)
    # Of the first utterance half the blocks are the neighbour's 1, each of them whole.
    assert torch.equal(first.round(), first.round()[:, :1].expand(5, 5, 80))
    assert first.round().unique().tolist() == [0.0, 1.0]
    assert first.round().mean().item() == pytest.approx(0.5, abs=0.1)
    # Beyond the shorter of two there is nothing to exchange.
    assert torch.equal(mixed[0, 25:], batch().features_btf[0, 25:])
    assert torch.equal(mixed[1, 25:], batch().features_btf[1, 25:])


def test_the_spread_is_the_difference_over_s() -> None:
    munge = Munge(probability=1.0, local_variance=3.0)
    drawn = munge(batch(), torch.Generator().manual_seed(1)).features_btf[2, :25]
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.3)
    assert drawn.std().item() == pytest.approx(9 / 3, rel=0.1)


def test_one_utterance_and_probability_zero_change_nothing() -> None:
    single = Batch(["a"], torch.randn(1, 5, 80), torch.tensor([5]))
    assert torch.equal(Munge()(single, torch.Generator()).features_btf, single.features_btf)
    kept = Munge(probability=0.0)(batch(), torch.Generator().manual_seed(1))
    assert torch.equal(kept.features_btf, batch().features_btf)
    with pytest.raises(ConfigError, match="local_variance > 0"):
        Munge(local_variance=0.0)
