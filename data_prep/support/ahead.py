"""Read the files of a list in several processes, ahead of the process that writes the shards.

Decoding and encoding take most of the time of `kdasr prepare`. What is written stays the same, byte for byte:
results are taken in the order of the list.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from data_prep.support.dropped import Dropped
from data_prep.support.listed import ReadFile, Reading
from kdasr.beside import end_with_parent, without_ctrl_c
from kdasr.errors import CorpusError
from kdasr.interfaces import Utterance
from kdasr.shards import Encoded, encode

# Files that a reader reads at a time: each of its results is in memory as a whole. Longer files are read in
# their turn, one segment at a time.
_LONGEST_BYTES = 64 * 2**20
# Files that wait to be written: MP3 of a low bit rate becomes seven times as much FLAC.
_WAITING_BYTES = 256 * 2**20
_WAITING_PER_READER = 4
_SECONDS_BETWEEN_LOOKS = 5.0


class _Waiting(NamedTuple):
    """A file whose turn has not come.

    Attributes:
        left_out: what the list leaves out before this file.
        read: reads it; None: it is the end of the list.
        found: what a reader reads from it; None: it is too long for that.
    """

    left_out: list[tuple[str, str]]
    read: ReadFile | None
    num_bytes: int = 0
    found: Future[tuple[list[Encoded], Dropped]] | None = None


class Readers:
    """Processes that read audio; none of them is started before there is something to read.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        # Not forked: torch's threads would be missing in the copies.
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            # Some may be reading for minutes. (Public only from Python 3.14 on, as `terminate_workers`.)
            for process in self._processes():
                process.terminate()
            # One may have ended in the middle of a result: without this process's own end of their pipe, the
            # pool's thread sees that the rest never comes, and does not wait for it.
            self._pool._result_queue._writer.close()  # type: ignore[attr-defined]
        self._pool.shutdown(cancel_futures=True)

    def read(self, reading: Reading) -> Iterator[Utterance | Encoded]:
        """The utterances of `reading`, in its order.

        Raises:
            CorpusError: a reader died.
        """
        waiting: deque[_Waiting] = deque()
        files = _submitted(reading, self._pool)
        try:
            while True:
                while (
                    len(waiting) < self._count * _WAITING_PER_READER and _bytes_of(waiting) < _WAITING_BYTES
                ):
                    if (following := next(files, None)) is None:
                        break
                    waiting.append(following)
                if not waiting:
                    return
                following = waiting.popleft()
                self._wait_for(following.found)
                yield from _utterances_of(following, reading.dropped)
        except BrokenProcessPool as error:
            raise CorpusError(
                "a process that reads audio died, perhaps because memory ran out",
                where="readers",
                got=self._count,
                fix="Start the same command again, with fewer readers: it resumes where it stopped. (In a "
                'script, call `prepare` below `if __name__ == "__main__":`: readers import the script.)',
            ) from error

    def _processes(self) -> list[BaseProcess]:
        return list((self._pool._processes or {}).values())

    def _wait_for(self, found: Future[Any] | None) -> None:
        """Wait for a result. A reader that is killed in the middle of sending one would otherwise be waited
        for by the pool and by the other readers."""
        while found is not None and wait([found], _SECONDS_BETWEEN_LOOKS).not_done:
            if not all(process.is_alive() for process in self._processes()):
                raise BrokenProcessPool("a reader died")


def _submitted(reading: Reading, pool: ProcessPoolExecutor) -> Iterator[_Waiting]:
    """The files of `reading`; the pool begins to read a file when it is requested from here."""
    listed = reading.dropped.items
    while True:
        before = len(listed)
        path, read = next(reading.files, (None, None))
        # Recorded in its turn, after what is left out of the files before this one.
        left_out, listed[before:] = listed[before:], []
        if path is None or read is None:
            yield _Waiting(left_out, None)
            return
        num_bytes = _size_of(path)
        found = None
        if num_bytes <= _LONGEST_BYTES:
            with without_ctrl_c():  # the first call starts the readers
                found = pool.submit(_read, read)
        yield _Waiting(left_out, read, num_bytes, found)


def _utterances_of(one: _Waiting, dropped: Dropped) -> Iterator[Utterance | Encoded]:
    dropped.items += one.left_out
    if one.found is not None:
        utterances, more = one.found.result()
        dropped.include(more)
        yield from utterances
    elif one.read is not None:
        yield from one.read(dropped)


def _bytes_of(waiting: deque[_Waiting]) -> int:
    return sum(one.num_bytes for one in waiting)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # missing, or not a valid file name: which the reader tells
        return 0


def _begin() -> None:
    """What each reader does first."""
    end_with_parent()
    torch.set_num_threads(1)


def _read(read: ReadFile) -> tuple[list[Encoded], Dropped]:
    dropped = Dropped()
    return [encode(utterance) for utterance in read(dropped)], dropped
