"""How a teacher's log-probs are read: with one that is sure, and one that is not sure when."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import words as benchmark
from kdasr.labelling import Words
from kdasr.lexicon import Lexicon
from kdasr.models import save_model
from kdasr.text import TableUnits
from tests.export.small_models import UNITS, conformer
from tests.speech import shards

LETTERS = TableUnits(["<blk>", "▁", "a", "b"])


def test_a_letter_that_is_in_no_frame_is_in_the_sentence_and_the_labels() -> None:
    unsure_tv = torch.full((12, 4), 1e-6)
    unsure_tv[:, 2] = 0.12
    unsure_tv[:, 0] = 1 - unsure_tv[:, 1:].sum(1)
    read = benchmark.read_ways(unsure_tv.log(), Words(Lexicon(units=LETTERS, words=["a"])))
    assert read == {"teacher": [], "sentence": [2], "frames given the sentence": [], "labels": [2]}


def test_what_has_no_sentence_is_read_in_no_way() -> None:
    sure_tv = torch.tensor([[0.01, 0.01, 0.97, 0.01]] * 2).log()
    assert benchmark.read_ways(sure_tv, Words(Lexicon(units=LETTERS, words=["abab"]), beam=1)) is None


def test_a_teacher_that_hears_nothing_misses_every_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = conformer()
    with torch.no_grad():
        model.head.bias.zero_()
        model.head.bias[0] = 50.0
    save_model(tmp_path / "teacher", model, UNITS)
    audio = str(shards(tmp_path / "test", 3))
    options = [
        "--teacher",
        str(tmp_path / "teacher"),
        "--audio",
        audio,
        "--words",
        audio,
        "--utterances",
        "2",
    ]
    cut, together = benchmark.main(options)
    for row in (cut, together):
        assert row["without"] == 0 and set(row["wer"].values()) == {100.0}
    assert "| ten in a row | 100.0 | 100.0 | 100.0 | 100.0 | 0 of 1 |" in capsys.readouterr().out
