"""Writes three shards of two utterances and is killed on the way: `shard_victim.py OUT WHERE`.

WHERE is "in_tar" (in the middle of shard 1), "before_manifest" (its tar has its final name, its
manifest does not exist), or "nowhere".
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdasr.interfaces import Utterance
from kdasr.shards import write_shards, writer

NUM_UTTERANCES, PER_SHARD = 6, 2


def utterances(kill_at: int | None = None) -> Iterator[Utterance]:
    for index in range(NUM_UTTERANCES):
        if index == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = np.random.default_rng(index).normal(0, 0.1, 8000 + 100 * index).astype(np.float32)
        yield Utterance(f"utt-{index}", noise, text=f"word {'abcdef'[index]}", speaker="s")


def main(out: Path, where: str) -> None:
    if where == "before_manifest":
        commit = writer.commit_bytes

        def commit_or_die(path: Path, data: bytes) -> None:
            if path.name == "shard-000001.json":
                os.kill(os.getpid(), signal.SIGKILL)
            commit(path, data)

        writer.commit_bytes = commit_or_die
    write_shards(utterances(3 if where == "in_tar" else None), out, max_utterances=PER_SHARD)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
