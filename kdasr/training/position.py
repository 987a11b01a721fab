"""A training's position in its data, written into every checkpoint and checked on resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdasr.errors import TrainingError
from kdasr.schedule import ScheduledBatches


class Position:
    """The number of steps done, and the next shard and utterance of each stream.

    All of it follows from the number of steps; it is written for people to read, and to detect that the
    data has changed since the checkpoint was written.

    Args:
        batches: the schedule.
        batches_per_step: the number of batches in a step.
    """

    def __init__(self, batches: ScheduledBatches, batches_per_step: int) -> None:
        self._batches, self._batches_per_step = batches, batches_per_step

    def save(self, path: Path, steps_done: int, so_far: Mapping[str, float]) -> None:
        """Write the position as JSON, with the loop's counts `so_far`."""
        written = {**self._after(steps_done), "so_far": dict(so_far)}
        path.write_text(json.dumps(written, indent=1) + "\n")

    def check(self, path: Path) -> dict[str, float]:
        """Compare the stored position with that of the schedule after as many steps.

        Returns:
            The loop's counts at that step; empty if the checkpoint has none.

        Raises:
            TrainingError: the schedule now continues with other utterances.
        """
        written = json.loads(path.read_text())
        so_far: dict[str, float] = written.get("so_far", {})
        found = self._after(written["steps_done"])
        if {name: written.get(name) for name in found} != found:
            raise TrainingError(
                "the data has changed since this checkpoint was written",
                where=path,
                expected=written["streams"],
                got=found["streams"],
                # Not other audio or settings: with those, training would have started anew.
                fix="Another release of kdasr or NumPy orders the same audio differently, or new labels lack "
                "other utterances: restore the former ones, or use another folder of checkpoints.",
            )
        return so_far

    def _after(self, steps_done: int) -> dict[str, Any]:
        place = self._batches.position(steps_done * self._batches_per_step)
        return {"steps_done": steps_done, "batches_done": place.pop("step"), **place}
