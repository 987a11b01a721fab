"""The processes (ranks) that `torchrun` starts for one job, and their communication.

A process that `torchrun` did not start is alone, and everything here then costs nothing. Control messages
(who is done, what was measured) go over gloo and may wait for days; gradients go over NCCL if there are
GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from kdasr.errors import ConfigError, RankLostError

Item = TypeVar("Item")
# A stage that one rank does alone (such as preparing a corpus) may take this long.
_PATIENCE = timedelta(days=7)
_joined: list[Ranks] = []


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of the job.

    Attributes:
        rank: its number; rank 0 writes files and prints messages.
        count: number of processes.
        local_rank: its number on this machine, and the number of its GPU.
        local_count: number of processes on this machine, which share its cores.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    _control: Any = None

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's part of a list that all ranks have."""
        return items[self.rank :: self.count]

    def device(self, name: str) -> str:
        """The device of this rank, of the kind `name`: "cuda" becomes "cuda:1" on local rank 1."""
        return name if self.alone or name != "cuda" else f"cuda:{self.local_rank}"

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        self.gather(None)

    def gather(self, value: Item) -> list[Item]:
        """The values of all ranks, in rank order; any picklable values, which must come from this program."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.count
        with _telling_of_the_lost():
            distributed.all_gather_object(values, value, group=self._control)
        return values

    def from_first(self, value: Item) -> Item:
        """Rank 0's value."""
        return self.gather(value)[0]

    def add_up(self, values: Tensor) -> None:
        """Replace a tensor by the sum over all ranks, bit-identical on each."""
        self.adding_up(values)()

    def adding_up(self, values: Tensor) -> Callable[[], None]:
        """Start `add_up` asynchronously. The returned function waits for its end; until then, the tensor
        must not be touched. All ranks must start their sums in the same order."""
        if self.alone:
            return lambda: None
        with _telling_of_the_lost():
            work = distributed.all_reduce(values, async_op=True)

        def wait() -> None:
            with _telling_of_the_lost():
                work.wait()

        return wait


def ranks() -> Ranks:
    """The ranks of the job that this process has joined."""
    return _joined[-1] if _joined else Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the job if `torchrun` has started one and this process has not joined yet.

    Raises:
        ConfigError: there are more processes than GPUs on this machine.
    """
    if _joined or int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ranks()
        return
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if 0 < gpus <= local_rank:
        raise ConfigError(
            "more processes than GPUs on this machine",
            where="torchrun --nproc-per-node",
            expected=f"at most {gpus}",
            got=f"a local rank of {local_rank}",
        )
    if gpus:
        torch.cuda.set_device(local_rank)
    with _telling_of_the_lost():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        control = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    rank, count = distributed.get_rank(), distributed.get_world_size()
    local_count = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    _joined.append(Ranks(rank, count, local_rank, local_count, control))
    try:
        # All ranks meet here first: if one failed earlier, others would still be looking for it.
        _joined[-1].wait()
        yield _joined[-1]
        # Not after an error: this would wait for another rank that may be waiting for this one.
        distributed.destroy_process_group()
    finally:
        _joined.pop()


@contextmanager
def _telling_of_the_lost() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # an error of this process's own GPU that happened to surface here
    except RuntimeError as error:  # including DistBackendError and DistNetworkError
        raise RankLostError(
            _what_failed(str(error)),
            where=f"rank {os.environ.get('RANK')}",
            got=_first_and_last(str(error)) or None,
            fix="A process that ended may have printed the reason in its own output. Run the same command "
            "again: it resumes from the last checkpoint.",
        ) from error


def _what_failed(text: str) -> str:
    """What an error means; NCCL reports the end of another process as a remote error, but also has others."""
    if "NCCL" in text and "ncclRemoteError" not in text:
        return (
            "NCCL, which connects the GPUs, failed: another process of this job has ended, or the network or "
            "the machine has a fault (NCCL_DEBUG=INFO shows more)"
        )
    return "another process of this job has ended or cannot be reached"


def _first_and_last(text: str) -> str:
    """The first line of an error, and NCCL's last error at its end, which gives the reason."""
    head, _, reason = text.strip().partition("Last error:")
    first = next(iter(head.splitlines()), "")[:200]
    return f"{first}; last error: {' '.join(reason.split())[:500]}" if reason.strip() else first
