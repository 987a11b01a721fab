"""A recipe in YAML in, the keyword arguments of one stage out; unknown keys are refused by name.

A recipe is code: HyperPyYAML builds the objects it names, so run only recipes that you trust. A
folder of recipes has a `run.yaml` that lists its stages in order:

    stages:
      - prepare.yaml
      - teacher.yaml
      - {recipe: student.yaml, name: student_labelled_only, set: {schedule: [[labelled, 1]]}}

A recipe that differs little from another names it as its `base:`, a path relative to its own folder; its
keys replace those of the base, and dotted keys reach into them (`optimisation.steps: 600`, or into lists by
number: `settings.filters.0.threshold: 0.5`).
"""

from __future__ import annotations

import inspect
import io
import itertools
import json
import os
import pydoc
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML, Loader, MappingNode, SequenceNode
from ruamel.yaml.comments import Comment, CommentedMap
from ruamel.yaml.error import YAMLError

from kdasr.arguments import check_keywords, check_named
from kdasr.errors import ConfigError

RUN_FILE = "run.yaml"
BASE = "base"
# Keys of the run as a whole, which do not distinguish its stages.
_OF_THE_RUN = ("work_dir", "seed", "device")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: what the stage makes, e.g. "student_distilled"; also the name of its done-marker.
        path: its YAML.
        settings: top-level keys that replace those of the YAML.
        beside: whether it may run in parallel with the stages before it, back to the last that may not; it
            uses none of their results.
        bases: names of other stages' recipes that its own is based on, directly or through others.
        over_bases: the keys that its recipe sets instead of theirs.
    """

    name: str
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    beside: bool = False
    bases: tuple[str, ...] = ()
    over_bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A loaded recipe.

    Attributes:
        stage: the verb that runs it: prepare, train, label, export, evaluate.
        arguments: every other top-level key, built.
        text: the YAML with all settings and references resolved, not yet built.
        source: the YAML as read, with its references: the file may be edited while stages run.
        path: the file it was read from.
    """

    stage: str
    arguments: dict[str, Any]
    text: str
    source: str
    path: Path


def top_level_keys(path: Path) -> list[str]:
    """Names of the settings of a recipe."""
    return list(_parse(path))


# For each kind of stage, the keys it takes, whether or not a recipe has them.
Takes = Mapping[str, Collection[str]]


def explained(path: Path, takes: Mapping[str, Mapping[str, Any]]) -> str:
    """Help text: the recipe with its base's settings, and the other keys that its stage `takes`.

    Raises:
        ConfigError: no such file, or bad YAML.
    """
    content = _parse(Path(path))
    taken = takes.get(str(content.get("stage")), {})
    further = [f"{key}: {_as_given(default)}" for key, default in taken.items() if key not in content]
    lines = [
        f"{path}. Set a key with --KEY, one in a mapping with --KEY.KEY, one in a list with --KEY.0:",
        "",
    ]
    # The recipe's own header comment, not its base's.
    lines += itertools.takewhile(_is_comment, Path(path).read_text(encoding="utf-8").splitlines())
    text, bare = _dumped(content), _dumped(_bare(_parse(Path(path))))
    if _dumped(_bare(YAML().load(text))) != bare:  # see _bare
        text = bare
    lines += itertools.dropwhile(_is_comment, text.splitlines())
    lines += ["", "Further keys, with their defaults:", "", *further] if further else []
    return "\n".join(lines)


def _as_given(default: Any) -> str:
    """A default as it is written on the command line."""
    if default is inspect.Parameter.empty:
        return "(required)"
    return default if isinstance(default, str) else json.dumps(default)


def explained_run(folder: Path) -> str:
    """Help text: the stages of a run, and the keys of each recipe.

    Raises:
        ConfigError: as `run_stages`.
    """
    stages = run_stages(folder, {})
    header = itertools.takewhile(_is_comment, (Path(folder) / RUN_FILE).read_text("utf-8").splitlines())
    lines = [
        *header,
        "",
        "--KEY sets a key in all stages that have it, except those with a value of their own (in brackets).",
        "--STAGE.KEY sets it in the stages with that name or recipe, and in those based on that recipe",
        "that have no value of their own. Stages and keys:",
        "",
    ]
    for stage in stages:
        own = [*stage.settings, *stage.over_bases]
        also = f", own: {', '.join(own)}" if own else ""
        lines.append(f"{stage.name} ({stage.path.name}{also})")
        lines.append(f"    {', '.join(key for key in top_level_keys(stage.path) if key != 'stage')}")
    return "\n".join([*lines, "", "kdasr train, label, … RECIPE --help shows their values."])


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def load_recipe(
    path: Path, settings: Mapping[str, Any] | None = None, takes: Takes = MappingProxyType({})
) -> Recipe:
    """Read the recipe at `path` with some of its top-level keys replaced, or added if its stage
    `takes` them.

    A dotted name reaches into a mapping, `model.width`, or a list, `settings.filters.0.threshold`. If a key
    holds a mapping, the value FILE.yaml stands for the mapping of that name in FILE.yaml:
    `model: recipes/students/zipformer-2m.yaml`.

    Raises:
        ConfigError: no such file, bad YAML, an unknown key in `settings`, or an object that cannot
            be built or is given an argument that it does not take.
    """
    path = Path(path)
    known = _parse(path)
    source = _dumped(known)
    for name, value in (settings or {}).items():
        _set(path, known, name, value, takes)
    try:
        text = resolve_references(io.StringIO(_dumped(_bare(known)))).getvalue()
        built = load_hyperpyyaml(io.StringIO(text), loader=_loader(path))
    except ConfigError:
        raise
    except Exception as error:  # constructors named in the YAML may raise anything
        path_of_package = (
            "If it is in a package of yours, put the folder that holds the package on PYTHONPATH."
        )
        raise ConfigError(
            "the recipe cannot be built",
            where=path,
            got=f"{type(error).__name__}: {error}",
            fix=path_of_package if isinstance(error, ImportError) else None,
        ) from error
    for name, value in built.items():
        # Otherwise the error would appear only when the function that `!name:` names is first called.
        check_named(value, f"{path}: {name}")
    stage = built.pop("stage", None)
    if not isinstance(stage, str):
        fix = f"It lists the stages of a run: use `kdasr run {path.parent}`." if "stages" in built else None
        expected = "stage: prepare, train, label, …"
        raise ConfigError("the recipe names no stage", where=path, expected=expected, fix=fix)
    return Recipe(stage, built, text, source, path)


def stage_arguments(recipe: Recipe, accepted: Sequence[str], required: Sequence[str]) -> dict[str, Any]:
    """The recipe's keys that its verb takes, without keys used only in `<references>`.

    Raises:
        ConfigError: a key is neither taken nor referred to, or a required one is missing.
    """
    for key in recipe.arguments:
        if key not in accepted and not re.search(rf"<{re.escape(key)}[>\[]", recipe.source):
            raise ConfigError(
                f"unknown key {key!r} in the recipe",
                where=recipe.path,
                expected=f"one of the keys for stage {recipe.stage}: {', '.join(sorted(accepted))}",
            )
    for key in required:
        if key not in recipe.arguments:
            raise ConfigError(f"the recipe lacks the key {key!r}", where=recipe.path)
    return {key: value for key, value in recipe.arguments.items() if key in accepted}


def run_stages(
    folder: Path, overrides: Mapping[str, Any], takes: Takes = MappingProxyType({})
) -> list[Stage]:
    """The stages of a folder of recipes, with command-line settings assigned to the stages they apply to.

    `key` applies to every stage that has it or, if none has, to every stage that `takes` it: if some
    recipes have a key, others may lack it on purpose. A stage keeps its value if run.yaml sets the key
    for it (`set:`), or if its recipe overrides the key of a base that is another stage's recipe: the
    value distinguishes the stage. `stage.key` applies to the one stage of that name (or recipe),
    whatever else is set, and to stages based on that recipe unless they have a value of their own.

    Raises:
        ConfigError: no run.yaml, a stage without file, or a setting that no stage has or all keep.
    """
    run_file = Path(folder) / RUN_FILE
    if Path(folder).is_file():
        fix = f"Give its folder: kdasr run {Path(folder).parent}"
        raise ConfigError("a run is a folder of recipes, but this is a file", where=folder, fix=fix)
    listed = _parse(run_file).get("stages")
    if not isinstance(listed, list) or not listed:
        raise ConfigError("the run lists no stages", where=run_file, expected="stages: [prepare.yaml, …]")
    stages = [_stage(run_file, entry) for entry in listed]
    names = [stage.name for stage in stages]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            "several stages have the same name",
            where=run_file,
            got=", ".join(twice),
            fix="Give each its own `name`.",
        )
    chains = {path: _chain(path) for path in dict.fromkeys(stage.path for stage in stages)}
    recipes = {path.resolve() for path in chains}
    stages = [_with_bases(stage, chains[stage.path], recipes) for stage in stages]
    merged = {path: _merged(chain) for path, chain in chains.items()}
    contents = [merged[stage.path] for stage in stages]
    general, named = ([dict[str, Any]() for _ in stages] for _ in range(2))
    for name, value in overrides.items():
        targets = [_target(stage, name) for stage in stages]
        for further in (MappingProxyType({}), takes):
            places = [
                _place(content, key, further) for content, (key, _) in zip(contents, targets, strict=True)
            ]
            has = [number for number, place in enumerate(places) if place is not None]
            if has:
                break
        found = [number for number in has if not _keeps(stages[number], *targets[number])]
        for number in found:
            key, is_named = targets[number]
            (named if is_named else general)[number][key] = value
        if has and not found:
            own = [f"--{stages[number].name}.{targets[number][0]}" for number in has]
            raise ConfigError(
                f"{name!r} must be set for each stage separately",
                where=run_file,
                expected=" or ".join(own),
            )
        if not found:
            known = sorted({key for stage in stages for key in top_level_keys(stage.path)})
            raise ConfigError(f"no stage has the setting {name!r}", where=folder, expected=", ".join(known))
    return [
        replace(stage, settings={**stage.settings, **for_all, **own})
        for stage, for_all, own in zip(stages, general, named, strict=True)
    ]


def _with_bases(stage: Stage, chain: _Chain, recipes: Collection[Path]) -> Stage:
    """The stage with `bases` and `over_bases`, considering only bases among the stages' `recipes`."""
    passed = dict[str, None]()
    for (_, content), (base, _) in itertools.pairwise(chain):
        passed |= dict.fromkeys(key for key in content if key not in _OF_THE_RUN)
        if base.resolve() in recipes:
            stage = replace(stage, bases=(*stage.bases, base.stem), over_bases=tuple(passed))
    return stage


def _target(stage: Stage, name: str) -> tuple[str, bool]:
    """The setting that a name from the command line means in this stage, and whether it names this stage."""
    head, _, rest = name.partition(".")

    def is_named(*names: str) -> bool:
        # The command line turns dashes into underscores.
        return bool(rest) and head.replace("-", "_") in {one.replace("-", "_") for one in names}

    if is_named(stage.name, stage.path.stem):
        return rest, True
    return (rest if is_named(*stage.bases) else name), False


def _keeps(stage: Stage, key: str, is_named: bool) -> bool:
    """Whether a stage keeps its own value of a key because the setting does not name this stage."""
    own = (*stage.settings, *stage.over_bases)
    return not is_named and any(f"{key}.".startswith(f"{o}.") or o.startswith(f"{key}.") for o in own)


def parse_value(text: str) -> Any:
    """A value from the command line, read as YAML: `3`, `0.5`, `true`, `[a, b]`, `text`. A leading ~/ in
    any text is expanded; a shell does so only at the start of a word.

    Raises:
        ConfigError: a YAML tag, which only a file may have.
    """
    if re.search(r"(^|[\s,\[{])!(ref|new|name|apply|module|copy|include|tuple)\b", text):
        fix = "Put it into a copy of the recipe."
        raise ConfigError("YAML tags are not allowed on the command line", got=text, fix=fix)
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError):  # e.g. an impossible date
        value = text
    return _at_home(value)


def _at_home(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("~/"):
        return os.path.expanduser(value)  # noqa: PTH111  # a Path would lose a slash at its end
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return {key: _at_home(item) for key, item in value.items()} if isinstance(value, dict) else value


def _loader(path: Path) -> type[Loader]:
    """A loader that checks whether a class (`!new:`) takes its arguments, before it is built."""

    class Checking(Loader):
        @classmethod
        def add_multi_constructor(cls, tag_prefix: str, multi_constructor: Callable[..., Any]) -> None:
            # HyperPyYAML registers its constructors in every load.
            if tag_prefix == "!new:":
                multi_constructor = _checked(multi_constructor, path)
            super().add_multi_constructor(tag_prefix, multi_constructor)

    return Checking


def _checked(construct: Callable[..., Any], path: Path) -> Callable[..., Any]:
    def checked(loader: Any, name: str, node: Any) -> Any:
        made = pydoc.locate(name)
        if isinstance(made, type) and not isinstance(node, SequenceNode):
            is_given = isinstance(node, MappingNode)
            keywords = loader.construct_mapping(node, deep=True) if is_given else {}
            where = f"{path}: {name}"
            check_keywords(made, keywords, where, positional=0)
            check_named(keywords, where)
        return construct(loader, name, node)

    return checked


# A recipe, its base, that one's base and so on, with what each sets.
_Chain = list[tuple[Path, dict[str, Any]]]


def _parse(path: Path) -> dict[str, Any]:
    """The YAML's top level, merged over its base's, without building anything.

    Raises:
        ConfigError: it cannot be read, or it is its own base.
    """
    return _merged(_chain(path))


def _chain(path: Path) -> _Chain:
    chain = [(path, _read(path))]
    while BASE in (content := chain[-1][1]):
        derived = chain[-1][0]
        base = derived.parent / str(content.pop(BASE))
        if base.resolve() in {one.resolve() for one, _ in chain}:
            raise ConfigError("a recipe cannot be its own base", where=derived, got=base)
        chain.append((base, _read(base)))
    return chain


def _merged(chain: _Chain) -> dict[str, Any]:
    _, merged = chain[-1]
    for path, content in reversed(chain[:-1]):
        for name, value in content.items():
            if "." in name:
                _set(path, merged, name, value)
            else:
                merged[name] = value
    return merged


def _bare(content: Any) -> Any:
    """Remove comments: if one precedes a list whose first item has a tag and keys (`- !new:…`), ruamel.yaml
    writes tag and keys on one line, which means something else."""
    if hasattr(content, Comment.attrib):
        delattr(content, Comment.attrib)
    for item in content.values() if isinstance(content, dict) else content:
        if isinstance(item, dict | list):
            _bare(item)
    return content


def _dumped(content: Mapping[str, Any]) -> str:
    document = io.StringIO()
    YAML().dump(content, document)
    return document.getvalue()


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        fix = f"`kdasr run {path}` runs all recipes that its run.yaml lists."
        raise ConfigError("a recipe is a file, but this is a folder", where=path, fix=fix)
    try:
        content = YAML().load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError("the recipe is not UTF-8 text", where=path, got=error.reason) from error
    except OSError as error:
        raise ConfigError("the recipe cannot be read", where=path, got=error.strerror) from error
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date, for example
        raise ConfigError("the recipe is not valid YAML", where=path, got=error) from error
    if not isinstance(content, dict):
        raise ConfigError("the recipe is not a mapping of settings", where=path)
    _check_texts(content, path)
    return content


def _check_texts(keys: Iterable[Any], where: Path) -> None:
    if strange := [key for key in keys if not isinstance(key, str)]:
        fix = "Put it in quotes."
        raise ConfigError(
            "the name of a setting must be a string", where=where, got=repr(strange[0]), fix=fix
        )


def _place(content: Any, name: str, takes: Takes) -> Any:
    """The mapping or list that holds or may hold the dotted `name`, or None if there is no such setting.

    A class that the YAML names may be given further arguments; whether it takes them is checked when it
    is built.
    """
    *parents, last = name.split(".")
    place = content
    for part in parents:
        place = _item(place, part)
    if isinstance(place, list):
        return place if last.isdecimal() and int(last) < len(place) else None
    tagged = isinstance(place, CommentedMap) and bool(place.tag.value)
    taken = not parents and last in takes.get(str(content.get("stage")), ())
    return place if isinstance(place, dict) and (_own_name(place, last) in place or tagged or taken) else None


def _item(place: Any, part: str) -> Any:
    """The item of a mapping by name or of a list by number; None if absent."""
    if isinstance(place, list):
        return place[int(part)] if part.isdecimal() and int(part) < len(place) else None
    return place.get(_own_name(place, part)) if isinstance(place, dict) else None


def _own_name(place: Mapping[Any, Any], part: str) -> str:
    """The key that a name from the command line means, whose dashes have become underscores."""
    same = (key for key in place if isinstance(key, str) and key.replace("-", "_") == part)
    return part if part in place else next(same, part)


def _set(path: Path, content: Any, name: str, value: Any, takes: Takes = MappingProxyType({})) -> None:
    place = _place(content, name, takes)
    if place is None:
        known = [*content, *(key for key in takes.get(str(content.get("stage")), ()) if key not in content)]
        raise ConfigError(f"unknown setting {name!r}", where=path, expected=", ".join(map(str, known)))
    last = name.rpartition(".")[2]
    key = int(last) if isinstance(place, list) else _own_name(place, last)
    if isinstance(_item(place, last), dict) and isinstance(value, str) and value.endswith(".yaml"):
        value = _mapping_of(Path(value), last)
    place[key] = value


def _mapping_of(path: Path, key: str) -> Any:
    value = _parse(path).get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"this file has no mapping {key!r}", where=path, expected=f"{key}: …")
    return value


def _stage(run_file: Path, entry: Any) -> Stage:
    if isinstance(entry, str):
        entry = {"recipe": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("recipe"), str):
        raise ConfigError(
            "invalid entry in `stages`",
            where=run_file,
            expected="NAME.yaml or {recipe: …, name: …, set: …, beside: …}",
            got=entry,
        )
    keys = ("recipe", "name", "set", "beside")
    _check_texts(entry, run_file)
    if unknown := set(entry) - set(keys):
        raise ConfigError(
            f"unknown key {sorted(unknown)[0]!r} in a stage", where=run_file, expected=", ".join(keys)
        )
    if not isinstance(entry.get("set", {}), Mapping):
        expected = "a mapping of settings, or no `set`"
        raise ConfigError("invalid value of `set`", where=run_file, expected=expected, got=entry["set"])
    _check_texts(entry.get("set", {}), run_file)
    if not isinstance(entry.get("beside", False), bool):
        raise ConfigError("`beside` must be true or false", where=run_file, got=entry["beside"])
    path = run_file.parent / entry["recipe"]
    if not path.is_file():
        raise ConfigError("there is no such recipe", where=path)
    name, settings = str(entry.get("name", path.stem)), dict(entry.get("set", {}))
    return Stage(name, path, settings, entry.get("beside", False))
