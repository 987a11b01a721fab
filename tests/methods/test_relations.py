"""Relations between utterances against geometry."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kdasr.methods.relations import (
    angles,
    relation_graph,
    relational_angles,
    relational_distances,
    relative_distances,
)
from tests.methods.outputs import batch_with, layers_only

# A right triangle with legs 3 and 4.
TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])


def points(*rows_bd: Tensor) -> Tensor:
    """One frame for each utterance."""
    return torch.stack(rows_bd)[:, None]


def test_distances_of_a_triangle() -> None:
    """3, 4 and 5, divided by their mean 4."""
    expected = torch.tensor([[0.0, 0.75, 1.0], [0.75, 0.0, 1.25], [1.0, 1.25, 0.0]])
    torch.testing.assert_close(relative_distances(TRIANGLE), expected, atol=1e-5, rtol=0)


def test_angles_of_a_triangle() -> None:
    cosine = angles(TRIANGLE)
    assert cosine[1, 0, 2].item() == pytest.approx(0.0, abs=1e-6)
    assert cosine[0, 1, 2].item() == pytest.approx(3 / 5)
    assert cosine[0, 2, 1].item() == pytest.approx(4 / 5)


def test_a_larger_and_turned_copy_has_the_same_relations() -> None:
    turn = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    student = layers_only(points(*TRIANGLE), points(*(2 * TRIANGLE + 1)))
    teacher = layers_only(
        points(*(10 * TRIANGLE @ turn)), points(*(20 * TRIANGLE @ turn - turn[0] * 10 - turn[1] * -10))
    )
    batch = batch_with(3, big=teacher)
    assert relational_distances(student, batch, teacher="big").item() == pytest.approx(0.0, abs=1e-10)
    assert relational_angles(student, batch, teacher="big").item() == pytest.approx(0.0, abs=1e-10)


def test_distance_loss_by_hand() -> None:
    """On a line at 0, 1, 3: distances 1, 2, 3 by mean 2 against the triangle's."""
    line = torch.tensor([[0.0], [1.0], [3.0]])
    batch = batch_with(3, big=layers_only(points(*TRIANGLE)))
    loss = relational_distances(layers_only(points(*line)), batch, teacher="big")
    squares = (0.5 - 0.75) ** 2 + (1.5 - 1.0) ** 2 + (1.0 - 1.25) ** 2
    assert loss.item() == pytest.approx(0.5 * 2 * squares / 9, rel=1e-4)


def test_graph_by_hand() -> None:
    """Two utterances: one edge each, which is 1 after division by the mean, so only the vertices differ:
    changes 1 and 3 (mean 2) against 2 and 2."""
    student = layers_only(points(*torch.tensor([[0.0], [1.0]])), points(*torch.tensor([[1.0], [1 + 3**0.5]])))
    teacher = layers_only(points(*torch.tensor([[0.0], [5.0]])), points(*torch.tensor([[1.0], [6.0]])))
    loss = relation_graph(student, batch_with(2, big=teacher), teacher="big", transformation_weight=2.0)
    assert loss.item() == pytest.approx(2.0 * 0.25, rel=1e-4)
    same = relation_graph(student, batch_with(2, big=student), teacher="big")
    assert same.item() == 0.0


def test_graph_of_three_by_hand() -> None:
    """Edges and their changes, each divided by its mean over the pairs, beside the vertices'."""
    ours, theirs = ([0.0, 1.0, 3.0], [0.0, 2.0, 3.0]), ([0.0, 3.0, 4.0], [1.0, 0.0, 5.0])

    def edges(x: Sequence[float]) -> list[float]:
        return by_mean([(x[i] - x[j]) ** 2 for i, j in ((0, 1), (0, 2), (1, 2))])

    def by_mean(values: list[float]) -> list[float]:
        return [value * len(values) / sum(values) for value in values]

    def apart(one: list[float], other: list[float], of: int) -> float:
        return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / of

    vertices = [by_mean([(a - b) ** 2 for a, b in zip(*model, strict=True)]) for model in (ours, theirs)]
    changes = [[(a - b) ** 2 for a, b in zip(*map(edges, model), strict=True)] for model in (ours, theirs)]
    # Of the nine pairs each edge is two, and three are of an utterance with itself.
    expected = sum(2 * apart(edges(a), edges(b), 9) for a, b in zip(ours, theirs, strict=True))
    expected += 0.5 * (apart(*vertices, 3) + 2 * apart(*changes, 9))
    student, teacher = (
        layers_only(*(torch.tensor(x)[:, None, None] for x in model)) for model in (ours, theirs)
    )
    loss = relation_graph(student, batch_with(3, big=teacher), teacher="big")
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_angle_loss_by_hand() -> None:
    """On a line the cosines are 1, -1 and 1 at 0, 1 and 3; of the triangle they are 0, 3/5 and 4/5."""
    line = torch.tensor([[0.0], [1.0], [3.0]])
    batch = batch_with(3, big=layers_only(points(*TRIANGLE)))
    loss = relational_angles(layers_only(points(*line)), batch, teacher="big")
    # Beyond a difference of 1 it grows in a line.
    huber = 0.5 * 1.0 + (1.6 - 0.5) + 0.5 * 0.2**2
    assert loss.item() == pytest.approx(2 * huber / 27, rel=1e-4)


def test_layers_and_frames_are_those_of_each_model() -> None:
    line, zeros = torch.tensor([[0.0], [1.0], [3.0]]), torch.zeros(3, 2)
    expected = relational_distances(
        layers_only(points(*line)), batch_with(3, big=layers_only(points(*TRIANGLE))), teacher="big"
    )
    frames = torch.stack([TRIANGLE, TRIANGLE.flip(0)], 1)  # the second is padding
    teacher = layers_only(torch.zeros(3, 2, 2), frames, lengths=[1, 1, 1])
    student = layers_only(torch.stack([line, line], 1), zeros[:, None].expand(-1, 2, -1))
    found = relational_distances(
        student, batch_with(3, big=teacher), teacher="big", student_layer=0, teacher_layer=1
    )
    torch.testing.assert_close(found, expected)


def test_padding_and_single_utterances() -> None:
    frames = torch.randn(1, 4, 3)
    for loss in (relational_distances, relational_angles):
        single = layers_only(frames.requires_grad_())
        value = loss(single, batch_with(1, big=layers_only(torch.randn(1, 4, 2))), teacher="big")
        value.backward()
        assert value.item() == 0.0 and frames.grad is not None and bool(frames.grad.isfinite().all())
    two, padded = torch.randn(2, 4, 3), torch.randn(2, 6, 3)
    padded[:, :4] = two
    teacher = layers_only(torch.randn(2, 4, 5))
    values = [
        relational_distances(layers_only(x, lengths=[4, 4]), batch_with(2, big=teacher), teacher="big")
        for x in (two, padded)
    ]
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("loss", [relational_distances, relational_angles, relation_graph])
def test_gradcheck(loss: object) -> None:
    torch.manual_seed(3)
    batch = batch_with(4, big=layers_only(*torch.randn(2, 4, 3, 5, dtype=torch.float64)))

    def value(layers: Tensor) -> Tensor:
        return loss(layers_only(*layers), batch, teacher="big")  # type: ignore[operator,no-any-return]

    assert torch.autograd.gradcheck(
        value, (torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True),)
    )
