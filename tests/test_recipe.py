"""Recipes: settings by name, unknown keys refused by name, every YAML of the repository builds."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from kdasr import recipe as recipe_module
from kdasr.errors import ConfigError
from kdasr.pipeline import check_recipe
from kdasr.recipe import RUN_FILE, explained, load_recipe, parse_value, run_stages, stage_arguments

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(
    path for path in RECIPES.rglob("*.yaml") if path.name != RUN_FILE and path.parent.name != "students"
)
RUNS = sorted(RECIPES.rglob(RUN_FILE))

SIMPLE = """
stage: train
work_dir: runs/x
steps: 3
out: !ref <work_dir>/model
inner: {width: 4, deep: {rate: 0.1}}
loss: !name:kdasr.losses.soft_cross_entropy
    delay_frames: 2
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_recipes_were_found() -> None:
    assert {"mini", "fsdd"} <= {path.parent.name for path in ALL}
    assert RUNS


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_builds_with_keys_its_stage_takes(path: Path) -> None:
    check_recipe(load_recipe(path))
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#") and any("kdasr " in line for line in lines[:6])
    assert len(lines) < 120


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.parent.name)
def test_every_run_lists_recipes_that_build(path: Path) -> None:
    stages = run_stages(path.parent, {"seed": 7})
    for stage in stages:
        check_recipe(load_recipe(stage.path, stage.settings))
    assert len({stage.name for stage in stages}) == len(stages)


def test_a_run_reads_each_of_its_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "base.yaml", "stage: train\nwork_dir: w\nsteps: 1\n")
    write(tmp_path / "student.yaml", "base: base.yaml\nsteps: 2\n")
    write(
        tmp_path / RUN_FILE, "stages: [student.yaml, {recipe: student.yaml, name: more, set: {steps: 3}}]\n"
    )
    read: list[str] = []
    original = recipe_module._read
    monkeypatch.setattr(recipe_module, "_read", lambda path: read.append(path.name) or original(path))
    assert [stage.settings for stage in run_stages(tmp_path, {"work_dir": "x"})] == [
        {"work_dir": "x"},
        {"steps": 3, "work_dir": "x"},
    ]
    assert read == [RUN_FILE, "student.yaml", "base.yaml"]


def test_settings_replace_values_and_reach_into_mappings(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", SIMPLE)
    recipe = load_recipe(path, {"work_dir": "elsewhere", "inner.deep.rate": 0.5, "loss.delay_frames": 4})
    assert recipe.arguments["out"] == "elsewhere/model"
    assert recipe.arguments["inner"] == {"width": 4, "deep": {"rate": 0.5}}
    assert recipe.arguments["loss"].keywords == {"delay_frames": 4}
    assert recipe.stage == "train"


def test_a_comment_before_a_list_of_objects_changes_nothing(tmp_path: Path) -> None:
    text = (
        "stage: train\n# one\nlist:\n    # two\n    - !new:kdasr.augment.SpecAugment  # three\n"
        "        # four\n        max_warp: 0.1\n"
    )
    path = write(tmp_path / "r.yaml", text)
    (built,) = load_recipe(path, {"list.0.max_gain_nats": 0.5}).arguments["list"]
    assert (built.max_warp, built.max_gain_nats) == (0.1, 0.5)
    assert "SpecAugment\n  max_warp: 0.1" in explained(path, {}), "what is shown can be copied, too"


def test_settings_reach_into_lists_by_number(tmp_path: Path) -> None:
    text = "stage: train\nfilters: [{least: 1}, {least: 2}]\nschedule: [[labelled, 1], [unlabelled, 3]]\n"
    path = write(tmp_path / "r.yaml", text)
    recipe = load_recipe(path, {"filters.1.least": 5, "schedule.0.1": 7})
    assert recipe.arguments["filters"] == [{"least": 1}, {"least": 5}]
    assert recipe.arguments["schedule"] == [["labelled", 7], ["unlabelled", 3]]
    nothing = write(tmp_path / "null.yaml", "stage: train\nlist: [null, 2]\n")
    assert load_recipe(nothing, {"list.0": 5}).arguments["list"] == [5, 2]
    for name in ("filters.2.least", "filters.least", "filters.-1.least", "filters.2", "schedule.0.9"):
        with pytest.raises(ConfigError, match=f"unknown setting '{name}'"):
            load_recipe(path, {name: 1})
    write(tmp_path / "derived.yaml", "base: r.yaml\nfilters.0.least: 9\n")
    assert load_recipe(tmp_path / "derived.yaml").arguments["filters"] == [{"least": 9}, {"least": 2}]


@pytest.mark.parametrize("name", ["stepz", "inner.depth", "inner.width.more", "nothing.here"])
def test_an_unknown_setting_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "r.yaml", SIMPLE)
    with pytest.raises(ConfigError, match=rf"r\.yaml: unknown setting '{name}'"):
        load_recipe(path, {name: 1})


def test_an_argument_that_a_class_does_not_take_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.yaml", "stage: train\naugment: !new:kdasr.augment.SpecAugment\n    max_warp: 0.1\n"
    )
    with pytest.raises(
        ConfigError,
        match=r"r\.yaml: kdasr\.augment\.SpecAugment: .*unknown setting for SpecAugment.*'max_wrap'",
    ):
        load_recipe(path, {"augment.max_wrap": 0.2})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("features.Hint {teacher: big, student_layer: '1'}", r"Hint\.student_layer: .*whole number; got '1'"),
        ("features.Hint {student_layer: 1}", "Hint: Hint lacks a setting; .*'teacher'"),
        ("features.Hint", "Hint: Hint lacks a setting; .*'teacher'"),
        ("features.Flow {teacher: big, student_layers: [1]}", r"Flow\.student_layers: .*got \[1\]"),
        ("adversarial.Discriminator {teacher: 3}", r"Discriminator\.teacher: .*a string; got 3"),
        (
            "intermediate.IntermediateHead {layer: 1, loss: !name:kdasr.losses.best_path_ctc {teacher: 3}}",
            r"IntermediateHead\.loss\.teacher: .*a string or null; got 3",
        ),
    ],
)
def test_what_a_class_is_given_is_checked_before_it_is_built(loss: str, message: str, tmp_path: Path) -> None:
    text = f"stage: train\nlosses:\n    a: {{weight: 1.0, loss: !new:kdasr.methods.{loss} }}\n"
    with pytest.raises(ConfigError, match=rf"r\.yaml: kdasr\.methods\..*{message}"):
        load_recipe(write(tmp_path / "r.yaml", text))


class Counted:
    """A class that counts how often it is built."""

    built = 0

    def __init__(self, inner: Any = None) -> None:
        Counted.built += 1
        self.inner = inner


def test_what_is_given_to_a_class_is_built_once(tmp_path: Path) -> None:
    text = (
        "stage: train\nouter: !new:tests.test_recipe.Counted\n    inner: !new:tests.test_recipe.Counted {}\n"
    )
    Counted.built = 0
    outer = load_recipe(write(tmp_path / "r.yaml", text)).arguments["outer"]
    assert Counted.built == 2 and isinstance(outer.inner, Counted)


def test_a_mapping_can_be_taken_from_another_file(tmp_path: Path) -> None:
    path, other = write(tmp_path / "r.yaml", SIMPLE), write(tmp_path / "o.yaml", "inner: {width: 9}")
    loss = write(tmp_path / "l.yaml", "loss: !name:kdasr.losses.ctc {}")
    recipe = load_recipe(path, {"inner": str(other), "inner.width": 8, "loss": str(loss), "out": "x.yaml"})
    assert recipe.arguments["inner"] == {"width": 8}
    assert recipe.arguments["loss"].__name__ == "ctc"
    assert recipe.arguments["out"] == "x.yaml", "not a mapping: a name like any other"
    with pytest.raises(ConfigError, match=r"o\.yaml: this file has no mapping 'loss'"):
        load_recipe(path, {"loss": str(other)})
    with pytest.raises(ConfigError, match=r"absent\.yaml: the recipe cannot be read"):
        load_recipe(path, {"inner": str(tmp_path / "absent.yaml")})


def test_an_argument_that_a_named_loss_or_model_does_not_take_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", SIMPLE)
    with pytest.raises(
        ConfigError, match=r"r\.yaml: loss: unknown setting for soft_cross_entropy.*delay_frames.*'delay'"
    ):
        load_recipe(path, {"loss.delay": 4})
    text = "stage: train\nmodel: !name:kdasr.students.conformer.ChunkConformer\n    widht: 32\n"
    with pytest.raises(ConfigError, match="unknown setting for ChunkConformer.*'widht'"):
        load_recipe(write(tmp_path / "m.yaml", text))


def test_a_key_that_nothing_uses_is_refused_but_a_referenced_one_is_not(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path / "r.yaml", "stage: train\nwork_dir: w\nout: !ref <work_dir>/m\nstepz: 3\n")
    )
    with pytest.raises(
        ConfigError, match=r"unknown key 'stepz'.*expected one of the keys for stage train: out, steps"
    ):
        stage_arguments(recipe, ["out", "steps"], [])


def test_a_key_of_which_a_part_is_referred_to_is_used(tmp_path: Path) -> None:
    text = "stage: train\ninner: {width: 4}\nout: !ref <inner[width]>\n"
    recipe = load_recipe(write(tmp_path / "r.yaml", text))
    assert stage_arguments(recipe, ["out"], []) == {"out": 4}


def test_what_a_recipe_has_is_not_told_again_as_what_it_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", SIMPLE)
    told = explained(path, {"train": {"steps": 1, "seed": 2, "name": inspect.Parameter.empty}})
    _, _, further = told.partition("Further keys, with their defaults:")
    assert further.splitlines()[2:] == ["seed: 2", "name: (required)"]


def test_a_recipe_that_is_edited_afterwards_is_what_it_was(tmp_path: Path) -> None:
    """A run goes on for days with what was checked when it began."""
    path = write(tmp_path / "r.yaml", "stage: train\nbase_dir: w\nout: !ref <base_dir>/m\n")
    recipe = load_recipe(path)
    write(path, "stage: train\nbase_dir: w\nout: elsewhere\n")
    assert stage_arguments(recipe, ["out"], []) == {"out": "w/m"}
    path.unlink()
    assert stage_arguments(recipe, ["out"], []) == {"out": "w/m"}


def test_a_key_with_dashes_is_found_by_the_command_line_s_name_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "stage: evaluate\ntest: {test-clean: [a], test_other: [b]}\n")
    found = load_recipe(path, {"test.test_clean": ["c"], "test.test_other.0": "d"}).arguments
    assert found == {"test": {"test-clean": ["c"], "test_other": ["d"]}}
    with pytest.raises(ConfigError, match=r"unknown setting 'test\.test_dev'"):
        load_recipe(path, {"test.test_dev": []})


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", "stage: train\n"))
    with pytest.raises(ConfigError, match="lacks the key 'out'"):
        stage_arguments(recipe, ["out"], ["out"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: [train", "not valid YAML"),
        ("stage: train\nx: 2026-02-30", "not valid YAML; got day (is out of range|30 must be)"),
        ("stage: train\nx: " + 6000 * "9", "not valid YAML; got Exceeds the limit"),
        ("just text", "not a mapping"),
        ("steps: 3", "names no stage"),
        ("stage: train\nx: !new:kdasr.no.such.Thing {}", "cannot be built"),
        ("stage: train\nx: !name:package.of.mine", "ImportError.* put the folder .* on PYTHONPATH"),
        ("stage: train\nx: !ref <nowhere>", "cannot be built"),
        ("stage: train\n1: x", "the name of a setting must be a string; got 1. Put it in quotes"),
    ],
)
def test_bad_yaml_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(write(tmp_path / "bad.yaml", text))
    assert "bad.yaml" in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml.*cannot be read"):
        load_recipe(tmp_path / "gone.yaml")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    write(tmp_path / "one.yaml", "stage: prepare\nwork_dir: w\nseed: 1\nname: synth\n")
    write(tmp_path / "two.yaml", "stage: train\nwork_dir: w\nseed: 1\nsteps: 5\n")
    entry = "{recipe: two.yaml, name: again, set: {steps: 9}}"
    write(tmp_path / RUN_FILE, f"stages: [one.yaml, two.yaml, {entry}]\n")
    return tmp_path


def test_settings_go_to_the_stages_that_have_them(run_folder: Path) -> None:
    stages = run_stages(run_folder, {"seed": 2, "again.steps": 1, "work_dir": "v"})
    assert [(s.name, dict(s.settings)) for s in stages] == [
        ("one", {"seed": 2, "work_dir": "v"}),
        ("two", {"seed": 2, "work_dir": "v"}),
        ("again", {"seed": 2, "work_dir": "v", "steps": 1}),
    ]


def test_what_the_run_sets_for_a_stage_changes_by_that_stage_s_name_alone(run_folder: Path) -> None:
    before = run_stages(run_folder, {})[2]
    others = run_stages(run_folder, {"steps": 2})
    assert others[2].settings["steps"] == before.settings["steps"] != 2
    assert any(stage.settings.get("steps") == 2 for stage in others)
    assert run_stages(run_folder, {f"{before.name}.steps": 2})[2].settings["steps"] == 2


@pytest.fixture
def derived(run_folder: Path) -> Path:
    """A run whose last stage goes on from the one before, with some settings of its own."""
    content = "model: {width: 8, depth: 2}\nsteps: 5\nrate: 0.5\nbatch: {seconds: 3, count: 1}\n"
    write(run_folder / "two.yaml", f"stage: train\nwork_dir: w\nseed: 1\n{content}")
    write(
        run_folder / "more.yaml", "base: two.yaml\nseed: 1\nstart: s\nsteps: 1\nmodel.width: 4\nbatch: {}\n"
    )
    write(run_folder / RUN_FILE, "stages: [one.yaml, two.yaml, more.yaml]\n")
    return run_folder


@pytest.mark.parametrize(
    ("name", "two", "more"),
    [
        ("steps", True, False),
        ("rate", True, True),
        ("seed", True, True),
        ("model.width", True, False),
        ("model.depth", True, True),
        ("model", True, False),
        ("batch.seconds", True, False),
        ("two.steps", True, False),
        ("two.rate", True, True),
        ("two.model.width", True, False),
        ("two.model.depth", True, True),
        ("more.steps", False, True),
        ("more.model.width", False, True),
        ("more.rate", False, True),
    ],
)
def test_what_a_stage_has_in_the_place_of_another_stage_s_it_keeps_too(
    name: str, two: bool, more: bool, derived: Path
) -> None:
    key = name.removeprefix("two.").removeprefix("more.")
    stages = run_stages(derived, {name: 9})
    assert [stage.settings for stage in stages[1:]] == [{key: 9} if has else {} for has in (two, more)]


def test_it_keeps_what_bases_in_between_have_too_and_what_is_no_stage_s_is_for_all(derived: Path) -> None:
    write(derived / "most.yaml", "base: more.yaml\nrate: 0.1\n")
    write(derived / RUN_FILE, "stages: [two.yaml, most.yaml]\n")
    for name in ("steps", "rate", "model.width"):
        assert run_stages(derived, {name: 9})[1].settings == {}
    write(derived / RUN_FILE, "stages: [two.yaml, more.yaml, most.yaml]\n")
    for name, key, reached in (
        ("rate", "rate", [0, 1]),
        ("steps", "steps", [0]),
        ("two.seed", "seed", [0, 1, 2]),
    ):
        stages = run_stages(derived, {name: 9})
        assert [number for number, stage in enumerate(stages) if stage.settings == {key: 9}] == reached
    write(derived / RUN_FILE, "stages: [one.yaml, most.yaml]\n")
    for name in ("steps", "rate", "model.width"):
        assert run_stages(derived, {name: 9})[1].settings == {name: 9}


def test_what_is_given_to_a_stage_holds_whatever_is_given_to_others_after_it(derived: Path) -> None:
    for later in ("rate", "two.rate"):
        assert run_stages(derived, {"more.rate": 3, later: 9})[2].settings == {"rate": 3}
    more = run_stages(derived, {"more.batch": {"seconds": 1}, "two.batch.seconds": 9, "rate": 1})[2]
    assert list(more.settings.items()) == [("rate", 1), ("batch", {"seconds": 1})]


def test_what_the_run_sets_for_a_stage_holds_with_all_that_is_in_it(derived: Path) -> None:
    again = "{recipe: two.yaml, name: again, set: {model: {width: 1}, batch.count: 2}}"
    write(derived / RUN_FILE, f"stages: [two.yaml, {again}]\n")
    for name in ("model.width", "model", "batch.count", "batch"):
        two, other = run_stages(derived, {name: 9})
        assert two.settings == {name: 9} and 9 not in other.settings.values()
    assert run_stages(derived, {"batch.seconds": 9})[1].settings["batch.seconds"] == 9


def test_what_that_stage_alone_has_is_told_of_and_goes_to_no_other(derived: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'start' must be set for each stage separately; expected --more\.start"
    ):
        run_stages(derived, {"start": "t"}, {"train": ["start", "steps"]})
    assert run_stages(derived, {"more.start": "t"})[2].settings == {"start": "t"}


def test_what_all_stages_differ_in_is_refused_without_a_stage(run_folder: Path) -> None:
    entries = [
        f"{{recipe: two.yaml, name: {name}, set: {{steps: {n}}}}}" for n, name in enumerate(("a", "b"))
    ]
    write(run_folder / RUN_FILE, f"stages: [one.yaml, {', '.join(entries)}]\n")
    with pytest.raises(
        ConfigError, match=r"'steps' must be set for each stage separately; expected --a\.steps or --b\.steps"
    ):
        run_stages(run_folder, {"steps": 3})


def test_a_stage_is_found_by_name_with_dashes_and_a_key_may_be_named_as_one(tmp_path: Path) -> None:
    write(tmp_path / "first-one.yaml", "stage: train\nseed: 1\nteacher: t\n")
    write(tmp_path / "teacher.yaml", "stage: train\nseed: 1\nteacher: t\n")
    write(tmp_path / RUN_FILE, "stages: [first-one.yaml, teacher.yaml]\n")
    stages = run_stages(tmp_path, {"first_one.seed": 2, "teacher.seed": 3, "teacher": "u"})
    assert [stage.settings for stage in stages] == [{"seed": 2, "teacher": "u"}, {"seed": 3, "teacher": "u"}]


def test_what_is_no_file_or_no_folder_or_no_text_is_told(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"a run is a folder .* Give its folder: kdasr run {run_folder}"):
        run_stages(run_folder / RUN_FILE, {})
    with pytest.raises(ConfigError, match=rf"a recipe is a file, .*`kdasr run {run_folder}`"):
        load_recipe(run_folder)
    (run_folder / "one.yaml").write_bytes(b"stage: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"one\.yaml: the recipe is not UTF-8 text"):
        load_recipe(run_folder / "one.yaml")


def test_a_setting_that_no_stage_has_is_refused(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no stage has the setting 'sedd'.*seed"):
        run_stages(run_folder, {"sedd": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: []", "lists no stages"),
        ("stages: [gone.yaml]", "no such recipe"),
        ("stages: [{recipe: one.yaml, seet: 1}]", "unknown key 'seet'"),
        ("stages: [3]", "invalid entry in `stages`"),
        ("stages: [{recipe: one.yaml, 1: 2}]", "the name of a setting must be a string; got 1"),
        ("stages: [{recipe: one.yaml, set: {1: 2}}]", "the name of a setting must be a string; got 1"),
    ],
)
def test_a_bad_run_is_one_clear_error(run_folder: Path, text: str, message: str) -> None:
    write(run_folder / RUN_FILE, text)
    with pytest.raises(ConfigError, match=message):
        run_stages(run_folder, {})


def test_values_of_the_command_line_are_yaml() -> None:
    assert [parse_value(text) for text in ("3", "0.5", "true", "[a, b]", "a/b")] == [
        3,
        0.5,
        True,
        ["a", "b"],
        "a/b",
    ]
    assert parse_value("[oops") == "[oops"
    assert parse_value("2024-13-45") == "2024-13-45", "a date of which there is none"


def test_the_home_folder_is_known_within_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/houses/ann")
    assert parse_value("~/a/") == "/houses/ann/a/"
    assert parse_value("[~/a, b/~/c, 2]") == ["/houses/ann/a", "b/~/c", 2]
    assert parse_value("{one: {path: ~/a}, two: [~/b]}") == {
        "one": {"path": "/houses/ann/a"},
        "two": ["/houses/ann/b"],
    }
    assert parse_value("~/[oops: ]") == "/houses/ann/[oops: ]"


def test_a_recipe_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "ground.yaml").write_text(
        "stage: train\nwork_dir: w\nname: ground\nout: !ref <work_dir>/<name>\n"
        "model: !name:builtins.dict\n    width: 8\n    depth: 2\nlosses: {one: 1, two: 2}\n"
    )
    (tmp_path / "middle.yaml").write_text("base: ground.yaml\nmodel.width: 16\nlosses: {three: 3}\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "top.yaml").write_text(
        "base: ../middle.yaml\nname: top\nsize: 4\nmodel.depth: !ref <size>\n"
    )
    recipe = load_recipe(tmp_path / "folder" / "top.yaml", {"model.width": 32})
    assert recipe.arguments["out"] == "w/top" and recipe.arguments["losses"] == {"three": 3}
    assert recipe.arguments["model"]() == {"width": 32, "depth": 4}
    # A key that only a reference needs is no mistake, wherever the reference stands.
    assert "size" not in stage_arguments(recipe, ["work_dir", "name", "out", "model", "losses"], [])


def test_a_base_that_is_not_there_or_is_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("base: two.yaml\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\n")
    with pytest.raises(ConfigError, match="its own base"):
        load_recipe(tmp_path / "one.yaml")
    (tmp_path / "three.yaml").write_text("base: gone.yaml\n")
    with pytest.raises(ConfigError, match=r"gone\.yaml.*cannot be read"):
        load_recipe(tmp_path / "three.yaml")
    (tmp_path / "four.yaml").write_text("base: five.yaml\nmodel.width: 3\n")
    (tmp_path / "five.yaml").write_text("stage: train\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'model\.width'"):
        load_recipe(tmp_path / "four.yaml")


def test_a_key_goes_to_stages_without_it_only_where_none_has_it(tmp_path: Path) -> None:
    write(tmp_path / "one.yaml", "stage: prepare\nwork_dir: w\ncorpus: null\n")
    write(tmp_path / "two.yaml", "stage: prepare\nwork_dir: w\nunlabelled_corpus: null\n")
    write(tmp_path / RUN_FILE, "stages: [one.yaml, two.yaml]\n")
    takes = {"prepare": ["corpus", "seed"]}
    one, two = run_stages(tmp_path, {"corpus": "c", "unlabelled_corpus": "u", "seed": 3}, takes)
    assert (one.settings, two.settings) == ({"corpus": "c", "seed": 3}, {"unlabelled_corpus": "u", "seed": 3})
    assert run_stages(tmp_path, {"two.corpus": "c"}, takes)[1].settings == {"corpus": "c"}


def test_a_key_that_the_stage_takes_may_be_set_where_the_recipe_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "stage: label\nout: x\n")
    takes = {"label": ["out", "shard_index"], "train": ["seed"]}
    assert load_recipe(path, {"shard_index": 3}, takes).arguments == {"out": "x", "shard_index": 3}
    with pytest.raises(ConfigError, match=r"unknown setting 'seed'; expected stage, out, shard_index"):
        load_recipe(path, {"seed": 3}, takes)
    write(tmp_path / "run.yaml", "stages: [r.yaml]\n")
    assert run_stages(tmp_path, {"r.shard_index": 1}, takes)[0].settings == {"shard_index": 1}
    with pytest.raises(ConfigError, match="no stage has the setting 'seed'"):
        run_stages(tmp_path, {"seed": 1}, takes)
