"""A student's state fits into the contract's tensors, and comes out as it went in."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from export.packing import COUNTER, StateLayout
from kdasr.errors import ExportError


class State(NamedTuple):
    first_bcf: Tensor
    second_bd: Tensor


class Counted(NamedTuple):
    first_bcf: Tensor
    processed: Tensor


class Keeping:
    """A student of which nothing but its state is looked at.

    Args:
        shapes: of the state's tensors, without the batch.
    """

    def __init__(self, *shapes: tuple[int, ...], counted: bool = False) -> None:
        self.shapes, self.counted = shapes, counted

    def initial_state(self, batch_size: int = 1) -> Any:
        tensors = [torch.zeros(batch_size, *shape) for shape in self.shapes]
        if self.counted:
            return Counted(*tensors, torch.zeros(batch_size, dtype=torch.int64))
        return State(*tensors)


def layout_of(student: Any) -> StateLayout:
    return StateLayout(student)


@pytest.mark.parametrize(("shape", "rows"), [((1,), 1), ((2,), 1), ((3,), 2), ((10,), 2), ((11,), 3)])
def test_any_number_of_floats_is_kept(shape: tuple[int, ...], rows: int) -> None:
    layout = layout_of(Keeping((2, 3), shape))
    # Two caches of four channels hold eight floats in a row.
    assert (layout.num_floats, layout.rows, layout.kernel) == (6 + shape[0], rows, 2 * rows)
    state = State(torch.randn(2, 2, 3), torch.randn(2, *shape))
    packed = layout.pack(state, layout.initial(2))
    assert [tuple(tensor.shape) for tensor in packed] == [tuple(t.shape) for t in layout.initial(2)]
    for before, after in zip(state, layout.unpack(packed), strict=True):
        assert torch.equal(before, after)
    floats = torch.cat([packed.conv1.flatten(1), packed.conv2.flatten(1)], dim=1)
    assert not floats[:, layout.num_floats :].any()


def test_a_state_that_only_counts_is_kept() -> None:
    layout = layout_of(Keeping((0, 5), counted=True))
    previous = layout.initial(2)._replace(conv1=torch.ones(2, 4, 1), conv2=torch.full((2, 4, 1), 2.0))
    packed = layout.pack(Counted(torch.zeros(2, 0, 5), torch.tensor([3, 7])), previous)
    state = layout.unpack(packed)
    assert state.first_bcf.shape == (2, 0, 5) and state.processed.tolist() == [3, 7]
    # The runtime keeps no tensor of no size, and the exporter drops an input that nothing reads.
    assert layout.rows == 1
    assert torch.equal(packed.conv1, previous.conv1) and torch.equal(packed.conv2, previous.conv2)


def test_no_output_is_an_input() -> None:
    """In a graph that gave an input back, one of the two names would be lost."""
    layout, random = layout_of(Keeping((2, 3), (4,))), torch.randn(1, 4)
    previous = layout.initial(1)
    packed = layout.pack(State(torch.randn(1, 2, 3), random), previous)
    assert not {id(tensor) for tensor in packed} & {id(tensor) for tensor in previous}
    assert torch.equal(packed.processed, previous.processed)


class AlwaysTwo(Keeping):
    def initial_state(self, batch_size: int = 1) -> Any:
        return super().initial_state(2)


class SmallCounter(Keeping):
    def initial_state(self, batch_size: int = 1) -> Any:
        state = super().initial_state(batch_size)
        return state._replace(processed=state.processed.int())


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (AlwaysTwo((3,), (4,)), r"field 'first_bcf': the batch is not on axis 0; .* got \(2, 3\) at B = 1"),
        (SmallCounter((3,), counted=True), f"field '{COUNTER}': the state tensor has the wrong type.*int32"),
    ],
)
def test_a_state_that_the_runtime_could_not_keep_is_refused(student: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        StateLayout(student)
