"""The stage `train`: assembles and checks paths, units, streams and losses."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import kdasr.losses
from kdasr.channels import WorseChannel
from kdasr.contract import StudentSide, UnitMap
from kdasr.devices import usable_device
from kdasr.errors import ConfigError
from kdasr.features import NUM_MEL_BINS
from kdasr.interfaces import BatchSource, ModelOutput, OnlineTeacher
from kdasr.loader import Stream, texts_of
from kdasr.methods.impressions import Impressions
from kdasr.methods.mixing import Munge
from kdasr.methods.pruning import Pruning
from kdasr.models import load_model
from kdasr.ranks import ranks
from kdasr.reasons import counted
from kdasr.soft_labels import LabelFolder
from kdasr.stages.checks import (
    UNITS_ARE,
    Losses,
    begins_in_silence,
    check_against_labels,
    check_folders,
    check_impressions,
    check_train,
    check_units,
    of_key,
    read_schedule,
    schedule_of,
    teacher_hash,
    tell_of_dev,
    tell_what_is_untaught,
)
from kdasr.stages.delays import offset_watch, with_measured_delays
from kdasr.streaming import hears_tail
from kdasr.teachers.base import TeacherSource
from kdasr.text import CharUnits, Units, load_units, train_sentencepiece
from kdasr.training import Fading, Optimisation, Training

# Share of the training; by then units are emitted where they are heard. 0.1 was too low
# (docs/distillation.md).
_SILENT_START_UNTIL = 0.5
# Two hours of audio.
_DEV_CACHE_BYTES = 2**28
# Longer utterances of a dev set are left out, unless training uses longer ones.
_DEV_LONGEST_S = 40.0
# No multiple of a subsampling: models round up.
_PROBE_FRAMES = 101


def train(
    *,
    name: str,
    out: str,
    model: Callable[..., Any] | None,
    units: str | Mapping[str, Any] | TeacherSource,
    labelled: Sequence[str],
    dev: Sequence[str],
    optimisation: Optimisation,
    labelled_losses: Losses,
    batch_seconds: float,
    checkpoints: str,
    seed: int = 1,
    labelled_soft_labels: Sequence[str] = (),
    unlabelled: Sequence[str] | Impressions = (),
    labels: Sequence[str] = (),
    teacher: str | None = None,
    unit_map: UnitMap | None = None,
    unlabelled_losses: Losses | None = None,
    delay_reference: str | None = None,
    delay_margin_frames: int = 1,
    schedule: Sequence[tuple[str, int]] | None = None,
    teachers: Mapping[str, OnlineTeacher] | None = None,
    start: str | None = None,
    prune: Pruning | None = None,
    speeds: Sequence[float] = (1.0,),
    augment: nn.Module | None = None,
    spoil: WorseChannel | None = None,
    mix: Munge | None = None,
    max_labelled_utterances: int | None = None,
    max_unlabelled_utterances: int | None = None,
    exclude_longer_s: float = 40.0,
    tail_share: float = 0.5,
    lead_share: float = 0.5,
    joined_share: float = 0.5,
    silent_start: float = 2.0,
    cache_gigabytes: float = 1.0,
    num_workers: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Train a teacher or a student; see the arguments of `Training` and `Stream`.

    A loss whose `delay_frames` is `auto` gets the delay that is measured between the soft labels of its
    audio and the model in `delay_reference`; see `kdasr.delay`.

    `units` is `{kind: characters}`, with `letters: äöüß` if a language has more than a-z,
    `{kind: sentencepiece, vocab_size: N}`, or the folder of a model whose units to share. `labels` are
    folders of soft labels, one for each folder of `unlabelled`, and `labelled_soft_labels` those for each
    folder of `labelled`; with `teacher`, a model folder, labels of any other are refused. Labels of another
    frame rate or with other units are converted if possible (`kdasr.contract`); `unit_map` maps symbols of
    the teacher that the student lacks to the student's, `{"é": e, "7": null}`. If no loss uses stored
    labels, none are needed. `labelled` may be empty if the schedule uses only unlabelled audio; `dev`
    always needs transcripts.

    `start` is the folder of a trained model with these units, to continue from; with `prune`, it is pruned
    first. `model` may then be null, or must be of the same kind and size. If every dev set evaluation finds
    more errors than before the first step, by more than chance, the model is kept as it was.
    `speeds` perturb the transcribed audio, and unlabelled audio without stored labels. Stored labels are for
    the original speed, so with `labelled_soft_labels` the only speed must be 1.0. `spoil` degrades training
    audio for the student alone; `mix` is for unlabelled audio, where it cannot be combined with `spoil`. If
    impressions replace unlabelled audio, settings that only apply to audio are refused.

    For a streaming student, `tail_share` is the share of the readings of transcribed utterances that end with
    the silence that it is fed in use after every recording, for clips that do not end with a pause.

    `lead_share` is the share of the training batches that begin with up to 1.5 s of noise or silence, and
    `joined_share` of those in which every second utterance follows another one, as in audio that is not cut.

    `silent_start` is the weight of `kdasr.losses.silent_start`, falling to 0 over half of the training, for a
    new model with losses that leave the time of emission to the model.

    The loss on the dev set is that of the `labelled_losses` that need no stored labels, or CTC if there
    are none.
    """
    check_train(**locals())  # locals() has only the arguments here
    blocks = read_schedule(schedule_of(schedule))
    used = {stream for stream, _ in blocks}
    check_folders(labelled=labelled, dev=dev, labelled_soft_labels=labelled_soft_labels)
    if "unlabelled" in used and not isinstance(unlabelled, Impressions):
        check_folders(unlabelled=unlabelled, labels=labels)
    units_built = make_units(units, [Path(folder) for folder in labelled], seed)
    # Seeded here, so that two trainings with the same seed begin with the same weights.
    torch.manual_seed(seed)
    built, start_hash = _begun(model, units_built, start)
    streams = _streams(
        labelled,
        labelled_soft_labels,
        unlabelled,
        labels,
        teacher,
        used=used,
        max_labelled_utterances=max_labelled_utterances,
        max_unlabelled_utterances=max_unlabelled_utterances,
        speeds=tuple(speeds),
        mix=mix,
        batch_seconds=batch_seconds,
        seed=seed,
        student=StudentSide(units_built, built.subsampling, unit_map),
        exclude_longer_s=exclude_longer_s,
        cache_bytes=int(cache_gigabytes * 2**30 / 2),
        spoil=spoil,
        clean_too=bool(teachers),
        tail_share=tail_share if hears_tail(built) else 0.0,
        lead_share=lead_share,
        joined_share=joined_share,
    )
    card: dict[str, Any] = {} if start_hash is None else {"start": start_hash}
    if prune is not None:
        card |= prune.apply(built, _transcribed(streams, "prune"))
    losses, delay_facts = with_measured_delays(
        name,
        {"labelled": labelled_losses, "unlabelled": unlabelled_losses or {}},
        streams,
        delay_reference,
        delay_margin_frames,
    )
    check_against_labels(losses, streams)
    if silent_start > 0 and start is None:
        losses = _beginning_in_silence(losses, streams, silent_start)
    tell_what_is_untaught(name, streams)
    dev_stream = _dev_stream(
        dev,
        units_built,
        batch_seconds=batch_seconds,
        seed=seed,
        tail_share=float(hears_tail(built)),
        exclude_longer_s=max(exclude_longer_s, _DEV_LONGEST_S),
    )
    used_streams = {stream: source for stream, source in streams.items() if stream in used}
    tell_of_dev(name, dev_stream, used_streams)
    training = Training(
        name=name,
        model=built,
        units=units_built,
        streams=streams,
        schedule=blocks,
        losses={stream: weighted(terms) for stream, terms in losses.items()},
        dev=dev_stream,
        dev_loss=kdasr.losses.ctc,
        optimisation=optimisation,
        teachers=teachers or {},
        augment=augment,
        start=start_hash and json.dumps([start_hash, prune and prune.config]),
        watch=offset_watch(used_streams, losses, teachers or {}),
        seed=seed,
        checkpoints=Path(checkpoints),
        num_workers=num_workers,
        device=ranks().device(usable_device(device)),
    )
    return training.run(Path(out), card={**card, **delay_facts})


def _begun(model: Callable[..., Any] | None, units: Units, start: str | None) -> tuple[Any, str | None]:
    """The model to train, new or loaded from `start`, and the hash of the weights in `start`."""
    built = None if model is None else _built(model, units.vocab_size)
    if start is None:
        return built, None
    with of_key("start"):
        loaded = load_model(Path(start))
    if built is None:
        built = loaded.model.train()
    config = getattr(built, "config", None)
    other_units = loaded.units.hash != units.hash
    if other_units or loaded.model.config != config:
        raise ConfigError(
            "the model to start from does not match the recipe",
            where=start,
            expected=f"units {units.hash[:12]} and {config}",
            got=f"units {loaded.units.hash[:12]} and {loaded.model.config}",
            fix=f"To use its units, set --units {start}."
            if other_units
            else "With `model: null`, it is used as it is.",
        )
    built.load_state_dict(loaded.model.state_dict())
    return built, loaded.card["weights_sha256"]


def _built(model: Callable[..., Any], vocab_size: int) -> Any:
    try:
        built = model(vocab_size=vocab_size)
        _check_is_trainable(built)
        with torch.no_grad():  # some sizes can be built but not run
            log_probs_btv, lengths_b = built.train(False).offline(
                torch.zeros(1, _PROBE_FRAMES, NUM_MEL_BINS), torch.tensor([_PROBE_FRAMES])
            )
            _check_output(log_probs_btv, lengths_b, vocab_size, -(-_PROBE_FRAMES // built.subsampling))
        return built.train()
    except (
        ValueError,
        RuntimeError,
        ArithmeticError,
        AssertionError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise ConfigError(
            "the model cannot be built", where="model", got=str(error).strip(), fix="Check its sizes."
        ) from error


def _check_is_trainable(built: Any) -> None:
    """Raise ConfigError if a model lacks what training needs, or could not be loaded from its card later."""
    needed = ("offline", "set_statistics", "config", "vocab_size", "subsampling")
    missing = [name for name in needed if not hasattr(built, name)]
    if missing or not isinstance(built, nn.Module):
        raise ConfigError(
            "the model cannot be trained",
            where="model",
            expected="an nn.Module that is a TrainableModel (kdasr/interfaces.py)",
            got=f"{type(built).__name__} without {', '.join(missing)}" if missing else type(built).__name__,
        )
    config: Any = built.config
    try:
        inspect.signature(type(built)).bind(**config)
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "the model could not be built again from its `config`",
            where="model",
            expected=f"the arguments of {type(built).__name__}, as JSON",
            got=error,
        ) from error


def _check_output(log_probs_btv: Tensor, lengths_b: Tensor, vocab_size: int, frames: int) -> None:
    """Raise ConfigError if a model's output for one utterance is not what training expects."""
    try:
        kdasr.losses.check_log_probs(ModelOutput(log_probs_btv, lengths_b))
    except ConfigError as error:
        raise error.told_of("model") from error
    found = (log_probs_btv.shape[2], int(lengths_b[0]))
    if found != (vocab_size, frames):
        raise ConfigError(
            "the model gives other classes or frames than it should",
            where="model",
            expected=f"{vocab_size} classes, and {frames} frames for {_PROBE_FRAMES} of features"
            " (their number / subsampling, rounded up)",
            got=f"{found[0]} and {found[1]}",
        )


def make_units(
    units: str | Mapping[str, Any] | TeacherSource,
    labelled: Sequence[Path],
    seed: int,
    *,
    others: Iterable[str] | None = None,
) -> Units:
    """Units from a description, or those of a model folder, a label folder, or a pretrained teacher.

    Word pieces are learnt from the transcripts in `labelled`; if it is empty, from the `others`.
    """
    if isinstance(units, str):
        with of_key("units", f"Units are {UNITS_ARE}."):
            return load_units(Path(units))
    if isinstance(units, TeacherSource):
        return units.load("cpu").units
    check_units(units)
    if units["kind"] == "characters":
        return CharUnits(units.get("letters", ""))
    texts = texts_of(labelled) if labelled else others
    if texts is None:
        raise ConfigError(
            "word pieces are learnt from transcripts, but `labelled` is empty",
            where="units",
            fix="To use the teacher's units, set `units` to its folder.",
        )
    return train_sentencepiece(texts, vocab_size=units["vocab_size"], seed=seed)


def _dev_stream(folders: Sequence[str], units: Units, **settings: Any) -> Stream:
    paths = [Path(folder) for folder in folders]
    stream = Stream(paths, units=units, cache_bytes=_DEV_CACHE_BYTES, **settings)
    stream.cache_whole_or_nothing()
    # Of the utterances used: those with words may all be too long. As a rule the first batch has some.
    batches = map(stream.batch, range(len(stream.epoch_batches(0))))
    if not any(batch.token_lengths_b is not None and batch.token_lengths_b.any() for batch in batches):
        example = next(iter(stream.left_out.items()), None)
        raise ConfigError(
            "the transcripts contain no words, so there is no error rate",
            where="dev",
            got=", ".join(folders),
            fix=example and f"{counted(len(stream.left_out), 'utterance')} left out: {': '.join(example)}, …",
        )
    return stream


def _streams(
    labelled: Sequence[str],
    labelled_soft_labels: Sequence[str],
    unlabelled: Sequence[str] | Impressions,
    labels: Sequence[str],
    teacher: str | None,
    *,
    used: set[str],
    max_labelled_utterances: int | None,
    max_unlabelled_utterances: int | None,
    speeds: tuple[float, ...],
    mix: Munge | None,
    student: StudentSide,
    **settings: Any,
) -> dict[str, BatchSource]:
    """The streams `used`, and the labelled one if there is any, since features are normalised by it."""
    streams: dict[str, BatchSource] = {}
    if labelled or "labelled" in used or isinstance(unlabelled, Impressions):
        streams["labelled"] = Stream(
            [Path(folder) for folder in labelled],
            units=student.units,
            labels=_label_folders(labelled_soft_labels, teacher),
            speeds=speeds,
            max_utterances=max_labelled_utterances,
            student=student,
            **settings,
        )
    if "unlabelled" in used:
        streams["unlabelled"] = _unlabelled(
            unlabelled,
            labels,
            teacher,
            max_utterances=max_unlabelled_utterances,
            mix=mix,
            speeds=(1.0,) if labels else speeds,
            student=student,
            **settings,
        )
    return streams


def _transcribed(streams: Mapping[str, BatchSource], asked_by: str) -> Stream:
    if "labelled" not in streams:
        raise ConfigError(
            "this needs transcribed audio", where=asked_by, expected="folders of it in `labelled`"
        )
    return cast(Stream, streams["labelled"])


def _beginning_in_silence(
    losses: Mapping[str, Losses], streams: Mapping[str, BatchSource], weight: float
) -> dict[str, Losses]:
    """`losses` with `silent_start` added to streams whose losses leave the time of emission to the model."""
    begin = {"weight": weight, "until": _SILENT_START_UNTIL, "loss": kdasr.losses.silent_start}
    return {
        stream: {**terms, "silent_start": begin}
        if begins_in_silence(terms) and not isinstance(streams.get(stream), Impressions)
        else terms
        for stream, terms in losses.items()
    }


def _unlabelled(
    folders: Sequence[str] | Impressions, labels: Sequence[str], teacher: str | None, **settings: Any
) -> BatchSource:
    if isinstance(folders, Impressions):
        check_impressions(
            folders,
            teacher,
            labels=labels,
            unit_map=settings["student"].unit_map,
            spoil=settings["spoil"],
            mix=settings["mix"],
            max_unlabelled_utterances=settings["max_utterances"],
        )
        return folders
    if not folders:
        raise ConfigError(
            "the schedule uses unlabelled audio, but the recipe has none",
            where="unlabelled",
            fix="Set `unlabelled` to folders of audio shards, or remove unlabelled from the schedule.",
        )
    return Stream([Path(folder) for folder in folders], labels=_label_folders(labels, teacher), **settings)


def _label_folders(folders: Sequence[str], teacher: str | None) -> list[LabelFolder]:
    """Folders of soft labels, which must be those of `teacher` if it is given."""
    if not folders:
        return []
    # The teacher's own features do not matter; its frames and classes are checked against the student's.
    expect = {} if teacher is None else {"teacher_hash": teacher_hash(teacher)}
    return [LabelFolder(Path(folder), expect=expect) for folder in folders]


def weighted(losses: Losses) -> dict[str, tuple[float | Fading, Any]]:
    """A recipe's losses as weights and functions by name."""
    return {term: (_weight(entry), entry["loss"]) for term, entry in losses.items()}


def _weight(entry: Mapping[str, Any]) -> float | Fading:
    weight, until = float(entry["weight"]), entry.get("until")
    return weight if until is None else Fading(weight, float(until))
