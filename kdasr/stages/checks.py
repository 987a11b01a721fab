"""What a schedule and losses ask of their arguments and of stored labels, checked before the first step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from kdasr.arguments import check_keywords, fitting
from kdasr.delay import OffsetWatch
from kdasr.errors import ConfigError
from kdasr.loader import Stream


def check_losses(
    labelled_losses: Mapping[str, Mapping[str, Any]], unlabelled_losses: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise ConfigError where an entry is no weight and loss, a loss is given what it does not take, or asks
    for a delay that nobody measures."""
    for name, losses in (("labelled_losses", labelled_losses), ("unlabelled_losses", unlabelled_losses)):
        for term, entry in losses.items():
            if set(entry) - {"until"} != {"weight", "loss"} or not _is_loss(entry["loss"]):
                raise ConfigError(
                    "a loss is a weight and a function, or a module that is built",
                    where=f"{name}.{term}",
                    expected="{weight: 1.0, loss: !name:kdasr.losses.NAME }, or !new:MODULE {…}",
                )
            fitting(entry["weight"], float, f"{name}.{term}.weight")
            _check_until(entry, losses, f"{name}.{term}.until")
            if isinstance(entry["loss"], functools.partial):
                where = f"{name}.{term}.loss"
                check_keywords(entry["loss"].func, entry["loss"].keywords, where, positional=2)
            measured = name == "unlabelled_losses" and isinstance(entry["loss"], functools.partial)
            if _asks_auto(entry["loss"], inside=measured):
                raise ConfigError(
                    "only for a loss named with !name: under unlabelled_losses is a delay measured",
                    where=f"{name}.{term}.delay_frames",
                    got="auto",
                    fix="Give a number of frames.",
                )


def read_schedule(schedule: Sequence[Any]) -> list[tuple[str, int]]:
    """Blocks of (stream, batches) as a recipe writes them: `[[unlabelled, 3], [labelled, 1]]`.

    Raises:
        ConfigError: a block is something else.
    """
    for block in schedule:
        if not isinstance(block, list | tuple) or len(block) != 2 or not isinstance(block[1], int):
            raise ConfigError(
                "a block of the schedule cannot be read",
                where="schedule",
                expected="[[unlabelled, 3], [labelled, 1]]: streams and numbers of batches",
                got=block,
            )
    return [(stream, count) for stream, count in schedule]


def _check_until(entry: Mapping[str, Any], losses: Mapping[str, Mapping[str, Any]], where: str) -> None:
    if (until := entry.get("until")) is None:
        return
    fitting(until, float, where)
    if not 0 < until <= 1:
        raise ConfigError(
            "a loss fades away after a share of the training",
            where=where,
            expected="0 < until <= 1",
            got=until,
        )
    if all(other.get("until") is not None for other in losses.values()):
        raise ConfigError(
            "when every loss has faded away nothing is left to learn from",
            where=where,
            fix="Take `until` from one loss of this stream.",
        )


def measured_delays(losses: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The terms whose `delay_frames: auto` stands for what `kdasr.delay` measures."""
    return [
        term
        for term, entry in losses.items()
        if isinstance(entry["loss"], functools.partial)
        and entry["loss"].keywords.get("delay_frames") == "auto"
    ]


def _is_loss(loss: object) -> bool:
    return callable(loss) and not isinstance(loss, type)


def _asks_auto(loss: Any, *, inside: bool) -> bool:
    """Whether a loss, or (`inside` alone) a loss that it is given, has `delay_frames: auto`."""
    settings = loss.keywords if isinstance(loss, functools.partial) else getattr(loss, "config", {})
    given = settings.get("settings", {}) if isinstance(settings.get("settings"), Mapping) else {}
    nested = any(_asks_auto(value, inside=False) for value in settings.values() if callable(value))
    own = not inside and settings.get("delay_frames") == "auto"
    return own or nested or given.get("delay_frames") == "auto"


def check_against_labels(losses: Mapping[str, Mapping[str, Any]], source: object) -> OffsetWatch | None:
    """Compare the losses of unlabelled audio with the labels it has.

    Returns:
        What watches the student's spikes against the labels'; None where these have no times.

    Raises:
        ConfigError: a loss learns frame by frame from labels without times, or the delay it allows is
            longer than half of the audio.
    """
    if not isinstance(source, Stream) or not source.labels:
        return None
    for term, entry in losses.items():
        settings = entry["loss"].keywords if isinstance(entry["loss"], functools.partial) else {}
        where = f"unlabelled_losses.{term}"
        if not source.labels_have_times and _needs_times(entry["loss"]):
            raise ConfigError(
                "this loss learns frame by frame, and the labels are transcripts without times",
                where=where,
                fix="Use kdasr.losses.best_path_ctc, or label with a teacher that gives posteriors.",
            )
        delay_frames = max(settings.get("delay_frames", 0), settings.get("min_delay_frames", 0))
        if (frames := source.median_frames()) is not None and delay_frames >= frames:
            raise ConfigError(
                "half of the audio is shorter than the delay",
                where=where,
                expected=f"less than {frames} frames",
                got=delay_frames,
            )
    return OffsetWatch(source) if source.labels_have_times else None


def _needs_times(loss: Any) -> bool:
    """Whether a loss learns from the frames of labels, as all do that neither say otherwise nor ask an
    online teacher."""
    partial = isinstance(loss, functools.partial)
    settings = loss.keywords if partial else getattr(loss, "config", {})
    if settings.get("teacher"):
        return False
    inner = settings.get("loss", loss.func) if partial else getattr(loss, "loss", None)
    if inner is not None:
        return _needs_times(inner)
    return bool(getattr(loss, "needs_times", True))
