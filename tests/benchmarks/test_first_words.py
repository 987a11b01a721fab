"""First words are told from the others, and early units from late ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import first_words
from kdasr.decoding import Token
from kdasr.evaluation import Heard
from kdasr.models import save_model
from tests.export.small_models import UNITS, conformer
from tests.speech import shards


def heard(reference: str, hypothesis: str, frame: int) -> Heard:
    return Heard("key", reference, hypothesis, [Token(3, frame, 0.0)] if hypothesis else [])


def test_first_words_are_told_from_the_others() -> None:
    row = first_words._row(
        "model",
        [
            heard("one two", "one two", 7),
            heard("one two", "won two", 0),
            heard("one two three", "one too tree free", 9),  # two wrong, and one that was not said
            heard("one two", "a one two", 1),
            heard("one two", "", 0),
            heard("", "a", 0),
        ],
        50.0,
    )
    assert row == ("model", 5, 2, 4.0, 3, 4, 6, 50.0)


def test_a_model_that_says_a_unit_in_every_frame_says_it_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = conformer()
    for name, unit in (("silent", 0), ("talkative", UNITS.encode("q")[0])):
        with torch.no_grad():
            model.head.bias.zero_()
            model.head.bias[unit] = 50.0
        save_model(tmp_path / name, model, UNITS)
    test = shards(tmp_path / "test", 3)
    models = [str(tmp_path / name) for name in ("silent", "talkative")]
    silent, talkative = first_words.main(["--models", *models, "--test", str(test)])
    assert (silent.at_once, silent.median_frame, silent.first_wrong) == (0, None, 3)
    assert (talkative.at_once, talkative.median_frame, talkative.first_wrong) == (3, 0, 3)
    assert f"| {models[1]} | 3 of 3 | 0 | 100.0 % |" in capsys.readouterr().out


def test_lateness_is_of_what_all_models_hear_right(capsys: pytest.CaptureFixture[str]) -> None:
    def said(hypothesis: str, *frames: int) -> Heard:
        return Heard("key", "a word", hypothesis, [Token(3, frame, 0.0) for frame in frames])

    early = [said("a word", 0, 4, 5, 6, 7, 9), said("a word", 1, 4, 5, 6, 7, 9), said("a word", 0, 1, 2, 3)]
    late = [said("a word", 3, 4, 5, 7, 9, 9), said("a work", 9, 9, 9, 9, 9, 9), said("a word", 8, 9, 9, 9)]
    times = [first_words._spoken_ms(heard, 40.0) for heard in (early, late)]
    first_words._print_lateness(["early", "late"], times)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(
        "| 1 utterances that all models get right: later than early | first | fifth | last |"
    )
    assert lines[3:] == ["| early | +0 ms | +0 ms | +0 ms |", "| late | +120 ms | +80 ms | +0 ms |"]
