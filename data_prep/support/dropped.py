"""What a corpus leaves out or changes on the way, counted and named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Dropped:
    """Filled by a corpus while it yields utterances; written beside the shards afterwards.

    Attributes:
        items: file or key of what was left out, and why.
        notes: what was done to kept audio, such as "resampled from 44100 Hz", with counts.
    """

    items: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, reason: str) -> None:
        """`what` (a file relative to the corpus, or a key) is left out because of `reason`."""
        self.items.append((what, reason))

    def note_rate(self, source_rate_hz: int, expected_rate_hz: int) -> None:
        """Count a file whose sample rate was not the expected one and which was resampled."""
        if source_rate_hz != expected_rate_hz:
            self.notes[f"resampled from {source_rate_hz} Hz"] += 1

    def as_json(self) -> dict[str, object]:
        """For dropped.json."""
        return {
            "count": len(self.items),
            "dropped": [{"file": what, "reason": reason} for what, reason in self.items],
        }
