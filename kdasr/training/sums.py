"""What the ranks of a training tell one another in a step: its gradients and losses.

Not torch's DistributedDataParallel: it reduces what the last of several accumulated batches touched,
and here that batch may be of another stream, with other losses that learn, than those before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdasr.ranks import Ranks

# Numbers in one message: enough for the network to be busy, few enough to leave early.
_BUCKET = 1 << 21


class StepSums:
    """The losses of one step, added up over its batches and then over the ranks.

    Args:
        names: of all terms that the loss of a batch may have.
        device: where the losses are.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str) -> None:
        self._names = names
        # The loss and the number of batches, then the sum and the number of each term.
        self.values = torch.zeros(len(names) + 1, 2, device=device)
        self._none, self._one = torch.zeros((), device=device), torch.ones((), device=device)

    def add(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """A batch's loss and the terms it is the sum of."""
        found = [loss.detach().float(), self._one]
        for name in self._names:
            found += [terms[name].detach().float(), self._one] if name in terms else [self._none, self._none]
        # All at once: on a GPU, a step of a small model takes as long as it takes to launch its kernels.
        self.values += torch.stack(found).view_as(self.values)


class StepNews:
    """What became of a step, on its way from the GPU.

    Attributes:
        step: its number, from 0.
        keys: the utterances that this rank had in it.
        own_values: what a `StepSums` held before it was added up over the ranks.
        steps_not_taken: how many steps in a row, this one the last, had a gradient that is not finite.
    """

    steps_not_taken = 0

    def __init__(self, step: int, keys: list[str], own_values: Tensor) -> None:
        self.step, self.keys, self.own_values = step, keys, own_values

    def with_sums(self, values: Tensor) -> StepNews:
        """Send the values of a `StepSums` to the CPU, without waiting for them."""
        self._values, self._sent = values, None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._sent = torch.cuda.Event()
            self._sent.record()
        return self

    def arrived(self) -> Tensor:
        """The values, once they are here."""
        if self._sent is not None:
            self._sent.synchronize()
        return self._values


def means(names: Sequence[str], values: Tensor) -> tuple[float, dict[str, float]]:
    """The mean loss of the batches that were added up in `values` (of a `StepSums`), and of each term
    the mean over the batches that have it."""
    (loss, batches), *rest = values.tolist()
    terms = {name: total / count for name, (total, count) in zip(names, rest, strict=True) if count}
    return loss / batches, terms


class GradientSums:
    """The gradients of a step, added up over the ranks: those of the last layers are on their way while the
    backward pass is still at the first, so that a slow network costs what it takes beyond that pass.

    A context; outside of it nothing is left at the parameters. A process that is alone has nothing to do.

    Args:
        parameters: those that learn, in the same order on all ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
        self._parameters, self._ranks = list(parameters), ranks
        # Backward passes begin with the last. All ranks send in this order, whatever their batches use.
        self._buckets = _buckets(self._parameters[::-1])
        self._sent: list[tuple[Tensor, Callable[[], None]]] = []
        self._awaited: list[set[nn.Parameter]] = []

    def __enter__(self) -> GradientSums:
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._made, number))
            for number, bucket in enumerate([] if self._ranks.alone else self._buckets)
            for parameter in bucket
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def send_as_made(self) -> None:
        """From here on gradients are not added to any more: call it before the last backward pass."""
        self._awaited = [set(bucket) for bucket in self._buckets]

    def finish(self, values: Tensor) -> None:
        """Replace the gradients, and the `values` of a `StepSums`, by their sums over all ranks.

        Those that have none on any rank keep none, as in training by one process: an optimiser would move
        the weights of a gradient of zeros by its momentum and decay.
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
        if not all(are_used):  # only then does a GPU have to be waited for
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
    """The parameters in order, cut where a message would grow too long or the type changes."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not buckets or size >= _BUCKET or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
