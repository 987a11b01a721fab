"""What Conformer layers are made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdasr.errors import ConfigError
from kdasr.interfaces import frames_inside
from kdasr.layers import (
    Attention,
    ConformerLayer,
    LayerNorm,
    Normalise,
    inverse_wavelengths,
    rotate,
    rotation,
    shared_rotation,
    whole_frames,
)
from kdasr.students.conformer import ChunkConformer
from kdasr.students.zipformer import Zipformer
from kdasr.teachers.conformer import ConformerTeacher


def norms(width: int) -> tuple[LayerNorm, nn.LayerNorm]:
    ours, torchs = LayerNorm(width), nn.LayerNorm(width)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def test_a_norm_answers_in_the_type_it_is_asked_in() -> None:
    torch.manual_seed(1)
    ours, torchs = norms(64)
    x = 5 * torch.randn(3, 7, 64) + 2
    assert torch.equal(ours(x), torchs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), torchs(x))
        found = ours(x.bfloat16())
    assert found.dtype == torch.bfloat16
    # Eight bits of scale and offset and of the result, but sums of all bits.
    torch.testing.assert_close(found.float(), torchs(x.bfloat16().float()), rtol=2**-6, atol=2**-6)


def test_gradients_of_a_norm_in_16_bits_reach_its_32_bit_weights() -> None:
    torch.manual_seed(1)
    ours, torchs = norms(64)
    x, upstream = torch.randn(50, 64).bfloat16(), torch.randn(50, 64).bfloat16()
    ours(x).backward(upstream)
    torchs(x.float()).backward(upstream.float())
    for mine, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None and mine.grad.dtype == torch.float32
        assert float((mine.grad - other.grad).norm() / other.grad.norm()) < 0.02


def test_frames_stay_in_16_bits_from_layer_to_layer() -> None:
    layer = ConformerLayer(16, num_heads=2, expansion=2, kernel_frames=3, dropout=0.0)
    seen: list[torch.dtype] = []
    for part in layer.modules():
        part.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    rotation_2td = shared_rotation(nn.ModuleList([layer]), 5, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 5, 16).bfloat16(), torch.ones(1, 1, 5, 5, dtype=torch.bool), rotation_2td)
    assert len(seen) > 10 and set(seen) == {torch.bfloat16}


def test_rotations_show_how_far_apart_two_positions_are_and_not_where() -> None:
    torch.manual_seed(1)
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    turns = rotation(40, inverse_wavelengths(4).double())
    scores = [
        float((rotate(query, turns[:, at : at + 1]) * rotate(key, turns[:, at + 3 : at + 4])).sum())
        for at in (0, 7, 36)
    ]
    assert max(scores) - min(scores) < 1e-9
    # The first wavelength is one radian a frame: (1, 0) becomes (cos 1, sin 1).
    unit = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    turned = rotate(unit, rotation(2, inverse_wavelengths(1).double())[:, 1:])
    assert torch.allclose(turned.flatten(), torch.tensor([0.5403023, 0.8414710], dtype=torch.float64))
    # A trained model expects the wavelengths that it was trained with.
    expected = torch.tensor([1.0, 0.1778279, 0.0316228, 0.0056234])
    torch.testing.assert_close(inverse_wavelengths(4), expected, atol=1e-6, rtol=0)


def test_a_bin_that_never_changed_is_not_divided_by_zero() -> None:
    normalise = Normalise()
    normalise.set_statistics(torch.full((80,), -8.0), torch.tensor([2.0, 0.0] * 40))
    normalised = normalise(torch.tensor([-7.0, -8.0, -6.0, -7.999] * 20).expand(1, 1, 80))
    expected = torch.tensor([0.5, 0.0, 1.0, 1.0] * 20).expand(1, 1, 80)
    torch.testing.assert_close(normalised, expected, atol=1e-3, rtol=0)


def test_no_heads_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.num_heads: .*at least one head; expected 1 or more; got 0"
    ):
        Attention(16, 0, dropout=0.0)


@pytest.mark.parametrize(("width", "num_heads"), [(16, 3), (12, 4)])
def test_heads_that_cannot_share_the_width_are_refused(width: int, num_heads: int) -> None:
    with pytest.raises(ConfigError, match=rf"a multiple of 2 \* num_heads = {2 * num_heads}; got {width}"):
        Attention(width, num_heads, dropout=0.0)


@pytest.mark.parametrize(
    ("frames", "multiple", "on_cpu", "on_gpu"),
    [(1, 1, 1, 16), (37, 1, 37, 48), (37, 8, 40, 48), (37, 25, 50, 50)],
)
def test_lengths_on_a_gpu_are_of_few_shapes(frames: int, multiple: int, on_cpu: int, on_gpu: int) -> None:
    assert whole_frames(frames, multiple, torch.device("cpu")) == on_cpu
    assert whole_frames(frames, multiple, torch.device("cuda")) == on_gpu


@pytest.mark.parametrize("kind", ["teacher", "conformer", "zipformer", "whole"])
def test_frames_beyond_a_batch_change_nothing_in_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {
        "teacher": lambda: ConformerTeacher(
            vocab_size=5, width=16, num_layers=2, num_heads=2, chunked_share=1.0
        ),
        "conformer": lambda: ChunkConformer(
            vocab_size=5, width=16, num_layers=2, num_heads=2, chunk_frames=4
        ),
        "zipformer": lambda: Zipformer(vocab_size=5, chunk_frames=8),
        "whole": lambda: ChunkConformer(vocab_size=5, width=16, num_layers=2, num_heads=2, chunk_frames=0),
    }[kind]()
    features_btf, lengths_b = torch.randn(2, 150, 80) - 8, torch.tensor([150, 71])

    def heard(device: str) -> list[torch.Tensor]:
        for module in ("kdasr.teachers.conformer", "kdasr.students.streaming"):
            monkeypatch.setattr(
                f"{module}.whole_frames",
                lambda frames, multiple, _: whole_frames(frames, multiple, torch.device(device)),
            )
        torch.manual_seed(4)
        model.train().zero_grad()
        log_probs_btv, lengths_out_b = model.offline(features_btf, lengths_b)
        log_probs_btv[frames_inside(lengths_out_b, log_probs_btv.shape[1])].square().sum().backward()
        assert lengths_out_b.tolist() == [38, 18] and log_probs_btv.shape == (2, 38, 5)
        return [log_probs_btv[0].detach(), log_probs_btv[1, :18].detach(), model.head.weight.grad.clone()]

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(heard("cuda"), heard("cpu"))
