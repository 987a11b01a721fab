"""A wider beam and a lexicon change what is found as they should."""

from __future__ import annotations

from pathlib import Path

from benchmarks import search
from export.publish import export_student
from tests.export.small_models import UNITS, conformer
from tests.speech import shards


def test_every_search_is_scored_and_timed(tmp_path: Path) -> None:
    export_student(conformer(), UNITS, tmp_path / "onnx", int8=False)
    (tmp_path / "words.txt").write_text("a be see")
    test = shards(tmp_path / "test", 2)
    rows = search.main(
        [
            *("--model", str(tmp_path / "onnx"), "--test", str(test), "--sherpa"),
            *("--lexicon", str(tmp_path / "words.txt"), "--beams", "1", "8"),
        ]
    )
    names = ["greedy", "beam 1", "beam 1, lexicon", "beam 8", "beam 8, lexicon"]
    assert [row[0] for row in rows] == [*names, "sherpa-onnx", "sherpa-onnx, lexicon"]
    assert rows[-1][1] < rows[-2][1], "words of the list, not words that nobody spells so"
    assert all(wer > 0 and cer > 0 and ms > 0 for _, wer, cer, ms in rows)
    assert len({round(row[2], 3) for row in rows}) > 1
