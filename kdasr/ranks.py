"""The processes that work together on one job, as `torchrun` starts them: who is who, what they say.

A process that `torchrun` did not start is alone, and everything here then costs nothing. Talk about
the job (who is done, what was measured) goes over gloo and may wait for days; gradients go over NCCL
where there are GPUs.
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
# A stage that one rank does alone (preparing a corpus, say) may take this long.
_PATIENCE = timedelta(days=7)
_joined: list[Ranks] = []


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job.

    Attributes:
        rank: its number, from 0, which is the one that writes files and talks to people.
        count: processes in all.
        local_rank: its number on this machine: which GPU it uses.
        local_count: processes on this machine, which share its cores.
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
        """The device of this rank where `name` says which kind: "cuda" is "cuda:1" on local rank 1."""
        return name if self.alone or name != "cuda" else f"cuda:{self.local_rank}"

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        self.gather(None)

    def gather(self, value: Item) -> list[Item]:
        """The values of all ranks, in their order; any picklable value of this program's own making."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.count
        with _telling_of_the_lost():
            distributed.all_gather_object(values, value, group=self._control)
        return values

    def from_first(self, value: Item) -> Item:
        """What rank 0 has."""
        return self.gather(value)[0]

    def add_up(self, values: Tensor) -> None:
        """Replace a tensor by the sum of those of all ranks, the same to the bit on each."""
        self.adding_up(values)()

    def adding_up(self, values: Tensor) -> Callable[[], None]:
        """Begin what `add_up` does, and go on meanwhile. The answer waits for its end; until it is called,
        the tensor must not be touched. All ranks begin their sums in the same order."""
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
    """Join the job that `torchrun` has started, if it has and if that is not done yet.

    Raises:
        ConfigError: more processes on this machine than it has GPUs.
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
        # Whoever went on and ended with an error would leave others looking for it: they meet here first.
        _joined[-1].wait()
        yield _joined[-1]
        # Not after an error: another rank may be waiting for this one, and would be waited for here.
        distributed.destroy_process_group()
    finally:
        _joined.pop()


@contextmanager
def _telling_of_the_lost() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # of this process's own GPU, which happened to be asked here
    except RuntimeError as error:  # DistBackendError and DistNetworkError among them
        raise RankLostError(
            _what_failed(str(error)),
            where=f"rank {os.environ.get('RANK')}",
            got=_first_and_last(str(error)) or None,
            fix="What a process that ended said before is in its own output. Run the same command again: it "
            "goes on from the last checkpoint.",
        ) from error


def _what_failed(text: str) -> str:
    """NCCL fails for reasons of its own too; with another process's end it speaks of a remote one."""
    if "NCCL" in text and "ncclRemoteError" not in text:
        return (
            "NCCL, over which the GPUs talk, failed: another process of this job has ended, or it is the "
            "network or the machine (NCCL_DEBUG=INFO shows more)"
        )
    return "another process of this job has ended or cannot be reached"


def _first_and_last(text: str) -> str:
    """The first line of an error, and what NCCL says at its end, where the reason is."""
    head, _, reason = text.strip().partition("Last error:")
    first = next(iter(head.splitlines()), "")[:200]
    return f"{first}; last error: {' '.join(reason.split())[:500]}" if reason.strip() else first
