"""A recipe in YAML in, the keyword arguments of one stage out; unknown keys are refused by name.

A recipe is code: HyperPyYAML builds the objects it names, so run only recipes that you trust. A
folder of recipes has a `run.yaml` that lists its stages in order:

    stages:
      - prepare.yaml
      - teacher.yaml
      - {recipe: student.yaml, name: student_labelled_only, set: {schedule: [[labelled, 1]]}}
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from kdasr.errors import ConfigError

RUN_FILE = "run.yaml"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: what the stage makes, e.g. "student_distilled"; also the name of its done-marker.
        path: its YAML.
        settings: top-level keys that replace those of the YAML.
    """

    name: str
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A loaded recipe.

    Attributes:
        stage: which verb runs it: prepare, train, label, export, evaluate.
        arguments: every other top-level key, built.
        text: the YAML with all settings and references resolved, not yet built.
        path: where it came from.
    """

    stage: str
    arguments: dict[str, Any]
    text: str
    path: Path


def top_level_keys(path: Path) -> list[str]:
    """Names of the settings of a recipe."""
    return list(_parse(path))


def load_recipe(path: Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read the recipe at `path` with some of its top-level keys replaced.

    A dotted name reaches into a mapping: `model.width`.

    Raises:
        ConfigError: no such file, bad YAML, an unknown key in `settings`, or an object that cannot
            be built.
    """
    path = Path(path)
    known = _parse(path)
    for name, value in (settings or {}).items():
        _set(path, known, name, value)
    document = io.StringIO()
    YAML().dump(known, document)
    try:
        text = resolve_references(io.StringIO(document.getvalue())).getvalue()
        built = load_hyperpyyaml(io.StringIO(text))
    except ConfigError:
        raise
    except Exception as error:  # whatever a constructor named in the YAML raises
        raise ConfigError(
            "the recipe cannot be built", where=path, got=f"{type(error).__name__}: {error}"
        ) from error
    stage = built.pop("stage", None)
    if not isinstance(stage, str):
        raise ConfigError("the recipe names no stage", where=path, expected="stage: prepare, train, label, …")
    return Recipe(stage, built, text, path)


def stage_arguments(recipe: Recipe, accepted: Sequence[str], required: Sequence[str]) -> dict[str, Any]:
    """The recipe's keys that its verb takes; keys that serve only as `<references>` are left out.

    Raises:
        ConfigError: a key that is neither taken nor referred to, or a required one is missing.
    """
    source = recipe.path.read_text()
    for key in recipe.arguments:
        if key not in accepted and not re.search(rf"<{re.escape(key)}[>\[]", source):
            raise ConfigError(
                f"unknown key {key!r} in the recipe",
                where=recipe.path,
                expected=f"for stage {recipe.stage}: {', '.join(sorted(accepted))}",
            )
    for key in required:
        if key not in recipe.arguments:
            raise ConfigError(f"the recipe lacks the key {key!r}", where=recipe.path)
    return {key: value for key, value in recipe.arguments.items() if key in accepted}


def run_stages(folder: Path, overrides: Mapping[str, Any]) -> list[Stage]:
    """The stages of a folder of recipes, with command-line settings given to those they concern.

    `key` goes to every stage that has it, `stage.key` to the one stage of that name (or recipe).

    Raises:
        ConfigError: no run.yaml, a stage without file, or a setting that no stage has.
    """
    run_file = Path(folder) / RUN_FILE
    listed = _parse(run_file).get("stages")
    if not isinstance(listed, list) or not listed:
        raise ConfigError("the run lists no stages", where=run_file, expected="stages: [prepare.yaml, …]")
    stages = [_stage(run_file, entry) for entry in listed]
    used: set[str] = set()
    result = []
    for stage in stages:
        content = _parse(stage.path)
        settings = dict(stage.settings)
        for name, value in overrides.items():
            head, _, rest = name.partition(".")
            target = rest if head in (stage.name, stage.path.stem) and rest else name
            if _place(content, target) is not None:
                settings[target] = value
                used.add(name)
        result.append(Stage(stage.name, stage.path, settings))
    for name in overrides:
        if name not in used:
            known = sorted({key for stage in stages for key in top_level_keys(stage.path)})
            raise ConfigError(f"no stage has the setting {name!r}", where=folder, expected=", ".join(known))
    return result


def parse_value(text: str) -> Any:
    """A value from the command line, read as YAML: `3`, `0.5`, `true`, `[a, b]`, `text`."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text


def _parse(path: Path) -> dict[str, Any]:
    """The YAML's top level without building anything."""
    try:
        content = YAML().load(path.read_text())
    except OSError as error:
        raise ConfigError("the recipe cannot be read", where=path, got=error.strerror) from error
    except YAMLError as error:
        raise ConfigError("the recipe is not valid YAML", where=path, got=error) from error
    if not isinstance(content, dict):
        raise ConfigError("the recipe is not a mapping of settings", where=path)
    return content


def _place(content: Any, name: str) -> Any:
    """The mapping that holds the dotted `name`, or None where there is no such setting.

    A class that the YAML names may be given further arguments; whether it takes them shows when it is
    built.
    """
    *parents, last = name.split(".")
    place = content
    for part in parents:
        place = place[part] if isinstance(place, dict) and part in place else None
    tagged = isinstance(place, CommentedMap) and bool(place.tag.value)
    return place if isinstance(place, dict) and (last in place or tagged) else None


def _set(path: Path, content: Any, name: str, value: Any) -> None:
    place = _place(content, name)
    if place is None:
        raise ConfigError(f"unknown setting {name!r}", where=path, expected=", ".join(map(str, content)))
    place[name.rpartition(".")[2]] = value


def _stage(run_file: Path, entry: Any) -> Stage:
    if isinstance(entry, str):
        entry = {"recipe": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("recipe"), str):
        raise ConfigError(
            "a stage cannot be read",
            where=run_file,
            expected="NAME.yaml or {recipe: …, name: …, set: …}",
            got=entry,
        )
    if unknown := set(entry) - {"recipe", "name", "set"}:
        raise ConfigError(
            f"unknown key {sorted(unknown)[0]!r} in a stage", where=run_file, expected="recipe, name, set"
        )
    path = run_file.parent / entry["recipe"]
    if not path.is_file():
        raise ConfigError("there is no such recipe", where=path)
    return Stage(str(entry.get("name", path.stem)), path, dict(entry.get("set", {})))
