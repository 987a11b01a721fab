"""Cuts at quiet places fall into pauses, and others do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import cuts
from kdasr.errors import ConfigError, CorpusError


def test_cuts_are_counted_for_every_length_of_pause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        word = 0.2 * rng.standard_normal(3200 + 400 * number)
        soundfile.write(tmp_path / "recordings" / f"{number}_ann_0.wav", word, 8000)
    rows = cuts.main(["--corpus", str(tmp_path), "--minutes", "1", "--max-seconds", "8"])
    # Of 8 s the last second, in which there is always a pause.
    assert [row[:3] for row in rows] == [((0.02, 0.1), 8, 0), ((0.05, 0.35), 8, 0), ((0.2, 0.8), 8, 0)]
    assert rows[0][3] > 4 and "| 200 to 800 | 8 | 0 % |" in capsys.readouterr().out


def test_audio_that_is_too_short_to_be_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    soundfile.write(tmp_path / "recordings" / "1_ann_0.wav", np.ones(4000) / 2, 8000)
    with pytest.raises(ConfigError, match=r"--minutes: nothing is long enough to be cut; .*got 0\.1"):
        cuts.main(["--corpus", str(tmp_path), "--minutes", "0.1"])


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no recordings"):
        cuts.main(["--corpus", str(tmp_path)])
