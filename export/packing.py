"""A student's state, packed into the shape of sherpa-onnx's `zipformer2_ctc` contract.

The contract has eight state tensors per encoder layer, made for the Zipformer, whose sizes are set by
metadata. Any streaming student fits if it declares one stack of one layer and packs every float of its
state into the two convolution caches, which are batch-first:

    conv1 ‖ conv2, each (B, ENCODER_DIM, S): all float tensors, flattened and zero-padded
    processed (B,) int64: the student's own count
    key, nonlin, val1, val2, embed: passed through, as small as the contract allows

The runtime starts every tensor at zero, so a student's initial state has to be zero.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kdasr.errors import ExportError
from kdasr.interfaces import StreamingModel

ENCODER_DIM = 4
LEFT_CONTEXT_LEN = 1
EMBED_SHAPE = (128, 3, 19)

STATE_NAMES = ("key", "nonlin", "val1", "val2", "conv1", "conv2", "embed", "processed")
BATCH_AXIS = {"key": 1, "nonlin": 1, "val1": 1, "val2": 1, "conv1": 0, "conv2": 0, "embed": 0, "processed": 0}
COUNTER = "processed"


class PackedState(NamedTuple):
    """The contract's state tensors, in the order in which the runtime passes them."""

    key: Tensor
    nonlin: Tensor
    val1: Tensor
    val2: Tensor
    conv1: Tensor
    conv2: Tensor
    embed: Tensor
    processed: Tensor


class StateLayout:
    """The places of the tensors of a student's NamedTuple state among the packed floats.

    Args:
        model: a streaming student.

    Raises:
        ExportError: its state is not a NamedTuple of batch-first float32 tensors that start at
            zero, with at most one int64 tensor called `processed`.

    Attributes:
        num_floats: floats of state for each stream.
        has_counter: whether the state has a `processed`.
        rows: S, the last axis of conv1 and conv2.
    """

    def __init__(self, model: StreamingModel) -> None:
        state = model.initial_state(1)
        where = f"state of {type(model).__name__}"
        if not hasattr(state, "_fields"):
            raise ExportError(
                "the state is not a NamedTuple",
                where=where,
                expected="a NamedTuple of tensors",
                got=type(state).__name__,
            )
        self._state_type = type(state)
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, one, two in zip(state._fields, state, model.initial_state(2), strict=True):
            _check_tensor(name, one, two, where)
            if name != COUNTER:
                self._shapes[name] = tuple(one.shape[1:])
        self.has_counter = COUNTER in state._fields
        self.num_floats = sum(math.prod(shape) for shape in self._shapes.values())
        self.rows = max(1, math.ceil(self.num_floats / (2 * ENCODER_DIM)))

    @property
    def kernel(self) -> int:
        """`cnn_module_kernels` in the metadata: the runtime's caches are K // 2 long."""
        return 2 * self.rows

    def initial(self, batch_size: int = 1) -> PackedState:
        """The packed state before the first window: zeros, as in the runtime."""
        context, rows = LEFT_CONTEXT_LEN, self.rows
        return PackedState(
            key=torch.zeros(context, batch_size, 1),
            nonlin=torch.zeros(1, batch_size, context, 3 * ENCODER_DIM // 4),
            val1=torch.zeros(context, batch_size, 1),
            val2=torch.zeros(context, batch_size, 1),
            conv1=torch.zeros(batch_size, ENCODER_DIM, rows),
            conv2=torch.zeros(batch_size, ENCODER_DIM, rows),
            embed=torch.zeros(batch_size, *EMBED_SHAPE),
            processed=torch.zeros(batch_size, dtype=torch.int64),
        )

    def unflatten(self, floats_bn: Tensor, counter_b: Tensor) -> Any:
        """The student's own state.

        Args:
            floats_bn: (B, num_floats or more); further columns are ignored.
            counter_b: (B,) int64.
        """
        tensors: dict[str, Tensor] = {}
        start = 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            part = floats_bn[:, start : start + size]
            # With an empty axis, -1 would be ambiguous, so the batch size is taken from the input.
            tensors[name] = part.reshape(-1, *shape) if size else part.new_zeros(floats_bn.shape[0], *shape)
            start += size
        if self.has_counter:
            tensors[COUNTER] = counter_b
        return self._state_type(**tensors)

    def flatten(self, state: Any, counter_b: Tensor) -> tuple[Tensor, Tensor]:
        """The student's state as (B, num_floats) and its (B,) counter; `counter_b` is passed through
        if it has none."""
        parts = [getattr(state, name).flatten(1) for name, shape in self._shapes.items() if math.prod(shape)]
        if not parts:
            parts = [counter_b.new_zeros(counter_b.shape[0], 0, dtype=torch.float32)]
        return torch.cat(parts, dim=1), state.processed if self.has_counter else counter_b + 0

    def unpack(self, packed: PackedState) -> Any:
        """The student's own state, from the contract's tensors."""
        floats_bn = torch.cat([packed.conv1.flatten(1), packed.conv2.flatten(1)], dim=1)
        return self.unflatten(floats_bn, packed.processed)

    def pack(self, state: Any, previous: PackedState) -> PackedState:
        """The contract's tensors for the student's next state; unused ones pass through."""
        floats_bn, counter_b = self.flatten(state, previous.processed)
        half = ENCODER_DIM * self.rows
        if self.num_floats == 0:  # pass unused caches through: inputs that a graph does not read are removed
            floats_bn = torch.cat([previous.conv1.flatten(1), previous.conv2.flatten(1)], dim=1)
        else:
            floats_bn = functional.pad(floats_bn, (0, 2 * half - self.num_floats))
        return PackedState(
            key=previous.key + 0,
            nonlin=previous.nonlin + 0,
            val1=previous.val1 + 0,
            val2=previous.val2 + 0,
            conv1=floats_bn[:, :half].reshape(-1, ENCODER_DIM, self.rows),
            conv2=floats_bn[:, half:].reshape(-1, ENCODER_DIM, self.rows),
            embed=previous.embed + 0,
            processed=counter_b,
        )


def _check_tensor(name: str, one: Tensor, two: Tensor, where: str) -> None:
    """Refuses a state tensor that does not fit the contract. `one` and `two` are the tensor at batch
    size 1 and 2."""
    place = f"{where}, field {name!r}"
    expected_dtype = torch.int64 if name == COUNTER else torch.float32
    if one.dtype != expected_dtype:
        raise ExportError(
            "the state tensor has the wrong type", where=place, expected=expected_dtype, got=one.dtype
        )
    if one.dim() < 1 or tuple(two.shape) != (2, *one.shape[1:]) or one.shape[0] != 1:
        raise ExportError(
            "the batch is not on axis 0", where=place, expected="(B, ...)", got=f"{tuple(one.shape)} at B = 1"
        )
    if name == COUNTER and one.dim() != 1:
        raise ExportError(
            "the counter must have one axis", where=place, expected="(B,)", got=tuple(one.shape)
        )
    if bool((one != 0).any()):
        raise ExportError(
            "the initial state is not zero",
            where=place,
            expected="zeros, because the runtime starts with them",
            fix="Store the difference to the initial value, and add it inside the model.",
        )
