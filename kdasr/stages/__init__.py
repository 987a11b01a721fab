"""The stages of a recipe, as functions: they take settings and write into the work folder.

Each stage's keyword arguments are the keys of its YAML. The work itself is done elsewhere; the functions
here assemble and check paths, units, streams and models.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdasr.arguments import fitting
from kdasr.devices import usable_device
from kdasr.errors import ConfigError, SoftLabelError, printable, without_passwords
from kdasr.features import FRAME_SHIFT_MS
from kdasr.interfaces import StreamingModel
from kdasr.labelling import Settings, TeacherSource, heard_texts, sharing_ranks, summary_text
from kdasr.labelling import label as label_shards
from kdasr.labelling import retokenise as retokenise_labels
from kdasr.models import load_model
from kdasr.reasons import Kind, Reasons, counted, lines_of
from kdasr.results import HYPOTHESES_FOLDER, MISSING, check_name
from kdasr.shards import list_shards
from kdasr.spikes import SPIKES_FILE
from kdasr.stages.checks import check_folders, check_train, of_key
from kdasr.stages.training import make_units, train
from kdasr.storage import remove_leftovers
from kdasr.streaming import set_chunk_ms, trained_chunks_ms

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
    readers: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """Write a corpus as audio shards; `settings` are specific to the corpus, and `readers` processes read it.

    If a run reads two folders, its recipes may call the one without transcripts `unlabelled_corpus`, so
    that each can be given on the command line.
    """
    folder = corpus_folder(name=name, corpus=corpus, unlabelled_corpus=unlabelled_corpus)
    from data_prep import prepare as prepare_corpus

    shards = prepare_corpus(
        name, corpus=Path(folder) if folder else None, out=Path(out), seed=seed, readers=readers, **settings
    )
    return {split: len(paths) for split, paths in shards.items()}


def corpus_folder(*, name: str, **keys: Any) -> str | None:
    """The folder of the corpus that `prepare` reads; None for a corpus without a folder.

    `keys` are those of the recipe, which has `corpus` or `unlabelled_corpus`, whichever is to be given.

    Raises:
        ConfigError: no folder is given.
    """
    folders: list[str | None] = [keys.get(key) for key in ("corpus", "unlabelled_corpus")]
    folder = folders[0] if folders[0] is not None else folders[1]
    if folder is None and name != "synth":
        key = "corpus" if "corpus" in keys or "unlabelled_corpus" not in keys else "unlabelled_corpus"
        raise ConfigError(
            f"`prepare {name}` needs the folder of its corpus", where=key, fix=f"Add --{key} DIR."
        )
    return folder


def check_corpus(*, name: str, out: str, seed: int = 1, **settings: Any) -> None:
    """Check in advance that `prepare` could start with these arguments.

    Raises:
        ConfigError: a bad setting, or no folder.
        CorpusError: the folder does not contain the corpus.
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
    """Write a teacher's soft labels for unlabelled shards; see `kdasr.labelling.label`.

    Processes started by `torchrun` share the shards as the jobs of an array do.

    Raises:
        SoftLabelError: some shards could not be labelled; they are named, and all others are done. Or no
            utterance of the whole job got labels, in this or an earlier call.
    """
    job = sharing_ranks(engine=engine, num_shards=num_shards)
    if not job.alone and job.first:
        print(
            f"{job.count} processes share the shards; the progress shown is that of the first",
            file=sys.stderr,
        )
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
            f"{counted(len(failed) + len(not_tried), 'shard')} without labels",
            where=out,
            got="; ".join(told),
            fix="Remove the cause and run the same command again: finished shards are not labelled again.",
        )
    # A job of an array cannot tell what the others labelled.
    if num_shards == 1 and not summary["labelled"]:
        raise _nothing_labelled(out, summary["reasons"])
    if job.first:
        print(f"the labels are in {without_passwords(out)}", file=sys.stderr)
    # The manifests name the utterances left out; the summary above counted them by reason.
    return {name: value for name, value in summary.items() if name not in ("failed", "reasons")}


def _nothing_labelled(out: str, kinds: Sequence[Kind]) -> SoftLabelError:
    return SoftLabelError(
        "no utterance received labels",
        where=out,
        got="; ".join(f"{one.reason} ({one.times:,} utterances)" for one in kinds[:3]),
        fix="Use filters that keep more, or a teacher that recognises something in this audio, and label "
        "again with `--overwrite true`.",
    )


def _compare_spikes(board: Any, teacher: str, student: str) -> None:
    """Write the histogram of spikes; if that fails, only print why, since everything else was measured."""
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
    """Write a teacher's transcripts as labels in a student's units; see `kdasr.labelling.retokenise`.

    `units` is a folder with units (of a model, or of labels), a description of units, or a teacher. Word
    pieces are learnt from the transcripts in the folders `labelled` or, without any, from the teacher's
    transcripts. Files made from other labels are replaced only with `overwrite`.

    Raises:
        SoftLabelError: not a single utterance has a label.
    """
    check_folders(urls=True, audio=[audio], labels=[labels])
    check_folders(labelled=labelled)
    units_made = make_units(units, [Path(one) for one in labelled], 0, others=heard_texts(audio, labels))
    found = retokenise_labels(audio=audio, labels=labels, out=out, units=units_made, overwrite=overwrite)
    for line in lines_of(Reasons(found.failed.items()).commonest(), "without labels"):
        print(printable(line), file=sys.stderr)
    if not found.utterances:
        raise SoftLabelError(
            "no utterance has a label in these units",
            where=out,
            got=f"{len(found.failed)} utterances without labels",
            fix="The reasons are above. `kdasr heard` shows the teacher's transcripts: perhaps they have no "
            "words, or letters that these units lack.",
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
    student's own. With `dev`, folders of labelled shards, an int8 file whose WER is more than
    `max_wer_rise` points worse is refused. Returns how exact each of the `files` is, and why others were
    `refused`, which are not written.
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
        print(told if shards else f"{told}; measure it with --dev", file=sys.stderr)
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
    """A warning if the student's chunks are smaller than all that it was trained with."""
    if not (trained_ms := trained_chunks_ms(student)):
        return None
    chunk_ms = student.chunk_frames * FRAME_SHIFT_MS * student.subsampling
    if not chunk_ms or any(0 < size_ms <= chunk_ms for size_ms in trained_ms):
        return None
    sizes = ", ".join(f"{size_ms} ms" if size_ms else "full context" for size_ms in trained_ms)
    return (
        f"chunks of {chunk_ms} ms are smaller than those used in training ({sizes}), which reduces accuracy"
    )


def refused_files(exported: Mapping[str, Any]) -> list[str]:
    """A line for each file that an export did not write; `exported` may be from an older release."""
    return [f"{path} was not written: {reason}" for path, reason in exported.get("refused", {}).items()]


def check_export(*, format: str = "onnx", **_: Any) -> None:
    """Raise ConfigError for an unknown format, before there is anything to export."""
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
    """Measure models on test shards and add their rows to `results` (a results.json); the row of a file that
    its export refused gives the reason.

    `test` is a list of folders, or maps the name of each test set to a list. `models` maps a row's name to
    `{path: MODEL, chunk_by_chunk: false, trained: FOLDER, chunk_ms: 320, after_noise_s: 2.0}`: `path` is a
    model folder, an .onnx file or a pretrained teacher; `chunk_ms` the audio in a chunk, if not the
    model's own (0 for full context); `trained` the folder it was exported from; `after_noise_s` seconds of
    noise before each utterance, if run chunk by chunk. `decoder` is "greedy" or "beam"; the beam is
    restricted to the words of `lexicon`, text files or folders of labelled shards. `spikes` names two
    rows, teacher and student, whose spikes to compare on the first test set, of which an utterance is
    also kept as an example. `device` is for pretrained teachers; by default a GPU if there is one.
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
                said += f", {passed_over} utterances without transcript skipped"
            title = f"{name}: {model}" if name else model
            summary[title] = said
            # All rows take hours on LibriSpeech, and a log file has no bar.
            print(f"{title}: {said}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if number == 0:
            (Path(results).parent / SPIKES_FILE).unlink(missing_ok=True)  # from an earlier evaluation
            if spikes:
                _compare_spikes(board, *spikes)
            board.write_example()
    hypotheses = Path(results).parent / HYPOTHESES_FOLDER
    for folder in (Path(results).parent, hypotheses, *hypotheses.glob("*")):
        remove_leftovers(folder)
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
    """Check the arguments of `evaluate` as far as possible before the models exist.

    Raises:
        ConfigError: there is nothing to measure, or a model cannot be measured with these settings.
    """
    from kdasr.evaluation import check_decoder
    from kdasr.scoreboard import check_row

    for setting, given in (("models", models), ("test", test)):
        if not given:
            raise ConfigError(
                "there is nothing to evaluate", where=setting, expected="one or more", got=given
            )
    check_decoder(decoder, lexicon)
    _test_sets(test)
    for model, settings in models.items():
        fitting(model, str, "the name of a row in models")
        check_name("the name of a row", model, "models")
        check_row(model, settings)
    if spikes and (len(spikes) != 2 or not set(spikes) <= set(models)):
        raise ConfigError(
            "spikes can be compared only between two rows",
            where="spikes",
            expected=f"[teacher, student], two of {', '.join(models)}, or null for no comparison",
            got=list(spikes),
        )


def _test_sets(test: Sequence[str] | Mapping[str, Sequence[str]]) -> list[tuple[str | None, Sequence[str]]]:
    if not isinstance(test, Mapping):
        return [(None, test)]
    sets: list[tuple[str | None, Sequence[str]]] = [
        (name, fitting(folders, Sequence[str], f"test.{name}")) for name, folders in test.items()
    ]
    for name, folders in sets:
        check_name("the name of a test set", fitting(name, str, "the name of a set in test"), "test")
        if not folders:
            raise ConfigError(
                "there is nothing to evaluate", where=f"test.{name}", expected="folders", got=[]
            )
    return sets
