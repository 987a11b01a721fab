"""Select the most confident hours: label shards in, label shards without the other labels out.

This takes two passes over the stored labels and none over the audio: one to find the score at which the
budget is reached, one to write. Utterances that are not chosen are recorded as failures with a reason, so
readers need not know about selections.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ConfigError, LabelMismatchError, SoftLabelError, UnitsError
from kdasr.interfaces import SoftLabels
from kdasr.labelling.filters import Measure, bound, check_measure, own_scale, score, threshold
from kdasr.labelling.heard import labelled_shards
from kdasr.labelling.out_folder import enter, write_labels
from kdasr.manifest import Shard
from kdasr.soft_labels import Failure, LabelShard
from kdasr.storage import Place, same_place
from kdasr.text import load_units


@dataclass(frozen=True)
class Selection:
    """The result of `select`.

    Attributes:
        hours: audio chosen.
        hours_before: audio that had labels.
        chosen, dropped: numbers of utterances.
        threshold: a `MinConfidence` of the same measure keeps the chosen utterances with this threshold.
    """

    hours: float
    hours_before: float
    chosen: int
    dropped: int
    threshold: float


def select(
    *, audio: Place, labels: Place, out: Place, hours: float, measure: Measure = "best_path"
) -> Selection:
    """Write the most confident labels for `hours` hours of `audio` from folder `labels` to `out`.

    Args:
        audio: the audio shards that were labelled.
        labels: their labels.
        out: another folder.
        hours: the budget; selection stops before the first utterance that does not fit.
        measure: of confidence; see `kdasr.labelling.filters.Confidence`.

    Raises:
        ConfigError: the budget is not positive, or too small for any utterance; the measure is unknown;
            `out` is `labels` or holds audio.
        LabelMismatchError: `out` holds other labels, which are never replaced; or `labels` were replaced
            meanwhile.
        SoftLabelError: labels are missing, damaged or of other audio, or no utterance has any.
    """
    check_measure(measure)
    if not 0 < hours < math.inf:
        raise ConfigError(
            "the budget is out of range", where="hours", expected="a finite number above 0", got=hours
        )
    if same_place(labels, out):
        fix = "Choose another --out."
        raise ConfigError("a selection needs a folder of its own", where="out", got=str(out), fix=fix)
    enter(out)
    seconds, scores, versions = _measure_all(audio, labels, measure)
    if not len(seconds):
        raise SoftLabelError(
            "no utterance has labels, so none can be selected",
            where=labels,
            fix="`kdasr heard` shows why they have none. Use filters that keep more, or a teacher that "
            "recognises something in this audio, and label again with `--overwrite true`.",
        )
    chosen, lowest_score = _choose(seconds, scores, hours * 3600)
    if not chosen.any():
        raise ConfigError(
            "no utterance can be selected within this budget",
            where="hours",
            expected=f"{seconds[scores.argmax()] / 3600:.5f} or more, for the most confident one",
            got=hours,
        )
    done = 0
    for number, (shard, found) in enumerate(labelled_shards(audio, labels)):
        if versions[number : number + 1] != [_version(found)]:
            raise LabelMismatchError(
                "the labels were replaced while they were being selected from",
                where=labels,
                fix="Wait until they are complete, then select again, into an empty folder.",
            )
        count = len(found.keys) - len(found.failures)
        _write(
            shard,
            found,
            out,
            chosen[done : done + count],
            scores[done : done + count],
            lowest_score,
            measure,
            hours,
        )
        done += count
    # Labels written by another program may lack their units.
    with contextlib.suppress(UnitsError):
        load_units(labels).save(out)
    return Selection(
        hours=float(seconds[chosen].sum()) / 3600,
        hours_before=float(seconds.sum()) / 3600,
        chosen=int(chosen.sum()),
        dropped=int((~chosen).sum()),
        threshold=threshold(lowest_score, measure),
    )


def _measure_all(
    audio: Place, labels: Place, measure: Measure
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[str, str, int]]]:
    seconds, scores, versions = [], [], []
    for shard, found in labelled_shards(audio, labels):
        versions.append(_version(found))
        samples = {entry.key: entry.num_samples for entry in shard.entries}
        for key, item in found:
            seconds.append(samples[key] / SAMPLE_RATE_HZ)
            scores.append(score(item, measure))
    return np.array(seconds), np.array(scores), versions


def _version(found: LabelShard) -> tuple[str, str, int]:
    """What distinguishes the labels of a shard from those that may replace them."""
    return found.header.config_hash, found.header.audio_sha256, len(found.failures)


def _choose(
    seconds: NDArray[np.float64], scores: NDArray[np.float64], budget_s: float
) -> tuple[NDArray[np.bool_], float]:
    """The most confident utterances that fit the budget, and the lowest score; ties in shard order."""
    order = np.argsort(-scores, kind="stable")
    fits = np.cumsum(seconds[order]) <= budget_s
    chosen = np.zeros(len(scores), bool)
    chosen[order[fits]] = True
    return chosen, float(scores[chosen].min()) if chosen.any() else float("inf")


def _write(
    shard: Shard,
    labels: LabelShard,
    out: Place,
    chosen: NDArray[np.bool_],
    scores: NDArray[np.float64],
    lowest_score: float,
    measure: Measure,
    hours: float,
) -> None:
    least = f"{bound(measure)} {own_scale(lowest_score, measure):.4f}"
    verdicts = iter(zip(chosen, scores, strict=True))

    def items() -> Iterator[tuple[str, SoftLabels | Failure]]:
        for key in labels.keys:
            if key in labels.failures:
                yield key, Failure(labels.failures[key])
                continue
            keep, value = next(verdicts)
            found = own_scale(float(value), measure)
            reason = f"not selected: {measure} {found:.4f}, but {least} in the most confident {hours:g} h"
            yield key, labels.read(key) if keep else Failure(reason)

    settings = {**labels.header.settings, "selection": {"measure": measure, "hours": hours}}
    write_labels(out, shard, replace(labels.header, settings=settings), items())
