"""`kdasr label`: a folder of audio shards in, a folder of label shards out.

    list shards → skip those done → engine → one outcome per shard → log, progress, summary

A job may be killed at any moment and run again: finished shards are not labelled again.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdasr.devices import usable_device
from kdasr.errors import ConfigError, KdasrError, ShardError
from kdasr.labelling.audio_source import list_audio, local_copy
from kdasr.labelling.done import FIX, Plan, find_work, say_looking
from kdasr.labelling.engines import AUTO_DEVICE, Crew, InlineCrew, ProcessCrew, Work
from kdasr.labelling.foreman import Foreman
from kdasr.labelling.out_folder import enter, open_whole, refuse_other_labels
from kdasr.labelling.planning import compare, plan_text, read_plan
from kdasr.labelling.progress import Display, Totals, all_together
from kdasr.labelling.settings import Settings, make_header
from kdasr.labelling.teachers import FolderTeacher, Teacher, TeacherSource
from kdasr.manifest import read_manifest as read_audio_manifest
from kdasr.ranks import Ranks, ranks
from kdasr.reasons import counted, duration
from kdasr.soft_labels import label_file
from kdasr.storage import Place, is_url, locate

ENGINES = ("inline", "processes", "ray")


def label(
    *,
    teacher: str | Path | TeacherSource,
    audio: Place,
    out: Place,
    settings: Settings | None = None,
    engine: str = "inline",
    workers: int = 1,
    device: str | None = None,
    shard_index: int = 0,
    num_shards: int = 1,
    verify: bool = False,
    overwrite: bool = False,
    log: Path | None = None,
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Label the audio shards in `audio` into `out`, except those that are labelled already.

    Processes started by `torchrun` divide the shards among themselves if they can (`sharing_ranks`); the
    first of them shows its own progress only.

    Args:
        teacher: a model folder, or a description of another kind of teacher.
        audio, out: folders or fsspec URLs; `out` must hold no audio shards.
        settings: how to label; see `Settings`.
        engine: `inline` (this process), `processes` or `ray`.
        workers: processes or actors, each with its own teacher.
        device: of the teachers, such as `cpu` or `cuda`; None uses a GPU (with Ray, one for each actor) if
            there is one.
        shard_index, num_shards: label only every `num_shards`-th shard, starting at index `shard_index`,
            for arrays of cluster jobs.
        verify: read existing labels in full before counting them as done.
        overwrite: replace labels of another teacher, with other settings or of other audio.
        log: where to append one JSON line per shard; None means `out/log.jsonl` if `out` is a local folder.
        ray_address: of a Ray cluster.

    Returns:
        The final summary over all ranks; see `kdasr.labelling.progress.Totals.summary`.

    Raises:
        ConfigError: arguments that do not fit each other.
        ShardError: there are no audio shards.
        LabelMismatchError: `out` holds labels of another teacher, with other settings or of other audio.
    """
    settings, job = settings or Settings(), sharing_ranks(engine=engine, num_shards=num_shards)
    check_job(engine=engine, workers=workers, shard_index=shard_index, num_shards=num_shards)
    names = enter(out)
    if not job.alone:
        shard_index, num_shards = job.rank, job.count
    if engine == "ray":  # its nodes may have devices that this machine lacks
        device = device or AUTO_DEVICE
    else:
        device = job.device(usable_device(device, touch=engine == "inline"))
    source = FolderTeacher(Path(teacher)) if isinstance(teacher, str | Path) else teacher
    work = Work(source, out, settings, device, overwrite)
    shards = list_audio(audio)[shard_index::num_shards]
    loaded = source.load(device if engine == "inline" else "cpu")
    _check_codec(loaded, settings)
    settings.check_windows(loaded.model.subsampling)
    expect = make_header(loaded, settings, "", "")
    if not overwrite:
        refuse_other_labels(out, names, expect, fix=FIX)
    if job.first:
        say_looking(shards)
    plan = find_work(shards, out, expect, verify=verify, overwrite=overwrite)
    # Saved with the labels, so that a student can be trained on these units or map them to its own.
    loaded.units.save(out)
    totals = Totals(len(shards), len(plan.done))
    if plan.todo:
        display = Display(plan.seconds, quiet=not job.first)
        if prediction := read_plan(out):
            # Omit the number of shards done at planning time: the current one is shown next.
            display.note("the plan predicted:\n" + plan_text(replace(prediction, shards_done=0)))
        crew = _crew(work, loaded, engine, min(workers, len(plan.todo)), ray_address)
        log_path = _log_path(log, out, shard_index, num_shards)
        _run(crew, plan, totals, log_path, display)
    totals = all_together([totals, plan.before])
    summary = all_together(job.gather(totals)).summary()
    summary["compared_with_plan"] = compare(out, summary)
    return summary


def sharing_ranks(*, engine: str = "inline", num_shards: int = 1, **_: Any) -> Ranks:
    """The processes that share the shards of a job with these arguments of `label`: those that `torchrun` has
    started, or this one alone if the job has workers of its own or is part of a job array."""
    return ranks() if engine == "inline" and num_shards == 1 else Ranks()


def verify_labels(audio: Place, out: Place) -> list[str]:
    """Read all labels of a folder of audio shards and list every problem found."""
    problems, configurations = [], dict[str, str]()
    try:
        shards = list_audio(audio)
    except ShardError as error:
        return [str(error)]
    for shard in shards:
        try:
            with local_copy(shard, manifest_only=True) as path:
                audio_sha256 = read_audio_manifest(path).sha256
            labels = open_whole(label_file(out, path.name), {"audio_sha256": audio_sha256})
            configurations[labels.header.config_hash] = path.name
        except KdasrError as error:
            problems.append(str(error))
    if len(configurations) > 1:
        named = ", ".join(f"{name} has {hash[:12]}" for hash, name in configurations.items())
        problems.append(f"{locate(out)}: labels with several configurations: {named}")
    leftover = [name for name in locate(out).names() if name.endswith(".tmp")]
    return problems + [f"{locate(out).child(name)}: left over from a killed job" for name in leftover]


def _run(crew: Crew, plan: Plan, totals: Totals, log_path: Path | None, display: Display) -> None:
    display.note(
        f"{counted(len(plan.todo), 'shard')} ({duration(plan.seconds)}) to label, "
        f"{len(plan.done)} already done"
    )
    for audio, problem in plan.damaged.items():
        display.note(f"relabelling {Path(audio).name}: {problem}", problem=True)
    started = time.perf_counter()
    try:
        with display:
            for outcome in Foreman(crew).run(plan.todo):
                line = totals.add(outcome, time.perf_counter() - started)
                display.show(totals, outcome)
                if log_path is not None and totals.log_problem is None:
                    totals.log_problem = _append(log_path, line)
    finally:
        crew.stop()
    totals.not_tried = [audio for audio in plan.todo if audio not in totals.tried]


def _append(path: Path, line: dict[str, Any]) -> str | None:
    """Append to the log; an error is returned, not raised, since labels are worth more than their log."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        return str(error)
    return None


def _crew(work: Work, loaded: Teacher, engine: str, workers: int, ray_address: str | None) -> Crew:
    if engine == "inline":
        return InlineCrew(work, loaded)
    if engine == "processes":
        return ProcessCrew(work, workers)
    from kdasr.labelling.ray_engine import RayCrew

    return RayCrew(work, workers, ray_address)


def check_job(
    *, engine: str = "inline", workers: int = 1, shard_index: int = 0, num_shards: int = 1, **_: Any
) -> None:
    """Raise ConfigError if arguments of `label` name an unknown engine or are out of range."""
    if engine not in ENGINES:
        raise ConfigError("unknown engine", where="engine", expected=", ".join(ENGINES), got=engine)
    if workers < 1 or not 0 <= shard_index < num_shards:
        raise ConfigError(
            "workers or shard numbers out of range",
            expected="workers >= 1, 0 <= shard_index < num_shards",
            got=f"workers {workers}, shard_index {shard_index}, num_shards {num_shards}",
        )
    if engine == "inline" and workers > 1:
        raise ConfigError("the inline engine has only one worker", where="workers", expected=1, got=workers)


def _check_codec(teacher: Teacher, settings: Settings) -> None:
    if teacher.level == "sequence" and settings.codec.name == "sampled":
        raise ConfigError(
            "a transcript cannot be stored as random draws",
            where="settings.codec",
            expected="a codec that keeps the most probable classes",
            got=settings.codec.name,
        )


def _log_path(log: Path | None, out: Place, shard_index: int, num_shards: int) -> Path | None:
    if log is not None or is_url(out):
        return log
    part = f"-{shard_index}-of-{num_shards}" if num_shards > 1 else ""
    return Path(str(out)) / f"log{part}.jsonl"
