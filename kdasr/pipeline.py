"""Run every stage of a folder of recipes in order; a second call redoes nothing.

A stage is done if its marker in WORK_DIR/.done holds the hash of what it depends on (its resolved recipe,
without comments and who does the work, and those of the stages before it) and no model that it was given
from outside the run has changed its weights. Delete a marker to run a stage again, and with it those after
it, whose markers are deleted when it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import re
import time
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from ruamel.yaml import YAML

from kdasr import stages
from kdasr.arguments import fitting
from kdasr.beside import run_beside, usable_cores
from kdasr.devices import free_gpu_memory, usable_device
from kdasr.errors import ConfigError, KdasrError, ModelError
from kdasr.labelling import Ensemble, FolderTeacher, TeacherSource, Words, check_job, sharing_ranks
from kdasr.methods.impressions import Impressions
from kdasr.methods.teachers import FrozenTeacher
from kdasr.models import read_card, refuse_other_content
from kdasr.ranks import ranks
from kdasr.recipe import Recipe, Stage, load_recipe, parse_value, run_stages, stage_arguments
from kdasr.stages.checks import losses_of, measured_delays, read_schedule, schedule_of
from kdasr.storage import commit_bytes, is_url, remove_leftovers
from kdasr.training import Optimisation

VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": stages.prepare,
    "train": stages.train,
    "label": stages.label,
    "retokenise": stages.retokenise,
    "export": stages.export,
    "evaluate": stages.evaluate,
}
# Checks of a stage's arguments that can be made before any stage runs.
_CHECKS: dict[str, Callable[..., Any]] = {
    "prepare": stages.corpus_folder,
    "train": stages.check_train,
    "label": check_job,
    "export": stages.check_export,
    "evaluate": stages.check_evaluation,
}
# The keys that name folders; a lexicon may be a file.
_FOLDERS = (
    "labelled", "unlabelled", "labels", "labelled_soft_labels", "dev", "test", "audio",
    "teacher", "start", "units", "model", "delay_reference", "lexicon",
)  # fmt: skip
_console = Console(stderr=True)
_BY_WHOM = re.compile(r"^(device|engine|readers|workers):.*\n?", re.MULTILINE)


def run_recipe(
    path: Path, settings: Mapping[str, Any], *, expected_stage: str | None = None
) -> dict[str, Any]:
    """Run one recipe, whether or not it has been run before (its verb may still find its work done).

    Processes that `torchrun` has started train and label together; all other work is done by the first
    while the others wait.

    Raises:
        ConfigError: the recipe cannot be read, or its stage is not `expected_stage`.
    """
    return _call(_load(path, settings, expected_stage))


def load_arguments(path: Path, settings: Mapping[str, Any], *, expected_stage: str) -> dict[str, Any]:
    """The arguments that a recipe's verb would be called with.

    Raises:
        ConfigError: as `run_recipe`.
    """
    return check_recipe(_load(path, settings, expected_stage))


def _load(path: Path, settings: Mapping[str, Any], expected_stage: str | None) -> Recipe:
    recipe = load_recipe(path, settings, taken_keys())
    if expected_stage is not None and recipe.stage != expected_stage:
        raise ConfigError(
            "this recipe is for another stage",
            where=path,
            expected=expected_stage,
            got=recipe.stage,
            fix=f"Use `kdasr {recipe.stage}` or `kdasr run`.",
        )
    return recipe


def run_folder(
    folder: Path, settings: Mapping[str, Any], only: str | None = None, until: str | None = None
) -> Path:
    """Run every stage of the recipes in `folder` that is not done yet; returns the work folder.

    Stages that may run in parallel do so if there are enough cores and no GPU, whose memory they would
    share, and no recipe was edited meanwhile: a run goes by the recipes that it found. Processes that
    `torchrun` has started run the stages together, as in `run_recipe`.

    Args:
        settings: keys of the recipes by name; see `kdasr.recipe.run_stages`.
        only: the only stage to run, whether or not others are done; it is marked as done if those before
            it are.
        until: the last stage to run.

    Raises:
        ConfigError: a recipe cannot be read, or a stage or a folder that a stage needs is missing.
        ModelError: a pretrained teacher is missing.
        KdasrError: a stage failed.
    """
    todo = _read_folder(Path(folder), settings)
    work_dir = _work_dir([one.recipe for one in todo])
    _console.quiet = not ranks().first
    if only is not None:
        found = _of_name(todo, only, folder)
        group = next(group for group in _groups(todo) if found in group)
        place = todo.index(group[0])
        marks = all(_is_done(one) for one in todo[:place])
        _run(found, later=todo[place + len(group) :], marks=marks)
        return work_dir
    asked = todo if until is None else todo[: todo.index(_of_name(todo, until, folder)) + 1]
    _check_shares(asked)
    _check_there(asked)
    for group in _groups(todo):
        left = [one for one in group if one in asked and not _was_done(one)]
        may_share = len(left) > 1 and _may_share(len(left)) and _can_be_said(settings)
        # Commands read the recipes again, which may have been edited since this run began.
        if may_share and _inputs_now(folder, settings) != [one.inputs for one in todo]:
            _console.print("recipes were edited: this run goes on with those that it found", style="yellow")
            may_share = False
        if may_share:
            _console.rule(" and ".join(one.stage.name for one in left), align="left")
            commands = {one.stage.name: _command(folder, settings, one) for one in left}
            run_beside(commands, lambda line: _console.out(line, highlight=False))
            continue
        for one in left:
            _console.rule(one.stage.name, align="left")
            _run(one, later=todo[todo.index(group[-1]) + 1 :])
    return work_dir


class _Todo(NamedTuple):
    """A stage and its done-marker: once done, `marker` holds `inputs`, the hash of what the stage depends on,
    and `outside`, the weight hashes of models that no stage makes, by the keys that name them."""

    stage: Stage
    recipe: Recipe
    marker: Path
    inputs: str
    outside: dict[str, str]


def _of_name(todo: Sequence[_Todo], name: str, folder: Path) -> _Todo:
    for one in todo:
        if one.stage.name == name:
            return one
    names = ", ".join(one.stage.name for one in todo)
    raise ConfigError("no such stage", where=folder, expected=names, got=name)


def _read_folder(folder: Path, settings: Mapping[str, Any]) -> list[_Todo]:
    """The stages in order, all checked."""
    listed = run_stages(folder, settings, taken_keys())
    recipes = [(stage, load_recipe(stage.path, stage.settings, taken_keys())) for stage in listed]
    for _, recipe in recipes:
        arguments = check_recipe(recipe)
        # Checked now: the stages before it may take hours.
        if check := _CHECKS.get(recipe.stage):
            check(**arguments)
    _check_outs(recipes)
    done = _work_dir([recipe for _, recipe in recipes]) / ".done"
    todo, inputs = [], ""
    made = {Path(str(recipe.arguments.get("out"))) for _, recipe in recipes}
    for stage, recipe in recipes:
        # Without those who work: what GPUs trained is not retrained if a machine without them goes on.
        said = _without_comments(_BY_WHOM.sub("", recipe.text))
        inputs = hashlib.sha256(f"{inputs}\n{said}".encode()).hexdigest()
        todo.append(_Todo(stage, recipe, done / f"{stage.name}.json", inputs, _outside(recipe, made)))
    return todo


def _inputs_now(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """What the stages of the recipes in `folder` depend on; nothing if they cannot be read."""
    try:
        return [one.inputs for one in _read_folder(folder, settings)]
    except KdasrError:
        return []


def _outside(recipe: Recipe, made: Collection[Path]) -> dict[str, str]:
    """Weight hashes of the models, among those that no stage makes, whose folders a stage's settings name at
    any depth; missing models are skipped."""
    found = {}
    for key, text in _texts(YAML().load(recipe.text)):
        if text and not is_url(text) and not _is_under(text, made):
            with contextlib.suppress(
                ModelError, OSError, ValueError, KeyError
            ):  # most texts are not paths of model folders
                found[key] = str(read_card(Path(text))["weights_sha256"])
    return found


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a YAML, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _texts(one, f"{key}.{number}")


def _is_under(place: str, made: Collection[Path]) -> bool:
    return any(Path(place).is_relative_to(out) for out in made)


def _check_outs(recipes: Sequence[tuple[Stage, Recipe]]) -> None:
    """Raise ConfigError if two stages would write to one folder; corpora may, since their splits differ."""
    makers: dict[str, str] = {}
    for stage, recipe in recipes:
        out = recipe.arguments.get("out")
        if recipe.stage == "prepare" or not isinstance(out, str):
            continue
        if (other := makers.setdefault(out, stage.name)) != stage.name:
            raise ConfigError(
                "two stages write to the same folder",
                where=f"{other}, {stage.name}",
                got=out,
                fix="Give one of them another folder: --STAGE.out, or --STAGE.name if that is part of it.",
            )


def _check_shares(todo: list[_Todo]) -> None:
    """Check that the job's processes can share the steps of every training that is not done.

    Raises:
        ConfigError: there are more processes than batches in a step.
    """
    for one in todo:
        arguments = check_recipe(one.recipe)
        optimisation = arguments.get("optimisation")
        if isinstance(optimisation, Optimisation) and not _is_done(one):
            optimisation.check_shared_by(ranks().count, arguments["name"])


def _check_there(todo: list[_Todo]) -> None:
    """Check that what no stage makes is on this machine, rather than fail after hours of work.

    Raises:
        ConfigError: the folder of a corpus, a model or units is missing, a device cannot be used, or a
            model would replace a folder that holds something else.
        CorpusError: a corpus is not as expected.
        ModelError, MissingDependencyError: a pretrained teacher is missing or cannot be loaded.
    """
    made = {Path(str(one.recipe.arguments.get("out"))) for one in todo}
    loaded: list[TeacherSource] = []
    for one in todo:
        if _is_done(one):
            continue
        _check_device(one.recipe)
        if one.recipe.stage == "train" and isinstance(out := one.recipe.arguments.get("out"), str):
            refuse_other_content(Path(out))
        for key, value in _needed(one.recipe):
            if isinstance(value, TeacherSource) and value not in loaded:
                value.load("cpu")
                loaded.append(value)
            elif isinstance(value, str) and not (
                is_url(value) or _is_under(value, made) or Path(value).exists()
            ):
                what = "file or folder" if key.endswith("lexicon") else "folder"
                raise ConfigError(
                    f"the stage {one.stage.name} needs a {what} that does not exist",
                    where=key,
                    got=value,
                    fix=f"Set another {what}, or create this one: no stage of this run does.",
                )
        # Only the first process: all would report the same.
        if one.recipe.stage == "prepare" and ranks().first:
            stages.check_corpus(**check_recipe(one.recipe))


def _check_device(recipe: Recipe) -> None:
    """Raise ConfigError if torch cannot use the device asked for; Ray is exempt: its nodes have their own."""
    arguments = check_recipe(recipe)
    if arguments.get("device") is not None and arguments.get("engine") != "ray":
        usable_device(arguments["device"])


def _needed(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """The folders and teachers that a stage needs, with the keys that name them."""
    arguments = check_recipe(recipe)
    if recipe.stage == "prepare":
        key = "unlabelled_corpus" if arguments.get("corpus") is None else "corpus"
        yield key, stages.corpus_folder(**arguments)
        return  # folders in its other settings are parts of the corpus
    unheard: set[str] = set()
    if recipe.stage == "train":
        streams = {stream for stream, _ in read_schedule(schedule_of(arguments.get("schedule")))}
        unheard = set() if "unlabelled" in streams else {"unlabelled", "labels"}
    for key in _FOLDERS:
        if key not in unheard:
            yield from ((key, one) for one in _folders_in(arguments.get(key)))
    words = getattr(arguments.get("settings"), "words", None)
    for source in words.lexicon.sources if isinstance(words, Words) else ():
        yield "settings.words.lexicon", source
    for name, teacher in (arguments.get("teachers") or {}).items():
        yield from ((f"teachers.{name}", one) for one in _folders_in(teacher))
    for name, row in (arguments.get("models") or {}).items():
        if isinstance(row, Mapping):
            yield f"models.{name}", row.get("path")
            yield f"models.{name}.trained", row.get("trained")


def _folders_in(value: Any) -> Iterator[Any]:
    """The folders that a setting names, singly, in a list or in lists by name; other teachers as they are."""
    if isinstance(value, Ensemble | FrozenTeacher):
        yield from map(str, value.folders)  # which stages may make
    elif isinstance(value, FolderTeacher):
        yield str(value.folder)
    elif isinstance(value, Impressions):
        yield str(value.teacher)
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Mapping):
        for lists in value.values():
            yield from lists if isinstance(lists, list | tuple) else ()
    else:
        yield value


def _groups(todo: list[_Todo]) -> list[list[_Todo]]:
    """Each stage with the later ones that may run in parallel with it."""
    groups: list[list[_Todo]] = []
    for one in todo:
        if one.stage.beside and groups and not _waits_for(one, groups[-1]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _waits_for(one: _Todo, group: list[_Todo]) -> bool:
    """Whether the stage measures delays with a model that another stage of the group makes."""
    arguments = one.recipe.arguments
    makes_it = any(other.recipe.arguments.get("out") == arguments.get("delay_reference") for other in group)
    return makes_it and any(map(measured_delays, losses_of(arguments)))


def _was_done(one: _Todo) -> bool:
    # The first process decides: others might look only after it has written the marker.
    done = bool(ranks().from_first(_is_done(one)))
    if done:
        _console.print(f"[dim]{one.stage.name}: already done[/dim]")
    return done


def _may_share(count: int) -> bool:
    return ranks().alone and usable_cores() >= count and not torch.cuda.is_available()


def _can_be_said(settings: Mapping[str, Any]) -> bool:
    """Whether settings survive being passed on a command line."""
    return all(parse_value(_said(value)) == value for value in settings.values())


def _said(value: Any) -> str:
    return json.dumps(value, default=str)


def _command(folder: Path, settings: Mapping[str, Any], one: _Todo) -> list[str]:
    given = [word for name, value in settings.items() for word in (f"--{name}", _said(value))]
    return ["run", str(folder), "--only", one.stage.name, *given]


def _run(one: _Todo, later: Sequence[_Todo], marks: bool = True) -> None:
    started, before = time.time(), _weights_made(one)
    if ranks().first and not _is_done(one):
        # The stage's results are about to be replaced, completely or, if this fails, in part.
        one.marker.unlink(missing_ok=True)
    result = _call(one.recipe)
    if ranks().first and not (one.recipe.stage == "train" and result.get("weights_sha256") == before):
        for made in later:  # made from the previous results
            made.marker.unlink(missing_ok=True)
    if one.recipe.stage == "export":
        for line in stages.refused_files(result):
            _console.out(line, highlight=False)
    if ranks().first and marks:
        _mark_done(one, result, time.time() - started)


def _weights_made(one: _Todo) -> str | None:
    """The weight hash of the model that a stage made when it was last done; None if there is none or it is
    not known."""
    result = _record(one).get("result")
    return result.get("weights_sha256") if isinstance(result, dict) else None


def _call(recipe: Recipe) -> dict[str, Any]:
    """Run a recipe; only once, since the objects that a training was built from are released."""
    arguments = check_recipe(recipe)
    if recipe.stage == "prepare":
        stages.corpus_folder(**arguments)  # its error names the key that the recipe has
    job, result = ranks(), {}
    is_shared = recipe.stage == "train" or (recipe.stage == "label" and not sharing_ranks(**arguments).alone)
    if job.first or is_shared:
        result = VERBS[recipe.stage](**arguments)
    if recipe.stage == "train":
        # Its teachers and losses still occupy GPU memory that the next stage needs.
        arguments.clear()
        recipe.arguments.clear()
        free_gpu_memory()
    return job.from_first(result)


def taken_keys() -> dict[str, dict[str, Any]]:
    """For each stage, the keys that its verb takes and their defaults (`inspect.Parameter.empty`: none); for
    `prepare`, the keys common to all corpora."""
    named = inspect.Parameter.KEYWORD_ONLY
    return {
        stage: {one.name: one.default for one in _parameters(stage) if one.kind is named} for stage in VERBS
    }


def _parameters(stage: str) -> list[inspect.Parameter]:
    return list(inspect.signature(VERBS[stage]).parameters.values())


def check_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe's keys as arguments of its verb.

    Raises:
        ConfigError: an unknown stage, a key that its verb does not take, a missing key, or a value of the
            wrong type.
    """
    if recipe.stage not in VERBS:
        raise ConfigError("unknown stage", where=recipe.path, expected=", ".join(VERBS), got=recipe.stage)
    parameters = _parameters(recipe.stage)
    # prepare's other keys are settings of the corpus, which refuses unknown ones itself.
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    accepted = [parameter.name for parameter in named]
    if open_ended:
        accepted += list(recipe.arguments)
    required = [parameter.name for parameter in named if parameter.default is parameter.empty]
    arguments = stage_arguments(recipe, [*accepted, "work_dir"], required)
    arguments.pop("work_dir", None)
    hints = typing.get_type_hints(VERBS[recipe.stage])
    for name, value in arguments.items():
        arguments[name] = fitting(value, hints.get(name, Any), f"{recipe.path}: {name}")
    return arguments


def _work_dir(recipes: list[Recipe]) -> Path:
    folders = {str(recipe.arguments.get("work_dir")) for recipe in recipes}
    if len(folders) != 1 or "None" in folders:
        raise ConfigError(
            "the stages of a run must share one work_dir",
            expected="the same work_dir in each",
            got=sorted(folders),
        )
    return Path(folders.pop())


def _without_comments(text: str) -> str:
    """The tokens of a YAML, one a line: editing a comment is no reason to train again."""
    parts = (
        f"{type(token).__name__} {getattr(token, 'value', '')!r} {getattr(token, 'plain', '')}"
        for token in YAML().scan(io.StringIO(text))
    )
    return "\n".join(parts)


def _is_done(one: _Todo) -> bool:
    """Whether the marker matches these inputs, and the stage's results still exist unchanged."""
    record = _record(one)
    try:
        # Models missing on this machine are not compared: the stage may have been done on another.
        was = record.get("outside", {})
        same = all(was.get(key, weights) == weights for key, weights in one.outside.items())
        return record["inputs"] == one.inputs and same and _is_there(one.recipe, record["result"])
    except (KeyError, TypeError, AttributeError, ValueError, OSError, ModelError):
        return False


def _record(one: _Todo) -> dict[str, Any]:
    """The content of a stage's marker; empty if no marker can be read."""
    try:
        record = json.loads(one.marker.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_there(recipe: Recipe, result: Mapping[str, Any]) -> bool:
    made = recipe.arguments.get("results" if recipe.stage == "evaluate" else "out")
    if not isinstance(made, str) or is_url(made):
        return True
    parts = [Path(path) for path in result.get("files", ())] if recipe.stage == "export" else []
    parts += [Path(made) / split for split in result] if recipe.stage == "prepare" else []
    if not all(path.exists() for path in (Path(made), *parts)):
        return False
    weights = result.get("weights_sha256")
    return weights is None or read_card(Path(made))["weights_sha256"] == weights


def _mark_done(one: _Todo, result: dict[str, Any], seconds: float) -> None:
    content = {"inputs": one.inputs, "outside": one.outside, "seconds": round(seconds, 1), "result": result}
    commit_bytes(one.marker, (json.dumps(content, indent=1, default=str) + "\n").encode())
    remove_leftovers(one.marker.parent)
