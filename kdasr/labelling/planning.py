"""Predict time, size and cost of a labelling job by labelling a sample of shards and extrapolating.

The sample's labels are discarded; the hours are read from the manifests of all shards.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdasr.devices import usable_device
from kdasr.errors import ConfigError, ShardError
from kdasr.labelling.audio_source import list_audio, local_copy
from kdasr.labelling.done import each, find_work, say_looking
from kdasr.labelling.engines import fetch_and_label, set_threads, settings_of_one
from kdasr.labelling.settings import Settings, ShardResult, make_header
from kdasr.labelling.teachers import FolderTeacher, Teacher, TeacherSource
from kdasr.manifest import read_manifest
from kdasr.reasons import counted, duration
from kdasr.storage import Place, StorageError, locate

PREDICTION_FILE = "plan.json"
_BYTES_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Prediction:
    """The predicted time, size and cost of a job.

    Attributes:
        shards: audio shards in all.
        sampled_shards: shards that were labelled for the prediction.
        hours: audio in all.
        frames: label frames.
        bytes: labels with their manifests.
        bytes_per_frame: of the labels alone; 0 if the sample got none.
        times_real_time: of one worker, over the audio that the teacher hears.
        worker_hours: time of all workers together, fetching audio included; GPU-hours if a worker is a GPU.
        wall_hours: elapsed time with `workers` workers.
        cost: `worker_hours` times the price of one.
        spread: relative standard error of the time, from the differences between the sampled
            shards; 0 if only one was sampled.
        workers: number of workers.
        hours_heard: audio that the teacher will hear, after filters on length and language.
        shards_done: those of `shards` that are labelled already in the output folder; all other figures
            include them.
    """

    shards: int
    sampled_shards: int
    hours: float
    frames: int
    bytes: int
    bytes_per_frame: float
    times_real_time: float
    worker_hours: float
    wall_hours: float
    cost: float
    spread: float
    workers: int
    hours_heard: float
    shards_done: int = 0


def plan(
    *,
    teacher: str | Path | TeacherSource,
    audio: Place,
    out: Place | None = None,
    settings: Settings | None = None,
    workers: int = 1,
    device: str | None = None,
    sample_shards: int = 3,
    price_per_worker_hour: float = 0.0,
) -> Prediction:
    """Label `sample_shards` shards, spread over all, and predict the whole job from them.

    Args:
        out: where the job's labels will go; the prediction is saved there and compared with the actual
            figures when the job ends.
        price_per_worker_hour: in any currency.

    Raises:
        ConfigError: `sample_shards` or `workers` is less than 1.
        ShardError: there are no audio shards, or one in the sample is damaged.
    """
    settings = settings or Settings()
    device = usable_device(device)
    for name, value in (("sample_shards", sample_shards), ("workers", workers)):
        if value < 1:
            raise ConfigError("a plan needs at least one", where=name, expected="1 or more", got=value)
    shards = list_audio(audio)
    say_looking(shards)
    sample = sorted({round(i) for i in np.linspace(0, len(shards) - 1, min(sample_shards, len(shards)))})
    source = FolderTeacher(Path(teacher)) if isinstance(teacher, str | Path) else teacher
    # As in the job: workers on one machine share its threads.
    settings = settings_of_one(settings, workers)
    loaded = source.load(device)
    done = 0
    if out is None:
        seconds = sum(each(_seconds, shards))
    else:
        # Labels of another teacher, say, do not count: the job decides whether they may be replaced.
        found = find_work(shards, out, make_header(loaded, settings, "", ""), overwrite=True)
        done, seconds = len(found.done), found.seconds + found.before.seconds
    results = _label_sample(loaded, [shards[i] for i in sample], settings)
    prediction = _extrapolate(results, seconds, len(shards), workers, price_per_worker_hour)
    if out is not None:
        prediction = replace(prediction, shards_done=done)
        file = locate(out).child(PREDICTION_FILE)
        file.commit(json.dumps(asdict(prediction), indent=1).encode() + b"\n")
    return prediction


def read_plan(out: Place) -> Prediction | None:
    """The plan saved in `out`; None if there is none, or it has other fields than this release writes."""
    try:
        return Prediction(**json.loads(locate(out).child(PREDICTION_FILE).read_all()))
    except (OSError, StorageError, ValueError, TypeError):
        return None  # not worth failing for


def compare(out: Place, summary: dict[str, Any]) -> str | None:
    """A sentence that compares the plan saved in `out` with a job's summary; None if there is no plan."""
    predicted = read_plan(out)
    if predicted is None:
        return None
    facts: list[tuple[str, float, float, Callable[[float], str]]] = []
    if summary["bytes_per_frame"]:  # 0 if nothing has labels
        facts.append(("bytes/frame", predicted.bytes_per_frame, summary["bytes_per_frame"], _number))
    if summary["shards_labelled"] == predicted.shards:
        # This run labelled all shards, so its time and price can be compared too.
        worker_s = 3600 * predicted.worker_hours, 3600 * summary["worker_hours"]
        speed = predicted.times_real_time * predicted.workers
        price = predicted.cost / worker_s[0]
        facts += [
            ("audio", 3600 * predicted.hours, 3600 * summary["hours"], duration),
            ("labels", predicted.bytes_per_frame * predicted.frames, summary["bytes"], _size),
            ("worker time", *worker_s, duration),
            ("× real time", speed, summary["times_real_time"], _number),
            ("cost", price * worker_s[0], price * worker_s[1], _number),
        ]
    # Skip figures of 0 in the plan, such as bytes if its sample got no labels.
    said = [
        f"{name} {text(fact)} (predicted {text(plan)}: {round(fact / plan - 1, 2) + 0.0:+.0%})"
        for name, plan, fact, text in facts
        if plan
    ]
    return "compared with the plan: " + ", ".join(said) if said else None


def plan_text(prediction: Prediction) -> str:
    """A prediction as printable text."""
    p = prediction
    heard = ""
    hours = duration(3600 * p.hours)
    if (hours_heard := duration(3600 * p.hours_heard)) != hours:
        heard = f", of which the teacher processes {hours_heard}"
    speed = (
        f"{p.times_real_time:,.0f} × real time"
        if p.times_real_time
        else "unknown, since the teacher processed no audio"
    )
    labels = "none: no utterance of the sample got any"
    if p.frames:
        labels = f"{_size(p.bytes)} ({p.bytes_per_frame:.2f} bytes per frame, {p.frames:,} frames)"
    # A single shard gives no estimate of the spread.
    spread = f" (± {p.spread:.0%})" if p.sampled_shards > 1 else ""
    lines = [
        f"{counted(p.shards, 'shard')}, {hours} of audio{heard} ({p.sampled_shards} labelled as a sample)",
        f"labels: {labels}",
        f"speed per worker: {speed}",
        f"worker time: {duration(3600 * p.worker_hours)}{spread}, "
        f"{duration(3600 * p.wall_hours)} with {counted(p.workers, 'worker')}",
    ]
    if p.shards_done:
        done = f"{p.shards_done} of {counted(p.shards, 'shard')} already labelled"
        lines.insert(0, f"{done}; estimates for all of them:")
    if p.cost:
        lines.append(f"cost: {p.cost:,.2f}")
    return "\n".join(lines)


def _label_sample(teacher: Teacher, shards: Sequence[str], settings: Settings) -> list[ShardResult]:
    set_threads(settings)
    with tempfile.TemporaryDirectory(prefix="kdasr-plan-") as folder:
        # Warm-up happens only once in a whole job, so keep it out of the sample.
        fetch_and_label(teacher, shards[0], Path(folder), settings)
        return [fetch_and_label(teacher, shard, Path(folder), settings) for shard in shards]


def _extrapolate(
    results: Sequence[ShardResult], seconds: float, shards: int, workers: int, price: float
) -> Prediction:
    sampled_s = sum(result.seconds for result in results)
    heard_s = sum(result.heard_seconds for result in results)
    wall_s = sum(result.wall_s for result in results)
    speeds = np.array([result.seconds / result.wall_s for result in results])
    frames = sum(result.manifest["frames"] for result in results)
    label_bytes = sum(result.manifest["bytes"] for result in results)
    manifest_bytes = sum(len(json.dumps(result.manifest)) for result in results) / len(results)
    scale = seconds / sampled_s
    worker_hours = wall_s * scale / 3600
    # Workers take whole shards: a last round that not all of them work in is as long as any other.
    rounds = math.ceil(shards / workers)
    return Prediction(
        shards=shards,
        sampled_shards=len(results),
        hours=seconds / 3600,
        frames=round(frames * scale),
        bytes=round(label_bytes * scale + manifest_bytes * shards),
        bytes_per_frame=label_bytes / frames if frames else 0.0,
        times_real_time=heard_s / wall_s,
        worker_hours=worker_hours,
        wall_hours=worker_hours / shards * rounds,
        cost=worker_hours * price,
        spread=float(speeds.std(ddof=1) / speeds.mean() / math.sqrt(len(speeds))) if len(speeds) > 1 else 0.0,
        workers=workers,
        hours_heard=heard_s * scale / 3600,
    )


def _seconds(shard: str) -> float:
    try:
        with local_copy(shard, manifest_only=True) as path:
            return read_manifest(path).seconds
    except ShardError:
        return 0.0  # the job reports why it cannot be labelled


def _number(value: float) -> str:
    return f"{value:,.4g}"


def _size(num_bytes: float) -> str:
    power = min(int(math.log(max(1.0, num_bytes), 1000)), len(_BYTES_UNITS) - 1)
    return f"{num_bytes / 1000**power:.4g} {_BYTES_UNITS[power]}"
