"""Where a training stands in its data, written into every checkpoint and compared when it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdasr.errors import TrainingError
from kdasr.schedule import ScheduledBatches


class Position:
    """The steps done, and the shard and utterance that come next in each stream.

    The schedule finds all of it from the number of steps; it is written for people, and to notice when
    the data under a checkpoint is no longer the same.

    Args:
        batches: the schedule.
        batches_per_step: how many of them make a step.
    """

    def __init__(self, batches: ScheduledBatches, batches_per_step: int) -> None:
        self._batches, self._batches_per_step = batches, batches_per_step

    def save(self, path: Path, steps_done: int, so_far: Mapping[str, float]) -> None:
        """Write it as JSON, with what the loop has counted `so_far`."""
        written = {**self._after(steps_done), "so_far": dict(so_far)}
        path.write_text(json.dumps(written, indent=1) + "\n")

    def check(self, path: Path) -> dict[str, float]:
        """Compare what was written with where the schedule is after as many steps.

        Returns:
            What the loop had counted by then; nothing in a checkpoint that does not say.

        Raises:
            TrainingError: the schedule goes on with other utterances than it would have then.
        """
        written = json.loads(path.read_text())
        so_far: dict[str, float] = written.get("so_far", {})
        found = self._after(written["steps_done"])
        if {name: written.get(name) for name in found} != found:
            raise TrainingError(
                "the data is not what it was when this checkpoint was written",
                where=path,
                expected=written["streams"],
                got=found["streams"],
                # With other audio or settings the training would have begun anew.
                fix="Another release of kdasr or NumPy orders the same audio otherwise, or labels made anew "
                "lack other utterances: bring those back, or train into another folder of checkpoints.",
            )
        return so_far

    def _after(self, steps_done: int) -> dict[str, Any]:
        place = self._batches.position(steps_done * self._batches_per_step)
        return {"steps_done": steps_done, "batches_done": place.pop("step"), **place}
