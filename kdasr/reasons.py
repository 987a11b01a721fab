"""Counts, durations and reasons as text; reasons that differ only in numbers are counted as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# The number of kinds that are shown.
_MOST_SHOWN = 20


class Kind(NamedTuple):
    """Reasons of one kind.

    Attributes:
        times: how often it occurred.
        what, reason: the first thing left out for such a reason, and that reason.
    """

    times: int
    what: str
    reason: str


class Reasons:
    """Reasons counted by kind, which takes little memory however many there are."""

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._kinds: dict[str, Kind] = {}
        for what, reason in items:
            self.add(Kind(1, what, reason))

    def add(self, found: Kind) -> None:
        """Add one reason, or several of a kind."""
        name = re.sub(r"\b\d+(\.\d+)?\b", "N", found.reason)
        before = self._kinds.get(name)
        self._kinds[name] = found if before is None else before._replace(times=before.times + found.times)

    def commonest(self) -> list[Kind]:
        """All kinds, most frequent first."""
        return sorted(self._kinds.values(), key=lambda kind: -kind.times)


def counted(count: int, what: str) -> str:
    """A count with its noun: `1 shard`, `2 shards`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A readable duration: `4.2 s`, `12.3 min`, `1,234.50 h`."""
    if seconds < 59.95:  # what would round to 60 is given in the next unit
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3597 else f"{seconds / 3600:,.2f} h"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def left_out_text(whose: str, left_out: int, listed: int) -> str:
    """For people: how many of the listed utterances of a test or dev set are missing."""
    counts = f"{left_out:,} of {listed:,} listed utterances"
    return f"{whose}: {counts} were left out by prepare (dropped.json says why)"


def lines_of(
    kinds: Sequence[Kind], what_happened: str, all_named: str = "the manifests list each"
) -> list[str]:
    """A line for each of up to 20 kinds, with an example and a count; then one for the rest."""
    lines = [
        f"{what_happened}: {one.what}{f' and {one.times - 1:,} more' if one.times > 1 else ''}: {one.reason}"
        for one in kinds[:_MOST_SHOWN]
    ]
    if left := sum(one.times for one in kinds[_MOST_SHOWN:]):
        lines.append(f"{what_happened}: {left:,} more, for other reasons; {all_named}")
    return lines
