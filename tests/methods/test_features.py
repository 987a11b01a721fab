"""Feature losses against numbers worked out by hand, and their adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError
from kdasr.methods.adversarial import Discriminator, reverse_gradient
from kdasr.methods.features import Flow, HiddenCosine, Hint, attention_transfer, flow
from kdasr.methods.pairing import WidthAdapter, pair_frames, resample_frames
from tests.methods.outputs import batch_with, layers_only


def identity(loss: Any, width: int) -> Any:
    """The loss with adapters that change nothing."""
    for module in loss.modules():
        if isinstance(module, WidthAdapter):
            module(torch.zeros(1, 1, width), width)
            module.initialize_parameters(torch.zeros(1, 1, width), width)
            with torch.no_grad():
                module.weight.copy_(torch.eye(width))
                module.bias.zero_()
    return loss


def test_hint_by_hand() -> None:
    """Two valid frames of two dimensions: ½ (1 + 0 + 4 + 1) / 4."""
    teacher = layers_only(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]]), lengths=[2])
    student = layers_only(torch.tensor([[[0.0, 2.0], [5.0, 3.0], [0.0, 0.0]]]), lengths=[2])
    loss = identity(Hint(teacher="big"), 2)(student, batch_with(1, big=teacher))
    assert loss.item() == pytest.approx(0.5 * 6 / 4)


def test_a_hint_waits_for_a_student_that_lags() -> None:
    frames = torch.tensor([[[1.0, 0.0], [2.0, 1.0], [3.0, 5.0]]])
    late = torch.cat([torch.full((1, 1, 2), 7.0), frames[:, :2]], dim=1)
    loss = identity(Hint(teacher="big", delay_frames=1), 2)
    assert loss(layers_only(late), batch_with(1, big=layers_only(frames))).item() == 0.0


def test_cosine_by_hand() -> None:
    """A right angle, the same direction and the opposite one: (1 + 0 + 2) / 3."""
    teacher = layers_only(torch.tensor([[[1.0, 0.0], [2.0, 2.0], [0.0, 1.0]]]))
    student = layers_only(torch.tensor([[[0.0, 3.0], [1.0, 1.0], [0.0, -5.0]]]))
    loss = identity(HiddenCosine(teacher="big"), 2)(student, batch_with(1, big=teacher))
    assert loss.item() == pytest.approx(1.0)


def test_flow_by_hand() -> None:
    """G = (f1 g1ᵀ + f2 g2ᵀ) / 2 over the two valid frames."""
    first = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [9.0, 9.0]]])
    second = torch.tensor([[[3.0], [4.0], [9.0]]])
    assert flow(first, second, torch.tensor([2])).tolist() == [[[1.5], [5.0]]]
    teacher = layers_only(torch.tensor([[[2.0], [4.0]]]), torch.tensor([[[1.0], [3.0]]]))
    student = layers_only(torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[2.0], [2.0]]]))
    loss = identity(Flow(teacher="big"), 1)(student, batch_with(1, big=teacher))
    # (2 + 12) / 2 = 7 against (2 + 2) / 2 = 2.
    assert loss.item() == pytest.approx(25.0)


def test_flow_over_many_frames_fits_fp16() -> None:
    loud = torch.full((1, 500, 1), 12.0, dtype=torch.float16)
    assert flow(loud, loud, torch.tensor([500])).item() == pytest.approx(144.0, rel=0.01)


def test_flow_has_the_frames_of_each_model() -> None:
    """Four of the teacher's, (2 + 12) / 4 = 3.5, against the student's two."""
    zeros = torch.zeros(1, 2, 1)
    layers = [torch.cat([torch.tensor([[[a], [b]]]), zeros], 1) for a, b in ((2.0, 4.0), (1.0, 3.0))]
    student = layers_only(torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[2.0], [2.0]]]))
    loss = identity(Flow(teacher="big"), 1)(student, batch_with(1, big=layers_only(*layers)))
    assert loss.item() == pytest.approx(1.5**2)


def test_attention_transfer_by_hand() -> None:
    """Maps (9, 16) and (25, 0): |(0.49, 0.87) - (1, 0)|."""
    student = layers_only(torch.tensor([[[3.0, 0.0], [0.0, 4.0], [7.0, 7.0]]]), lengths=[2])
    teacher = layers_only(torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]), lengths=[2])
    norm = math.hypot(9, 16)
    loss = attention_transfer(student, batch_with(1, big=teacher), teacher="big", centred=False)
    assert loss.item() == pytest.approx(math.hypot(9 / norm - 1, 16 / norm), rel=1e-5)
    same = attention_transfer(student, batch_with(1, big=student), teacher="big")
    assert same.item() == pytest.approx(0.0, abs=1e-5)


def test_attention_waits_for_a_student_that_lags_and_is_the_mean_of_its_pairs() -> None:
    busy = torch.tensor([[[3.0], [4.0], [0.0]]])
    late, flat = torch.tensor([[[7.0], [3.0], [4.0]]]), torch.ones(1, 3, 1)
    student, batch = layers_only(late, flat), batch_with(1, big=layers_only(busy, flat))

    def loss(ours: list[int], theirs: list[int]) -> float:
        settings: dict[str, Any] = {"student_layers": ours, "teacher_layers": theirs}
        found = attention_transfer(student, batch, teacher="big", centred=False, delay_frames=1, **settings)
        return float(found)

    assert loss([0], [0]) == pytest.approx(0.0, abs=1e-5)
    # (9, 16) of length sqrt(337) against (1, 1) of length sqrt(2).
    ours, flat_share = [9 / math.sqrt(337), 16 / math.sqrt(337)], 1 / math.sqrt(2)
    expected = math.hypot(*(value - flat_share for value in ours))
    assert loss([0], [1]) == pytest.approx(expected, rel=1e-4)
    assert loss([0, 0], [0, 1]) == pytest.approx(expected / 2, rel=1e-4)


def test_attention_maps_of_normalised_layers_show_what_departs_from_the_mean() -> None:
    """Frames of one length: (1, 0) three times and (-1, 0) once depart by ½, ½, ½ and 3/2."""
    frames = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    flat = layers_only(torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]]))
    batch = batch_with(1, big=flat)
    assert attention_transfer(layers_only(frames), batch, teacher="big", centred=False).item() < 1e-5
    loss = attention_transfer(layers_only(frames), batch, teacher="big")
    # Squares ¼, ¼, ¼, 9/4, of length sqrt(84) / 4, against four equal ones of length 2.
    ours = [1 / math.sqrt(84)] * 3 + [9 / math.sqrt(84)]
    assert loss.item() == pytest.approx(math.sqrt(sum((value - 0.5) ** 2 for value in ours)), rel=1e-4)


def test_frames_of_another_rate_are_interpolated_between_centres() -> None:
    """Four frames to two: the means of pairs. Two to four: a quarter from centre to centre."""
    fast = torch.tensor([[[0.0], [2.0], [4.0], [6.0]]])
    halved = resample_frames(fast, torch.tensor([4]), torch.tensor([2]), 2)
    assert halved.tolist() == [[[1.0], [5.0]]]
    doubled = resample_frames(halved, torch.tensor([2]), torch.tensor([4]), 5)
    assert doubled.flatten().tolist() == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert resample_frames(fast, torch.tensor([4]), torch.tensor([4]), 4) is fast


def test_what_has_no_partner_at_all_counts_as_nothing() -> None:
    frames = layers_only(torch.randn(1, 3, 2))
    assert Hint(teacher="big", delay_frames=3)(frames, batch_with(1, big=frames)).item() == 0.0


def test_an_adapter_begins_as_a_linear_layer_of_its_inputs_does() -> None:
    torch.manual_seed(0)
    adapter = WidthAdapter()
    adapter(torch.zeros(1, 1, 4), 200)
    for parameter in adapter.parameters():
        assert 0.45 < float(parameter.detach().abs().max()) <= 0.5  # 1 / sqrt(4)


def test_padding_of_a_ragged_batch_counts_for_nothing() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 3), torch.randn(2, 12, 3)
    pairs = pair_frames(student, torch.tensor([6, 4]), teacher, torch.tensor([12, 7]), delay_frames=1)
    assert pairs.valid_bt.sum(1).tolist() == [5, 3]
    teacher[1, 7:] = 1e6
    again = pair_frames(student, torch.tensor([6, 4]), teacher, torch.tensor([12, 7]), delay_frames=1)
    assert torch.equal(pairs.teacher_btd[pairs.valid_bt], again.teacher_btd[again.valid_bt])


LOSSES: dict[str, Callable[[], Any]] = {
    "hint": lambda: Hint(teacher="big", student_layer=0, teacher_layer=1),
    "cosine": lambda: HiddenCosine(teacher="big"),
    "flow": lambda: Flow(teacher="big"),
    "discriminator": lambda: Discriminator(teacher="big", width=4, context_frames=3, reversal=-1.0),
    "attention": lambda: lambda output, batch: attention_transfer(output, batch, teacher="big"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_with_other_widths_and_rates(name: str) -> None:
    torch.manual_seed(1)
    teacher = layers_only(*torch.randn(2, 2, 8, 5, dtype=torch.float64), lengths=[8, 5])
    batch, loss = batch_with(2, big=teacher), LOSSES[name]()
    layers = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)

    def value(layers: Tensor) -> Tensor:
        result: Tensor = loss(layers_only(*layers, lengths=[4, 3]), batch)
        return result

    if isinstance(loss, nn.Module):
        loss.double()
    assert torch.autograd.gradcheck(value, (layers,))


def test_the_discriminator_learns_and_the_student_deceives_it() -> None:
    assert reverse_gradient(torch.tensor(2.0), 3.0).item() == 2.0
    x = torch.tensor(2.0, requires_grad=True)
    reverse_gradient(x * x, 3.0).backward()
    assert x.grad is not None and x.grad.item() == -12.0
    torch.manual_seed(2)
    teacher = layers_only(torch.randn(1, 50, 4) + 3)
    batch, loss = batch_with(1, big=teacher), Discriminator(teacher="big")
    student = torch.randn(1, 50, 4).requires_grad_()
    loss(layers_only(student), batch)
    optimiser = torch.optim.Adam(loss.discriminator.parameters(), 1e-2)
    values = []
    for _ in range(60):
        optimiser.zero_grad()
        value = loss(layers_only(student), batch)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.3 * values[0]
    student.grad = None
    loss(layers_only(student), batch).backward()
    assert student.grad is not None
    with torch.no_grad():
        deceived = loss(layers_only(student - 5 * student.grad / student.grad.norm()), batch)
    assert deceived.item() > values[-1]


def test_a_discriminator_hears_no_padding_beside_the_frames() -> None:
    torch.manual_seed(3)
    frames = torch.randn(2, 1, 5, 2)
    loss = Discriminator(teacher="big", context_frames=5, reversal=0.5)

    def value(student: Tensor, teacher: Tensor) -> Tensor:
        lengths = [3] * len(student)
        batch = batch_with(len(student), big=layers_only(teacher, lengths=lengths))
        found: Tensor = loss(layers_only(student, lengths=lengths), batch)
        return found

    expected = value(*frames)
    torch.testing.assert_close(value(*frames.repeat(1, 2, 1, 1)), expected)  # a mean over utterances, too
    for model in range(2):
        padded = frames.clone()
        padded[model, :, 3:] = 9.0
        torch.testing.assert_close(value(*padded), expected)
    further = {"student_layer": -1, "teacher_layer": -1, "delay_frames": 0}
    own = {"width": 64, "context_frames": 5, "reversal": 0.5}
    assert loss.config == {"teacher": "big", **further, **own}, "with other settings it is another loss"


def test_a_layer_or_a_teacher_that_is_not_there_is_refused_by_name() -> None:
    output = layers_only(torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match=r"teacher big has no layer 4.*from -1 to 0"):
        Hint(teacher="big", teacher_layer=4)(output, batch_with(1, big=output))
    with pytest.raises(ConfigError, match="no online teacher 'small'"):
        Hint(teacher="small")(output, batch_with(1, big=output))
    with pytest.raises(ConfigError, match="delay_frames"):
        attention_transfer(output, batch_with(1, big=output), teacher="big", delay_frames=-1)


def test_layers_go_in_pairs() -> None:
    output = layers_only(torch.zeros(1, 2, 3))
    for ours, theirs in (([0, 0], [0]), ([], [])):
        with pytest.raises(ConfigError, match=r"attention_transfer: .*pairs.*as many.*\] and \["):
            attention_transfer(
                output,
                batch_with(1, big=output),
                teacher="big",
                student_layers=ours,
                teacher_layers=theirs,
            )


def test_a_discriminator_looks_at_as_many_frames_before_as_after() -> None:
    for settings in ({"context_frames": 4}, {"context_frames": -1}, {"width": 0}):
        with pytest.raises(ConfigError, match="Discriminator: .*an odd number of context_frames"):
            Discriminator(teacher="big", **settings)
