"""A wider beam and a lexicon change what is found as they should."""

from __future__ import annotations

from pathlib import Path

from benchmarks import search
from kdasr.models import save_model
from tests.export.small_models import UNITS, conformer
from tests.speech import shards


def test_every_search_is_scored_and_timed(tmp_path: Path) -> None:
    save_model(tmp_path / "student", conformer(), UNITS)
    (tmp_path / "words.txt").write_text("a be see")
    test = shards(tmp_path / "test", 2)
    rows = search.main(
        [
            *("--model", str(tmp_path / "student"), "--test", str(test)),
            *("--lexicon", str(tmp_path / "words.txt"), "--beams", "1", "8"),
        ]
    )
    names = ["greedy", "beam 1", "beam 1, lexicon", "beam 8", "beam 8, lexicon"]
    assert [row[0] for row in rows] == names
    assert all(wer > 0 and cer > 0 and ms > 0 for _, wer, cer, ms in rows)
    assert len({round(row[2], 3) for row in rows}) > 1
