"""results.json: replaced by model and seed, whole at any moment, refused when it is something else."""

from __future__ import annotations

import json
import math
import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdasr.errors import ConfigError
from kdasr.results import (
    ROW_FIELDS,
    append_result,
    hypotheses_file,
    read_hypotheses,
    read_results,
    set_aside_others,
)
from kdasr.storage import commit_json


def row(model: str = "teacher", seed: int = 1, **more: Any) -> dict[str, Any]:
    values = {"wer": 4.2, "cer": 1.1, "params": 1000, "bytes": 4000, "rtf": 0.01, "latency_ms": None}
    return {"model": model, "seed": seed, "train_steps": 700, **values, **more}


def test_rows_come_back_in_order_with_what_else_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mini" / "results.json"
    append_result(path, row("teacher", substitutions=3))
    append_result(path, row("student_distilled", rtf=None))
    rows = json.loads(path.read_text())
    assert rows == read_results(path)
    assert [found["model"] for found in rows] == ["teacher", "student_distilled"]
    assert set(ROW_FIELDS) <= set(rows[0]) and rows[0]["substitutions"] == 3
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_a_row_replaces_the_older_one_of_its_model_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for model, seed, wer in [
        ("teacher", 1, 9.0),
        ("student", 1, 8.0),
        ("teacher", 2, 7.0),
        ("teacher", 1, 6.0),
    ]:
        append_result(path, row(model, seed, wer=wer))
    found = [(item["model"], item["seed"], item["wer"]) for item in read_results(path)]
    assert found == [("teacher", 1, 6.0), ("student", 1, 8.0), ("teacher", 2, 7.0)]


def test_each_test_set_has_rows_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for test, wer in (("clean", 5.0), ("other", 15.0), ("clean", 4.0)):
        append_result(path, row(test=test, wer=wer))
    assert [(item["test"], item["wer"]) for item in read_results(path)] == [("clean", 4.0), ("other", 15.0)]


def test_the_row_of_a_model_that_is_not_there_says_why_until_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    append_result(path, row("int8", wer=9.0))
    append_result(path, {"model": "int8", "seed": 1, "missing": "refused"})
    assert read_results(path) == [{"model": "int8", "seed": 1, "missing": "refused"}]
    append_result(path, row("int8", wer=8.0))
    assert [(item["model"], item["wer"]) for item in read_results(path)] == [("int8", 8.0)]
    with pytest.raises(ConfigError, match="lacks a field; expected seed"):
        append_result(path, {"model": "int8", "missing": "refused"})


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_results(tmp_path / "results.json") == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("wer", "lacks a field"),
        (math.nan, "wer of a result row is not a finite number"),
        (None, "wer of a result row"),
    ],
)
def test_a_row_without_its_numbers_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    bad = row()
    if damage == "wer":
        del bad["wer"]
    else:
        bad["wer"] = damage
    with pytest.raises(ConfigError, match=message):
        append_result(tmp_path / "results.json", bad)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        ({"seed": "<script>alert(1)</script>"}, "the field seed of a result row is not a finite number"),
        ({"rtf": "fast"}, "the field rtf of a result row is not a finite number; got 'fast'"),
        ({"seed": [1]}, "the field seed"),
        ({"wer": "1"}, "the field wer"),
        ({"left_out": "1", "listed": 2}, "the field left_out"),
        ({"left_out": 1}, "a result row lacks a field; expected listed"),
        ({"lexicon": 5}, "the field lexicon of a result row is no list of names; got 5"),
        ({"lexicon": [1]}, "the field lexicon"),
        ({"model": "a\x1b]0;b\x07"}, "the field model"),
        ({"model": 5}, "the field model of a result row is not a name"),
        ({"model": "../../clips/my"}, "the field model"),
        ({"test": "/clips"}, "the field test"),
    ],
)
def test_a_row_from_elsewhere_names_no_file_elsewhere_and_its_numbers_are_numbers(
    strange: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    commit_json(path, [row(), {**row(), **strange}])
    with pytest.raises(ConfigError, match=message):
        read_results(path)


def test_what_was_heard_is_not_moved_out_of_another_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.json"
    (tmp_path / "run" / "hypotheses").mkdir(parents=True)
    (tmp_path / "clips-1.jsonl").write_text("mine")
    commit_json(path, [row("../../clips", decoder="beam")])
    with pytest.raises(ConfigError, match="not a name"):
        append_result(path, row("teacher"), {"decoder": "greedy"})
    assert (tmp_path / "clips-1.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    "content", ["[", pytest.param("[" * 100_000, id="deep"), "{}", "[1]", '[{"model": "teacher"}]']
)
def test_a_foreign_file_is_refused_and_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"results\.json"):
        append_result(path, row())
    assert path.read_text() == content


@pytest.mark.parametrize("strange", ['"reference": 7', '"hypothesis": null', '"errors": "x"', '"key": [1]'])
def test_what_was_heard_is_text(strange: str, tmp_path: Path) -> None:
    path = tmp_path / "teacher-1.jsonl"
    path.write_text('{"key": "a", "reference": "one", "hypothesis": "", "errors": 1, ' + strange + "}\n")
    with pytest.raises(ConfigError, match="not a file of hypotheses"):
        read_hypotheses(path)


def append_ten(path: Path, model: str) -> None:
    for seed in range(10):
        append_result(path, row(model, seed))


def test_two_processes_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=append_ten, args=(path, model)) for model in ("a", "b", "c")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    assert {(item["model"], item["seed"]) for item in read_results(path)} == {
        (model, seed) for model in "abc" for seed in range(10)
    }


def test_rows_that_were_measured_otherwise_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    greedy, beam = {"decoder": "greedy", "words": None}, {"decoder": "beam", "words": "ab12"}
    assert set_aside_others(path, None, 1, greedy) is None
    append_result(path, row("older"))  # of before rows said how they were measured
    append_result(path, row("one", **greedy))
    append_result(path, row("two", **greedy, test="other"))
    before = read_results(path)
    assert set_aside_others(path, None, 1, greedy) is None and read_results(path) == before
    kept = set_aside_others(path, None, 1, beam)
    assert kept is not None and [found["model"] for found in read_results(kept)] == ["one"]
    assert [found["model"] for found in read_results(path)] == ["older", "two"]
    assert set_aside_others(path, "other", 1, beam) == kept  # of another test set, in the same place
    assert [found["model"] for found in read_results(kept)] == ["one", "two"]


def test_what_was_heard_is_set_aside_with_its_row_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    (tmp_path / "hypotheses" / "clean").mkdir(parents=True)
    for audio in ("a", "b"):
        for model in ("one", "two"):
            measured = row(model, test="clean", test_audio=audio)
            append_result(path, measured)
            if model == "one":
                hypotheses_file(path, measured).write_text(audio)
        kept = set_aside_others(path, "clean", 1, {"test_audio": "other"})
    assert kept is not None and list((tmp_path / "hypotheses").rglob("*.jsonl")) == []
    rows = read_results(kept)
    assert [(found["model"], found["test_audio"]) for found in rows] == [
        ("one", "a"),
        ("two", "a"),
        ("one", "b"),
        ("two", "b"),
    ]
    files = [found.get("hypotheses") for found in rows]
    assert files == ["results.before/0-one-1.jsonl", None, "results.before/2-one-1.jsonl", None]
    assert [(tmp_path / file).read_text() for file in files if file] == ["a", "b"]


def test_a_row_that_a_killed_process_has_set_aside_already_is_not_doubled(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for model in ("one", "two"):
        append_result(path, row(model, test_audio="a"))
    rows = read_results(path)
    hypotheses_file(path, rows[0]).parent.mkdir()
    hypotheses_file(path, rows[0]).write_text("a")
    kept = set_aside_others(path, None, 1, {"test_audio": "b"})
    assert kept is not None
    before = read_results(kept)
    commit_json(path, rows)  # as it was: the process was killed between the two files
    assert set_aside_others(path, None, 1, {"test_audio": "b"}) == kept
    assert read_results(kept) == before and read_results(path) == []


def test_of_two_evaluations_of_a_model_at_once_one_is_set_aside_with_what_it_heard(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    ways = {decoder: row("one", decoder=decoder) for decoder in ("greedy", "beam")}

    def write(decoder: str, meanwhile: Callable[[], object] = lambda: None) -> Path | None:
        def hear(file: Path) -> None:
            file.parent.mkdir(exist_ok=True)
            file.write_text(decoder)
            meanwhile()

        return append_result(path, ways[decoder], {"decoder": decoder}, hear)

    second = threading.Thread(target=write, args=["beam"])

    def begins() -> None:
        second.start()
        second.join(0.3)  # it must wait

    assert write("greedy", begins) is None
    second.join()
    assert read_results(path) == [ways["beam"]]
    assert hypotheses_file(path, ways["beam"]).read_text() == "beam"
    (before,) = read_results(path.with_suffix(".before.json"))
    assert before["decoder"] == "greedy" and (tmp_path / before["hypotheses"]).read_text() == "greedy"


def test_seeds_may_have_test_audio_of_their_own(tmp_path: Path) -> None:
    path, how = tmp_path / "results.json", {"decoder": "greedy", "words": None}
    append_result(path, row(seed=1, **how, test_audio="a"))
    assert set_aside_others(path, None, 2, {**how, "test_audio": "b"}) is None
    append_result(path, row(seed=2, **how, test_audio="b"))
    assert set_aside_others(path, None, 2, {**how, "test_audio": "c"}) is not None
    assert [found["seed"] for found in read_results(path)] == [1]
