"""A folder of recipes in, every stage run in order; a second call redoes nothing.

A stage is done when its marker in WORK_DIR/.done holds the hash of what it depends on: its resolved
recipe, but for its comments, and the markers of the stages before it. Delete a marker to run a stage again.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import time
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from ruamel.yaml import YAML

from kdasr import stages
from kdasr.arguments import fitting
from kdasr.errors import ConfigError
from kdasr.ranks import ranks
from kdasr.recipe import Recipe, Stage, load_recipe, run_stages, stage_arguments

VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": stages.prepare,
    "train": stages.train,
    "label": stages.label,
    "retokenise": stages.retokenise,
    "export": stages.export,
    "evaluate": stages.evaluate,
}
_console = Console(stderr=True)


def run_recipe(
    path: Path, settings: Mapping[str, Any], *, expected_stage: str | None = None
) -> dict[str, Any]:
    """Run one recipe, whether or not it has been run before (its verb may still find it done).

    Where `torchrun` has started several processes, they train and label together; for what else there
    is to do they wait for the first of them.

    Raises:
        ConfigError: the recipe cannot be read, or is of another stage than `expected_stage`.
    """
    return _call(_load(path, settings, expected_stage))


def load_arguments(path: Path, settings: Mapping[str, Any], *, expected_stage: str) -> dict[str, Any]:
    """What a recipe's verb would be called with.

    Raises:
        ConfigError: as `run_recipe`.
    """
    return check_recipe(_load(path, settings, expected_stage))


def _load(path: Path, settings: Mapping[str, Any], expected_stage: str | None) -> Recipe:
    recipe = load_recipe(path, settings, taken_keys())
    if expected_stage is not None and recipe.stage != expected_stage:
        raise ConfigError(
            "this is a recipe of another stage",
            where=path,
            expected=expected_stage,
            got=recipe.stage,
            fix=f"Use `kdasr {recipe.stage}` or `kdasr run`.",
        )
    return recipe


def run_folder(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Run every stage of the recipes in `folder` that is not done yet; the work folder.

    Processes that `torchrun` has started go through it together, as in `run_recipe`.
    """
    listed = run_stages(Path(folder), settings, taken_keys())
    recipes = [(stage, load_recipe(stage.path, stage.settings, taken_keys())) for stage in listed]
    for _, recipe in recipes:
        arguments = check_recipe(recipe)
        if recipe.stage == "prepare":
            # Not after what comes before it, which may take hours.
            stages.corpus_folder(**arguments)
    work_dir = _work_dir(recipes)
    inputs = ""
    _console.quiet = not ranks().first
    for stage, recipe in recipes:
        inputs = hashlib.sha256(f"{inputs}\n{_without_comments(recipe.text)}".encode()).hexdigest()
        marker = work_dir / ".done" / f"{stage.name}.json"
        # The first process decides: another might look when the marker has just been written.
        if ranks().from_first(_is_done(marker, inputs)):
            _console.print(f"[dim]{stage.name}: done before[/dim]")
            continue
        _console.rule(stage.name, align="left")
        started = time.time()
        result = _call(recipe)
        if ranks().first:
            _mark_done(marker, inputs, result, time.time() - started)
    return work_dir


def _call(recipe: Recipe) -> dict[str, Any]:
    arguments = check_recipe(recipe)
    job, result = ranks(), {}
    if job.first or recipe.stage == "train" or (recipe.stage == "label" and _is_for_all(arguments)):
        result = VERBS[recipe.stage](**arguments)
    return job.from_first(result)


def _is_for_all(label_arguments: Mapping[str, Any]) -> bool:
    """Whether the processes of a job share the labelling: it has no other workers of its own."""
    return label_arguments.get("engine", "inline") == "inline" and label_arguments.get("num_shards", 1) == 1


def taken_keys() -> dict[str, list[str]]:
    """For each stage, the keys that its verb takes; of `prepare`, those that every corpus has."""
    named = inspect.Parameter.KEYWORD_ONLY
    return {stage: [one.name for one in _parameters(stage) if one.kind is named] for stage in VERBS}


def _parameters(stage: str) -> list[inspect.Parameter]:
    return list(inspect.signature(VERBS[stage]).parameters.values())


def check_recipe(recipe: Recipe) -> dict[str, Any]:
    """The keys of the recipe as its verb takes them.

    Raises:
        ConfigError: an unknown stage, a key that its verb does not take, one that it needs, or a value
            of another type than the verb takes.
    """
    if recipe.stage not in VERBS:
        raise ConfigError("an unknown stage", where=recipe.path, expected=", ".join(VERBS), got=recipe.stage)
    parameters = _parameters(recipe.stage)
    # prepare's further keys are those of the corpus, which refuses unknown ones itself.
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


def _work_dir(recipes: list[tuple[Stage, Recipe]]) -> Path:
    folders = {str(recipe.arguments.get("work_dir")) for _, recipe in recipes}
    if len(folders) != 1 or "None" in folders:
        raise ConfigError(
            "the stages of a run share one work_dir",
            expected="the same work_dir in each",
            got=sorted(folders),
        )
    return Path(folders.pop())


def _without_comments(text: str) -> str:
    """What a YAML says, one token a line: a better comment is no reason to train again."""
    parts = (
        f"{type(token).__name__} {getattr(token, 'value', '')!r} {getattr(token, 'plain', '')}"
        for token in YAML().scan(io.StringIO(text))
    )
    return "\n".join(parts)


def _is_done(marker: Path, inputs: str) -> bool:
    try:
        return bool(json.loads(marker.read_text())["inputs"] == inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _mark_done(marker: Path, inputs: str, result: dict[str, Any], seconds: float) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    temporary = marker.with_suffix(f".{os.getpid()}.tmp")
    content = {"inputs": inputs, "seconds": round(seconds, 1), "result": result}
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    temporary.replace(marker)
