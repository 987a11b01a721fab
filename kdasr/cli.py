"""The command line: `kdasr VERB …`. Each verb parses its arguments here and works elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep import corpora, explained
from export.commands import add_commands
from kdasr import version
from kdasr.arguments import check_keywords, fitting
from kdasr.errors import ConfigError, KdasrError, UnitsError, printable, without_passwords

# Verbs that the processes started by `torchrun` may run together.
_FOR_ALL = ("run", "train", "label", "evaluate")
# Verbs that resume from their finished parts when called again.
_GO_ON = frozenset({"run", "prepare", "train", "label", "retokenise"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake gives one line on stderr and exit status 2. Status 1: a check found
    something wrong, or an export left a file out; stderr or stdout says what."""
    parser = build_parser()
    words = sys.argv[1:] if argv is None else argv
    try:
        arguments, rest = parser.parse_known_args([_with_dashes(word) for word in words])
        settings = _settings(rest)
        if settings and not arguments.takes_settings:
            raise ConfigError(
                f"unknown option --{next(iter(settings))}", fix=f"See kdasr {arguments.verb} --help."
            )
        return _run_by_all(arguments, settings)
    except KdasrError as error:
        print(f"kdasr: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except PermissionError as error:
        fix = "Choose another path, or change the permissions of this one."
        what = printable(str(error.filename or error))
        print(f"kdasr: {what}: no permission to access it. {fix}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, …
        print(f"kdasr: {error}", file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:
        if error.encoding == "utf-8":
            raise
        print(f"kdasr: {_no_utf_8(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = (
            "; run the same command again to resume from the finished parts"
            if _GO_ON.intersection(words[:1])
            else ""
        )
        print(f"kdasr: interrupted{goes_on}", file=sys.stderr)
        return 130


def _no_utf_8(error: UnicodeEncodeError) -> ConfigError:
    return ConfigError(
        "the locale's encoding lacks a letter of a text or of a file's name",
        expected="UTF-8",
        got=f"{error.encoding}, and {error.object[error.start : error.end]!r}",
        fix="Choose a locale with UTF-8 (export LC_ALL=C.UTF-8), without PYTHONUTF8=0 and PYTHONIOENCODING.",
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="kdasr",
        description="Train on-device streaming speech recognisers by distillation.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show kdasr's version")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, run: Any, help_text: str, *, settings: bool = False, add_help: bool = True
    ) -> argparse.ArgumentParser:
        tail = " Any key of the recipe can be set with --KEY VALUE." if settings else ""
        text = f"{help_text}.{tail}"
        sub = verbs.add_parser(name, help=help_text, description=text, allow_abbrev=False, add_help=add_help)
        sub.set_defaults(run=run, takes_settings=settings)
        return sub

    def of_recipe(sub: argparse.ArgumentParser, help_text: str, what: str = "recipe") -> None:
        sub.add_argument(what, type=Path, help=help_text)
        sub.add_argument(
            "-h", "--help", action=_RecipeHelp, nargs=0, help=f"show this help; after a {what}, also its keys"
        )

    run = verb("run", _run, "run every stage of a folder of recipes", settings=True, add_help=False)
    of_recipe(run, "e.g. recipes/mini", "folder")
    part = run.add_mutually_exclusive_group()
    part.add_argument(
        "--only", metavar="STAGE", help="run only this stage, whether or not the others are done"
    )
    part.add_argument("--until", metavar="STAGE", help="stop after this stage, as if it were the last")

    prepare = verb("prepare", _prepare, "convert a corpus into audio shards", settings=True, add_help=False)
    prepare.add_argument("name", help=f"{', '.join(corpora())}, or a recipe .yaml")
    prepare.add_argument(
        "-h", "--help", action=_CorpusHelp, nargs=0, help="show this help; after a corpus, also its settings"
    )
    prepare.add_argument("--corpus", type=Path, help="folder of the corpus")
    prepare.add_argument("--out", type=Path, help="folder for the shards")
    prepare.add_argument("--readers", type=int, metavar="N", help="processes that read the audio")

    for name, text in (
        ("train", "train the teacher or student of a recipe"),
        ("label", "write a teacher's soft labels for unlabelled shards"),
        ("retokenise", "write a teacher's transcripts as labels in a student's units"),
        ("evaluate", "measure the models of a recipe on its test shards"),
    ):
        of_recipe(verb(name, _recipe, text, settings=True, add_help=False), "a recipe .yaml")

    plan = verb(
        "plan",
        _plan,
        "estimate the cost of a label job from a sample of its shards",
        settings=True,
        add_help=False,
    )
    of_recipe(plan, "the recipe .yaml of the label job")
    plan.add_argument(
        "--sample-shards", type=int, default=3, help="shards to label for the estimate (default: 3)"
    )
    plan.add_argument("--price-per-worker-hour", type=float, default=0.0, help="in any currency")

    heard = verb("heard", _heard, "print the transcripts in a teacher's labels, and their error rate")
    select = verb("select", _select, "keep the labels of the hours with the highest confidence")
    for sub in (heard, select):
        sub.add_argument("--audio", required=True, metavar="SHARDS", help="the audio that was labelled")
        sub.add_argument("--labels", required=True, metavar="LABELS", help="its labels")
        sub.add_argument(
            "--measure",
            default="best_path",
            help="confidence measure: best_path (default), spikes or entropy",
        )
    heard.add_argument("--key", help="show one utterance: the teacher's posteriors, frame by frame")
    select.add_argument("--out", required=True, metavar="LABELS", help="folder for the kept labels")
    select.add_argument("--hours", type=float, required=True, help="hours of audio to keep at most")

    # All its settings are declared here: argparse would take the value of another one for the recipe.
    export = verb("export", _export, "export a student for devices", settings=True)
    export.add_argument("recipe", type=Path, nargs="?", help="a recipe .yaml (or use --model and --out)")
    export.add_argument("--model", help="folder of a trained student")
    export.add_argument("--out", help="folder for the exported files")
    export.add_argument("--format", help="onnx (default), wave-onnx or executorch")
    export.add_argument("--chunk-ms", type=int, help="ms of audio per chunk (default: the student's own)")
    export.add_argument(
        "--int8",
        nargs="?",
        const="true",
        type=str.lower,
        choices=("true", "false"),
        help="whether to write an int8 file too (default: true)",
    )
    export.add_argument(
        "--no-int8", dest="int8", action="store_const", const="false", help="the same as --int8 false"
    )
    export.add_argument(
        "--dev",
        action="append",
        metavar="SHARDS",
        help="labelled shards, or a [list, of, them], to measure WER on and check int8 with",
    )
    export.add_argument(
        "--max-wer-rise",
        type=float,
        help="largest rise in WER by int8 on --dev, in percentage points (default: 0.5)",
    )
    export.add_argument("--name", help="name of the model in its card")

    add_commands(verb)

    report = verb("report", _report, "print the results of a work folder and write its HTML report")
    report.add_argument("--work-dir", type=Path, required=True)

    verify = verb("verify", _verify, "check folders of audio shards against their manifests")
    verify.add_argument("folders", nargs="+", metavar="FOLDER", help="folder or URL of audio shards")
    verify.add_argument("--labels", help="also check the soft labels in this folder; needs a single FOLDER")

    verb("doctor", _doctor, "report which parts of kdasr work on this machine")
    return parser


def _run_by_all(arguments: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Run the verb, in each process if `torchrun` has started several."""
    # Before torch, whose C code imports numpy and drops exceptions raised meanwhile, even Ctrl-C.
    import numpy  # noqa: F401

    from kdasr.ranks import joined

    with joined() as ranks:
        if not ranks.alone and arguments.verb not in _FOR_ALL:
            raise ConfigError(
                f"kdasr {arguments.verb} cannot run in several processes",
                where="torchrun",
                expected=", ".join(_FOR_ALL),
            )
        return int(arguments.run(arguments, settings) or 0)


def _with_dashes(word: str) -> str:
    """The option with dashes instead of underscores, since recipes and users write chunk_ms, and with a
    leading ~/ in its value expanded, which a shell does not do after an equals sign."""
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    # A Path would lose a slash at its end.
    at_home = os.path.expanduser(value) if value.startswith("~/") else value  # noqa: PTH111
    return name.replace("_", "-") + equals + at_home


def _settings(rest: Sequence[str]) -> dict[str, Any]:
    """The values of `--key value` and `--key=value`, the last one of each key; dashes become underscores."""
    from kdasr.recipe import parse_value

    settings: dict[str, Any] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"unexpected argument {word!r}", expected="--key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"the option --{key} needs a value")
            value = words.pop(0)
        settings[key.replace("-", "_")] = parse_value(value)
    return settings


def _run(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from kdasr.pipeline import run_folder
    from kdasr.ranks import ranks
    from kdasr.report import print_results, write_report

    work_dir = run_folder(arguments.folder, settings, arguments.only, arguments.until)
    if not ranks().first or arguments.only is not None or arguments.until is not None:
        return
    _transcribe_live(work_dir)
    print_results(work_dir)
    print(f"report: {write_report(work_dir)}")


def _transcribe_live(work_dir: Path) -> None:
    """Print what the exported student recognises in the example WAV, chunk by chunk."""
    from export.runtime import FLOAT_FILE, INT8_FILE
    from export.sources import pieces_of
    from export.transcribe import open_recogniser
    from kdasr.audio import load

    example, folder = work_dir / "example.wav", work_dir / "export" / "onnx"
    model = next((folder / name for name in (INT8_FILE, FLOAT_FILE) if (folder / name).exists()), None)
    if not example.exists() or model is None:
        return
    print(f"$ kdasr transcribe --stream --model {model} {example}")
    *partials, final = open_recogniser(model).listen(pieces_of(load(example)), str(example))
    for partial in partials[:-1]:
        print(f"  {partial.text} …")
    print(f"{final.source}\t{final.text}\n")


class _CorpusHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        name = getattr(namespace, "name", None)
        print(parser.format_help())
        if name in corpora():
            print(f"{name}: {explained(name)}")
        parser.exit()


class _Version(argparse.Action):
    """Looks the version up only when it is shown: that takes longer than parsing a command line."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"kdasr {version()}")
        parser.exit()


class _RecipeHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        print(parser.format_help())
        if folder := getattr(namespace, "folder", None):
            from kdasr.recipe import explained_run

            print(explained_run(folder))
        elif recipe := getattr(namespace, "recipe", None):
            from kdasr.pipeline import taken_keys
            from kdasr.recipe import explained as explained_recipe

            print(explained_recipe(recipe, taken_keys()))
        parser.exit()


def _prepare(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from kdasr.pipeline import run_recipe
    from kdasr.reasons import counted
    from kdasr.stages import prepare

    paths = {"corpus": arguments.corpus, "out": arguments.out}
    given: dict[str, Any] = {name: str(path) for name, path in paths.items() if path is not None}
    if arguments.readers is not None:
        given["readers"] = arguments.readers
    if arguments.name.endswith(".yaml"):
        result = run_recipe(Path(arguments.name), {**settings, **given}, expected_stage="prepare")
    elif arguments.out is None:
        raise ConfigError("the option --out is missing", expected="a folder for the shards")
    else:
        if "name" in settings:
            raise ConfigError(
                "the corpus is given as the first argument, not as an option",
                where="--name",
                got=settings["name"],
            )
        options = {"name": arguments.name, **settings, **given}
        check_keywords(prepare, options, "prepare", positional=0)
        result = prepare(**options)
    for split, shards in result.items():
        print(f"{split}\t{counted(shards, 'shard')}")


def _recipe(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from kdasr.pipeline import run_recipe
    from kdasr.ranks import ranks

    result = run_recipe(arguments.recipe, settings, expected_stage=arguments.verb)
    if not ranks().first or arguments.verb == "label":  # label prints its own summary
        return
    for name, value in result.items():
        if value is not None:
            print(f"{name}\t{_said(value)}")


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _export(arguments: argparse.Namespace, settings: dict[str, Any]) -> int:
    from kdasr.pipeline import load_arguments, run_recipe
    from kdasr.stages import export, refused_files

    names = ("model", "out", "format", "chunk_ms", "max_wer_rise", "name")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.int8 is not None:
        given["int8"] = arguments.int8 == "true"
    if arguments.dev is not None:
        given["dev"] = _listed(arguments.dev, "--dev")
    if arguments.recipe is not None:
        settings = {**settings, **given}
        if arguments.max_wer_rise is not None:
            _check_gate(load_arguments(arguments.recipe, settings, expected_stage="export"))
        result = run_recipe(arguments.recipe, settings, expected_stage="export")
    elif not {"model", "out"} <= set(given):
        raise ConfigError("arguments are missing", expected="a recipe, or --model DIR --out DIR")
    elif settings:
        raise ConfigError(f"unknown option --{next(iter(settings))}", fix="See kdasr export --help.")
    else:
        if arguments.max_wer_rise is not None:
            _check_gate(given)
        result = export(**given)
    for path, figures in result["files"].items():
        print(f"{path}\t{figures}", flush=True)
    for line in refused_files(result):
        print(f"kdasr: {line}", file=sys.stderr)
    return 1 if result["refused"] else 0


def _check_gate(export: Mapping[str, Any]) -> None:
    """Raise ConfigError if `--max-wer-rise` limits nothing; set in a recipe instead, it may go unused."""
    if not export.get("int8", True) or not export.get("dev"):
        raise ConfigError(
            "this option has no effect here",
            where="--max-wer-rise",
            expected="an int8 file, and --dev SHARDS to measure its WER on",
            got="no int8 file" if not export.get("int8", True) else "no dev shards",
        )


def _listed(texts: Sequence[str], option: str) -> Sequence[str]:
    """The folders of an option that may be repeated, each time with one folder or a list as in recipes."""
    from kdasr.recipe import parse_value

    values = [parse_value(text) for text in texts]
    folders = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return list(fitting(folders, Sequence[str], option))


def _report(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from kdasr.report import print_results, write_report

    print_results(arguments.work_dir)
    print(f"report: {write_report(arguments.work_dir)}")


def _verify(arguments: argparse.Namespace, settings: dict[str, Any]) -> int:
    from kdasr.labelling import verify_audio, verify_labels

    problems = [problem for folder in arguments.folders for problem in verify_audio(folder)]
    if arguments.labels is not None:
        if len(arguments.folders) != 1:
            raise ConfigError(
                "soft labels can be checked for only one audio folder at a time",
                where="--labels",
                got=arguments.folders,
            )
        problems += verify_labels(arguments.folders[0], arguments.labels)
    print(printable(without_passwords("\n".join(problems))) if problems else "no problems found")
    return 1 if problems else 0


def _plan(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from kdasr.labelling import plan, plan_text
    from kdasr.pipeline import load_arguments

    job = load_arguments(arguments.recipe, settings, expected_stage="label")
    names = ("teacher", "audio", "out", "settings", "workers", "device")
    prediction = plan(
        **{name: job[name] for name in names if name in job},
        sample_shards=arguments.sample_shards,
        price_per_worker_hour=arguments.price_per_worker_hour,
    )
    print(plan_text(prediction))


def _heard(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from kdasr.labelling import heard, heard_frames, heard_summary, own_scale
    from kdasr.storage import is_url

    found = []
    try:
        if arguments.key is not None:
            frames = heard_frames(audio=arguments.audio, labels=arguments.labels, key=arguments.key)
            print(printable("\n".join(frames)))
            return
        for item in heard(audio=arguments.audio, labels=arguments.labels, measure=arguments.measure):
            sure = "-" if item.confidence is None else f"{own_scale(item.confidence, arguments.measure):.3f}"
            place = [item.source or "", "" if item.offset is None else f"{item.offset:.1f}"]
            text = item.failure if item.text is None else item.text
            cells = [item.key, sure, text, *place, item.reference or ""]
            print(printable("\t".join(cells).rstrip("\t")))
            found.append(item)
    except UnitsError as error:
        swapped = "A folder of labels has the units of its teacher: are --audio and --labels swapped?"
        raise error.told_of(f"--labels: {error.where}", fix=error.fix or swapped) from error
    lines = heard_summary(found, arguments.measure)
    if is_url(arguments.audio):
        lines.append("no error rate: transcripts are read only from audio on this machine")
    print("\n".join(lines), file=sys.stderr)


def _select(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from kdasr.labelling import bound, select
    from kdasr.reasons import counted, duration

    chosen = select(
        audio=arguments.audio,
        labels=arguments.labels,
        out=arguments.out,
        hours=arguments.hours,
        measure=arguments.measure,
    )
    print(
        f"kept {counted(chosen.chosen, 'utterance')}, {duration(3600 * chosen.hours)} of "
        f"{duration(3600 * chosen.hours_before)}; "
        f"their {arguments.measure} is {bound(arguments.measure)} {chosen.threshold:.3f}"
    )


def _doctor(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from kdasr.doctor import print_diagnosis

    print_diagnosis()


if __name__ == "__main__":
    sys.exit(main())
