"""The delay of a student's spikes behind a teacher's: measured for `delay_frames: auto`, and logged."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdasr.delay import OffsetWatch, delay_from, measure_offsets
from kdasr.errors import ConfigError
from kdasr.interfaces import BatchSource, OnlineTeacher
from kdasr.loader import Stream
from kdasr.methods.teachers import FrozenTeacher
from kdasr.models import load_model
from kdasr.ranks import ranks
from kdasr.spikes import SpikeHistogram
from kdasr.stages.checks import Losses, all_settings, measured_delays, of_audio, of_key, with_delay


def with_measured_delays(
    name: str,
    losses: Mapping[str, Losses],
    streams: Mapping[str, BatchSource],
    reference: str | None,
    margin_frames: int,
) -> tuple[dict[str, Losses], dict[str, Any]]:
    """The losses of each stream with a number instead of `delay_frames: auto`, and facts for the card.

    Each stream has a delay of its own, measured against its stored labels.

    Raises:
        ConfigError: there are no labels or no model to measure with, or too few of their spikes match.
    """
    measured: dict[str, Losses] = dict(losses)
    facts: dict[str, Any] = {}
    for stream, source in streams.items():
        if not (waiting := measured_delays(losses[stream])):
            continue
        where = f"{stream}_losses.{waiting[0]}.loss.delay_frames"
        histogram = _against_labels(source, reference, where)
        delay_frames = delay_from(histogram, margin_frames)
        if ranks().first:
            print(
                f"{name}: on {stream} audio, the reference's spikes are offset by "
                f"{histogram.median_ms:+.0f} ms from the teacher's (median of {histogram.matched} spikes), "
                f"which is delayed by {delay_frames} frames",
                file=sys.stderr,
            )
        measured[stream] = {
            term: {**entry, "loss": with_delay(entry["loss"], delay_frames)}
            for term, entry in losses[stream].items()
        }
        prefix = "" if stream == "unlabelled" else f"{stream}_"
        facts[f"{prefix}delay_frames"] = delay_frames
        facts[f"{prefix}reference_offset_median_ms"] = histogram.median_ms
    return measured, facts


def _against_labels(source: BatchSource, reference: str | None, where: str) -> SpikeHistogram:
    if not isinstance(source, Stream) or not source.labels:
        raise ConfigError(
            "an automatic delay is measured against stored soft labels, but there are none",
            where=where,
            fix="Set `labels` to folders of soft labels, or give a number.",
        )
    if reference is None:
        raise ConfigError(
            "an automatic delay needs a reference model",
            where=where,
            fix="Set delay_reference to a student trained on transcripts alone, or give a number.",
        )
    with of_key("delay_reference"):
        loaded, student = load_model(Path(reference)), source.student
    theirs = (loaded.units.hash, loaded.model.subsampling)
    if student is not None and theirs != (student.units.hash, student.subsampling):
        raise ConfigError(
            "the reference model has other units or another frame rate than the student",
            where=f"delay_reference: {reference}",
            expected=f"{student.subsampling} feature frames per output frame and units "
            f"{student.units.hash[:12]}",
            got=f"{loaded.model.subsampling} and {loaded.units.hash[:12]}",
            fix="Use a student with these units, trained on transcripts alone, or give a number.",
        )
    return measure_offsets(source, loaded.model)


def offset_watch(
    streams: Mapping[str, BatchSource], losses: Mapping[str, Losses], teachers: Mapping[str, OnlineTeacher]
) -> OffsetWatch | None:
    """The watch that measures the student's spikes during training, preferably on unlabelled audio: against
    stored labels that have times, else against an online teacher.

    Returns:
        None if no stream has either.
    """
    used = of_audio(streams)
    for name in (name for name in ("unlabelled", "labelled") if name in used):
        if used[name].labels and used[name].labels_have_times:
            return OffsetWatch(used[name])
        if (teacher := _comparable_teacher(losses[name], teachers)) is not None:
            return OffsetWatch(used[name], teacher)
    return None


def _comparable_teacher(losses: Losses, teachers: Mapping[str, OnlineTeacher]) -> FrozenTeacher | None:
    """The first teacher named by the losses that is frozen and has the student's units and frames."""
    for entry in losses.values():
        for settings in all_settings(entry["loss"]):
            teacher = teachers.get(settings.get("teacher", ""))
            if isinstance(teacher, FrozenTeacher) and teacher.same_units:
                return teacher
    return None
