"""What is put before, between and over utterances, and what is counted then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import live
from kdasr.interfaces import Utterance
from kdasr.models import save_model
from tests.export.small_models import UNITS, conformer
from tests.speech import shards


def spoken(key: str, level: float, text: str) -> Utterance:
    """A second of a level, with 0.2 s of a hundredth of it, and as much of nothing, at its end."""
    parts = [np.full(9_600, level), np.full(3_200, level / 100), np.zeros(3_200)]
    return Utterance(key, np.concatenate(parts).astype(np.float32), text)


ONE, TWO, THREE = spoken("a", 0.5, "one"), spoken("b", 0.1, "two"), spoken("c", 0.2, "three")


def test_what_comes_before_is_each_one_s_own() -> None:
    led = live.before([ONE, TWO], 0.5)
    for one, own in zip(led, (ONE, TWO), strict=True):
        assert np.array_equal(one.samples[8_000:], own.samples) and one.text == own.text
    levels = [float(np.sqrt(np.square(one.samples[:8_000]).mean())) for one in led]
    assert levels == [pytest.approx(0.005, rel=0.1), pytest.approx(0.001, rel=0.1)]
    silent = live.before([ONE], 0.25, zeros=True)[0].samples
    assert not silent[:4_000].any() and np.array_equal(silent[4_000:], ONE.samples)


def test_streams_are_of_ten_and_levels_of_decibels() -> None:
    streams = live.joined([ONE, TWO, THREE] * 4, 0.2)
    assert [len(one.samples) for one in streams] == [10 * 19_200, 2 * 19_200]
    assert streams[1].text == "two three"
    np.testing.assert_allclose(live.louder([ONE], -20.0)[0].samples, 0.1 * ONE.samples, rtol=1e-6)


def test_words_in_noise_are_counted_by_kind_and_minute() -> None:
    """One that takes whatever is loud at its beginning for two words."""
    found = live.words_in_noise(lambda samples: "so it" if abs(samples[:160]).max() > 0.001 else "")
    assert found["white"] == pytest.approx(12.0) and found.keys() == live.NOISE_KINDS.keys()
    assert 0 <= found["crackle"] < 12


@pytest.mark.slow
def test_a_silent_model_misses_every_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = conformer()
    with torch.no_grad():
        model.head.bias.zero_()
        model.head.bias[0] = 50.0
    save_model(tmp_path / "silent", model, UNITS)
    test = shards(tmp_path / "test", 3)
    (row,) = live.main(["--models", str(tmp_path / "silent"), "--test", str(test), "--utterances", "2"])
    assert set(row["wer"].values()) == {100.0} and len(row["wer"]) == 9
    assert set(row["words_a_minute_of_noise"].values()) == {0.0}
    assert "| as cut | 0.1 s before |" in capsys.readouterr().out
