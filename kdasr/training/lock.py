"""A lock on a checkpoint folder, since two trainings in one folder would damage each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdasr.errors import TrainingError
from kdasr.storage import naming, take_lock

LOCK_FILE = "training.lock"
_held: set[int] = set()


@contextmanager
def used_alone(folder: Path) -> Iterator[None]:
    """Keep other trainings out of `folder` within the context, on whichever machine they run.

    The system releases the lock when this process ends, however it ends; the file remains, but without
    meaning. On a file system without locks no training is kept out; stderr says so.

    Raises:
        TrainingError: another training uses the folder.
        OSError: the folder does not exist or is not writable.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        _lock(descriptor, folder)
        os.ftruncate(descriptor, 0)
        with naming(folder / LOCK_FILE):
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        take_lock(descriptor, folder, wait=False)
    except BlockingIOError:
        raise TrainingError(
            "another training run is using this folder",
            where=folder,
            expected="one at a time",
            got=os.pread(descriptor, 300, 0).decode(errors="replace").strip() or "one that is just starting",
            fix="Wait until it has finished, or stop it there; the same command then resumes from its last "
            "checkpoint. To train at the same time, use another folder: --checkpoints, or --work-dir.",
        ) from None


def _let_go_in_copies() -> None:
    """Release the lock in forked DataLoader workers, which would hold it for some seconds after this process
    was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_copies)
