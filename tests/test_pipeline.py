"""Running stages: in order, once, and again only where something changed."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr import pipeline, stages
from kdasr.errors import ConfigError, CorpusError, KdasrError, ModelError
from kdasr.ranks import Ranks
from kdasr.recipe import RUN_FILE


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that ran; the verbs themselves are replaced by this list."""
    names: list[str] = []

    def verb(*, name: str, size: float = 1, fail: bool = False) -> dict[str, Any]:
        names.append(f"{name}:{size}")
        if fail:
            raise KdasrError("broken")
        return {"size": size}

    monkeypatch.setattr(pipeline, "VERBS", {"train": verb})
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        text = f"stage: train\nwork_dir: {tmp_path}/work\nname: {name}\nsize: 1\nfail: false\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / RUN_FILE).write_text("stages: [one.yaml, two.yaml, three.yaml]\n")
    return tmp_path


def test_stages_run_in_order_and_once(folder: Path, ran: list[str]) -> None:
    assert pipeline.run_folder(folder, {}) == folder / "work"
    pipeline.run_folder(folder, {})
    assert ran == ["one:1", "two:1", "three:1"]


class Teacher:
    """What a recipe builds and a training takes to the GPU; it refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_a_training_was_made_of_is_gone_before_the_next_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[weakref.ref[Teacher]] = []
    left: list[int] = []

    def verb(*, name: str, teacher: Teacher) -> dict[str, Any]:
        teachers.append(weakref.ref(teacher))
        return {}

    for name in ("one", "two", "three"):
        text = f"stage: train\nwork_dir: {folder}/work\nname: {name}\n"
        (folder / f"{name}.yaml").write_text(f"{text}teacher: !new:tests.test_pipeline.Teacher\n")
    monkeypatch.setattr(pipeline, "VERBS", {"train": verb})
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: left.append(sum(one() is not None for one in teachers))
    )
    pipeline.run_folder(folder, {})
    assert left == [0, 0, 0] and len(teachers) == 3


def test_a_folder_that_a_later_stage_needs_is_asked_for_at_once(folder: Path, ran: list[str]) -> None:
    text = f"stage: prepare\nwork_dir: {folder}/work\nname: folder\nunlabelled_corpus: null\nout: o\n"
    (folder / "two.yaml").write_text(text)
    pipeline.VERBS["prepare"] = stages.prepare
    missing = (
        r"^unlabelled_corpus: `prepare folder` needs the folder of its corpus. Add --unlabelled_corpus DIR\.$"
    )
    with pytest.raises(ConfigError, match=missing):
        pipeline.run_folder(folder, {})
    with pytest.raises(ConfigError, match=missing):
        pipeline.run_recipe(folder / "two.yaml", {})
    (folder / "two.yaml").write_text(text.replace("unlabelled_corpus", "corpus"))
    with pytest.raises(ConfigError, match="^corpus: .*Add --corpus DIR.$"):
        pipeline.run_folder(folder, {})
    assert ran == []


def test_a_corpus_that_a_later_stage_cannot_use_is_refused_before_the_first(
    folder: Path, ran: list[str]
) -> None:
    (folder / "empty").mkdir()
    text = (
        f"stage: prepare\nwork_dir: {folder}/work\nname: folder\nunlabelled_corpus: {folder}/empty\nout: o\n"
    )
    (folder / "two.yaml").write_text(text)
    pipeline.VERBS["prepare"] = stages.prepare
    with pytest.raises(CorpusError, match="there is no audio in this folder"):
        pipeline.run_folder(folder, {})
    (folder / "two.yaml").write_text(text + "max_second: 3\n")
    with pytest.raises(ConfigError, match="max_second"):
        pipeline.run_folder(folder, {})
    assert ran == []


def test_what_no_stage_makes_must_be_there_before_the_first_runs(
    folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(*, name: str, out: str, teacher: Any) -> dict[str, Any]:
        ran.append(name)
        return {}

    monkeypatch.setattr(pipeline, "VERBS", {"label": verb, "prepare": stages.prepare})
    for name, teacher in (("one", "null"), ("two", f"{folder}/made"), ("three", f"{folder}/elsewhere")):
        out = f"{folder}/made" if name == "one" else name
        text = f"stage: label\nwork_dir: {folder}/work\nname: {name}\nout: {out}\nteacher: {teacher}\n"
        (folder / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"teacher: the stage three needs a folder.*elsewhere"):
        pipeline.run_folder(folder, {})
    network = "!new:kdasr.teachers.torchaudio_ctc.TorchaudioCTC\n    architecture: nowhere.json\n"
    text = (folder / "three.yaml").read_text()
    (folder / "three.yaml").write_text(text.partition("teacher:")[0] + f"teacher: {network}")
    with pytest.raises(ModelError, match=r"nowhere\.json"):
        pipeline.run_folder(folder, {})
    (folder / "three.yaml").write_text(text)
    (folder / "elsewhere").mkdir()
    prepare = f"stage: prepare\nwork_dir: {folder}/work\nname: folder\ncorpus: {folder}/audio\nout: o\n"
    (folder / "two.yaml").write_text(prepare)
    with pytest.raises(ConfigError, match=r"corpus: the stage two needs a folder.*audio"):
        pipeline.run_folder(folder, {})
    assert ran == []


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("train", "dev: [DIR/runs/shards/dev, DIR/nowhere]"),
        ("train", "labels: [DIR/nowhere]"),
        ("train", "delay_reference: DIR/nowhere"),
        ("label", "audio: DIR/nowhere"),
        ("label", "teacher: !new:kdasr.labelling.Ensemble {folders: [DIR/runs/made, DIR/nowhere]}"),
        ("evaluate", "test: {quiet: [DIR/runs/shards/quiet], loud: [DIR/nowhere]}"),
        ("evaluate", "models: {made: {path: DIR/runs/made}, other: {path: DIR/nowhere}}"),
        ("evaluate", "models: {other: {path: DIR/runs/made/a.onnx, trained: DIR/nowhere}}"),
        ("evaluate", "lexicon: [DIR/runs/made/words.txt, DIR/nowhere]"),
        (
            "label",
            "settings: !new:kdasr.labelling.Settings {words: !new:kdasr.labelling.Words {lexicon: "
            "!new:kdasr.lexicon.Lexicon {units: DIR/runs/made, sources: [DIR/runs/shards/a, DIR/nowhere]}}}",
        ),
        ("train", "teachers: {big: !new:kdasr.methods.teachers.FrozenTeacher {model: DIR/nowhere}}"),
        ("train", "unlabelled: !new:kdasr.methods.impressions.Impressions {teacher: DIR/nowhere, cache: c}"),
    ],
)
def test_every_folder_that_no_stage_makes_is_asked_for_at_once(
    folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch, stage: str, setting: str
) -> None:
    """Those under the folder of another stage are made by it; of unlabelled audio that nobody hears, none."""
    monkeypatch.setattr(pipeline, "_CHECKS", {})
    monkeypatch.setattr(
        pipeline, "VERBS", {name: lambda **settings: {} for name in ("train", "label", "evaluate")}
    )
    monkeypatch.setattr(pipeline, "check_recipe", lambda recipe: recipe.arguments)
    for name, out in (("one", "shards"), ("two", "made")):
        text = f"stage: label\nwork_dir: {folder}/work\nout: {folder}/runs/{out}\n"
        (folder / f"{name}.yaml").write_text(text)
    schedule = "schedule: [[unlabelled, 1]]\n" if stage == "train" else ""
    text = f"stage: {stage}\nwork_dir: {folder}/work\nout: {folder}/runs/last\n{schedule}"
    (folder / "three.yaml").write_text(text + setting.replace("DIR", str(folder)) + "\n")
    with pytest.raises(
        ConfigError, match=rf"^{setting.split(':')[0]}\S*: the stage three needs .*{folder}/nowhere"
    ):
        pipeline.run_folder(folder, {})
    if setting.startswith("labels"):
        (folder / "three.yaml").write_text(text.replace("unlabelled", "labelled") + setting + "\n")
    else:
        (folder / "nowhere").mkdir()
    pipeline.run_folder(folder, {})


def on_devices(ran: list[str], folder: Path) -> None:
    """Three stages that take a device and do nothing."""

    def verb(*, name: str, device: str | None = None, engine: str = "inline") -> dict[str, Any]:
        ran.append(f"{name} on {device}")
        return {}

    pipeline.VERBS["train"] = verb
    for name in ("one", "two", "three"):
        (folder / f"{name}.yaml").write_text(f"stage: train\nwork_dir: {folder}/work\nname: {name}\n")


def test_a_device_that_a_later_stage_asks_for_must_be_there(folder: Path, ran: list[str]) -> None:
    on_devices(ran, folder)
    with pytest.raises(ConfigError, match="device: the device cannot be used; got nonsense"):
        pipeline.run_folder(folder, {"three.device": "nonsense"})
    assert ran == []
    # Ray's nodes have devices of their own.
    pipeline.run_folder(folder, {"three.device": "nonsense", "three.engine": "ray"})
    assert ran == ["one on None", "two on None", "three on nonsense"]


def test_another_device_is_no_reason_to_do_it_again(folder: Path, ran: list[str]) -> None:
    on_devices(ran, folder)
    pipeline.run_folder(folder, {"device": "cpu"})
    pipeline.run_folder(folder, {})
    pipeline.run_folder(folder, {"device": "nonsense"})
    pipeline.run_folder(folder, {"one.engine": "processes"})
    assert ran == ["one on cpu", "two on cpu", "three on cpu"]


def test_a_stage_that_is_done_needs_nothing(folder: Path, ran: list[str]) -> None:
    def verb(*, name: str, teacher: str = "") -> dict[str, Any]:
        ran.append(name)
        return {}

    pipeline.VERBS["label"] = verb
    (folder / "teacher").mkdir()
    text = f"stage: label\nwork_dir: {folder}/work\nname: one\nteacher: {folder}/teacher\n"
    (folder / "one.yaml").write_text(text)
    pipeline.run_folder(folder, {})
    (folder / "teacher").rmdir()
    pipeline.run_folder(folder, {})
    assert ran == ["one", "two:1", "three:1"]


def test_a_change_reruns_its_stage_and_all_after_it(folder: Path, ran: list[str]) -> None:
    pipeline.run_folder(folder, {})
    ran.clear()
    pipeline.run_folder(folder, {"two.size": 5})
    assert ran == ["two:5", "three:1"]


def test_a_comment_is_no_change_but_a_tag_is(folder: Path, ran: list[str]) -> None:
    pipeline.run_folder(folder, {})
    text = (folder / "two.yaml").read_text()
    (folder / "two.yaml").write_text(
        f"# Said better.\n{text.replace('size: 1', 'size: 1  # one')}\n# The end.\n"
    )
    pipeline.run_folder(folder, {})
    assert ran == ["one:1", "two:1", "three:1"]
    (folder / "three.yaml").write_text(text.replace("two", "three").replace("size: 1", "size: !!float 1"))
    pipeline.run_folder(folder, {})
    assert ran[3:] == ["three:1.0"]


def test_a_failed_stage_runs_again_and_those_before_it_do_not(folder: Path, ran: list[str]) -> None:
    with pytest.raises(KdasrError):
        pipeline.run_folder(folder, {"two.fail": True})
    ran.clear()
    pipeline.run_folder(folder, {})
    assert ran == ["two:1", "three:1"]


@pytest.mark.parametrize("only", [None, "two"])
def test_what_a_stage_has_begun_to_replace_is_not_done_any_more(
    folder: Path, ran: list[str], only: str | None
) -> None:
    pipeline.run_folder(folder, {})
    with pytest.raises(KdasrError, match="broken"):
        pipeline.run_folder(folder, {"two.fail": True}, only=only)
    ran.clear()
    pipeline.run_folder(folder, {})
    assert ran == ["two:1"]


def test_a_stage_that_is_done_stays_so_where_doing_it_once_more_fails(folder: Path, ran: list[str]) -> None:
    pipeline.run_folder(folder, {})
    verb = pipeline.VERBS["train"]

    def breaks(*, name: str, size: float, fail: bool) -> dict[str, Any]:
        raise KdasrError("broken")

    pipeline.VERBS["train"] = breaks
    with pytest.raises(KdasrError, match="broken"):
        pipeline.run_folder(folder, {}, only="two")
    pipeline.VERBS["train"] = verb
    ran.clear()
    pipeline.run_folder(folder, {})
    assert ran == []


def test_one_stage_with_other_settings_leaves_it_to_be_done_again(folder: Path, ran: list[str]) -> None:
    pipeline.run_folder(folder, {})
    pipeline.run_folder(folder, {"size": 2}, only="two")
    ran.clear()
    pipeline.run_folder(folder, {})
    assert ran == ["two:1"]


def test_a_stage_that_runs_again_takes_those_after_it_along(folder: Path, ran: list[str]) -> None:
    """They were made of what it made before, which may be other weights."""
    made = {"weights_sha256": "a"}
    pipeline.VERBS["train"] = lambda *, name, size, fail: ran.append(name) or made  # type: ignore[assignment, func-returns-value]
    pipeline.run_folder(folder, {})
    (folder / "work/.done/one.json").unlink()
    ran.clear()
    pipeline.run_folder(folder, {})
    assert ran == ["one", "two", "three"]
    record = folder / "work/.done/one.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "inputs": "of before"}))
    ran.clear()
    pipeline.run_folder(folder, {})
    assert ran == ["one"]  # with the same weights as before
    record.write_text(json.dumps({**json.loads(record.read_text()), "inputs": "of before"}))
    made["weights_sha256"] = "b"
    ran.clear()
    pipeline.run_folder(folder, {}, only="one")
    pipeline.run_folder(folder, {})
    assert ran == ["one", "two", "three"]


def test_two_stages_that_write_to_one_folder_are_refused(folder: Path, ran: list[str]) -> None:
    pipeline.VERBS["train"] = lambda *, name, size, fail, out: ran.append(name) or {}  # type: ignore[assignment, func-returns-value]
    for name in ("one", "two", "three"):
        with (folder / f"{name}.yaml").open("a") as file:
            file.write(f"out: {folder}/{'same' if name != 'two' else name}\n")
    with pytest.raises(ConfigError, match=r"one, three: two stages write to the same folder; got .*/same"):
        pipeline.run_folder(folder, {})
    assert ran == []


@pytest.mark.parametrize(
    ("stage", "setting", "message"),
    [
        ("evaluate", "decoder: beem", "decoder: unknown decoder.*greedy or beam"),
        ("evaluate", "spikes: [teacher, studnet]", "spikes: .*two of teacher"),
        ("evaluate", "models: {teacher: {pth: a}}", "models.teacher: unknown setting for Scoreboard.add"),
        ("evaluate", "models: {}", "models: there is nothing to evaluate"),
        ("evaluate", "models: {2024: {path: a}}", "name of a row in models: .*a string; got 2024"),
        ("evaluate", "models: {a/../../b: {path: a}}", "models: the name of a row is not a name; .* got 'a/"),
        ("evaluate", "test: {/clean: [a]}", "test: the name of a test set is not a name; .* got '/clean'"),
        ("evaluate", "test: {2024: [a]}", "name of a set in test: .*a string; got 2024"),
        ("evaluate", "test: {clean: [a], other: []}", r"test\.other: there is nothing to evaluate"),
        ("export", "format: onxx", "onxx"),
        ("export", "model: gone", "three needs a folder that does not exist; got gone"),
        ("label", "engine: process", "engine: unknown engine.*inline, processes, ray; got process"),
        ("label", "workers: 4", "the inline engine has only one worker.*got 4"),
        ("label", "teacher: null", "teacher: .*; got None"),
    ],
)
def test_what_is_wrong_in_the_last_stage_is_found_before_the_first_runs(
    folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch, stage: str, setting: str, message: str
) -> None:
    given = {
        "evaluate": {"test": "[t]", "models": "{teacher: {path: a}}", "results": "r.json"},
        "export": {"model": f"{folder}/work", "out": "o"},
        "label": {"teacher": f"{folder}/work", "audio": "a", "out": "o"},
    }[stage]
    name, _, value = setting.partition(": ")
    lines = {"stage": stage, "work_dir": f"{folder}/work", **given, name: value}
    (folder / "three.yaml").write_text("".join(f"{key}: {text}\n" for key, text in lines.items()))
    monkeypatch.setitem(pipeline.VERBS, stage, getattr(stages, stage))
    with pytest.raises(ConfigError, match=message):
        pipeline.run_folder(folder, {})
    assert ran == []


def test_what_a_preparation_or_an_export_has_lost_in_part_is_not_done(
    folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(*, name: str, out: str) -> dict[str, Any]:
        ran.append(name)
        for part in ("a", "b"):
            (Path(out) / part).mkdir(parents=True, exist_ok=True)
        return {"a": 1, "b": 1} if name == "synth" else {"files": {f"{out}/a": "8 MB", f"{out}/b": "2 MB"}}

    monkeypatch.setattr(pipeline, "VERBS", {"prepare": verb, "export": verb})
    for name, stage in (("synth", "prepare"), ("two", "export")):
        text = f"stage: {stage}\nwork_dir: {folder}/work\nname: {name}\nout: {folder}/{name}\n"
        (folder / f"{name}.yaml").write_text(text)
    (folder / RUN_FILE).write_text("stages: [synth.yaml, two.yaml]\n")
    pipeline.run_folder(folder, {})
    for name, again in (("two", ["two"]), ("synth", ["synth", "two"])):
        ran.clear()
        pipeline.run_folder(folder, {})
        assert ran == []
        shutil.rmtree(folder / name / "b")
        pipeline.run_folder(folder, {})
        assert ran == again


def test_a_stage_whose_model_is_gone_or_another_runs_again(
    folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(*, name: str, out: str) -> dict[str, Any]:
        ran.append(name)
        Path(out).mkdir(exist_ok=True)
        (Path(out) / "model.json").write_text(json.dumps({"weights_sha256": name}))
        return {"weights_sha256": name}

    monkeypatch.setattr(pipeline, "VERBS", {"train": verb})
    monkeypatch.setattr(pipeline, "read_card", lambda path: json.loads((path / "model.json").read_text()))
    for name in ("one", "two", "three"):
        text = f"stage: train\nwork_dir: {folder}/work\nname: {name}\nout: {folder}/{name}\n"
        (folder / f"{name}.yaml").write_text(text)
    pipeline.run_folder(folder, {})
    ran.clear()
    shutil.rmtree(folder / "one")
    (folder / "three/model.json").write_text(json.dumps({"weights_sha256": "of another training"}))
    pipeline.run_folder(folder, {})
    assert ran == ["one", "three"]


def test_a_stage_runs_again_where_a_model_from_elsewhere_is_another_one_now(
    folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(*, name: str, out: str, teacher: Any = None) -> dict[str, Any]:
        ran.append(name)
        Path(out).mkdir(exist_ok=True)
        (Path(out) / "model.json").write_text(json.dumps({"weights_sha256": f"{len(ran)}"}))
        return {"weights_sha256": f"{len(ran)}"}

    def train_elsewhere(weights: str) -> None:
        (folder / "elsewhere").mkdir(exist_ok=True)
        (folder / "elsewhere/model.json").write_text(json.dumps({"weights_sha256": weights}))

    def read_card(path: Path) -> Any:
        if not (path / "model.json").exists():
            raise ModelError("there is no model", where=path)
        return json.loads((path / "model.json").read_text())

    monkeypatch.setattr(pipeline, "VERBS", {"train": verb})
    monkeypatch.setattr(pipeline, "read_card", read_card)
    for name, teacher in (("one", "none"), ("two", "elsewhere"), ("three", "two")):
        text = f"stage: train\nwork_dir: {folder}/work\nname: {name}\nout: {folder}/{name}\n"
        (folder / f"{name}.yaml").write_text(f"{text}teacher: {folder}/{teacher}\n")
    (folder / "none").mkdir()
    train_elsewhere("first")
    pipeline.run_folder(folder, {})
    pipeline.run_folder(folder, {})
    assert ran == ["one", "two", "three"]
    train_elsewhere("second")
    pipeline.run_folder(folder, {})
    assert ran[3:] == ["two", "three"]
    # On a machine that does not have it.
    (folder / "elsewhere/model.json").unlink()
    pipeline.run_folder(folder, {})
    assert len(ran) == 5
    # One that is named within an object.
    text = (folder / "two.yaml").read_text().partition("teacher:")[0]
    built = f"teacher: !new:kdasr.labelling.Ensemble\n    folders: [{folder}/elsewhere, {folder}/one]\n"
    (folder / "two.yaml").write_text(text + built)
    train_elsewhere("second")
    pipeline.run_folder(folder, {})
    train_elsewhere("third")
    pipeline.run_folder(folder, {})
    pipeline.run_folder(folder, {})
    assert ran[5:] == ["two", "three", "two", "three"]


def test_a_marker_that_is_not_one_counts_for_nothing(folder: Path, ran: list[str]) -> None:
    pipeline.run_folder(folder, {})
    (folder / "work/.done/three.json").write_text('{"inp')
    ran.clear()
    pipeline.run_folder(folder, {})
    assert ran == ["three:1"]


def test_a_bad_key_in_the_last_stage_is_found_before_the_first_runs(folder: Path, ran: list[str]) -> None:
    with (folder / "three.yaml").open("a") as file:
        file.write("siez: 3\n")
    with pytest.raises(ConfigError, match=r"three\.yaml: unknown key 'siez'"):
        pipeline.run_folder(folder, {})
    assert ran == []


def test_a_value_of_another_type_is_found_before_the_first_runs(folder: Path, ran: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"three\.yaml: size: .*a number; got 'big'"):
        pipeline.run_folder(folder, {"three.size": "big"})
    assert ran == []


def test_a_loss_without_weight_is_found_before_the_first_stage_runs(folder: Path, ran: list[str]) -> None:
    def trained(*, name: str, unlabelled_losses: dict[str, Any] | None = None) -> dict[str, Any]:
        return {}

    pipeline.VERBS["train"] = trained
    for name in ("one", "two", "three"):
        (folder / f"{name}.yaml").write_text(f"stage: train\nwork_dir: {folder}/work\nname: {name}\n")
    with (folder / "three.yaml").open("a") as file:
        file.write("unlabelled_losses:\n    a: !name:kdasr.losses.best_path_ctc\n")
    with pytest.raises(ConfigError, match=r"unlabelled_losses\.a: a loss needs a weight and a function"):
        pipeline.run_folder(folder, {})
    assert not (folder / "work").exists()


def test_a_stage_may_learn_from_the_model_of_an_earlier_one_that_has_not_run(
    folder: Path, ran: list[str]
) -> None:
    def trained(*, name: str, out: str, teachers: dict[str, Any] | None = None) -> dict[str, Any]:
        ran.append(name)
        return {}

    pipeline.VERBS["train"] = trained
    for name in ("one", "two", "three"):
        text = f"stage: train\nwork_dir: {folder}/work\nname: {name}\nout: !ref <work_dir>/<name>\n"
        (folder / f"{name}.yaml").write_text(text)
    with (folder / "three.yaml").open("a") as file:
        file.write(
            "teachers:\n    big: !new:kdasr.methods.teachers.FrozenTeacher {model: !ref <work_dir>/one}\n"
        )
    pipeline.run_folder(folder, {})
    assert ran == ["one", "two", "three"]


def test_pruning_without_a_model_is_found_before_the_first_stage_runs(folder: Path, ran: list[str]) -> None:
    def trained(*, name: str, prune: Any = None) -> dict[str, Any]:
        ran.append(name)
        return {}

    pipeline.VERBS["train"] = trained
    for name in ("one", "two", "three"):
        (folder / f"{name}.yaml").write_text(f"stage: train\nwork_dir: {folder}/work\nname: {name}\n")
    with (folder / "three.yaml").open("a") as file:
        file.write("prune: !new:kdasr.methods.pruning.Pruning {share: 0.5}\n")
    with pytest.raises(ConfigError, match=r"prune: only a trained model can be pruned"):
        pipeline.run_folder(folder, {})
    assert ran == []


def test_a_model_replaces_nothing_else_and_that_is_known_before_the_first_stage(
    folder: Path, ran: list[str]
) -> None:
    pipeline.VERBS["train"] = lambda *, name, size, fail, out="": ran.append(name) or {}  # type: ignore[assignment, func-returns-value]
    (folder / "mine").mkdir()
    (folder / "mine/notes.txt").touch()
    with (folder / "three.yaml").open("a") as file:
        file.write(f"out: {folder}/mine\n")
    with pytest.raises(ConfigError, match=r"mine: the model would replace this folder.*notes\.txt"):
        pipeline.run_folder(folder, {})
    assert ran == []


def test_an_evaluation_whose_results_are_gone_is_done_again(
    folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(*, name: str, results: str) -> dict[str, Any]:
        ran.append(name)
        Path(results).touch()
        return {}

    monkeypatch.setattr(pipeline, "VERBS", {"evaluate": verb})
    monkeypatch.setattr(pipeline, "_CHECKS", {})
    (folder / RUN_FILE).write_text("stages: [one.yaml]\n")
    text = f"stage: evaluate\nwork_dir: {folder}/work\nname: one\nresults: {folder}/results.json\n"
    (folder / "one.yaml").write_text(text)
    for _ in range(2):
        pipeline.run_folder(folder, {})
    assert ran == ["one"]
    (folder / "results.json").unlink()
    pipeline.run_folder(folder, {})
    assert ran == ["one", "one"]


def test_stages_must_share_their_work_folder(folder: Path, ran: list[str]) -> None:
    with pytest.raises(ConfigError, match="share one work_dir"):
        pipeline.run_folder(folder, {"two.work_dir": "elsewhere"})
    for name in ("one", "two", "three"):
        recipe = folder / f"{name}.yaml"
        recipe.write_text(recipe.read_text().replace(f"work_dir: {folder}/work\n", ""))
    with pytest.raises(ConfigError, match="share one work_dir"):
        pipeline.run_folder(folder, {})
    assert ran == []


def test_an_unknown_stage_is_refused(folder: Path) -> None:
    (folder / "one.yaml").write_text("stage: distil\nwork_dir: w\n")
    with pytest.raises(ConfigError, match=r"unknown stage.*prepare, train"):
        pipeline.run_recipe(folder / "one.yaml", {})


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[str]]]:
    """The commands of each group that ran side by side; they do nothing."""
    groups: list[dict[str, list[str]]] = []
    monkeypatch.setattr(pipeline, "run_beside", lambda commands, say: groups.append(commands))
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return groups


@pytest.fixture
def grouped(folder: Path) -> Path:
    (folder / RUN_FILE).write_text("stages: [one.yaml, two.yaml, {recipe: three.yaml, beside: true}]\n")
    return folder


def test_stages_that_may_do_run_side_by_side(
    grouped: Path, ran: list[str], beside: list[dict[str, list[str]]]
) -> None:
    pipeline.run_folder(grouped, {"two.size": 2})
    command = ["run", str(grouped), "--only"]
    assert ran == ["one:1"]
    assert beside == [
        {"two": [*command, "two", "--two.size", "2"], "three": [*command, "three", "--two.size", "2"]}
    ]


@pytest.mark.parametrize("edited", ["size: 2", "size: [", ""])
def test_a_run_goes_by_the_recipes_that_it_found(
    grouped: Path,
    ran: list[str],
    beside: list[dict[str, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    edited: str,
) -> None:
    def edit(*arguments: Any) -> dict[str, Any]:
        if not ran:
            text = (grouped / "three.yaml").read_text()
            (grouped / "three.yaml").write_text(text.replace("size: 1", edited))
        return call(*arguments)

    call = pipeline._call
    monkeypatch.setattr(pipeline, "_call", edit)
    pipeline.run_folder(grouped, {})
    assert ran == ["one:1", "two:1", "three:1"] and beside == []


def test_one_stage_alone_marks_itself_done(
    grouped: Path, ran: list[str], beside: list[dict[str, list[str]]]
) -> None:
    pipeline.run_folder(grouped, {}, only="one")
    pipeline.run_folder(grouped, {}, only="three")
    assert ran == ["one:1", "three:1"]
    pipeline.run_folder(grouped, {})
    assert ran == ["one:1", "three:1", "two:1"] and beside == []


def test_a_stage_over_others_that_are_not_done_is_not_done_either(
    grouped: Path, ran: list[str], beside: list[dict[str, list[str]]]
) -> None:
    pipeline.run_folder(grouped, {}, only="three")
    pipeline.run_folder(grouped, {})
    assert ran == ["three:1", "one:1"] and list(beside[0]) == ["two", "three"]


@pytest.mark.parametrize("losses", ["unlabelled_losses", "labelled_losses"])
@pytest.mark.parametrize("delay", ["auto", "2  # or delay_frames: auto"])
def test_a_stage_waits_for_the_model_that_its_delay_is_measured_with(
    grouped: Path, ran: list[str], beside: list[dict[str, list[str]]], delay: str, losses: str
) -> None:
    def verb(
        *,
        name: str,
        out: str,
        delay_reference: str,
        labelled_soft_labels: list[str],
        labelled_losses: dict[str, Any] | None = None,
        unlabelled_losses: dict[str, Any] | None = None,
        schedule: list[Any],
        size: float = 1,
        fail: bool = False,
    ) -> dict[str, Any]:
        ran.append(name)
        return {}

    pipeline.VERBS["train"] = verb
    for name in ("one", "two", "three"):
        with (grouped / f"{name}.yaml").open("a") as file:
            file.write(f"out: models/{name}\ndelay_reference: models/two\n")
            file.write("schedule: [[unlabelled, 1]]\n")
            file.write("labelled_soft_labels: [models/one]\n")
            file.write(f"{losses}:\n    soft:\n        weight: 1.0\n")
            file.write("        loss: !name:kdasr.losses.soft_cross_entropy\n")
            file.write(f"            delay_frames: {delay}\n")
    pipeline.run_folder(grouped, {})
    if delay == "auto":
        assert ran == ["one", "two", "three"] and beside == []
    else:
        assert ran == ["one"] and list(beside[0]) == ["two", "three"]


def test_settings_that_no_command_line_says_keep_stages_in_this_process(
    grouped: Path, ran: list[str], beside: list[dict[str, list[str]]]
) -> None:
    pipeline.run_folder(grouped, {"two.size": float("inf")})
    assert ran == ["one:1", "two:inf", "three:1"] and beside == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("usable_cores", 1), ("torch.cuda.is_available", True), ("ranks", Ranks(0, 2, _control="none"))],
)
def test_without_cores_for_all_or_beside_a_gpu_or_other_processes_they_run_in_order(
    grouped: Path,
    ran: list[str],
    beside: list[dict[str, list[str]]],
    name: str,
    value: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"kdasr.pipeline.{name}", lambda: value)
    monkeypatch.setattr(Ranks, "gather", lambda self, given: [given] * self.count)
    pipeline.run_folder(grouped, {})
    assert ran == ["one:1", "two:1", "three:1"] and beside == []


def test_a_run_goes_on_without_a_file_that_the_export_refused(
    folder: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def export(*, name: str) -> dict[str, Any]:
        ran.append(name)
        return {"files": {"model.onnx": "exact"}, "refused": {"model.int8.onnx": "too bad"}}

    pipeline.VERBS["export"] = export
    (folder / "two.yaml").write_text(f"stage: export\nwork_dir: {folder}/work\nname: two\n")
    pipeline.run_folder(folder, {})
    pipeline.run_folder(folder, {})
    assert ran == ["one:1", "two", "three:1"]
    assert capsys.readouterr().err.count("model.int8.onnx was not written: too bad\n") == 1


@pytest.mark.parametrize(
    ("arguments", "by_all"), [({}, True), ({"num_shards": 2}, False), ({"engine": "processes"}, False)]
)
def test_the_processes_of_a_job_share_the_labelling_that_has_no_other_workers(
    arguments: dict[str, Any], by_all: bool, folder: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def label(*, name: str, engine: str = "inline", num_shards: int = 1) -> dict[str, Any]:
        ran.append(name)
        return {}

    pipeline.VERBS["label"] = label
    (folder / "two.yaml").write_text(f"stage: label\nwork_dir: {folder}/work\nname: two\n")
    for module in ("kdasr.pipeline", "kdasr.labelling.job"):
        monkeypatch.setattr(f"{module}.ranks", lambda: Ranks(1, 2))
    monkeypatch.setattr(Ranks, "gather", lambda self, given: [given] * self.count)
    pipeline.run_recipe(folder / "two.yaml", arguments)
    assert ran == ["two"] * by_all


@pytest.mark.parametrize("which", ["only", "until"])
def test_a_stage_that_is_not_there_is_named(folder: Path, ran: list[str], which: Any) -> None:
    with pytest.raises(ConfigError, match="no such stage.*one, two, three.*four"):
        pipeline.run_folder(folder, {}, **{which: "four"})
    assert ran == []


def test_a_run_stops_after_a_stage_and_goes_on_from_there(folder: Path, ran: list[str]) -> None:
    pipeline.run_folder(folder, {}, until="two")
    pipeline.run_folder(folder, {}, until="two")
    assert ran == ["one:1", "two:1"]
    pipeline.run_folder(folder, {})
    assert ran == ["one:1", "two:1", "three:1"]
    pipeline.run_folder(folder, {"two.size": 2}, until="two")
    assert ran[3:] == ["two:2"]
    pipeline.run_folder(folder, {"two.size": 2})
    assert ran[4:] == ["three:1"]


def test_a_run_that_stops_asks_for_nothing_of_what_comes_after(folder: Path, ran: list[str]) -> None:
    on_devices(ran, folder)
    pipeline.run_folder(folder, {"three.device": "nonsense"}, until="two")
    assert ran == ["one on None", "two on None"]


def test_a_first_stage_that_may_run_beside_others_has_none_before_it(
    folder: Path, ran: list[str], beside: list[dict[str, list[str]]]
) -> None:
    (folder / RUN_FILE).write_text("stages: [{recipe: one.yaml, beside: true}, two.yaml]\n")
    pipeline.run_folder(folder, {})
    assert ran == ["one:1", "two:1"] and beside == []


def test_a_run_that_stops_among_stages_side_by_side_runs_those_before(
    grouped: Path, ran: list[str], beside: list[dict[str, list[str]]]
) -> None:
    pipeline.run_folder(grouped, {}, until="two")
    assert ran == ["one:1", "two:1"] and beside == []


def test_beside_is_yes_or_no(folder: Path) -> None:
    (folder / RUN_FILE).write_text("stages: [one.yaml, {recipe: two.yaml, beside: one}]\n")
    with pytest.raises(ConfigError, match="`beside` must be true or false; got one"):
        pipeline.run_folder(folder, {})


def test_settings_of_a_stage_are_by_name(folder: Path) -> None:
    (folder / RUN_FILE).write_text("stages: [one.yaml, {recipe: two.yaml, set: }]\n")
    with pytest.raises(
        ConfigError, match="invalid value of `set`; expected a mapping of settings, or no `set`$"
    ):
        pipeline.run_folder(folder, {})


def test_two_stages_of_one_name_are_refused(folder: Path) -> None:
    (folder / RUN_FILE).write_text("stages: [one.yaml, {recipe: two.yaml, name: one}]\n")
    with pytest.raises(ConfigError, match="several stages have the same name; got one"):
        pipeline.run_folder(folder, {})


@pytest.mark.parametrize("name", ["mini", "fsdd"])
def test_the_students_of_the_small_recipes_run_side_by_side(name: str, tmp_path: Path) -> None:
    recipes = Path(__file__).parents[1] / "recipes" / name
    settings = {"work_dir": str(tmp_path), **({"corpus": str(tmp_path)} if name == "fsdd" else {})}
    groups = pipeline._groups(pipeline._read_folder(recipes, settings))
    names = [[one.stage.name for one in group] for group in groups]
    assert ["student_labelled_only", "student_distilled"] in names
