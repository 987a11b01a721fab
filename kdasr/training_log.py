"""The training log: one JSON line for each step, in train.jsonl beside the checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kdasr.storage import commit_bytes, naming

LOG_FILE = "train.jsonl"


class TrainingLog:
    """One JSON line for each step and each dev set evaluation, in order, also after a resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def cut(self, last_step: int, *, with_look: bool) -> None:
        """Remove everything after the checkpoint from which training resumes, which was written at
        `last_step`, before or (`with_look`) after its dev set evaluation."""
        if self.path.exists():
            last = (last_step, with_look)
            kept = [line for line in self.path.read_bytes().splitlines() if _place(line) <= last]
            commit_bytes(self.path, b"".join(line + b"\n" for line in kept))


def _place(line: bytes) -> tuple[float, bool]:
    """The step of a row, and whether it is a dev set evaluation; later than any if a crash truncated or
    damaged it."""
    try:
        row = json.loads(line)
        return int(row["step"]), "dev_wer" in row
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf, True
