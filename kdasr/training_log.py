"""What happened in training: one JSON line for each step, in train.jsonl beside the checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kdasr.storage import commit_bytes

LOG_FILE = "train.jsonl"


class TrainingLog:
    """One JSON line for each step and each look at the dev set, in order, also after a resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def cut(self, last_step: int) -> None:
        """Forget what came after the checkpoint that training goes on from."""
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= last_step]
            commit_bytes(self.path, "".join(f"{line}\n" for line in kept).encode())


def _step(line: str) -> float:
    """Of a row; later than any where a crash tore it."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return math.inf
