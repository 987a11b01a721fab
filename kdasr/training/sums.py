"""Gradients and losses of a step, summed over the ranks of a training.

torch's DistributedDataParallel is not used: it reduces the parameters used by the last of several
accumulated batches, which may be from another stream than the others, with other losses that learn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdasr.ranks import Ranks

# Numbers in one message: enough to use the network well, few enough to be sent early.
_BUCKET = 1 << 21


class StepSums:
    """The losses of one step, summed over its batches and then over the ranks.

    Args:
        names: the names of all terms that the loss of a batch may have.
        device: the device of the losses.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str) -> None:
        self._names = names
        # First row: sum of the losses, number of batches; then sum and count of each term.
        self.values = torch.zeros(len(names) + 1, 2, device=device)
        self._none, self._one = torch.zeros((), device=device), torch.ones((), device=device)

    def add(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Add a batch's loss and the terms that it is the sum of."""
        found = [loss.detach().float(), self._one]
        for name in self._names:
            found += [terms[name].detach().float(), self._one] if name in terms else [self._none, self._none]
        # All in one kernel: on a GPU, launching kernels dominates the step time of a small model.
        self.values += torch.stack(found).view_as(self.values)


class StepNews:
    """The results of a step, possibly still on their way from the GPU.

    Attributes:
        step: its number, from 0.
        keys: the utterances that this rank had in the step.
        own_values: the values of a `StepSums` before they were summed over the ranks.
        steps_not_taken: consecutive steps, up to this one, whose gradient was not finite.
    """

    steps_not_taken = 0

    def __init__(self, step: int, keys: list[str], own_values: Tensor) -> None:
        self.step, self.keys, self.own_values = step, keys, own_values

    def with_sums(self, values: Tensor) -> StepNews:
        """Start copying the values of a `StepSums` to the CPU, without waiting."""
        self._values, self._sent = values, None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._sent = torch.cuda.Event()
            self._sent.record()
        return self

    def arrived(self) -> Tensor:
        """The values; waits until they have arrived."""
        if self._sent is not None:
            self._sent.synchronize()
        return self._values


def means(names: Sequence[str], values: Tensor) -> tuple[float, dict[str, float]]:
    """The mean loss of the batches summed in `values` (of a `StepSums`), and the mean of each term over the
    batches that have it."""
    (loss, batches), *rest = values.tolist()
    terms = {name: total / count for name, (total, count) in zip(names, rest, strict=True) if count}
    return loss / batches, terms


class GradientSums:
    """The gradients of a step, summed over the ranks: those of the last layers are sent while the backward
    pass is still at the first, so that a slow network costs only the time beyond that pass.

    A context manager, which removes its hooks on exit. A single process needs nothing.

    Args:
        parameters: those that learn, in the same order on all ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
        self._parameters, self._ranks = list(parameters), ranks
        # Backward passes begin with the last layers. All ranks send in this order, whatever batches use.
        self._buckets = [] if ranks.alone else _buckets(self._parameters[::-1])
        self._sent: list[tuple[Tensor, Callable[[], None]]] = []
        self._awaited: list[set[nn.Parameter]] = []

    def __enter__(self) -> GradientSums:
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._made, number))
            for number, bucket in enumerate(self._buckets)
            for parameter in bucket
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def send_as_made(self) -> None:
        """Send gradients as soon as they are computed; call it before the last backward pass of a step."""
        self._awaited = [set(bucket) for bucket in self._buckets]

    def finish(self, values: Tensor) -> None:
        """Replace the gradients, and the `values` of a `StepSums`, by their sums over all ranks.

        A parameter without a gradient on any rank keeps None, as in a single process: with a gradient of
        zeros, an optimiser's momentum and weight decay would move it.
        """
        if self._ranks.alone:
            return
        while len(self._sent) < len(self._buckets):
            self._send_next()
        are_used = [parameter.grad is not None for parameter in self._parameters]
        told = torch.cat([values.flatten(), values.new_tensor([float(is_used) for is_used in are_used])])
        self._ranks.add_up(told)
        values.copy_(told[: values.numel()].view_as(values))
        for bucket, (flat, wait) in zip(self._buckets, self._sent, strict=True):
            wait()
            sums = flat.split([parameter.numel() for parameter in bucket])
            for parameter, total in zip(bucket, sums, strict=True):
                parameter.grad = total.view_as(parameter)
        if not all(are_used):  # only then wait for the GPU
            for parameter, count in zip(self._parameters, told[values.numel() :].tolist(), strict=True):
                if count == 0:
                    parameter.grad = None
        self._sent, self._awaited = [], []

    def _made(self, number: int, parameter: nn.Parameter) -> None:
        if not self._awaited:
            return
        self._awaited[number].discard(parameter)
        while len(self._sent) < len(self._buckets) and not self._awaited[len(self._sent)]:
            self._send_next()

    def _send_next(self) -> None:
        bucket = self._buckets[len(self._sent)]
        flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
        self._sent.append((flat, self._ranks.adding_up(flat)))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters in order, split where a message would get too long or the dtype changes."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not buckets or size >= _BUCKET or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
