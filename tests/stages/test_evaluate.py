"""The stage that evaluates: what each test set is measured with, and what is left of an earlier time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdasr import scoreboard, stages
from kdasr.shards import list_shards
from kdasr.spikes import SPIKES_FILE
from tests.speech import shards


def test_every_test_set_is_measured_as_the_recipe_says_and_the_first_has_the_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []

    class Board:
        def __init__(self, tars: list[Path], results: Path, **settings: Any) -> None:
            self.test = settings["test"]
            told.append((tars, results, settings))

        def add(self, name: str, **settings: Any) -> dict[str, Any]:
            told.append((self.test, name, settings))
            return {"missing": "too large"} if name == "b" else {"wer": 12.5, "without_transcript": 2}

        def compare_spikes(self, *names: str) -> None:
            told.append((self.test, "spikes", names))

        def write_example(self) -> None:
            told.append((self.test, "example"))

    monkeypatch.setattr(scoreboard, "Scoreboard", Board)
    monkeypatch.setattr(scoreboard, "check_model_of_row", lambda *_: None)
    sets = {name: list_shards(shards(tmp_path / name, 1, first_seed=seed)) for seed, name in enumerate("xy")}
    results = tmp_path / "results.json"
    how: dict[str, Any] = {"seed": 7, "decoder": "beam", "lexicon": ["words.txt"], "device": "cpu"}
    models = {"a": {"path": "one", "chunk_ms": 320}, "b": {"path": "two"}}
    for spikes in (["a", "b"], None):
        (tmp_path / SPIKES_FILE).write_text("of an earlier evaluation")
        told.clear()
        said = stages.evaluate(
            test={name: [str(tmp_path / name)] for name in sets},
            models=models,
            results=str(results),
            spikes=spikes,
            **how,
        )
        expected: list[Any] = []
        for name, tars in sets.items():
            expected.append((tars, results, {**how, "test": name}))
            expected += [(name, model, settings) for model, settings in models.items()]
            if name == "x":
                expected += [("x", "spikes", ("a", "b"))] if spikes else []
                expected.append(("x", "example"))
        assert told == expected
        assert not (tmp_path / SPIKES_FILE).exists()
    measured, missing = "WER 12.50 %, 2 utterances without transcript skipped", "left out: too large"
    assert said == {"x: a": measured, "x: b": missing, "y: a": measured, "y: b": missing}
    assert f"y: a: {measured}, 0 s\n" in capsys.readouterr().err
