"""What happened in training: one JSON line for each step, in train.jsonl beside the checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
            lines = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= last_step]
            self.path.write_text("".join(f"{line}\n" for line in kept))
