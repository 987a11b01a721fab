"""What a Zipformer is made of, by values worked out from its paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdasr.errors import ConfigError
from kdasr.students.zipformer import Zipformer, widest
from kdasr.students.zipformer_layers import MIN_BYPASS, BiasNorm, Bypass, ZipformerLayer, swoosh_l, swoosh_r


def test_swooshes_are_those_of_the_paper() -> None:
    x = torch.tensor([-3.0, 0.0, 2.0, 7.0], dtype=torch.float64)
    expected_l = (1 + (x - 4).exp()).log() - 0.08 * x - 0.035
    expected_r = (1 + (x - 1).exp()).log() - 0.08 * x - 0.313261687
    torch.testing.assert_close(swoosh_l(x), expected_l)
    torch.testing.assert_close(swoosh_r(x), expected_r)
    assert abs(float(swoosh_r(x)[1])) < 1e-9


def test_a_norm_divides_by_the_size_of_what_is_beyond_the_bias() -> None:
    norm = BiasNorm(2)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([1.0, -1.0]))
        norm.log_scale.fill_(0.5)
        # (4, 3) less the bias is (3, 4): 5 / sqrt(2).
        found = norm(torch.tensor([[[4.0, 3.0]]]))
    torch.testing.assert_close(found, torch.tensor([[[4.0, 3.0]]]) * 2**0.5 / 5 * torch.tensor(0.5).exp())


def test_a_bypass_lets_through_a_fifth_at_least_and_everything_at_most() -> None:
    bypass = Bypass(3)
    with torch.no_grad():
        bypass.share.copy_(torch.tensor([-1.0, 0.5, 3.0]))
        found = bypass(torch.zeros(1, 1, 3), torch.full((1, 1, 3), 10.0))
    torch.testing.assert_close(found.flatten(), torch.tensor([2.0, 5.0, 10.0]))


def test_what_a_layer_adds_is_small_at_first() -> None:
    layer = ZipformerLayer(
        16, num_heads=2, query_dim=4, value_dim=4, expansion=2.0, kernel_frames=3, dropout=0.0
    )
    last = [
        module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and name.endswith((".down", ".out"))
    ]
    assert len(last) == 8, "of each residual branch"
    for linear in last:
        usual = linear.in_features**-0.5  # torch draws weights up to so much
        assert 0.17 * usual < float(linear.weight.detach().abs().max()) <= 0.2 * usual
        assert not linear.bias.detach().any()


def test_every_channel_is_of_the_last_stack_that_has_it() -> None:
    outputs = [torch.full((1, 1, width), float(width)) for width in (4, 3, 1, 2)]
    assert widest(outputs).flatten().tolist() == [2, 2, 3, 4]
    assert widest([torch.full((1, 1, 5), 9.0), *outputs]).flatten().tolist() == [2, 2, 3, 4, 9]


@torch.no_grad()
def test_half_a_slow_frame_at_the_end_is_heard_under_full_context() -> None:
    torch.manual_seed(1)
    model = Zipformer(
        vocab_size=5, widths=[24], downsampling=[2], num_layers=[1], chunk_frames=0, lookahead_frames=0
    ).eval()
    features, lengths = torch.randn(1, 4 * 31, 80), torch.tensor([4 * 31])
    changed = features.clone()
    changed[:, -4:] += 5.0  # the last output frame, which has a slow frame for itself
    before, after = model.offline(features, lengths)[0], model.offline(changed, lengths)[0]
    # The first frames hear it by attention alone.
    assert float((before - after)[0, :4].abs().min()) > 1e-6


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"widths": [24, 32]}, "same length; expected one value of each per stack, .*; got 2, 3 and 3"),
        ({"num_layers": [1, 0, 1]}, r"a width, downsampling or number of layers below 1.*got .*\[1, 0, 1\]"),
        ({"query_dim": 5}, "an even query_dim and an odd kernel_frames; got 5 and 9"),
        ({"kernel_frames": 8}, "an even query_dim and an odd kernel_frames; got 16 and 8"),
        ({"chunk_frames": 3}, r"a multiple of 2 output frames \(80 ms\).*got 3 \(120 ms\)"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Zipformer(vocab_size=5, **sizes)


def test_a_bypass_that_left_its_range_comes_back_and_goes_no_further() -> None:
    bypass = Bypass(4)
    with torch.no_grad():
        bypass.share.copy_(torch.tensor([0.1, 0.1, 1.2, 0.6]))
    x, y = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    wanted = torch.tensor([0.5, -0.5, -0.5, 0.5])  # more of y, or less
    out = bypass.train()(x, y)
    torch.testing.assert_close(out[0, 0], torch.tensor([MIN_BYPASS, MIN_BYPASS, 1.0, 0.6]), atol=1e-6, rtol=0)
    (-(wanted * out)).sum().backward()
    assert bypass.share.grad is not None
    # The second would fall further; all others go where they are wanted.
    assert bypass.share.grad.tolist() == [-0.5, 0.0, 0.5, -0.5]
    assert torch.equal(bypass.eval()(x, y), out)
