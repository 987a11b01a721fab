"""The list of utterances of a large corpus, of a small one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import stream_scale


def test_a_corpus_is_made_up_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stream_scale, "PER_SHARD", 20)
    stream_scale.write_corpus(tmp_path / "corpus", 60 * stream_scale.MEAN_SECONDS / 3600)
    stream_scale.run(tmp_path / "corpus")
    out = capsys.readouterr().out
    assert "60 utterances" in out and "60 reads of labels in random order" in out
    lines = {line[:44].strip(): line for line in out.splitlines()}
    figures = re.findall(r"([\d.]+) s +([-+]\d+) MiB", lines["a stream of soft-labelled audio"])
    assert len(figures) == 1 and 0 <= float(figures[0][0]) < 60
    (of_its_own,) = re.findall(r"([-+]\d+) MiB", lines["a worker, of the soft-labelled audio"])
    assert abs(int(of_its_own)) < 200
