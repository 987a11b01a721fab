"""The verbs as recipes call them: settings in, files in the work folder out.

Each function here is one stage; its keyword arguments are the keys of its YAML. What they do is
done elsewhere; here paths, units, streams and models are put together and checked.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdasr.delay import delay_from, measure_offsets
from kdasr.errors import ConfigError, SoftLabelError
from kdasr.features import FRAME_SHIFT_MS, feature_hash
from kdasr.labelling import Prediction, Settings, TeacherSource, summary_text
from kdasr.labelling import label as label_shards
from kdasr.labelling import plan as plan_labels
from kdasr.loader import Stream, texts_of
from kdasr.models import load_model, read_card
from kdasr.shards import list_shards
from kdasr.soft_labels import LabelFolder
from kdasr.streaming import set_chunk_ms
from kdasr.text import CharUnits, Units, load_units, train_sentencepiece
from kdasr.training import Optimisation, Training

Losses = Mapping[str, Mapping[str, Any]]


def prepare(
    *, name: str, out: str, corpus: str | None = None, seed: int = 1, **settings: Any
) -> dict[str, Any]:
    """Write a corpus as audio shards; `settings` are those of the corpus."""
    if corpus is None and name != "synth":
        raise ConfigError(
            f"the corpus {name} needs the folder it lies in", where="corpus", fix="Add --corpus DIR."
        )
    from data_prep import prepare as prepare_corpus

    shards = prepare_corpus(
        name, corpus=Path(corpus) if corpus else None, out=Path(out), seed=seed, **settings
    )
    return {split: len(paths) for split, paths in shards.items()}


def train(
    *,
    name: str,
    out: str,
    model: Callable[..., Any],
    units: str | Mapping[str, Any],
    labelled: Sequence[str],
    dev: Sequence[str],
    optimisation: Optimisation,
    labelled_losses: Losses,
    batch_seconds: float,
    checkpoints: str,
    seed: int = 1,
    unlabelled: Sequence[str] = (),
    labels: Sequence[str] = (),
    teacher: str | None = None,
    unlabelled_losses: Losses | None = None,
    delay_reference: str | None = None,
    delay_margin_frames: int = 1,
    schedule: Sequence[tuple[str, int]] = (("labelled", 1),),
    speeds: Sequence[float] = (1.0,),
    augment: nn.Module | None = None,
    max_labelled_utterances: int | None = None,
    cache_gigabytes: float = 1.0,
    num_workers: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Train a teacher or a student; see the arguments of `Training` and `Stream`.

    A loss under `unlabelled_losses` whose `delay_frames` is `auto` gets the delay that is measured
    between the soft labels and the model in `delay_reference`; see `kdasr.delay`.

    `units` is `{kind: characters}`, `{kind: sentencepiece, vocab_size: N}`, or the folder of a model
    whose units to share. `labels` are folders of soft labels, one for each folder of `unlabelled`;
    with `teacher`, a model folder, labels of any other are refused.
    """
    units_built = make_units(units, [Path(folder) for folder in labelled], seed)
    # Here, so that two trainings with the same seed begin with the same weights.
    torch.manual_seed(seed)
    built = model(vocab_size=units_built.vocab_size)
    cache_bytes = int(cache_gigabytes * 2**30 / 2)
    streams = {
        "labelled": Stream(
            [Path(folder) for folder in labelled],
            batch_seconds,
            seed,
            units=units_built,
            speeds=tuple(speeds),
            max_utterances=max_labelled_utterances,
            cache_bytes=cache_bytes,
        )
    }
    card: dict[str, Any] = {}
    if any(stream == "unlabelled" for stream, _ in schedule):
        streams["unlabelled"] = _unlabelled(
            unlabelled,
            labels,
            built,
            units_built,
            teacher,
            batch_seconds=batch_seconds,
            seed=seed,
            cache_bytes=cache_bytes,
        )
        unlabelled_losses, card = _with_delay(
            name, unlabelled_losses or {}, streams["unlabelled"], delay_reference, delay_margin_frames
        )
    training = Training(
        name=name,
        model=built,
        units=units_built,
        streams=streams,
        schedule=[(stream, count) for stream, count in schedule],
        losses={
            "labelled": _weighted("labelled_losses", labelled_losses),
            "unlabelled": _weighted("unlabelled_losses", unlabelled_losses or {}),
        },
        dev=Stream(
            [Path(folder) for folder in dev], batch_seconds, seed, units=units_built, cache_bytes=2**28
        ),
        optimisation=optimisation,
        augment=augment,
        seed=seed,
        checkpoints=Path(checkpoints),
        num_workers=num_workers,
        device=device or default_device(),
    )
    return training.run(Path(out), card=card)


def make_units(units: str | Mapping[str, Any], labelled: Sequence[Path], seed: int) -> Units:
    """Units from a description, or those of an existing model."""
    if isinstance(units, str):
        return load_units(Path(units))
    kind = units.get("kind")
    if kind == "characters":
        return CharUnits()
    if kind == "sentencepiece":
        return train_sentencepiece(texts_of(labelled), vocab_size=int(units["vocab_size"]), seed=seed)
    raise ConfigError(
        "units of an unknown kind",
        where="units",
        expected="characters, sentencepiece, or a model folder",
        got=units,
    )


def _unlabelled(
    folders: Sequence[str],
    labels: Sequence[str],
    model: Any,
    units: Units,
    teacher: str | None,
    **settings: Any,
) -> Stream:
    if len(folders) != 1 or len(labels) != 1:
        raise ConfigError(
            "unlabelled audio and its soft labels go in pairs",
            where="unlabelled, labels",
            expected="one folder each",
            got=f"{len(folders)} and {len(labels)}",
        )
    expect: dict[str, object] = {
        "units_hash": units.hash,
        "vocab_size": units.vocab_size,
        "feature_hash": feature_hash(),
        "frame_shift_ms": FRAME_SHIFT_MS,
        "subsampling": model.subsampling,
    }
    if teacher is not None:
        expect["teacher_hash"] = read_card(Path(teacher))["weights_sha256"]
    return Stream([Path(folders[0])], labels=LabelFolder(Path(labels[0]), expect=expect), **settings)


def _with_delay(
    name: str, losses: Losses, stream: Stream, reference: str | None, margin_frames: int
) -> tuple[Losses, dict[str, Any]]:
    """The losses with `delay_frames: auto` replaced by what is measured, and that as facts for the card."""
    waiting = [
        term
        for term, entry in losses.items()
        if isinstance(entry["loss"], functools.partial)
        and entry["loss"].keywords.get("delay_frames") == "auto"
    ]
    if not waiting:
        return losses, {}
    if reference is None:
        raise ConfigError(
            "an automatic delay needs a model to measure it with",
            where=f"unlabelled_losses.{waiting[0]}.loss.delay_frames",
            fix="Name a student trained on transcripts alone as delay_reference, or give a number.",
        )
    histogram = measure_offsets(stream, load_model(Path(reference)).model)
    delay_frames = delay_from(histogram, margin_frames)
    print(
        f"{name}: the reference spikes {histogram.median_ms:+.0f} ms from the teacher (median of "
        f"{histogram.matched} spikes); the teacher is delayed by {delay_frames} frames",
        file=sys.stderr,
    )
    for term in waiting:
        delayed = functools.partial(losses[term]["loss"], delay_frames=delay_frames)
        losses = {**losses, term: {**losses[term], "loss": delayed}}
    return losses, {"delay_frames": delay_frames, "reference_offset_median_ms": histogram.median_ms}


def _weighted(name: str, losses: Losses) -> dict[str, tuple[float, Any]]:
    for term, entry in losses.items():
        if set(entry) != {"weight", "loss"} or not callable(entry["loss"]):
            raise ConfigError(
                "a loss is a weight and a function",
                where=f"{name}.{term}",
                expected="{weight: 1.0, loss: !name:kdasr.losses.NAME }",
            )
    return {term: (float(entry["weight"]), entry["loss"]) for term, entry in losses.items()}


def label(
    *,
    teacher: str | TeacherSource,
    audio: str,
    out: str,
    settings: Settings | None = None,
    engine: str = "inline",
    workers: int = 1,
    device: str | None = None,
    shard_index: int = 0,
    num_shards: int = 1,
    verify: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a teacher's soft labels beside unlabelled shards; see `kdasr.labelling.label`.

    Raises:
        SoftLabelError: some shards could not be labelled; they are named, all others are done.
    """
    summary = label_shards(
        teacher=teacher,
        audio=audio,
        out=out,
        settings=settings,
        engine=engine,
        workers=workers,
        device=device or default_device(),
        shard_index=shard_index,
        num_shards=num_shards,
        verify=verify,
        overwrite=overwrite,
    )
    print(summary_text(summary), file=sys.stderr)
    if left := {**summary["shards_failed"], **dict.fromkeys(summary["shards_not_tried"], "not tried")}:
        raise SoftLabelError(
            f"{len(left)} shards have no labels",
            where=out,
            got="; ".join(f"{name}: {reason}" for name, reason in left.items()),
            fix="Run the same command again once the cause is gone: what is done is not done again.",
        )
    return summary


def plan(
    recipe: Mapping[str, Any], *, sample_shards: int = 3, price_per_worker_hour: float = 0.0
) -> Prediction:
    """What a label job would cost: label a few shards and predict hours, bytes and price from them.

    `recipe` holds the arguments of `label`.
    """
    return plan_labels(
        teacher=recipe["teacher"],
        audio=recipe["audio"],
        out=recipe["out"],
        settings=recipe.get("settings"),
        workers=recipe.get("workers", 1),
        device=recipe.get("device") or default_device(),
        sample_shards=sample_shards,
        price_per_worker_hour=price_per_worker_hour,
    )


def default_device() -> str:
    """The accelerator where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def export(
    *,
    model: str,
    out: str,
    format: str = "onnx",
    chunk_ms: int | None = None,
    name: str = "student",
    int8: bool = True,
    dev: Sequence[str] = (),
    max_wer_rise: float = 0.5,
) -> dict[str, Any]:
    """Export the student in folder `model` to `out`; see `export.to_onnx.export_onnx`.

    `format` is one of `export.formats.FORMATS`; `chunk_ms` is the audio in a chunk, None for the
    student's own. With `dev`, folders of labelled shards, an int8 file whose WER is `max_wer_rise`
    points worse is refused.
    """
    from export.formats import exporter
    from export.gate import wer_gate

    loaded = load_model(Path(model))
    if chunk_ms is not None:
        set_chunk_ms(loaded.model, chunk_ms)
    shards = [path for folder in dev for path in list_shards(Path(folder))]
    exported = exporter(format)(
        loaded.model,
        loaded.units,
        Path(out),
        weights_sha256=loaded.card["weights_sha256"],
        name=name,
        int8=int8,
        gate=wer_gate(loaded.units, shards) if shards else None,
        max_wer_rise=max_wer_rise,
    )
    return {"float32": str(exported.float_path), "int8": str(exported.int8_path), **exported.card["files"]}


def evaluate(
    *,
    test: Sequence[str],
    models: Mapping[str, Mapping[str, Any]],
    results: str,
    seed: int = 1,
    decoder: str = "greedy",
    spikes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure models on test shards and add their rows to `results` (a results.json).

    `models` maps a row's name to `{path: MODEL, chunk_by_chunk: false, trained: FOLDER}`: `path` is
    a model folder or an .onnx file, `trained` the folder it was exported from. `spikes` names two
    rows, teacher and student, whose spikes to compare.
    """
    from kdasr.scoreboard import Scoreboard

    shards = [path for folder in test for path in list_shards(Path(folder))]
    board = Scoreboard(shards, Path(results), seed=seed, decoder=decoder)
    rows = {name: board.add(name, **settings) for name, settings in models.items()}
    if spikes is not None:
        board.compare_spikes(*spikes)
    board.write_example()
    return {name: f"WER {row['wer']:.2f} %" for name, row in rows.items()}
