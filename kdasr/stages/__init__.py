"""The verbs as recipes call them: settings in, files in the work folder out.

Each function here is one stage; its keyword arguments are the keys of its YAML. What they do is
done elsewhere; here paths, units, streams and models are put together and checked.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdasr.arguments import fitting
from kdasr.devices import usable_device
from kdasr.errors import ConfigError, SoftLabelError
from kdasr.features import FRAME_SHIFT_MS
from kdasr.interfaces import StreamingModel
from kdasr.labelling import Settings, TeacherSource, heard_texts, sharing_ranks, summary_text
from kdasr.labelling import label as label_shards
from kdasr.labelling import retokenise as retokenise_labels
from kdasr.models import load_model
from kdasr.reasons import Kind, Reasons, counted, lines_of
from kdasr.results import MISSING
from kdasr.shards import list_shards
from kdasr.spikes import SPIKES_FILE
from kdasr.stages.checks import check_folders, check_train, check_units, of_key
from kdasr.stages.training import make_units, train
from kdasr.streaming import set_chunk_ms, trained_chunks_ms
from kdasr.text import Units, train_sentencepiece

__all__ = [
    "check_corpus",
    "check_train",
    "corpus_folder",
    "evaluate",
    "export",
    "label",
    "make_units",
    "prepare",
    "retokenise",
    "train",
]


def prepare(
    *,
    name: str,
    out: str,
    corpus: str | None = None,
    unlabelled_corpus: str | None = None,
    seed: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """Write a corpus as audio shards; `settings` are those of the corpus.

    A recipe of a run that reads two folders may call the one without transcripts `unlabelled_corpus`,
    so that each can be given on the command line.
    """
    folder = corpus_folder(name=name, corpus=corpus, unlabelled_corpus=unlabelled_corpus)
    from data_prep import prepare as prepare_corpus

    shards = prepare_corpus(
        name, corpus=Path(folder) if folder else None, out=Path(out), seed=seed, **settings
    )
    return {split: len(paths) for split, paths in shards.items()}


def corpus_folder(*, name: str, **keys: Any) -> str | None:
    """Where `prepare` would find its corpus; None for one that has no folder.

    `keys` are those of the recipe: of `corpus` and `unlabelled_corpus` it has the one that is to be given.

    Raises:
        ConfigError: nobody has said where.
    """
    folders: list[str | None] = [keys.get(key) for key in ("corpus", "unlabelled_corpus")]
    folder = folders[0] if folders[0] is not None else folders[1]
    if folder is None and name != "synth":
        key = "corpus" if "corpus" in keys or "unlabelled_corpus" not in keys else "unlabelled_corpus"
        raise ConfigError(
            f"`prepare {name}` is not told where its corpus lies", where=key, fix=f"Add --{key} DIR."
        )
    return folder


def check_corpus(*, name: str, out: str, seed: int = 1, **settings: Any) -> None:
    """See that `prepare` could begin with these arguments, before it is its turn.

    Raises:
        ConfigError: a bad setting, or no folder.
        CorpusError: the folder is not what the corpus should be.
    """
    from data_prep import check

    folder = corpus_folder(name=name, **settings)
    own = {key: one for key, one in settings.items() if key not in ("corpus", "unlabelled_corpus")}
    check(name, corpus=Path(folder) if folder else None, out=Path(out), **own)


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
    log: str | None = None,
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Write a teacher's soft labels beside unlabelled shards; see `kdasr.labelling.label`.

    Processes that `torchrun` has started share the shards as the jobs of an array do.

    Raises:
        SoftLabelError: some shards could not be labelled; they are named, all others are done. Or not one
            utterance of the whole job got labels, whenever that was.
    """
    job = sharing_ranks(engine=engine, num_shards=num_shards)
    if not job.alone and job.first:
        print(f"{job.count} processes share the shards; progress is that of the first", file=sys.stderr)
    summary = label_shards(
        teacher=teacher,
        audio=audio,
        out=out,
        settings=settings,
        engine=engine,
        workers=workers,
        device=device,
        shard_index=shard_index,
        num_shards=num_shards,
        verify=verify,
        overwrite=overwrite,
        log=Path(log) if log else None,
        ray_address=ray_address,
    )
    if job.first:
        print(summary_text(summary), file=sys.stderr)
    failed, not_tried = summary["shards_failed"], summary["shards_not_tried"]
    if failed or not_tried:
        told = [f"{name}: {reason}" for name, reason in list(failed.items())[:3]]
        told += ["…"] if len(failed) > 3 else []
        told += [f"{counted(len(not_tried), 'shard')} not tried"] if not_tried else []
        raise SoftLabelError(
            f"{len(failed) + len(not_tried)} shards have no labels",
            where=out,
            got="; ".join(told),
            fix="Run the same command again once the cause is gone: what is done is not done again.",
        )
    # One job of an array knows nothing of the others.
    if num_shards == 1 and not summary["labelled"]:
        raise _nothing_labelled(out, summary["reasons"])
    if job.first:
        print(f"the labels are in {out}", file=sys.stderr)
    # Who was left out is in the manifests, by name, and was said by kind above.
    return {name: value for name, value in summary.items() if name not in ("failed", "reasons")}


def _nothing_labelled(out: str, kinds: Sequence[Kind]) -> SoftLabelError:
    return SoftLabelError(
        "not one utterance got labels",
        where=out,
        got="; ".join(f"{one.reason} ({one.times:,} utterances)" for one in kinds[:3]),
        fix="Give filters that keep more, or a teacher that hears something in this audio, and label again "
        "with `--overwrite true`.",
    )


def _compare_spikes(board: Any, teacher: str, student: str) -> None:
    """Not worth a failure after all was measured: a histogram that cannot be is left out, and why is said."""
    try:
        board.compare_spikes(teacher, student)
    except ConfigError as error:
        print(f"no histogram of spikes: {error}", file=sys.stderr)


def retokenise(
    *,
    audio: str,
    labels: str,
    out: str,
    units: Any,
    labelled: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write what a teacher heard in a student's units; see `kdasr.labelling.retokenise`.

    `units` is a folder with units (of a model, or of labels), a description of units, or a teacher. Word
    pieces are learnt from the transcripts in the folders `labelled`; without any, from what the teacher
    heard. What was made of other labels is replaced only with `overwrite`.

    Raises:
        SoftLabelError: not a single utterance has a label.
    """
    check_folders(urls=True, audio=[audio], labels=[labels])
    check_folders(labelled=labelled)
    check_units(units)
    if isinstance(units, Mapping) and units["kind"] == "sentencepiece" and not labelled:
        units_made: Units = train_sentencepiece(heard_texts(audio, labels), units["vocab_size"])
    else:
        units_made = make_units(units, [Path(folder) for folder in labelled], 0)
    found = retokenise_labels(audio=audio, labels=labels, out=out, units=units_made, overwrite=overwrite)
    for line in lines_of(Reasons(found.failed.items()).commonest(), "without labels"):
        print(line, file=sys.stderr)
    if not found.utterances:
        raise SoftLabelError(
            "no utterance has a label in these units",
            where=out,
            got=f"{len(found.failed)} without",
            fix="The reasons are above. `kdasr heard` shows what the teacher heard: perhaps no word, or some "
            "with letters that these units lack.",
        )
    return {"labelled": found.utterances, "without labels": len(found.failed)}


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
    """Export the student in folder `model` to `out`; see `export.publish.export_student`.

    `format` is one of `export.formats.FORMATS`; `chunk_ms` is the audio in a chunk, None for the
    student's own. With `dev`, folders of labelled shards, an int8 file whose WER is `max_wer_rise`
    points worse is refused. What comes back says of each of the `files` how exact it is, and of those
    `refused` why; they are not there.
    """
    from export.card import figures_text
    from export.gate import wer_gate
    from export.publish import export_student

    with of_key("model"):
        loaded = load_model(Path(model))
    if chunk_ms is not None:
        set_chunk_ms(loaded.model, chunk_ms)
    with of_key("dev"):
        shards = [path for folder in dev for path in list_shards(Path(folder))]
    if told := _of_small_chunks(loaded.model):
        print(told if shards else f"{told}; measure with --dev", file=sys.stderr)
    exported = export_student(
        loaded.model,
        loaded.units,
        Path(out),
        format=format,
        weights_sha256=loaded.card["weights_sha256"],
        name=name,
        int8=int8,
        gate=wer_gate(loaded.units, shards) if shards else None,
        max_wer_rise=max_wer_rise,
    )
    files, refused = exported.card["files"].values(), exported.card["refused"].values()
    return {
        "files": {str(Path(out) / figures["file"]): figures_text(figures) for figures in files},
        "refused": {str(Path(out) / figures["file"]): figures["reason"] for figures in refused},
    }


def _of_small_chunks(student: StreamingModel) -> str | None:
    """What to say of chunks that are smaller than all that the student was trained with."""
    if not (trained_ms := trained_chunks_ms(student)):
        return None
    chunk_ms = student.chunk_frames * FRAME_SHIFT_MS * student.subsampling
    if not chunk_ms or any(0 < size_ms <= chunk_ms for size_ms in trained_ms):
        return None
    sizes = ", ".join(f"{size_ms} ms" if size_ms else "full context" for size_ms in trained_ms)
    return f"chunks of {chunk_ms} ms are smaller than those of the training ({sizes}), which costs accuracy"


def refused_files(exported: Mapping[str, Any]) -> list[str]:
    """Of what `export` gives back, or gave in an older release, a line for each file it did not write."""
    return [f"{path} was not written: {reason}" for path, reason in exported.get("refused", {}).items()]


def check_export(*, format: str = "onnx", **_: Any) -> None:
    """Raise ConfigError for a format that there is not, before there is anything to export."""
    from export.formats import format_class

    format_class(format)


def evaluate(
    *,
    test: Sequence[str] | Mapping[str, Sequence[str]],
    models: Mapping[str, Mapping[str, Any]],
    results: str,
    seed: int = 1,
    decoder: str = "greedy",
    lexicon: Sequence[str] | None = None,
    spikes: Sequence[str] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure models on test shards and add their rows to `results` (a results.json); of a file that its
    export refused, the row says why there is none.

    `test` is a list of folders, or one for each name of a test set. `models` maps a row's name to
    `{path: MODEL, chunk_by_chunk: false, trained: FOLDER, chunk_ms: 320, after_noise_s: 2.0}`: `path` is a
    model folder, an .onnx file or a pretrained teacher, `chunk_ms` the audio in a chunk where it is not the
    model's own (0 for full context), `trained` the folder it was exported from, `after_noise_s` the noise
    before each utterance that is heard chunk by chunk. `decoder` is "greedy" or "beam"; the
    beam is kept to the words of `lexicon`, text files or folders of labelled shards. `spikes` names two
    rows, teacher and student, whose spikes to compare on the first test set, of which an utterance is
    also kept as an example. `device` is for pretrained teachers: a GPU where there is one.
    """
    from kdasr.scoreboard import Scoreboard, check_model_of_row

    check_evaluation(test=test, models=models, spikes=spikes, decoder=decoder, lexicon=lexicon)
    for model, settings in models.items():
        check_model_of_row(model, settings)
    with of_key("test"):
        sets = {
            name: [path for folder in folders for path in list_shards(Path(folder))]
            for name, folders in _test_sets(test)
        }
    summary, on = {}, usable_device(device)
    for number, (name, shards) in enumerate(sets.items()):
        board = Scoreboard(
            shards,
            Path(results),
            seed=seed,
            decoder=decoder,
            lexicon=lexicon,
            test=name,
            device=on,
        )
        for model, settings in models.items():
            started = time.monotonic()
            row = board.add(model, **settings)
            said = f"left out: {row[MISSING]}" if MISSING in row else f"WER {row['wer']:.2f} %"
            if passed_over := row.get("without_transcript"):
                said += f", {passed_over} utterances without transcript passed over"
            title = f"{name}: {model}" if name else model
            summary[title] = said
            # With the audio of LibriSpeech all rows take hours, and a log file shows no bar.
            print(f"{title}: {said}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if number == 0:
            (Path(results).parent / SPIKES_FILE).unlink(missing_ok=True)  # that of before
            if spikes:
                _compare_spikes(board, *spikes)
            board.write_example()
    return summary


def check_evaluation(
    *,
    test: Sequence[str] | Mapping[str, Sequence[str]],
    models: Mapping[str, Mapping[str, Any]],
    spikes: Sequence[str] | None = None,
    decoder: str = "greedy",
    lexicon: Sequence[str] | None = None,
    **_: Any,
) -> None:
    """What is known before anything is measured, or even made, about the arguments of `evaluate`.

    Raises:
        ConfigError: there is nothing to measure, or something that cannot be measured so.
    """
    from kdasr.evaluation import check_decoder
    from kdasr.scoreboard import check_row

    for setting, given in (("models", models), ("test", test)):
        if not given:
            raise ConfigError("there is nothing to measure", where=setting, expected="one or more", got=given)
    check_decoder(decoder, lexicon)
    _test_sets(test)
    for model, settings in models.items():
        fitting(model, str, "the name of a row in models")
        check_row(model, settings)
    if spikes and (len(spikes) != 2 or not set(spikes) <= set(models)):
        raise ConfigError(
            "spikes of two rows are compared",
            where="spikes",
            expected=f"[teacher, student], two of {', '.join(models)}; null for none",
            got=list(spikes),
        )


def _test_sets(test: Sequence[str] | Mapping[str, Sequence[str]]) -> list[tuple[str | None, Sequence[str]]]:
    if not isinstance(test, Mapping):
        return [(None, test)]
    sets: list[tuple[str | None, Sequence[str]]] = [
        (name, fitting(folders, Sequence[str], f"test.{name}")) for name, folders in test.items()
    ]
    for name, folders in sets:
        if not folders:
            raise ConfigError("there is nothing to measure", where=f"test.{name}", expected="folders", got=[])
    return sets
