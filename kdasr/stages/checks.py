"""Checks of the arguments of `train`, and of losses against stored labels, before the first step."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from kdasr.arguments import check_keywords, fitting
from kdasr.errors import ConfigError, ModelError, ShardError, UnitsError, printable
from kdasr.interfaces import BatchSource
from kdasr.loader import Stream
from kdasr.losses import silent_start
from kdasr.methods.impressions import Impressions
from kdasr.methods.pruning import Pruning
from kdasr.models import read_card
from kdasr.ranks import ranks
from kdasr.reasons import left_out_text
from kdasr.resampling import check_speeds
from kdasr.schedule import check_pattern
from kdasr.shards import left_out_by_prepare
from kdasr.stages.overlap import heard_in
from kdasr.storage import is_url
from kdasr.symbols import shorten
from kdasr.teachers.base import TeacherSource
from kdasr.training import Optimisation
from kdasr.training.step import innermost

# The value of `labelled_losses` or `unlabelled_losses` in a recipe.
Losses = Mapping[str, Mapping[str, Any]]


# The schedule if a recipe has none.
LABELLED_ALONE = (("labelled", 1),)
UNITS_ARE = (
    "{kind: characters}, {kind: characters, letters: äöüß}, {kind: sentencepiece, vocab_size: N}, "
    "a folder of a model or of labels, or a teacher"
)
# Conditions on numeric settings: error text, and check.
_NO_LESS_THAN_0 = ("0 or more, and finite", lambda value: 0 <= value < math.inf)
_NO_LESS_THAN_1 = ("1 or more, and finite", lambda value: 1 <= value < math.inf)
_BOUNDS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "seed": ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
    "num_workers": _NO_LESS_THAN_0,
    "cache_gigabytes": _NO_LESS_THAN_0,
    "max_labelled_utterances": _NO_LESS_THAN_1,
    "max_unlabelled_utterances": _NO_LESS_THAN_1,
    "batch_seconds": ("more than 0, and finite", lambda value: 0 < value < math.inf),
    "exclude_longer_s": ("more than 0", lambda value: value > 0),
    "tail_share": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "lead_share": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "joined_share": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "silent_start": _NO_LESS_THAN_0,
}


def check_train(**arguments: Any) -> None:
    """Check that `train` could start with these arguments, as far as possible before reading any file.

    Raises:
        ConfigError: a number is out of range; there is no model; an entry of the losses is not a weight and
            a loss, a loss has an unknown argument or needs a delay that cannot be measured; an untrained
            model is to be pruned; the units or the schedule cannot be read.
    """
    check_numbers(arguments)
    labels = arguments.get("labelled_soft_labels") or ()
    check_losses(*losses_of(arguments), labelled_soft_labels=labels)
    _check_parts(arguments.get("teachers") or {}, arguments.get("augment"))
    check_pruning(arguments.get("prune"), arguments.get("start"), arguments.get("optimisation"))
    check_units(arguments.get("units", ""))
    if arguments.get("model", True) is None and arguments.get("start") is None:
        raise ConfigError(
            "there is no model to train",
            where="model",
            expected="a new model, such as !name:kdasr.students.conformer.ChunkConformer {…}, or a trained "
            "one to start from",
            fix="Set `model`, or set `start` to the folder of a trained model.",
        )
    if arguments.get("schedule") is None and losses_of(arguments)[1]:
        raise ConfigError(
            "there are losses for unlabelled audio, but no schedule that uses it",
            where="schedule",
            expected="a schedule such as [[unlabelled, 3], [labelled, 1]]: streams and numbers of batches",
        )
    read_schedule(schedule_of(arguments.get("schedule")))


@contextmanager
def of_key(key: str, more: str | None = None) -> Iterator[None]:
    """Report errors under the recipe key that gives the folder, since users may not know its path; `more` is
    added to the suggested fix."""
    try:
        yield
    except (ModelError, ShardError, UnitsError) as error:
        fix = " ".join(part for part in (error.fix, more) if part) or None
        raise error.told_of(f"{key}: {error.where}", fix=fix) from error


def check_folders(*, urls: bool = False, **keys: Sequence[str] | None) -> None:
    """Raise ConfigError if a folder of one of the keys does not exist, or, without `urls`, is a URL."""
    for key, folders in keys.items():
        for folder in folders or ():
            if is_url(folder) and not urls:
                fix = "Copy the shards to a local disk, or mount the object store."
                raise ConfigError("training can read only local folders", where=key, got=folder, fix=fix)
            if not is_url(folder) and not Path(folder).is_dir():
                fix = (
                    f"Set another one with --{key}, or create it first with `kdasr prepare` or `kdasr label`."
                )
                raise ConfigError("there is no such folder", where=key, got=folder, fix=fix)


def schedule_of(schedule: Sequence[Any] | None) -> Sequence[Any]:
    """A recipe's schedule; if it has none, labelled audio alone."""
    return LABELLED_ALONE if schedule is None else schedule


def _check_parts(teachers: Mapping[str, Any], augment: object) -> None:
    """Raise ConfigError if a teacher or augmentation is not an instance of one."""
    for name, teacher in teachers.items():
        _check_name(name, f"teachers.{name}")
        # Do not read `config`: the teacher's model may be one that an earlier stage has yet to train.
        has_config = hasattr(type(teacher), "config") or "config" in getattr(teacher, "__dict__", {})
        if isinstance(teacher, type) or not callable(getattr(teacher, "attach", None)) or not has_config:
            raise ConfigError(
                "this is not an online teacher",
                where=f"teachers.{name}",
                expected="an instance, such as !new:kdasr.methods.teachers.FrozenTeacher {model: FOLDER}",
                got=teacher,
            )
    if augment is not None and not isinstance(augment, nn.Module):
        expected = "an instance of a module, such as !new:kdasr.augment.SpecAugment {…}"
        raise ConfigError("this is not an augmentation", where="augment", expected=expected, got=augment)


def losses_of(arguments: Mapping[str, Any]) -> tuple[Losses, Losses]:
    """The losses of labelled and of unlabelled audio in the arguments of `train`."""
    return arguments.get("labelled_losses") or {}, arguments.get("unlabelled_losses") or {}


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if a numeric setting of a training is out of range."""
    for name, value in settings.items():
        if name not in _BOUNDS or not isinstance(value, int | float):
            continue
        expected, is_allowed = _BOUNDS[name]
        if not is_allowed(value):
            raise ConfigError("the value is out of range", where=name, expected=expected, got=value)
    check_speeds(settings.get("speeds", (1.0,)))


def check_losses(
    labelled_losses: Losses, unlabelled_losses: Losses, *, labelled_soft_labels: Sequence[str] = ()
) -> None:
    """Raise ConfigError if an entry is not a weight and a loss, or if a loss has an unknown argument or needs
    a delay that cannot be measured."""
    for name, losses in (("labelled_losses", labelled_losses), ("unlabelled_losses", unlabelled_losses)):
        for term, entry in losses.items():
            if not _is_weighted(entry):
                raise ConfigError(
                    "a loss needs a weight and a function, or an instance of a module",
                    where=f"{name}.{term}",
                    expected="{weight: 1.0, loss: !name:kdasr.losses.NAME }, or !new:MODULE {…}",
                )
            weight = fitting(entry["weight"], float, f"{name}.{term}.weight")
            if not 0 <= weight < math.inf:
                expected, got = "0 or more, and finite", weight
                raise ConfigError(
                    "the weight is out of range", where=f"{name}.{term}", expected=expected, got=got
                )
            _check_name(term, f"{name}.{term}")
            _check_until(entry, losses, f"{name}.{term}.until")
            if isinstance(entry["loss"], functools.partial):
                where = f"{name}.{term}.loss"
                check_keywords(entry["loss"].func, entry["loss"].keywords, where, positional=2)
            where = f"{name}.{term}.delay_frames"
            if _asks_auto(entry["loss"]) and name == "labelled_losses" and not labelled_soft_labels:
                raise ConfigError(
                    "a delay is measured against stored labels, but the labelled audio has none",
                    where=where,
                    got="auto",
                    fix="Give a number of frames, or set `labelled_soft_labels` to folders of labels.",
                )
            if _asks_auto(with_delay(entry["loss"], 0)):
                raise ConfigError(
                    "a delay is measured only for losses given with !name:",
                    where=where,
                    got="auto",
                    fix="Give a number of frames.",
                )


def _check_name(name: str, where: str) -> None:
    if "." in name:
        raise ConfigError("the name contains a dot", where=where, expected="a name without one")


def check_impressions(impressions: Impressions, teacher: str | None, **of_audio: Any) -> None:
    """Raise ConfigError if settings `of_audio` are given, which impressions cannot use, or if the impressions
    are of another model than `teacher`. Null or empty settings count as not given."""
    if given := [name for name, value in of_audio.items() if value not in (None, [], (), {})]:
        raise ConfigError(
            "these settings are for audio, and impressions are not audio",
            where=", ".join(given),
            expected="null, or [] for a list",
            fix="Override them where the recipe's base sets them; Impressions has settings of its own.",
        )
    if teacher is not None and teacher_hash(teacher) != read_card(impressions.teacher)["weights_sha256"]:
        raise ConfigError(
            "the impressions are from another teacher",
            where="unlabelled, teacher",
            expected=teacher,
            got=impressions.teacher,
        )


def teacher_hash(folder: str) -> str:
    """The hash of the weights of a recipe's `teacher`.

    Raises:
        ModelError: there is no such model.
    """
    with of_key("teacher", "With --teacher null, labels of any teacher are accepted."):
        return str(read_card(Path(folder))["weights_sha256"])


def check_pruning(prune: Pruning | None, start: str | None, optimisation: Optimisation | None) -> None:
    """Raise ConfigError if the model to be pruned is untrained, or would not stay pruned."""
    if prune is None:
        return
    if optimisation is not None and optimisation.optimiser != "adamw":
        raise ConfigError(
            "only AdamW keeps pruned weights at zero",
            where="optimisation.optimiser",
            expected="adamw",
            got=optimisation.optimiser,
        )
    if start is None:
        raise ConfigError(
            "only a trained model can be pruned", where="prune", fix="Set `start` to its folder."
        )


def read_schedule(schedule: Sequence[Any]) -> list[tuple[str, int]]:
    """Blocks of (stream, batches) as a recipe writes them: `[[unlabelled, 3], [labelled, 1]]`.

    Raises:
        ConfigError: a block is something else, or of an unknown stream.
    """
    for block in schedule:
        if not isinstance(block, list | tuple) or len(block) != 2 or not isinstance(block[1], int):
            raise ConfigError(
                "invalid block in the schedule",
                where="schedule",
                expected="[[unlabelled, 3], [labelled, 1]]: streams and numbers of batches",
                got=block,
            )
    blocks = [(stream, count) for stream, count in schedule]
    check_pattern(blocks, ("labelled", "unlabelled"))
    return blocks


def check_units(units: str | Mapping[str, Any] | TeacherSource) -> None:
    """Raise ConfigError for an invalid description of units; folders and teachers are checked later."""
    if not isinstance(units, Mapping):
        return
    if units.get("kind") == "characters" and set(units) <= {"kind", "letters"}:
        fitting(units.get("letters", ""), str, "units.letters")
        return
    if units.get("kind") == "sentencepiece" and set(units) == {"kind", "vocab_size"}:
        fitting(units["vocab_size"], int, "units.vocab_size")
        return
    raise ConfigError(
        "invalid units",
        where="units",
        expected=UNITS_ARE,
        got=units,
    )


def _check_until(entry: Mapping[str, Any], losses: Losses, where: str) -> None:
    if (until := entry.get("until")) is None:
        return
    fitting(until, float, where)
    if not 0 < until <= 1:
        raise ConfigError(
            "`until`, the share of training after which a loss is 0, is out of range",
            where=where,
            expected="0 < until <= 1",
            got=until,
        )
    if all(other.get("until") is not None for other in losses.values()):
        raise ConfigError(
            "if every loss fades to 0, nothing is left to learn from",
            where=where,
            fix="Remove `until` from one loss of this stream.",
        )


def measured_delays(losses: Losses) -> list[str]:
    """The terms with `delay_frames: auto`, which `kdasr.delay` measures."""
    return [term for term, entry in losses.items() if _asks_auto(entry["loss"])]


def with_delay(loss: Any, delay_frames: int) -> Any:
    """A loss named with `!name:`, with a number instead of `delay_frames: auto` in its own settings and in
    those of the losses that it wraps."""
    if not isinstance(loss, functools.partial):
        return loss
    given = {name: with_delay(value, delay_frames) for name, value in loss.keywords.items()}
    if given.get("delay_frames") == "auto":
        given["delay_frames"] = delay_frames
    return functools.partial(loss.func, *loss.args, **given)


def _is_weighted(entry: object) -> bool:
    if not isinstance(entry, Mapping) or set(entry) - {"until"} != {"weight", "loss"}:
        return False
    return callable(entry["loss"]) and not isinstance(entry["loss"], type)


def _asks_auto(loss: Any) -> bool:
    return any(settings.get("delay_frames") == "auto" for settings in all_settings(loss))


def all_settings(loss: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of a loss, then those of the losses that it wraps."""
    partial = isinstance(loss, functools.partial)
    settings = loss.keywords if partial else getattr(loss, "config", {})
    yield settings
    for inner in [*settings.values(), getattr(loss, "loss", None)]:
        if isinstance(inner, functools.partial | nn.Module):
            yield from all_settings(inner)


def check_against_labels(losses: Mapping[str, Losses], streams: Mapping[str, BatchSource]) -> None:
    """Check the losses of each stream against its labels.

    Raises:
        ConfigError: a loss learns frame by frame from labels without times, or allows a delay that is
            not below the median length of the utterances.
    """
    for name, source in of_audio(streams).items():
        for term, entry in losses[name].items():
            where = f"{name}_losses.{term}"
            if source.labels and not source.labels_have_times and _needs_times(entry["loss"]):
                raise ConfigError(
                    "this loss learns frame by frame, but the labels are transcripts without times",
                    where=where,
                    fix="Use kdasr.losses.best_path_ctc, or label with a teacher that gives posteriors.",
                )
            _check_delays(entry["loss"], source.median_frames(), where)


def of_audio(streams: Mapping[str, BatchSource]) -> dict[str, Stream]:
    """The streams of audio, without impressions."""
    return {name: source for name, source in streams.items() if isinstance(source, Stream)}


def tell_of_dev(name: str, dev: Stream, streams: Mapping[str, BatchSource]) -> None:
    """Print how many utterances `kdasr prepare` left out of the dev set, and how many are also trained on,
    which makes its WER too low."""
    if not ranks().first:
        return
    left_out, listed = left_out_by_prepare(dev.folders)
    if left_out:
        print(left_out_text(f"{name}: dev set", left_out, listed), file=sys.stderr)
    for stream, source in of_audio(streams).items():
        if both := heard_in(dev.items, source.items):
            here, there = (f"{item.shard.path.parent}/{item.entry.key}" for item in both[0])
            example = here if here == there else f"{here} is in {there}"
            print(
                f"{name}: {len(both):,} of {len(dev.items):,} dev utterances are also in the {stream} audio "
                f"({example}), so the dev WER is lower than on unseen audio",
                file=sys.stderr,
            )


def tell_what_is_untaught(name: str, streams: Mapping[str, BatchSource]) -> None:
    """Print once which of the student's symbols a teacher of the stored labels lacks, so never outputs."""
    symbols = sorted({symbol for stream in of_audio(streams).values() for symbol in stream.untaught()})
    if symbols and ranks().first:
        print(
            f"{name}: a teacher of the labels has no class for {len(symbols)} of the student's symbols: "
            f"{printable(shorten(' '.join(symbols)))} "
            "(they never occur in its labels: only transcripts teach them)",
            file=sys.stderr,
        )


def _check_delays(loss: Any, frames: int | None, where: str) -> None:
    for settings in all_settings(loss):
        for name in ("delay_frames", "min_delay_frames", "max_delay_frames"):
            if frames is not None and settings.get(name, 0) >= frames:
                raise ConfigError(
                    "half of the audio is shorter than the delay",
                    where=f"{where}.{name}",
                    expected=f"less than {frames} frames",
                    got=settings[name],
                )


def begins_in_silence(losses: Losses) -> bool:
    """Whether one of the losses leaves the frame in which a unit is emitted to the model, and none is
    `silent_start` already."""
    functions = [innermost(entry["loss"]) for entry in losses.values()]
    leaves_times = any(getattr(function, "leaves_times", False) for function in functions)
    return leaves_times and "silent_start" not in losses and silent_start not in functions


def _needs_times(loss: Any) -> bool:
    """Whether a loss needs the times of stored labels: true unless it has `needs_times = False` or uses an
    online teacher."""
    partial = isinstance(loss, functools.partial)
    settings = loss.keywords if partial else getattr(loss, "config", {})
    if settings.get("teacher"):
        return False
    inner = settings.get("loss", loss.func) if partial else getattr(loss, "loss", None)
    if inner is not None:
        return _needs_times(inner)
    return bool(getattr(loss, "needs_times", True))
